"""Measure training and generation with different threads, on a busy machine too.

    python benchmarks/threads.py [--busy 0 1] [--rounds 5] [--architecture llama-1m]

Each side is a process that stays: it takes its turn, a few training steps and 32 answers of 60
tokens, and sleeps meanwhile. Wall seconds, medians of the rounds, and CPU seconds in brackets.
`--busy N` starts N processes beside them that multiply matrices in one thread each.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, Any, cast

from result_file import markdown_table, save

# what `hfstack run` chooses on a busy machine, and what else there is
SIDES: dict[str, dict[str, str]] = {
    "all cores": {},
    "all cores, short spin": {"GOMP_SPINCOUNT": "1000", "KMP_BLOCKTIME": "0"},
    "all cores, no spin": {"OMP_WAIT_POLICY": "PASSIVE"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}
_BUSY = """
import torch
torch.set_num_threads(1)
matrix = torch.ones(256, 256)
while True:
    matrix @ matrix
"""


def work(architecture: str) -> None:
    """Answer each line of stdin with the seconds of one turn."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = Path(__file__).parents[1] / "recipes" / "architectures"
    config = AutoConfig.from_pretrained(folder / f"{architecture}.json", trust_remote_code=False)
    model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(4, config.vocab_size, (8, 256), generator=generator)  # (B, T)

    def train() -> None:
        for _ in range(5):
            model(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    def generate() -> None:
        prompts = ids.repeat(4, 1)[:, :16]
        mask = torch.ones_like(prompts)
        model.generate(
            prompts, attention_mask=mask, min_new_tokens=60, max_new_tokens=60, pad_token_id=0
        )

    train()
    generate()
    print("ready", flush=True)
    for _ in sys.stdin:
        found = {}
        for name, task in (("train", train), ("generate", generate)):
            began, began_cpu = time.perf_counter(), time.process_time()
            task()
            found[name] = time.perf_counter() - began, time.process_time() - began_cpu
        print(json.dumps(found), flush=True)


def main() -> None:
    """Measure all sides in turn, and print and save the medians."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--busy", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--architecture", default="llama-1m")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        work(arguments.architecture)
        return

    own = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    command = [sys.executable, __file__, "--work", "--architecture", arguments.architecture]
    sides: dict[str, subprocess.Popen[str]] = {}
    for name, settings in SIDES.items():
        sides[name] = subprocess.Popen(
            command,
            env=own | settings,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        cast(IO[str], sides[name].stdout).readline()

    figures: dict[str, Any] = {}
    for busy in arguments.busy:
        others = [subprocess.Popen([sys.executable, "-c", _BUSY]) for _ in range(busy)]
        time.sleep(5 if busy else 0)  # until they have imported torch
        turns: dict[str, list[dict[str, list[float]]]] = {name: [] for name in sides}
        for _ in range(arguments.rounds):
            for name, side in sides.items():
                cast(IO[str], side.stdin).write("go\n")
                cast(IO[str], side.stdin).flush()
                turns[name].append(json.loads(cast(IO[str], side.stdout).readline()))
        for other in others:
            other.kill()

        figures[f"busy {busy}"] = turns

    for side in sides.values():
        cast(IO[str], side.stdin).close()
        side.wait()
    print(write_table(figures))
    save("threads", vars(arguments), figures)


def write_table(figures: dict[str, Any]) -> str:
    """Return a row for each load and side: medians of seconds, and of CPU seconds in brackets."""
    rows = []
    for load, sides in figures.items():
        for name, found in sides.items():
            cells = [load, name]
            for task in ("train", "generate"):
                wall, cpu = (statistics.median(turn[task][i] for turn in found) for i in (0, 1))
                cells.append(f"{wall:.2f} ({cpu:.2f})")
            rows.append(cells)
    return markdown_table(["processes beside it", "side", "train, s", "generate, s"], rows)


if __name__ == "__main__":
    main()
