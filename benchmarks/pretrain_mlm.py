"""Compare masked pretraining with the head at masked tokens alone and at all.

    python benchmarks/pretrain_mlm.py [--architecture recipes/architectures/bert-1m.json]
                                      [--vocab_size 30522]

Both sides have the same weights, blocks, masks and optimizer, and take one step each in turn on one
thread, so that a busy machine slows both alike. A step is forward, backward and update, measured in
CPU seconds; the losses of both are printed, and are equal.
"""

import argparse
import copy
import statistics
import time
from typing import Any

import torch
from result_file import markdown_table, save
from transformers import AutoConfig, AutoModelForMaskedLM, set_seed

from hfstack.tasks.masked_lm.model import score_only_masked
from hfstack.tokens.special_tokens import IGNORED_LABEL

WARM_UP_STEPS = 2


def compare_heads() -> None:
    """Run both sides in fp32 and bf16, and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--architecture", default="recipes/architectures/bert-1m.json")
    parser.add_argument("--vocab_size", type=int, default=4096)
    parser.add_argument("--block_size", type=int, default=128, help="tokens")
    parser.add_argument("--batch_size", type=int, default=16, help="blocks per step")
    parser.add_argument("--steps", type=int, default=8, help="steps counted of each side")
    arguments = parser.parse_args()

    torch.set_num_threads(1)
    figures = {}
    for name, bf16 in {"fp32": False, "bf16": True}.items():
        seconds, losses = measure(arguments, bf16=bf16)
        figures[name] = {"cpu_s": seconds, "losses": losses}
    print(write_table(figures))
    save("pretrain_mlm", vars(arguments), figures)


def write_table(figures: dict[str, dict[str, Any]]) -> str:
    """Return a row for each precision: stock and ours, and their last losses."""
    rows = []
    for name, one in figures.items():
        stock, ours = (statistics.median(side) for side in one["cpu_s"])
        losses = ", ".join(f"{loss:.4f}" for loss in one["losses"])
        rows.append([name, f"{stock:.3f}", f"{ours:.3f}", f"{stock / ours:.2f}x", losses])
    heads = ["precision", "stock, CPU s/step", "head at masked tokens, CPU s/step", "ratio"]
    return markdown_table([*heads, "losses"], rows)


def measure(arguments: argparse.Namespace, *, bf16: bool) -> tuple[list[list[float]], list[float]]:
    """Return the CPU seconds of each step of both sides, and the last loss of each."""
    set_seed(0)
    config = AutoConfig.from_pretrained(arguments.architecture, trust_remote_code=False)
    config.vocab_size, config.pad_token_id = arguments.vocab_size, 0
    stock = AutoModelForMaskedLM.from_config(config, trust_remote_code=False).train()
    models = [stock, copy.deepcopy(stock)]
    assert score_only_masked(models[1]), "this architecture has no head that can be run apart"

    optimizers = [torch.optim.AdamW(model.parameters(), lr=1e-3) for model in models]
    seconds: list[list[float]] = [[], []]
    losses = [0.0, 0.0]

    for step in range(arguments.steps + WARM_UP_STEPS):
        batch = random_batch(arguments)
        for side, (model, optimizer) in enumerate(zip(models, optimizers, strict=True)):
            began = time.process_time()
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
                loss = model(**batch).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

            if step >= WARM_UP_STEPS:
                seconds[side].append(time.process_time() - began)
            losses[side] = loss.item()

    return seconds, losses


def random_batch(arguments: argparse.Namespace) -> dict[str, torch.Tensor]:
    """Return random tokens, (B, T), of which 15 % are to be predicted."""
    tokens = torch.randint(5, arguments.vocab_size, (arguments.batch_size, arguments.block_size))
    scored = torch.rand(tokens.shape) < 0.15
    return {
        "input_ids": torch.where(scored, 4, tokens),
        "labels": torch.where(scored, tokens, IGNORED_LABEL),
    }


if __name__ == "__main__":
    compare_heads()
