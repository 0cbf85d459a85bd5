"""Measure what a verified checkpoint costs: how long training waits, beside a plain save.

    python benchmarks/checkpoint_cost.py                       # checkpoints of 100, 300 and 1000 MB
    python benchmarks/checkpoint_cost.py --megabytes 10000 --saves 4 --step_s 2

A Llama of the given size is trained for a few steps that do nothing but wait, with one save after
each. Timed are the Trainer's own save (weights, optimizer, state; the page cache takes them,
nothing is forced to the disk), what `KeepCheckpoints` lets training wait, and how long the manifest
takes in its own thread, where every file is flushed to the disk and hashed; of the save and of the
manifest also the processor's seconds, since the rest of them is the disk's.

    python benchmarks/checkpoint_cost.py --steps 200           # the cost of `protect` in a step

The second part trains with and without the three callbacks of `protect`, in turns, and prints the
milliseconds of a step.
"""

import argparse
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

os.environ |= {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    default_data_collator,
    set_seed,
)

from hfstack.runs.checkpoint_files import size_bytes
from hfstack.runs.manifest import write_manifest
from hfstack.runs.run import Run
from hfstack.training import checkpointing
from hfstack.training.checkpointing import KeepCheckpoints, protect


def main() -> None:
    """Measure what the command line asks for and print one line for each size or repetition."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--megabytes", type=int, nargs="+", default=[100, 300, 1000], help="size of a checkpoint"
    )
    parser.add_argument("--saves", type=int, default=6)
    parser.add_argument(
        "--step_s", type=float, default=2.0, help="seconds of a step between two saves"
    )
    parser.add_argument(
        "--steps", type=int, default=0, help="measure the cost of a step over this many instead"
    )
    parser.add_argument(
        "--folder", type=Path, help="where checkpoints go (default: a temporary folder)"
    )
    args = parser.parse_args()

    folder = Path(tempfile.mkdtemp(prefix="checkpoint-cost-", dir=args.folder))

    try:
        if args.steps:
            print_step_costs(folder, args.steps)
        else:
            print_save_costs(folder, args.megabytes, args.saves, args.step_s)
    finally:
        shutil.rmtree(folder)


def print_save_costs(folder: Path, sizes: list[int], saves: int, step_s: float) -> None:
    """Print what a save and its verification take, a row for each size in megabytes."""
    columns = ("MB", "save s", "wait s", "wait/save", "manifest s", "save CPU s", "manifest CPU s")
    print(*(f"{name:>14}" for name in columns), f"  medians of {saves - 1}")

    for megabytes in sizes:
        size, save, wait_s, manifest = measure_save(folder, megabytes, saves, step_s)
        row = (
            f"{size / 1e6:.0f}",
            f"{save.wall_s:.3f}",
            f"{wait_s:.4f}",
            f"{wait_s / save.wall_s:.2%}",
            f"{manifest.wall_s:.2f}",
            f"{save.cpu_s:.2f}",
            f"{manifest.cpu_s:.2f}",
        )
        print(*(f"{value:>14}" for value in row), flush=True)


class Waits(TrainerCallback):
    """Makes each step take this long, as with a model that computes something."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        """Wait."""
        time.sleep(self.seconds)


class Seconds(NamedTuple):
    """How long something took, and how much of that this process computed, in all its threads."""

    wall_s: float
    cpu_s: float

    @classmethod
    def now(cls) -> "Seconds":
        """Return both clocks."""
        return cls(time.perf_counter(), time.process_time())

    def until_now(self) -> "Seconds":
        """Return what has passed since."""
        now = Seconds.now()
        return Seconds(now.wall_s - self.wall_s, now.cpu_s - self.cpu_s)


def medians(all_seconds: list[Seconds]) -> Seconds:
    """Return the median of each clock, without the first, which warms up."""
    wall_s, cpu_s = zip(*all_seconds[1:], strict=True)
    return Seconds(statistics.median(wall_s), statistics.median(cpu_s))


def measure_save(
    folder: Path, megabytes: int, saves: int, step_s: float
) -> tuple[int, Seconds, float, Seconds]:
    """Return a checkpoint's bytes, and medians of save, wait in seconds, and manifest."""
    saved: list[Seconds] = []
    verified: list[Seconds] = []
    sizes: list[int] = []

    class TimedTrainer(Trainer):
        def _save_checkpoint(self, model: Any, trial: Any) -> None:
            began = Seconds.now()
            super()._save_checkpoint(model, trial)
            saved.append(began.until_now())

    def timed(path: Path, **kwargs: Any) -> None:
        began = Seconds.now()
        write_manifest(path, **kwargs)
        verified.append(began.until_now())
        sizes.append(size_bytes(path))

    out = folder / str(megabytes)
    args = settings(
        out,
        max_steps=saves,
        save_strategy="steps",
        save_steps=1,
        save_total_limit=1,
        logging_strategy="no",
    )

    waits: list[float] = []
    with (
        mock.patch.object(checkpointing, "write_manifest", timed),
        Run.start(__file__, out, args) as run,
    ):
        keep = KeepCheckpoints(run)

        class RecordsWaits(TrainerCallback):
            def on_save(self, *args: Any, **kwargs: Any) -> None:
                waits.append(keep.waited_s - sum(waits))

        model = llama(parameters=megabytes * 1e6 / 12)
        rows = [row(model, seed) for seed in range(saves)]
        TimedTrainer(
            model=model,
            args=args,
            train_dataset=rows,  # pyright: ignore[reportArgumentType]
            data_collator=default_data_collator,
            callbacks=[Waits(step_s), keep, RecordsWaits()],
        ).train()
        run.finish({})

    shutil.rmtree(out)
    return sizes[-1], medians(saved), statistics.median(waits[1:]), medians(verified)


def print_step_costs(folder: Path, steps: int) -> None:
    """Print the milliseconds of a step with and without `protect`, in turns."""
    print(f"{'turn':>5}{'plain ms':>10}{'protected ms':>14}{'difference':>12}")
    for turn in range(3):
        seconds = []
        for name in ("plain", "protected"):
            out = folder / f"{name}-{turn}"
            args = settings(out, max_steps=steps, save_strategy="no", logging_steps=steps)
            with Run.start(__file__, out, args) as run:
                model = llama(parameters=30e6)
                rows = [row(model, seed, length=512) for seed in range(64)]
                clock = Clock()
                Trainer(
                    model=model,
                    args=args,
                    train_dataset=rows,  # pyright: ignore[reportArgumentType]
                    data_collator=default_data_collator,
                    callbacks=[*(protect(run) if name == "protected" else []), clock],
                ).train()
                seconds.append(statistics.median(clock.steps_s[steps // 10 :]))
                run.finish({})

        plain, protected = (1e3 * value for value in seconds)
        print(f"{turn:>5}{plain:>10.3f}{protected:>14.3f}{protected / plain - 1:>12.2%}")


class Clock(TrainerCallback):
    """Times each step to the end of what the device does for it."""

    def __init__(self) -> None:
        self.steps_s: list[float] = []
        self._began = 0.0

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        """Start the clock."""
        self._began = time.perf_counter()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """Stop the clock once the device has finished the step."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.steps_s.append(time.perf_counter() - self._began)


def settings(out: Path, **changes: Any) -> TrainingArguments:
    """Return settings that neither log nor evaluate."""
    return TrainingArguments(
        output_dir=str(out),
        per_device_train_batch_size=8 if torch.cuda.is_available() else 1,
        report_to="none",
        disable_tqdm=True,
        logging_nan_inf_filter=False,
        bf16=torch.cuda.is_available(),
        dataloader_pin_memory=False,
        **changes,
    )


def llama(parameters: float) -> LlamaForCausalLM:
    """Return a Llama of about so many parameters."""
    set_seed(0)
    # A layer of this shape has 13 width^2 parameters; eight of them make a balanced model.
    width = 64 * max(1, round((parameters / 8 / 13) ** 0.5 / 64))
    config = LlamaConfig(
        vocab_size=1024,
        hidden_size=width,
        intermediate_size=3 * width,
        num_attention_heads=width // 64,
        num_key_value_heads=width // 64,
        num_hidden_layers=1,
        tie_word_embeddings=True,
    )

    layers = LlamaForCausalLM(config).model.layers
    one_layer = sum(parameter.numel() for parameter in layers.parameters())
    config.num_hidden_layers = max(1, round((parameters - 1024 * width) / one_layer))
    return LlamaForCausalLM(config)


def row(model: LlamaForCausalLM, seed: int, length: int = 8) -> dict[str, torch.Tensor]:
    """Return one row of random ids (T,)."""
    ids = torch.randint(
        0, model.config.vocab_size, (length,), generator=torch.Generator().manual_seed(seed)
    )
    return {"input_ids": ids, "labels": ids}


if __name__ == "__main__":
    main()
