"""Compare pretraining with a stock Trainer script: CPU seconds a step and losses.

    python benchmarks/pretrain.py --data FILE.jsonl.gz --tokenizer FOLDER [--steps 40] [--repeats 3]
    python benchmarks/pretrain.py --data ... --tokenizer ... --loss_steps 300  # the losses as well

The stock side is what a user writes from the documentation: `datasets.map` tokenises, `group_texts`
splits blocks, and `Trainer` with `default_data_collator` trains. Ours is what the recipe does:
packed blocks, the fused loss, and optionally torch.compile. Both start from the same weights, see
the same number of tokens per step, and run on one thread, in turn, each in a process of its own.
Steps that warm up or compile are not counted; what compilation costs is printed beside.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SIDES = {
    "stock fp32": {"bf16": False},
    "stock bf16": {"bf16": True},
    "ours fp32": {"bf16": False, "ours": True},
    "ours bf16": {"bf16": True, "ours": True},
    "ours bf16 + compile": {"bf16": True, "ours": True, "compiled": True},
}
WARM_UP_STEPS = 3


def compare_sides() -> None:
    """Run every side in turn and print the table."""
    arguments = parse_arguments()
    if arguments.worker:
        print(json.dumps(run_side(arguments, **SIDES[arguments.worker])))
        return

    # In turn, so that a busy machine slows all sides alike.
    seconds: dict[str, list[float]] = {side: [] for side in arguments.sides}
    repeats: dict[str, list[float]] = {side: [] for side in arguments.sides}  # their medians
    warm_up: dict[str, float] = {}

    for turn in range(arguments.repeats * len(arguments.sides)):
        side: str = arguments.sides[turn % len(arguments.sides)]
        found = start_worker(side, steps=arguments.steps, evaluate=False)
        seconds[side] += found["step_seconds"]
        repeats[side].append(statistics.median(found["step_seconds"]))
        warm_up[side] = found["warm_up_seconds"]

    losses = {}
    if arguments.loss_steps:
        for side in seconds:
            trained = start_worker(side, steps=arguments.loss_steps, evaluate=True)
            losses[side] = trained["eval_loss"]

    tokens = arguments.block_size * arguments.batch_size
    print(
        f"{arguments.architecture.stem}, {tokens} tokens a step, one thread, {arguments.repeats} "
        "repeats in turn"
    )

    print(
        f"{'side':22} CPU s/step  of repeats      tokens/CPU s  warm-up s  held-out loss  "
        "of stock fp32, bf16"
    )
    medians = {side: statistics.median(values) for side, values in seconds.items()}
    baselines = [medians[side] for side in ("stock fp32", "stock bf16") if side in medians]

    for side, median in medians.items():
        ratios = ", ".join(f"{baseline / median:.2f}x" for baseline in baselines)
        loss = f"{losses[side]:.4f}" if losses else "-"
        rate = tokens / median
        spread = f"{min(repeats[side]):.3f} to {max(repeats[side]):.3f}"
        print(
            f"{side:22} {median:10.3f}  {spread:14} {rate:13.0f} {warm_up[side]:10.1f} "
            f"{loss:>14}   {ratios}"
        )


def parse_arguments() -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="jsonl (.gz) with a column text")
    parser.add_argument("--tokenizer", required=True, help="folder of the tokenizer")
    parser.add_argument(
        "--architecture", type=Path, default=Path("recipes/architectures/llama-5m.json")
    )

    parser.add_argument("--block_size", type=int, default=256, help="tokens")
    parser.add_argument("--batch_size", type=int, default=8, help="blocks per step")
    parser.add_argument("--steps", type=int, default=25, help="steps counted in each repeat")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--loss_steps", type=int, default=0, help="also train each side this long, compare losses"
    )

    parser.add_argument("--sides", nargs="+", default=list(SIDES), choices=SIDES)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parser.parse_args()


def start_worker(side: str, *, steps: int, evaluate: bool) -> dict[str, Any]:
    """Run one side in a fresh process on one thread."""
    argv = [sys.executable, __file__, *sys.argv[1:], "--worker", side, "--steps", str(steps)]
    argv += ["--loss_steps", str(int(evaluate))]  # the last of repeated options counts
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def run_side(
    arguments: argparse.Namespace, *, bf16: bool, ours: bool = False, compiled: bool = False
) -> dict[str, Any]:
    """Train one side and return its CPU seconds per step.

    With --loss_steps also its held-out loss.
    """
    # Here, so that the parent process needs none of it.
    import torch
    from transformers import AutoTokenizer, Trainer, TrainerCallback, TrainingArguments, set_seed
    from trl import ModelConfig

    from hfstack.models.fused_loss import use_fused_loss
    from hfstack.models.loading import load_causal_lm

    torch.set_num_threads(1)
    set_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(arguments.tokenizer, trust_remote_code=False)
    model = load_causal_lm(ModelConfig(str(arguments.architecture)), tokenizer)

    texts = load_texts(arguments.data)
    held_out, texts = texts[: len(texts) // 20], texts[len(texts) // 20 :]
    prepare = prepare_ours if ours else prepare_stock
    train, evaluation, collator = prepare(texts, held_out, tokenizer, arguments.block_size)

    if ours:
        use_fused_loss(model)

    class Clock(TrainerCallback):
        """CPU time at the beginning of each step: a step includes loading its batch."""

        ticks: list[float] = []  # noqa: RUF012

        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            self.ticks.append(time.process_time())

    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(
            output_dir=folder,
            use_cpu=True,
            bf16=bf16,
            torch_compile=compiled,
            report_to="none",
            save_strategy="no",
            max_steps=arguments.steps + WARM_UP_STEPS,
            per_device_train_batch_size=arguments.batch_size,
            learning_rate=1e-3,
            warmup_steps=20,
            logging_steps=10,
            disable_tqdm=True,
            seed=0,
            per_device_eval_batch_size=arguments.batch_size,
            prediction_loss_only=True,
        )

        trainer = Trainer(
            model=model,
            args=settings,
            train_dataset=train,
            eval_dataset=evaluation,
            data_collator=collator,
            processing_class=tokenizer,
            callbacks=[Clock()],
        )

        began = time.process_time()
        trainer.train()

        ticks = Clock.ticks
        result = {
            "step_seconds": [b - a for a, b in itertools.pairwise(ticks[WARM_UP_STEPS:])],
            "warm_up_seconds": ticks[WARM_UP_STEPS] - began,
        }

        if arguments.loss_steps:
            result["eval_loss"] = trainer.evaluate()["eval_loss"]

    return result


def load_texts(path: Path) -> list[str]:
    """Return the text column of a local file."""
    from hfstack.data.sources import Source, iterate_rows

    return [row["text"] for row in iterate_rows([Source(str(path))])]


def prepare_ours(
    texts: list[str], held_out: list[str], tokenizer: Any, block_size: int
) -> tuple[Any, Any, Any]:
    """Pack blocks, as the recipe does."""
    from hfstack.data.packing.blocks import PackedBlocks, hash_texts, pack

    folder = Path(tempfile.mkdtemp())
    train, evaluation = (
        pack(part, tokenizer, block_size=block_size, cache_dir=folder, data_hash=hash_texts(part))
        for part in (texts, held_out)
    )
    return train, evaluation, PackedBlocks.collate


def prepare_stock(
    texts: list[str], held_out: list[str], tokenizer: Any, block_size: int
) -> tuple[Any, Any, Any]:
    """Map twice: tokenise with an end-of-text token, then join and split into blocks."""
    from datasets import Dataset
    from transformers import default_data_collator

    def tokenize(batch: dict[str, list[str]]) -> dict[str, Any]:
        return tokenizer([text + tokenizer.eos_token for text in batch["text"]])

    def group_texts(batch: dict[str, list[list[int]]]) -> dict[str, list[list[int]]]:
        joined = {name: list(itertools.chain.from_iterable(rows)) for name, rows in batch.items()}
        length = len(joined["input_ids"]) // block_size * block_size
        blocks = {
            name: [row[i : i + block_size] for i in range(0, length, block_size)]
            for name, row in joined.items()
        }
        blocks["labels"] = [list(row) for row in blocks["input_ids"]]
        return blocks

    parts = []
    for part in (texts, held_out):
        rows = Dataset.from_dict({"text": part}).map(
            tokenize, batched=True, remove_columns=["text"]
        )
        parts.append(rows.map(group_texts, batched=True))

    return parts[0], parts[1], default_data_collator


if __name__ == "__main__":
    compare_sides()
