"""Fine-tuning, ours packed against TRL's SFTTrainer padded: useful tokens per CPU second, and
held-out loss.

    python benchmarks/sft.py --data dolly.jsonl.gz --model FOLDER [--repeats 3] [--steps 25] python
    benchmarks/sft.py --data ... --model ... --loss_epochs 1      # and the held-out losses after
    equal tokens

The padded side is what a user writes from TRL's documentation: rows of messages, `SFTTrainer`,
`assistant_only_loss`, batches padded to their longest row. Ours is what the recipe does: best-fit
packed rows that do not read each other. Both see the same rows, start from the same weights, learn
the same tokens, and take about as many useful tokens a step (padding does not count). They run on
one thread, in turn, each in a process of its own. Warm-up steps are not counted. `--model` may be
an architecture (config.json) with `--tokenizer`."""

import argparse
import gzip
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

SIDES = ("TRL padded", "ours packed")
WARM_UP_STEPS = 3


def main() -> None:
    """Run both sides in turn and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--data", type=Path, required=True, help="jsonl.gz with instruction, input, output"
    )
    parser.add_argument(
        "--model", required=True, help="checkpoint folder, or an architecture's config.json"
    )
    parser.add_argument("--tokenizer", help="folder of the tokenizer, for an architecture")
    parser.add_argument(
        "--max_length", type=int, default=512, help="tokens of a packed row, and longest padded one"
    )
    parser.add_argument(
        "--rows",
        type=int,
        default=4,
        help="packed rows a step; the padded side gets as many tokens",
    )
    parser.add_argument("--data_rows", type=int, help="use the first rows of the data only")
    parser.add_argument("--steps", type=int, default=25, help="steps counted in each repeat")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--loss_epochs",
        type=float,
        default=0,
        help="also train each side this long, compare losses",
    )
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--worker", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--epochs", type=float, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        print(json.dumps(run_side(arguments)))
        return

    rates: dict[str, list[float]] = {side: [] for side in SIDES}
    found: dict[str, dict[str, Any]] = {}
    for _, side in itertools.product(range(arguments.repeats), SIDES):
        found[side] = start_worker(side)
        rates[side].append(found[side]["useful_tokens"] / found[side]["cpu_seconds"])
    losses: dict[str, dict[str, Any]] = {}
    if arguments.loss_epochs:
        losses = {
            side: start_worker(side, "--epochs", str(arguments.loss_epochs)) for side in SIDES
        }

    print(
        f"{Path(arguments.model).stem}, {arguments.data.name}, one thread, {arguments.repeats} "
        "repeats in turn"
    )
    print(
        f"{'side':12} {'useful tokens/CPU s':>20} {'of the padded':>14} {'filled':>7} "
        f"{'held-out loss':>14}"
    )
    for side in SIDES:
        rate = statistics.median(rates[side])
        ratio = rate / statistics.median(rates[SIDES[0]])
        loss = f"{losses[side]['held_out_loss']:.4f}" if losses else "-"
        print(f"{side:12} {rate:20.0f} {ratio:13.2f}x {found[side]['filled']:7.1%} {loss:>14}")
    if losses:
        before, after = (losses[side]["held_out_loss"] for side in SIDES)
        seen = ", ".join(f"{side} {losses[side]['useful_tokens']} tokens" for side in SIDES)
        print(
            f"held-out loss differs by {after / before - 1:+.2%} after {arguments.loss_epochs:g} "
            f"epochs: {seen}"
        )


def start_worker(side: str, *flags: str) -> dict[str, Any]:
    """Run one side in a fresh process on one thread."""
    argv = [sys.executable, __file__, *sys.argv[1:], "--worker", side, *flags]
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def run_side(arguments: argparse.Namespace) -> dict[str, Any]:
    """Train one side; return its useful tokens, CPU seconds, share of tokens that are useful, and
    held-out loss.
    """
    import torch
    from datasets import Dataset
    from transformers import AutoTokenizer, set_seed
    from trl import ModelConfig, SFTConfig, SFTTrainer

    from hfstack.models.loading import load_causal_lm
    from hfstack.tasks.sft import setup as fine_tuning
    from hfstack.tasks.sft.answers import answer_loss
    from hfstack.tasks.sft.columns import Columns, convert_rows
    from hfstack.tokens.chat import read_template, stop_at_end_of_turn

    torch.set_num_threads(1)
    set_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(arguments.tokenizer or arguments.model)
    tokenizer.chat_template = tokenizer.chat_template or read_template("plain.jinja")
    model = load_causal_lm(ModelConfig(arguments.model), tokenizer)
    stop_at_end_of_turn(model, tokenizer)
    rows = load_rows(arguments.data)[: arguments.data_rows]
    columns = Columns("instruction", "output", "input")
    splits = {
        "eval": Dataset.from_list(rows[::20]),
        "train": Dataset.from_list([r for i, r in enumerate(rows) if i % 20]),
    }
    normal = {name: convert_rows(split, columns, as_chat=True) for name, split in splits.items()}
    with tempfile.TemporaryDirectory() as folder:
        settings = SFTConfig(
            output_dir=folder,
            use_cpu=True,
            bf16=arguments.bf16,
            report_to="none",
            save_strategy="no",
            max_length=arguments.max_length,
            assistant_only_loss=True,
            activation_checkpointing=False,
            learning_rate=arguments.learning_rate,
            warmup_steps=5,
            disable_tqdm=True,
            seed=0,
            logging_steps=1000,
            per_device_train_batch_size=arguments.rows,
            packing=True,
        )
        if arguments.epochs:
            settings.num_train_epochs = arguments.epochs
        else:
            settings.max_steps = arguments.steps + WARM_UP_STEPS
        encoded = fine_tuning.encode_rows(normal, tokenizer, model, settings, on_bad_row="skip")
        packed = fine_tuning.pack_rows(encoded, settings)["train"]
        clock = make_clock()
        if arguments.worker == "ours packed":
            trainer = SFTTrainer(
                model,
                fine_tuning.sft_trainer_settings(settings),
                fine_tuning.collator_for(model, tokenizer, packing=True),
                packed,
                processing_class=tokenizer,
                callbacks=[clock],
            )
        else:
            settings.packing = False
            settings.per_device_train_batch_size = round(
                arguments.rows * len(encoded["train"]) / len(packed)
            )
            messages = normal["train"].map(
                lambda row: {"messages": json.loads(row["messages"])},
                remove_columns=normal["train"].column_names,
            )
            trainer = SFTTrainer(
                model,
                settings,
                train_dataset=messages,
                processing_class=tokenizer,
                callbacks=[clock],
            )
        count_tokens(trainer, clock)
        trainer.train()
    found = clock.totals() | {"filled": clock.useful / clock.slots}
    if arguments.epochs:
        found |= {"held_out_loss": answer_loss(model, tokenizer, encoded["eval"])["held_out_loss"]}
    return found


def make_clock() -> Any:
    """A callback that adds up CPU time and tokens of the steps after the warm-up; a step includes
    loading its batch.
    """
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        """CPU time from the end of one step to the end of the next, and what its batches held."""

        useful = slots = 0
        began = seconds = 0.0
        counted_useful = 0

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            now = time.process_time()
            if state.global_step == WARM_UP_STEPS:
                self.counted_useful = self.useful
            elif state.global_step > WARM_UP_STEPS:
                self.seconds += now - self.began
            self.began = now

        def totals(self) -> dict[str, float]:
            """Useful tokens and CPU seconds after the warm-up; for whole epochs, the useful tokens
            of all steps.
            """
            return {"useful_tokens": self.useful - self.counted_useful, "cpu_seconds": self.seconds}

    return Clock()


def count_tokens(trainer: Any, clock: Any) -> None:
    """Count what each batch holds: all places, and those that are not padding."""
    collate, pad = trainer.data_collator, trainer.processing_class.pad_token_id

    def counting(rows: list[dict[str, Any]]) -> Any:
        batch = collate(rows)
        clock.slots += batch["input_ids"].numel()
        clock.useful += int((batch["input_ids"] != pad).sum())
        return batch

    trainer.data_collator = counting


def load_rows(path: Path) -> list[dict[str, Any]]:
    """Read all rows."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


if __name__ == "__main__":
    main()
