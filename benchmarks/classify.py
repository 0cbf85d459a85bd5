"""Compare training a classifier with rows padded to the most allowed: speed and accuracy.

    python benchmarks/classify.py --data sst2.jsonl.gz --model FOLDER --max_length 128 --bf16
    python benchmarks/classify.py --data imdb.jsonl.gz --model runs/sst2 --max_length 256 --bf16 \\
        --batch 8 --rows 160 --attention_dropout 0.1 --learning_rate 3e-5

The padded side is the default of the text classification example of transformers:
`padding="max_length"`, the Trainer's own collator and the model's own configuration. Ours is what
the recipe does: batches of about one length, padded to their longest row, and no dropout of
attention weights, for which a CPU has no fused attention. `--third` adds a side that pads as ours
does and keeps the dropout. All sides see the same rows in one pass, at the same precision, on one
thread, in turn, each in a process of its own; a repeat is a seed. `--model` may be a classifier of
the same labels, such as one of short sentences that is to learn long reviews; the table says what
it scores before. The recipe saves it without dropout of attention weights, so name what the padded
side shall have.
"""

import argparse
import functools
import gzip
import itertools
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from result_file import markdown_table, save

SIDES = ("padded to max", "ours")
THIRD = "by length only"


def main() -> None:
    """Run the sides in turn and print the table."""
    arguments = parse_arguments()
    if arguments.worker:
        print(json.dumps(run_side(arguments)))
        return

    sides = (*SIDES, THIRD) if arguments.third else SIDES
    found: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    for seed, side in itertools.product(range(arguments.repeats), sides):
        found[side].append(start_worker(side, seed))

    print(write_table(found))
    save("classify", vars(arguments), found)


def parse_arguments() -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--data", type=Path, required=True, help="jsonl.gz with text and a whole-number label"
    )
    parser.add_argument("--model", required=True, help="checkpoint folder")
    parser.add_argument("--max_length", type=int, default=128)
    parser.add_argument("--batch", type=int, default=32, help="rows of an optimizer step")
    parser.add_argument("--rows", type=int, default=960, help="rows to train on, in one pass")
    parser.add_argument("--eval_rows", type=int, default=400)
    parser.add_argument("--repeats", type=int, default=3, help="seeds")
    parser.add_argument("--learning_rate", type=float, default=1e-4)
    parser.add_argument(
        "--attention_dropout", type=float, help="of the padded side, if not the model's own"
    )
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--third", action="store_true", help=f"also measure {THIRD!r}")

    # what a process of one side is started with
    parser.add_argument("--worker", choices=(*SIDES, THIRD), help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    return parser.parse_args()


def write_table(found: dict[str, list[dict[str, float]]]) -> str:
    """Return a row for each side, from what each of its seeds gave."""
    rows = []
    for side, results in found.items():
        rate = statistics.median(one["examples_per_cpu_s"] for one in results)
        ratio = rate / statistics.median(one["examples_per_cpu_s"] for one in found[SIDES[0]])
        accuracy = [one["accuracy"] for one in results]
        each = ", ".join(f"{value:.3f}" for value in accuracy)
        scored = f"{statistics.fmean(accuracy):.3f} ({each})"
        rows.append([side, f"{rate:.1f}", f"{ratio:.2f}x", f"{results[0]['filled']:.1%}", scored])

    heads = ["side", "examples per CPU s", "of padded", "filled", "accuracy, mean (each seed)"]
    before = found[SIDES[0]][0]["before"]
    return f"{markdown_table(heads, rows)}\nAccuracy before training: {before:.3f}.\n"


def start_worker(side: str, seed: int) -> dict[str, float]:
    """Run one side in a fresh process on one thread."""
    argv = [sys.executable, __file__, *sys.argv[1:], "--worker", side, "--seed", str(seed)]
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }

    done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def run_side(arguments: argparse.Namespace) -> dict[str, float]:
    """Train one side for one pass, and return its figures.

    Examples per CPU second, the share of tokens that are text, and accuracy.
    """
    import torch
    from datasets import Dataset
    from transformers import AutoTokenizer, Trainer, set_seed
    from trl import ModelConfig

    from hfstack.tasks.classification.loss import classification_loss
    from hfstack.tasks.classification.model import load_classifier
    from hfstack.tokens.text_rows import encode_texts

    torch.set_num_threads(1)
    rows = load_rows(arguments.data, arguments.rows + arguments.eval_rows)
    tokenizer = AutoTokenizer.from_pretrained(arguments.model, trust_remote_code=False)
    texts = encode_texts(tokenizer, [row["text"] for row in rows], max_length=arguments.max_length)
    encoded = [
        {**ids, "labels": row["label"], "length": len(ids["input_ids"])}
        for row, ids in zip(rows, texts, strict=True)
    ]

    train = encoded[: arguments.rows]
    held = encoded[arguments.rows :]

    set_seed(arguments.seed)
    model = load_classifier(
        ModelConfig(arguments.model),
        tokenizer,
        problem_type="single_label_classification",
        id2label={
            row["label"]: row.get("label_name", str(row["label"]))
            for row in sorted(rows, key=label_of)
        },
        attention_dropout=0.0 if arguments.worker == "ours" else arguments.attention_dropout,
    )

    # all sides start from the same model, so one of them measures it
    padded = arguments.worker == SIDES[0]
    score = functools.partial(measure_accuracy, model, held, pad_token_id=tokenizer.pad_token_id)
    before = score() if padded and arguments.seed == 0 else 0.0

    slots: list[int] = []
    longest = arguments.max_length if padded else None
    loss = None if padded else classification_loss("single_label_classification")
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model,
            trainer_settings(arguments, folder),
            counting_collator(tokenizer, slots, max_length=longest),
            Dataset.from_list(train),
            processing_class=tokenizer,
            compute_loss_func=loss,
        )
        began = time.process_time()
        trainer.train()
        seconds = time.process_time() - began

    filled = sum(row["length"] for row in train) / sum(slots)
    return {
        "examples_per_cpu_s": len(train) / seconds,
        "filled": filled,
        "accuracy": score(),
        "before": before,
    }


def measure_accuracy(model: Any, rows: list[dict[str, Any]], *, pad_token_id: int) -> float:
    """Return the share of held-out rows whose label is the model's."""
    import numpy

    from hfstack.tasks.classification.predict import classify_logits

    logits = classify_logits(model, rows, pad_token_id=pad_token_id)
    return float(numpy.mean(logits.argmax(1) == [row["labels"] for row in rows]))


def label_of(row: dict[str, Any]) -> int:
    """Return the number of a row's label."""
    return row["label"]


def trainer_settings(arguments: argparse.Namespace, folder: str) -> Any:
    """Return settings of one pass, the same for all sides but for the order of the rows."""
    from transformers import TrainingArguments

    return TrainingArguments(
        output_dir=folder,
        use_cpu=True,
        bf16=arguments.bf16,
        report_to="none",
        save_strategy="no",
        seed=arguments.seed,
        num_train_epochs=1,
        per_device_train_batch_size=arguments.batch,
        learning_rate=arguments.learning_rate,
        warmup_steps=0.1,
        disable_tqdm=True,
        logging_steps=1000,
        remove_unused_columns=False,
        train_sampling_strategy="random" if arguments.worker == SIDES[0] else "group_by_length",
    )


def counting_collator(tokenizer: Any, slots: list[int], *, max_length: int | None) -> Any:
    """Return a collator to `max_length`, or to the longest row of a batch.

    It adds the number of places of each batch to `slots`.
    """
    import torch

    from hfstack.tokens.text_rows import pad_rows

    def collate(batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        if max_length is None:
            made = pad_rows(batch, pad_token_id=tokenizer.pad_token_id)
        else:
            rows = [
                {name: row[name] for name in ("input_ids", "token_type_ids") if name in row}
                for row in batch
            ]
            padded = tokenizer.pad(
                rows,
                padding="max_length",
                max_length=max_length,
                return_tensors="pt",
                verbose=False,
            )
            made = {**padded, "labels": torch.tensor([row["labels"] for row in batch])}

        slots.append(made["input_ids"].numel())
        return made

    return collate


def load_rows(path: Path, count: int) -> list[dict[str, Any]]:
    """Return some rows, sampled from all of the file: it may be sorted."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    random.Random(0).shuffle(rows)
    return rows[:count]


if __name__ == "__main__":
    main()
