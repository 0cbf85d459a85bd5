"""Fine-tune with packed rows and with TRL's padded ones, and compare speed and loss.

    python benchmarks/sft.py --data dolly.jsonl.gz --model FOLDER [--repeats 3] [--steps 25]
    python benchmarks/sft.py --data ... --model ... --loss_epochs 1

The first counts useful tokens per CPU second; the second also trains each side on equal tokens and
compares the held-out losses.

The padded side is what a user writes from TRL's documentation: rows of messages, `SFTTrainer`,
`assistant_only_loss`, batches padded to their longest row. Ours is what the recipe does: best-fit
packed rows that do not read each other. Both see the same rows, start from the same weights, learn
the same tokens, and take about as many useful tokens a step (padding does not count). They run on
one thread, in turn, each in a process of its own. Warm-up steps are not counted. `--model` may be
an architecture (config.json) with `--tokenizer`.
"""

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

from result_file import markdown_table, save

SIDES = ("TRL padded", "ours packed")
WARM_UP_STEPS = 3


def main() -> None:
    """Run both sides in turn and print the table."""
    arguments = parse_arguments()
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
        epochs = str(arguments.loss_epochs)
        losses = {side: start_worker(side, "--epochs", epochs) for side in SIDES}

    figures = {"rates": rates, "found": found, "losses": losses}
    print(write_table(figures))
    save("sft", vars(arguments), figures)


def parse_arguments() -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--data", type=Path, required=True, help="jsonl.gz with instruction, input, output")
    add("--model", required=True, help="checkpoint folder, or an architecture's config.json")
    add("--tokenizer", help="folder of the tokenizer, for an architecture")

    add("--bf16", action="store_true")
    add("--learning_rate", type=float, default=1e-3)
    add("--max_length", type=int, default=512, help="tokens of a packed row, longest padded one")
    add("--rows", type=int, default=4, help="packed rows a step; padded ones hold as many tokens")
    add("--data_rows", type=int, help="use the first rows of the data only")
    add("--steps", type=int, default=25, help="steps counted in each repeat")
    add("--repeats", type=int, default=3)
    add("--loss_epochs", type=float, default=0, help="train each side this long, compare losses")

    # what a process of one side is started with
    add("--worker", choices=SIDES, help=argparse.SUPPRESS)
    add("--epochs", type=float, default=0, help=argparse.SUPPRESS)
    return parser.parse_args()


def write_table(figures: dict[str, dict[str, Any]]) -> str:
    """Return a row for each side, and how far the losses are apart."""
    rates, found, losses = figures["rates"], figures["found"], figures["losses"]
    rows = []
    for side in SIDES:
        rate = statistics.median(rates[side])
        ratio = rate / statistics.median(rates[SIDES[0]])
        loss = f"{losses[side]['held_out_loss']:.4f}" if losses else "-"
        rows.append([side, f"{rate:,.0f}", f"{ratio:.2f}x", f"{found[side]['filled']:.1%}", loss])

    heads = ["side", "useful tokens per CPU s", "of the padded", "filled", "held-out loss"]
    table = markdown_table(heads, rows)
    if losses:
        before, after = (losses[side]["held_out_loss"] for side in SIDES)
        seen = ", ".join(f"{side} {losses[side]['useful_tokens']:,} tokens" for side in SIDES)
        table += f"\nThe held-out loss differs by {after / before - 1:+.2%} after {seen}.\n"
    return table


def start_worker(side: str, *flags: str) -> dict[str, Any]:
    """Run one side in a new process on one thread, and return what it measured."""
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
    """Train one side, and return useful tokens, CPU seconds, share filled, held-out loss."""
    import torch
    from transformers import set_seed

    from hfstack.tasks.sft import setup as fine_tuning
    from hfstack.tasks.sft.answers import answer_loss

    torch.set_num_threads(1)
    set_seed(0)
    tokenizer, model = load_model(arguments)
    rows = load_splits(arguments)

    with tempfile.TemporaryDirectory() as folder:
        settings = trainer_settings(arguments, folder)
        encoded = fine_tuning.encode_rows(rows, tokenizer, model, settings, on_bad_row="skip")
        packed = fine_tuning.pack_rows(encoded, settings)["train"]

        clock = make_clock()
        if arguments.worker == "ours packed":
            trainer = build_packed(model, tokenizer, settings, packed, clock)
        else:
            per_packed_row = len(encoded["train"]) / len(packed)
            settings.per_device_train_batch_size = round(arguments.rows * per_packed_row)
            trainer = build_padded(model, tokenizer, settings, rows["train"], clock)

        count_tokens(trainer, clock)
        trainer.train()

    found = clock.totals() | {"filled": clock.useful / clock.slots}
    if arguments.epochs:
        found |= {"held_out_loss": answer_loss(model, tokenizer, encoded["eval"])["held_out_loss"]}
    return found


def load_model(arguments: argparse.Namespace) -> tuple[Any, Any]:
    """Return tokenizer and model; a tokenizer without a chat template gets the plain one."""
    from transformers import AutoTokenizer
    from trl import ModelConfig

    from hfstack.models.loading import load_causal_lm
    from hfstack.tokens.chat import read_chat_template, stop_at_end_of_turn

    tokenizer = AutoTokenizer.from_pretrained(
        arguments.tokenizer or arguments.model, trust_remote_code=False
    )
    tokenizer.chat_template = tokenizer.chat_template or read_chat_template("plain.jinja")
    model = load_causal_lm(ModelConfig(arguments.model), tokenizer)
    stop_at_end_of_turn(model, tokenizer)

    return tokenizer, model


def load_splits(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the rows as conversations; every 20th is held out."""
    from datasets import Dataset

    from hfstack.tasks.sft.columns import Columns, convert_rows

    with gzip.open(arguments.data, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file][: arguments.data_rows]

    splits = {
        "eval": rows[::20],
        "train": [row for index, row in enumerate(rows) if index % 20],
    }

    columns = Columns("instruction", "output", "input")
    return {
        name: convert_rows(Dataset.from_list(split), columns, as_chat=True)
        for name, split in splits.items()
    }


def trainer_settings(arguments: argparse.Namespace, folder: str) -> Any:
    """Return the settings that both sides share, for some steps or whole epochs."""
    from trl import SFTConfig

    settings = SFTConfig(
        output_dir=folder,
        use_cpu=True,
        bf16=arguments.bf16,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        seed=0,
        logging_steps=1000,
        # what is learned, and how fast
        max_length=arguments.max_length,
        packing=True,
        assistant_only_loss=True,
        activation_checkpointing=False,
        learning_rate=arguments.learning_rate,
        warmup_steps=5,
        per_device_train_batch_size=arguments.rows,
    )

    if arguments.epochs:
        settings.num_train_epochs = arguments.epochs
    else:
        settings.max_steps = arguments.steps + WARM_UP_STEPS

    return settings


def build_packed(model: Any, tokenizer: Any, settings: Any, packed: Any, clock: Any) -> Any:
    """Return the recipe's Trainer: encoded rows, packed and kept apart."""
    from trl import SFTTrainer

    from hfstack.tasks.sft import setup as fine_tuning

    return SFTTrainer(
        model,
        fine_tuning.sft_trainer_settings(settings),
        fine_tuning.collator_for(model, tokenizer, settings),
        packed,
        processing_class=tokenizer,
        callbacks=[clock],
    )


def build_padded(model: Any, tokenizer: Any, settings: Any, rows: Any, clock: Any) -> Any:
    """Return TRL's Trainer as its documentation shows it: rows of messages, padded."""
    from trl import SFTTrainer

    settings.packing = False
    messages = rows.map(
        lambda row: {"messages": json.loads(row["messages"])}, remove_columns=rows.column_names
    )

    return SFTTrainer(
        model,
        settings,
        train_dataset=messages,
        processing_class=tokenizer,
        callbacks=[clock],
    )


def make_clock() -> Any:
    """Return a callback that adds up CPU time and tokens of the steps after the warm-up.

    A step includes loading its batch.
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
            """Return useful tokens and CPU seconds after the warm-up."""
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


if __name__ == "__main__":
    main()
