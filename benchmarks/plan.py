"""Compare the peak memory that `plan` predicts with that of real steps, a fresh process for each.

    OMP_NUM_THREADS=1 python benchmarks/plan.py            # minutes; prints the table of docs/recipes/plan.md
    python benchmarks/plan.py --device cuda --only 125m

The resident set of a CPU process is measured twice: with glibc as it is, and with blocks of 1 MB and more given back to
the system as soon as they are free (MALLOC_MMAP_THRESHOLD_), so that only what tensors hold is left.
"""

import argparse
import os
from collections.abc import Iterator
from pathlib import Path

from transformers import AutoConfig, BertConfig, PreTrainedConfig

import hfstack.models.gru  # noqa: F401 - registers the recurrent architectures
from hfstack.models.measuring import measure_step
from hfstack.models.memory import TrainingStep, peak_memory

ARCHITECTURES = Path(__file__).parents[1] / "recipes" / "architectures"
MIB = 2**20


def cases() -> Iterator[tuple[str, PreTrainedConfig, TrainingStep]]:
    """Name, model and step of each row of the table."""

    def shipped(name: str) -> PreTrainedConfig:
        return AutoConfig.from_pretrained(ARCHITECTURES / f"{name}.json")

    llama = shipped("llama-15m")
    yield "llama-15m, fp32, 16 x 512", llama, TrainingStep(16, 512, fused_loss=True)
    yield "llama-15m, bf16, 16 x 512", llama, TrainingStep(16, 512, bf16=True, fused_loss=True)
    yield "llama-15m, bf16, stock loss", llama, TrainingStep(16, 512, bf16=True)
    checkpointed = TrainingStep(32, 512, bf16=True, fused_loss=True, activation_checkpointing=True)
    yield "llama-15m, bf16, 32 x 512, checkpointing", llama, checkpointed
    yield "llama-15m, fp32, 8 x 512, 2 accumulated", llama, TrainingStep(8, 512, accumulation=2)
    yield "llama-15m, bf16, LoRA of rank 16", llama, TrainingStep(16, 512, bf16=True, lora_rank=16)
    yield "llama-125m, bf16, 2 x 256", shipped("llama-125m"), TrainingStep(2, 256, bf16=True)
    yield "llama-125m, fp32, forward, 8 x 512", shipped("llama-125m"), TrainingStep(8, 512, trains=False)
    yield "gpt2-15m, fp32, 16 x 256", shipped("gpt2-15m"), TrainingStep(16, 256)
    yield "lstm-5m, bf16, 64 x 256", shipped("lstm-5m"), TrainingStep(64, 256, bf16=True, fused_loss=True)
    bert = BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)
    yield (
        "BERT of 23M, classifier, bf16, 64 x 128",
        bert,
        TrainingStep(64, 128, task="sequence_classification", bf16=True),
    )


def main() -> None:
    """Print a row for each case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", default="", help="part of a case's name")
    options = parser.parse_args()
    thresholds = ("1000000", None) if options.device == "cpu" else (None,)
    heads = ["predicted", *("measured, blocks given back" if t else "measured" for t in thresholds)]
    print(f"| step | {' MiB | '.join(heads)} MiB | predicted / {heads[1]} |\n|{'---|' * (len(heads) + 2)}")
    for name, config, step in cases():
        if options.only not in name:
            continue
        predicted, measured = peak_memory(config, step).total, []
        for threshold in thresholds:
            os.environ.pop("MALLOC_MMAP_THRESHOLD_", None)
            if threshold is not None:
                os.environ["MALLOC_MMAP_THRESHOLD_"] = threshold  # read by the child when it starts
            peak = measure_step(config, step, device=options.device).peak_bytes
            assert peak is not None, "the resident set is read from /proc, which this system does not have"
            measured.append(peak)
        numbers = " | ".join(f"{number / MIB:,.0f}" for number in (predicted, *measured))
        print(f"| {name} | {numbers} | {predicted / measured[0]:.3f} |", flush=True)


if __name__ == "__main__":
    main()
