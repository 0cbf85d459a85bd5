"""Compare the peak memory that `plan` predicts with that of real training steps.

Each step is measured in a fresh process.

    OMP_NUM_THREADS=1 python benchmarks/plan.py    # minutes; the table of docs/recipes/plan.md
    python benchmarks/plan.py --device cuda --only 125m lstm

The resident set of a CPU process is measured twice: with glibc as it is, against what tensors hold
x `CPU_RESIDENT_FACTOR`, and with blocks of 1 MB and more given back to the system as soon as they
are free (MALLOC_MMAP_THRESHOLD_), so that little but what tensors hold is left.
"""

import argparse
import os
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from result_file import markdown_table, save
from transformers import AutoConfig, BertConfig, PreTrainedConfig

import hfstack.models.gru  # noqa: F401 - registers the recurrent architectures
from hfstack.planning.measure import measure_step
from hfstack.planning.memory import TrainingStep, peak_memory
from hfstack.planning.plan import CPU_RESIDENT_FACTOR

ARCHITECTURES = Path(__file__).parents[1] / "recipes" / "architectures"
MIB = 2**20


def shipped(name: str) -> PreTrainedConfig:
    """Return the configuration of a shipped architecture."""
    return AutoConfig.from_pretrained(ARCHITECTURES / f"{name}.json", trust_remote_code=False)


def causal_cases() -> Iterator[tuple[str, PreTrainedConfig, TrainingStep]]:
    """Yield name, model and step of each row with a Llama."""
    # a small language model: precision, loss, checkpointing, accumulation, adapter
    llama = shipped("llama-15m")
    yield "llama-15m, fp32, 16 x 512", llama, TrainingStep(16, 512, fused_loss=True)
    yield "llama-15m, bf16, 16 x 512", llama, TrainingStep(16, 512, bf16=True, fused_loss=True)
    yield "llama-15m, bf16, stock loss", llama, TrainingStep(16, 512, bf16=True)
    checkpointed = TrainingStep(32, 512, bf16=True, fused_loss=True, activation_checkpointing=True)
    yield "llama-15m, bf16, 32 x 512, checkpointing", llama, checkpointed
    yield "llama-15m, fp32, 8 x 512, 2 accumulated", llama, TrainingStep(8, 512, accumulation=2)
    yield "llama-15m, bf16, LoRA of rank 16", llama, TrainingStep(16, 512, bf16=True, lora_rank=16)

    # a larger one, whose weights outweigh its activations
    large = shipped("llama-125m")
    yield "llama-125m, bf16, 2 x 256", large, TrainingStep(2, 256, bf16=True)
    yield "llama-125m, fp32, forward, 8 x 512", large, TrainingStep(8, 512, trains=False)
    accumulated = TrainingStep(1, 256, bf16=True, accumulation=2)
    yield "llama-125m, bf16, 1 x 256, 2 accumulated", large, accumulated
    adapter = TrainingStep(4, 256, bf16=True, lora_rank=16)
    yield "llama-125m, bf16, 4 x 256, LoRA of rank 16", large, adapter


def other_cases() -> Iterator[tuple[str, PreTrainedConfig, TrainingStep]]:
    """Yield name, model and step of each row with another architecture or task."""
    yield "gpt2-125m, fp32, 1 x 256", shipped("gpt2-125m"), TrainingStep(1, 256)
    masked = TrainingStep(4, 128, task="masked_lm")
    yield "bert-110m, fp32, 4 x 128, masked words", shipped("bert-110m"), masked
    yield "gpt2-15m, fp32, 16 x 256", shipped("gpt2-15m"), TrainingStep(16, 256)
    recurrent = TrainingStep(128, 256, bf16=True, fused_loss=True)
    yield "lstm-5m, bf16, 128 x 256", shipped("lstm-5m"), recurrent
    yield "gru-5m, fp32, 64 x 256", shipped("gru-5m"), TrainingStep(64, 256, fused_loss=True)

    bert = BertConfig(
        hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536
    )
    classified = TrainingStep(64, 128, task="sequence_classification", bf16=True)
    yield "BERT of 23M, classifier, bf16, 64 x 128", bert, classified

    # the same again in other sizes
    yield "llama-5m, fp32, 64 x 256", shipped("llama-5m"), TrainingStep(64, 256, fused_loss=True)
    yield "llama-125m, fp32, 1 x 512", shipped("llama-125m"), TrainingStep(1, 512)
    yield "gpt2-15m, bf16, 16 x 512", shipped("gpt2-15m"), TrainingStep(16, 512, bf16=True)
    tagged = TrainingStep(32, 256, task="token_classification", accumulation=2)
    yield "bert-15m, fp32, tags, 32 x 256, 2 accumulated", shipped("bert-15m"), tagged
    translated = TrainingStep(64, 128, task="seq2seq", bf16=True)
    yield "t5-5m, bf16, 64 x 128", shipped("t5-5m"), translated
    yield "gru-5m, bf16, 128 x 256", shipped("gru-5m"), recurrent


def measure_cases() -> None:
    """Measure each case, and print and save a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", nargs="*", default=[""], help="parts of cases' names")
    options = parser.parse_args()

    # The environment of the child, and how many times its tensors it should hold.
    settings: dict[str, tuple[dict[str, str], float]] = {
        "": ({}, CPU_RESIDENT_FACTOR if options.device == "cpu" else 1.0)
    }
    if options.device == "cpu":
        settings["given back: "] = ({"MALLOC_MMAP_THRESHOLD_": "1000000"}, 1.0)

    figures: dict[str, Any] = {"kinds": list(settings), "steps": {}}
    for name, config, step in chain(causal_cases(), other_cases()):
        if not any(part in name for part in options.only):
            continue
        tensors = peak_memory(config, step).total
        found = figures["steps"][name] = {"tensors": tensors, "predicted": [], "measured": []}
        for environment, factor in settings.values():
            found["predicted"].append(factor * tensors)
            found["measured"].append(_measured_peak(config, step, options.device, environment))

    print(write_table(figures))
    save("plan", vars(options), figures)


def write_table(figures: dict[str, Any]) -> str:
    """Return a row for each step; bytes as MiB."""
    heads = ["step", "in tensors, MiB"]
    for kind in figures["kinds"]:
        heads += [f"{kind}predicted", f"{kind}measured", f"{kind}ratio"]

    rows = []
    for name, one in figures["steps"].items():
        cells = [name, f"{one['tensors'] / MIB:,.0f}"]
        for predicted, measured in zip(one["predicted"], one["measured"], strict=True):
            cells += [f"{predicted / MIB:,.0f}", f"{measured / MIB:,.0f}"]
            cells.append(f"{predicted / measured:.2f}")
        rows.append(cells)
    return markdown_table(heads, rows)


def _measured_peak(
    config: PreTrainedConfig, step: TrainingStep, device: str, environment: dict[str, str]
) -> int:
    """Return the peak bytes of real steps in a process with this environment."""
    for variable in ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"):
        os.environ.pop(variable, None)
    os.environ.update(environment)

    measured = measure_step(config, step, device=device).peak_bytes
    if measured is None:
        raise SystemExit("the resident set is read from /proc, which this system does not have")
    return measured


if __name__ == "__main__":
    measure_cases()
