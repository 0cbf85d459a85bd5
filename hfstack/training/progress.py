"""Show the progress of training and evaluation in place of the Trainer.

The Trainer prints each log whole, which is thirty keys for PPO. What a person follows is shown
here; all of it is in trainer_state.json and goes to the trackers.
"""

import logging
import time
from typing import Any

from tqdm import tqdm
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from hfstack.drawing.measures import describe_measure, most_telling
from hfstack.drawing.numbers import compact
from hfstack.logs import NOTICE, get_logger
from hfstack.progress import LINE_EVERY_S, describe_progress, round_span

logger = get_logger(__name__)

# Of a training log; those of online training say more than its loss, which is a surrogate.
_FOLLOWED = (
    ("reward", "reward"),
    ("kl", "KL"),
    ("completions/mean_length", "length"),
    ("entropy", "entropy"),
)
_LOSS = (("loss", "loss"),)
# Counts from the first step on, and what they are counted in by the second.
_COUNTED = {"num_tokens": "tokens/s", "episodes": "answers/s"}
_SHOWN_NUMBERS = 3


def show_progress(trainer: Trainer) -> None:
    """Replace the Trainer's progress bar, or what it prints, by ours."""
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    trainer.add_callback(ShowProgress())


class ShowProgress(TrainerCallback):
    """Shows step, loss, rate and the time left: a bar, or a line a minute."""

    def __init__(self) -> None:
        self._began = self._last_line = 0.0
        self._first_step = 0
        self._written_step = -1
        self._facts = ""
        self._last_evaluation = 0.0
        self._bar: Any = None
        self._evaluation: Any = None
        self._batches = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the clock, from the step that a resume continues."""
        self._began = time.monotonic()
        # The first line comes with the first log, so that it is seen soon that it learns.
        self._last_line = self._began - LINE_EVERY_S
        self._last_evaluation = self._began
        self._first_step = state.global_step
        if _draws(args, state):
            self._bar = tqdm(
                total=state.max_steps, initial=state.global_step, dynamic_ncols=True, unit="step"
            )

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Move the bar, or write a line where a minute has passed."""
        if self._bar is not None:
            self._bar.update(state.global_step - self._bar.n)
        elif self._facts:
            self._write_line(state)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take over what is followed from the log."""
        logs: dict[str, float] = kwargs["logs"]
        if any(name.startswith("eval_") for name in logs):
            self._show_evaluation(state, logs)
            return
        if "loss" not in logs:
            return

        followed = _FOLLOWED if "reward" in logs else _LOSS
        facts = [f"{label} {logs[name]:.4g}" for name, label in followed if name in logs]
        self._facts = ", ".join([*facts, self._rate(args, state, logs)])
        if self._bar is not None:
            self._bar.set_postfix_str(self._facts)
        else:
            self._write_line(state)

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Show how far an evaluation is."""
        batches: Any = kwargs.get("eval_dataloader")
        total = len(batches) if hasattr(batches, "__len__") else None  # not of a stream
        self._batches += 1
        if _draws(args, state):
            if self._evaluation is None:
                self._evaluation = tqdm(
                    desc="evaluating", total=total, leave=False, dynamic_ncols=True, unit="batch"
                )
            self._evaluation.update()
        elif state.is_world_process_zero and time.monotonic() - self._last_line >= LINE_EVERY_S:
            self._last_line = time.monotonic()
            logger.log(NOTICE, "evaluating: batch %s", describe_progress(self._batches, total))

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Close the bar of the evaluation."""
        self._end_evaluation()

    def on_predict(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float],
        **kwargs: Any,
    ) -> None:
        """Close the bar of a prediction."""
        self._end_evaluation()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Close the bar, or write the last line to the run's log: results follow."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        elif self._facts:
            self._write_line(state, at_once=True)

    def _rate(self, args: TrainingArguments, state: TrainerState, logs: dict[str, float]) -> str:
        """Return tokens per second where they are counted, else rows per second."""
        if "tokens_per_s" in logs:
            return f"{compact(logs['tokens_per_s'])} tokens/s"

        seconds = max(time.monotonic() - self._began, 1e-9)
        for name, unit in _COUNTED.items():
            if name in logs and not self._first_step:
                return f"{compact(logs[name] / seconds)} {unit}"
        rows = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        return f"{compact((state.global_step - self._first_step) * rows / seconds)} rows/s"

    def _write_line(self, state: TrainerState, *, at_once: bool = False) -> None:
        """Write one line, unless the last one is less than a minute ago."""
        now = time.monotonic()
        if not state.is_world_process_zero:
            return
        if now - self._last_line < LINE_EVERY_S and not at_once:
            return
        if at_once and self._written_step == state.global_step:
            return

        self._last_line, self._written_step = now, state.global_step
        done, left = state.global_step - self._first_step, state.max_steps - state.global_step
        place = describe_progress(state.global_step, state.max_steps)
        span = (now - self._began) / done * left if done else 0
        logger.log(
            logging.INFO if at_once else NOTICE,
            "step %s, %s%s",
            place,
            self._facts,
            f", about {round_span(span)} left" if left else "",
        )

    def _show_evaluation(self, state: TrainerState, logs: dict[str, float]) -> None:
        """Write the most telling numbers of an evaluation, shown at most once a minute."""
        self._end_evaluation()
        if not state.is_world_process_zero:
            return
        names = most_telling(logs)[:_SHOWN_NUMBERS]
        text = ", ".join(describe_measure(name, logs, recipe="") for name in names)
        if not text:
            return
        now = time.monotonic()
        is_due = now - self._last_evaluation >= LINE_EVERY_S
        self._last_evaluation = now if is_due else self._last_evaluation
        level = NOTICE if is_due else logging.INFO
        logger.log(level, "evaluated at step %s: %s", f"{state.global_step:,}", text)

    def _end_evaluation(self) -> None:
        self._batches = 0
        if self._evaluation is not None:
            self._evaluation.close()
            self._evaluation = None


def _draws(args: TrainingArguments, state: TrainerState) -> bool:
    return not args.disable_tqdm and state.is_world_process_zero
