"""Compare `plan` with peak memory and speed on GPUs that others have published.

    OMP_NUM_THREADS=1 python benchmarks/plan_public.py    # some CPU minutes, no GPU
    python benchmarks/plan_public.py --table FILE.json    # the tables of docs/recipes/plan.md

Models are built from their published shapes, on tensors without data; nothing is downloaded. Each
row has what its authors state. Where they measured with nvidia-smi or do not say how, the published
figure is held against the planned peak with the CUDA context; where they say that it is torch's
own, without it.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from result_file import save
from transformers import LlamaConfig, PreTrainedConfig, Qwen2Config

from hfstack.models.counting import datasheet_tflops
from hfstack.planning.memory import TrainingStep, forward_flops, peak_memory
from hfstack.planning.plan import CUDA_CONTEXT, DeviceArgs

GIB = 2**30
GB = 1e9
SOURCES = {
    "qwen": "https://github.com/QwenLM/Qwen/blob/03cd81f5e4da6ab60fc8f97f3b8aa1206fdb08a9/README.md",
    "torchtune": "https://github.com/pytorch/torchtune/blob/"
    "0031bfb080bd35ec533c412df883cf2bf7bf7fe4/README.md",
    "peft": "https://github.com/huggingface/peft/tree/0a179c1e8659ab4f7df0369b9b03943cfe470ff1/"
    "method_comparison/MetaMathQA/results",
}
"""Where each figure stands, at the commit that was read."""


@dataclass(frozen=True)
class Row:
    """One published figure, and the step that it is of."""

    name: str
    source: str
    config: PreTrainedConfig
    step: TrainingStep
    published_gib: float
    """What the authors give as GB is taken as 10^9 bytes."""
    context: bool
    """Whether the figure holds the CUDA context, as nvidia-smi's does."""
    device: str | None = None
    tokens_per_s: float | None = None
    """Published, where the authors give the time of a step of so many tokens."""


def qwen(hidden: int, layers: int, heads: int, inner: int, vocabulary: int) -> PreTrainedConfig:
    """Return a model of Qwen's first series: as many key heads, no tied head."""
    return Qwen2Config(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=8192,
        tie_word_embeddings=False,
    )


def llama(hidden: int, layers: int, heads: int, inner: int, *, tied: bool) -> PreTrainedConfig:
    """Return a model of Llama 3's shape, with 8 key heads and its vocabulary."""
    return LlamaConfig(
        vocab_size=128256,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=8,
        max_position_embeddings=131072,
        tie_word_embeddings=tied,
    )


# LoRA of rank 64 on all linear layers, batch 1, 8 accumulated, recomputed activations, bf16 (the
# table of the README and finetune/finetune_lora_single_gpu.sh): GB and seconds an optimizer step.
_LENGTHS = (256, 512, 1024, 2048, 4096, 8192)
_QWEN_LORA = {
    "Qwen-1.8B": (
        qwen(2048, 24, 16, 5504, 151936),
        (6.7, 7.4, 8.4, 11.0, 16.2, 21.8),
        (1.0, 1.0, 1.1, 1.7, 3.3, 6.8),
    ),
    "Qwen-7B": (
        qwen(4096, 32, 32, 11008, 151936),
        (20.1, 20.4, 21.5, 23.8, 29.7, 36.6),
        (1.2, 1.5, 2.8, 5.2, 10.1, 21.3),
    ),
    "Qwen-14B": (
        qwen(5120, 40, 40, 13696, 152064),
        (34.6, 35.1, 35.3, 37.4, 42.5, 55.2),
        (1.6, 2.4, 4.4, 8.4, 17.0, 36.0),
    ),
}


def rows() -> Iterator[Row]:
    """Yield every published figure."""
    bf16: dict[str, Any] = {"bf16": True, "weight_dtype": torch.bfloat16}
    for model, (config, sizes, seconds) in _QWEN_LORA.items():
        for length, size, taken in zip(_LENGTHS, sizes, seconds, strict=True):
            step = TrainingStep(
                1, length, accumulation=8, activation_checkpointing=True, lora_rank=64, **bf16
            )
            bound_by_host = length < (4096 if model == "Qwen-1.8B" else 2048)
            speed = None if bound_by_host else 8 * length / taken
            name = f"{model}, LoRA 64, 1 x {length}"
            yield Row(
                name, "qwen", config, step, size * GB / GIB, True, "NVIDIA A100-SXM4-80GB", speed
            )

    # batch 2, packed to 2,048, compiled, loss in chunks, rank 8 (recipes/configs/llama3_1)
    large = llama(4096, 32, 32, 14336, tied=False)
    targets = ("q_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    tune: dict[str, Any] = {"fused_loss": True, "lora_rank": 8, "lora_targets": targets}
    name = "Llama-3.1-8B, LoRA 8, 2 x 2048"
    recomputed = TrainingStep(2, 2048, activation_checkpointing=True, **tune, **bf16)
    yield Row(f"{name}, recomputed", "torchtune", large, recomputed, 16.2, False)

    # AdamW, bf16 weights without autocast, no recomputation, batch 4 of at most 768: reserved, on
    # an L40S. The adapter of the LoRA rows is in fp32.
    small = llama(3072, 28, 24, 8192, tied=True)
    plain: dict[str, Any] = {"weight_dtype": torch.bfloat16}
    every = TrainingStep(4, 768, **plain)
    name = "Llama-3.2-3B, all weights, 4 x 768"
    yield Row(name, "peft", small, every, 37241225216 / GIB, False)
    adapter = TrainingStep(4, 768, lora_rank=32, lora_targets=("q_proj", "v_proj"), **plain)
    yield Row("Llama-3.2-3B, LoRA 32, 4 x 768", "peft", small, adapter, 22273851392 / GIB, False)


def step_flops(row: Row) -> float:
    """Return the FLOPs of a micro-batch: forward, recomputed, and backward."""
    times = 2 if row.step.lora_rank else 3
    times += row.step.activation_checkpointing
    return times * forward_flops(row.config, row.step)


def compare(row: Row) -> dict[str, Any]:
    """Return the planned figures beside the published ones."""
    memory = peak_memory(row.config, row.step)
    context = CUDA_CONTEXT if row.context else 0
    planned = (memory.total + memory.rounding + context) / GIB

    found: dict[str, Any] = {
        "name": row.name,
        "source": row.source,
        "tensors_gib": round(memory.total / GIB, 2),
        "rounding_gib": round(memory.rounding / GIB, 2),
        "context_gib": round(context / GIB, 2),
        "planned_gib": round(planned, 1),
        "published_gib": round(row.published_gib, 1),
        "error": round(planned / row.published_gib - 1, 3),
    }

    if row.device is not None and row.tokens_per_s is not None:
        peak = datasheet_tflops(row.device, "bfloat16")
        assert peak is not None
        tokens = row.step.batch_size * row.step.sequence_length
        per_token = step_flops(row) / tokens
        # the default of `plan`
        planned_speed = DeviceArgs.utilization * peak * 1e12 / per_token
        found |= {
            "device": row.device,
            "planned_tokens_per_s": round(planned_speed),
            "published_tokens_per_s": round(row.tokens_per_s),
            "speed_error": round(planned_speed / row.tokens_per_s - 1, 3),
            "utilization": round(row.tokens_per_s * per_token / (peak * 1e12), 2),
        }
    return found


def write_tables(found: list[dict[str, Any]]) -> str:
    """Return the two tables of the docs."""
    heads = "published step | in tensors, GiB | rounding | context | planned | published | error"
    lines = [f"| {heads} |", "|---|---|---|---|---|---|---|"]
    for one in found:
        cells = [f"{one[f'{kind}_gib']:.2f}" for kind in ("tensors", "rounding", "context")]
        cells += [f"{one['planned_gib']:.1f}", f"{one['published_gib']:.1f}"]
        name = f"[{one['name']}][{one['source']}]"
        lines.append(f"| {name} | {' | '.join(cells)} | {one['error']:+.1%} |")

    heads = "step | device | tokens/s, planned | published | error | share of the peak reached"
    lines += ["", f"| {heads} |", "|---|---|---|---|---|---|"]
    for one in found:
        if "device" in one:
            speeds = f"{one['planned_tokens_per_s']:,} | {one['published_tokens_per_s']:,}"
            cells = f"{speeds} | {one['speed_error']:+.1%} | {one['utilization']:.2f}"
            lines.append(f"| {one['name']} | {one['device']} | {cells} |")
    return "\n".join([*lines, "", *(f"[{key}]: {url}" for key, url in SOURCES.items())]) + "\n"


def main() -> None:
    """Compare all rows, and print and save them; or print the tables of a saved run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="*", default=[""], help="parts of rows' names")
    parser.add_argument("--table", type=Path, help="of a run that was saved")
    arguments = parser.parse_args()
    if arguments.table:
        sys.stdout.write(write_tables(json.loads(arguments.table.read_text())["figures"]))
        return

    found = []
    for row in rows():
        if any(part in row.name for part in arguments.only):
            found.append(compare(row))
            print(json.dumps(found[-1]), flush=True)
    errors = [abs(one["error"]) for one in found]
    print(f"{len(errors)} rows, median |error| {statistics.median(errors):.1%}, {max(errors):.1%}")
    save("plan_public", vars(arguments), found)


if __name__ == "__main__":
    main()
