"""Trainer callbacks: what a language-model run reports while it trains.

Each adds its numbers to the Trainer's own log (`state.log_history` and what trackers receive), so
the curves of a run are in one place.
"""

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    EarlyStoppingCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from hfstack.errors import ConfigError, DataError, DivergedError, Preempted
from hfstack.logs import get_logger
from hfstack.runs.environment import is_sharded
from hfstack.runs.run import Run
from hfstack.training.divergence import StepWatch, gradient_norm

logger = get_logger(__name__)


class Throughput(TrainerCallback):
    """Log `tokens_per_s` and `mfu`, model-FLOPs utilisation (arXiv:2204.02311, B).

    Args:
        tokens_per_step: tokens of one optimizer step over all processes, on average over an epoch.
        flops_per_token: FLOPs of training on one token, forward and backward.
        peak_flops_per_s: what the devices of all processes can reach together. A rate above it
            shows that it was measured while other work took the processor: `mfu` is then left out.
    """

    def __init__(
        self, *, tokens_per_step: float, flops_per_token: float, peak_flops_per_s: float
    ) -> None:
        self.tokens_per_step = tokens_per_step
        self.utilization_per_rate = flops_per_token / peak_flops_per_s
        self.total_steps = 0
        self.total_seconds = 0.0
        self._step_began: float | None = None
        self._steps = 0
        self._seconds = 0.0
        self._peak_is_refused = False

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the clock, so that evaluation, saving and sampling do not count."""
        self._step_began = time.perf_counter()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stop the clock; the first step pays for warm-up and is left out of the total."""
        assert self._step_began is not None
        seconds = time.perf_counter() - self._step_began
        self._steps += 1
        self._seconds += seconds
        if state.global_step > 1:
            self.total_steps += 1
            self.total_seconds += seconds

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Add the rate since the last training log."""
        logs = kwargs["logs"]
        if "loss" not in logs or not self._steps:
            return
        _add(state, logs, self._rates(self._steps, self._seconds))
        self._steps, self._seconds = 0, 0.0

    def metrics(self) -> dict[str, float]:
        """Return the rate over the whole run."""
        if not self.total_steps:
            return {}
        return self._rates(self.total_steps, self.total_seconds)

    def _rates(self, steps: int, seconds: float) -> dict[str, float]:
        tokens_per_s = self.tokens_per_step * steps / seconds
        rates = {"tokens_per_s": round(tokens_per_s, 1)}
        utilization = float(f"{tokens_per_s * self.utilization_per_rate:.4g}")
        if utilization <= 1:
            return rates | {"mfu": utilization}

        if not self._peak_is_refused:
            self._peak_is_refused = True
            logger.warning(
                "no mfu: training is %.4g times as fast as the peak that was measured, so other "
                "work slowed that measurement down",
                utilization,
            )
        return rates


class DerivedMetrics(TrainerCallback):
    """Log what follows from the evaluation loss, such as `perplexity`.

    Args:
        derive: called with the loss in nats per token, returns the numbers by name.
    """

    def __init__(self, derive: Callable[[float], dict[str, float]]) -> None:
        self.derive = derive

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Derive from the loss that was just logged."""
        logs = kwargs["logs"]
        if "eval_loss" in logs:
            _add(state, logs, self.derive(logs["eval_loss"]))


def early_stopping(patience: int | None) -> list[TrainerCallback]:
    """Return what stops after `patience` evaluations without a better metric.

    The list is empty for None, so that a recipe can add it to its callbacks in any case.
    """
    return [] if patience is None else [EarlyStoppingCallback(patience)]


class WarnOfLongWarmup(TrainerCallback):
    """Warn when the learning rate rises for more than half of the steps.

    A number of steps that was chosen for a large dataset leaves a small one untrained in silence.
    """

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Compare the warm-up with the steps of the whole run."""
        warmup = args.get_warmup_steps(state.max_steps)
        if 2 * warmup > state.max_steps and state.is_world_process_zero:
            logger.warning(
                "the learning rate rises for %d of %d steps: --warmup_steps 0.05 is a share of the "
                "steps, whatever their number",
                min(warmup, state.max_steps),
                state.max_steps,
            )


class StopOnDivergence(TrainerCallback):
    """Stop at the first non-finite loss or gradient, before the optimizer.

    With fp16 an infinite gradient is part of the loss scaling, and DeepSpeed steps by itself: there
    the loss alone is looked at in each step, and the gradient where it is logged.
    """

    def __init__(self) -> None:
        self._watch: StepWatch | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Watch what the model reads."""
        # under torch.compile a hook would break the graph
        if not args.torch_compile:
            self._watch = StepWatch(kwargs["model"])

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Forget what the step before read."""
        if self._watch is not None:
            self._watch.begin_step()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Check the gradient and the losses of this step, in one read from the device.

        Raises:
            DivergedError: one of them is not finite; no weight has been touched by it.
        """
        norm = None if args.fp16 else gradient_norm(kwargs["model"])  # ()
        losses = None if self._watch is None else self._watch.losses()  # (M,)
        seen = [value for value in (norm, losses) if value is not None]
        if not seen or math.isfinite(sum(value.detach().float().sum() for value in seen)):
            return

        name, value = "grad_norm", float(norm or 0)
        if losses is not None and not bool(torch.isfinite(losses).all()):
            name, value = "loss", losses[~torch.isfinite(losses)][0].item()

        # the sum of finite but huge numbers may overflow
        if not math.isfinite(value):
            step = state.global_step + 1
            self._stop(f"{name} is {value} at step {step}, before the optimizer took it", **kwargs)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Refuse NaN and infinity in what is logged, evaluations among it."""
        logs = kwargs["logs"]
        for name in ("loss", "grad_norm", "eval_loss", "train_loss"):
            value = logs.get(name)
            scaled = name == "grad_norm" and args.fp16  # infinite ones are part of the scaling
            if value is not None and not math.isfinite(value) and not scaled:
                self._stop(f"{name} is {value} at step {state.global_step}", **kwargs)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take the hook off the model."""
        if self._watch is not None:
            self._watch.close()
            self._watch = None

    def _stop(self, what: str, **kwargs: Any) -> None:
        rows = ""
        if self._watch is not None:
            dataset = getattr(kwargs.get("train_dataloader"), "dataset", None)
            rows = self._watch.describe_rows(kwargs.get("processing_class"), dataset)

        raise DivergedError(
            f"{what}; the checkpoints saved before it are kept: lower --learning_rate, lengthen "
            f"--warmup_steps, or look at {rows or 'the rows of this step'}"
        )


class SampleTable(TrainerCallback):
    """Save completions of fixed prompts to `samples.jsonl` at each evaluation.

    Where a model does not generate, a warning says why, and training goes on without samples.

    Args:
        path: the file; rows are {"step", "prompt", "completion"}.
        sample: called with the model, returns (prompt, completion) pairs.
    """

    def __init__(self, path: Path, sample: Callable[[Any], list[tuple[str, str]]]) -> None:
        self.path = path
        self.sample = sample
        self._last_step = -1

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Forget the samples of steps that a resume takes again."""
        # a run without samples has an empty file
        if state.is_world_process_zero:
            self.path.touch()
            rows = [line for line in self.path.read_text(encoding="utf-8").split("\n") if line]
            kept = [line for line in rows if json.loads(line)["step"] <= state.global_step]
            self.path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Sample beside each evaluation."""
        self._take(args, state, kwargs["model"])

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Sample from the trained model."""
        self._take(args, state, kwargs["model"])

    def _take(self, args: TrainingArguments, state: TrainerState, model: Any) -> None:
        """Sample with the current weights, without touching training's random state."""
        if not state.is_world_process_zero or state.global_step == self._last_step:
            return
        self._last_step = state.global_step

        if is_sharded(args):  # generating needs every process, and only this one is here
            return
        training = model.training
        model.eval()

        # Samples are to look at: a model that cannot generate, or memory for a pass alone, must not
        # cost the weights, which are saved after the last of them.
        pairs = []
        try:
            with torch.random.fork_rng(), torch.no_grad():
                torch.manual_seed(args.seed)
                pairs = self.sample(model)
        except (Preempted, ConfigError, DataError):  # these say what the user can change
            raise
        except Exception as error:
            cause = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
            logger.warning(
                "no samples of step %d: %s does not generate (%s); training goes on",
                state.global_step,
                type(model).__name__,
                cause,
            )
            logger.debug("what generation raised", exc_info=True)
        finally:
            model.train(training)

        with self.path.open("a", encoding="utf-8") as file:
            for prompt, completion in pairs:
                row = {"step": state.global_step, "prompt": prompt, "completion": completion}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")


class StopWhenAsked(TrainerCallback):
    """On SIGTERM or Ctrl-C, finish the step, save, and end the run as preempted.

    Args:
        run: the run whose signals are handled.
    """

    def __init__(self, run: Run) -> None:
        self.run = run

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Finish a step before a stop, since from here on there is something to save."""
        self.run.defer_stop(True)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Ask the Trainer to save and to stop, once the signal has come."""
        if self._all_stop(args):
            control.should_save = args.save_strategy != SaveStrategy.NO
            control.should_log = args.logging_strategy != IntervalStrategy.NO
            control.should_training_stop = True

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Save right after a long evaluation in which the signal came."""
        if self._all_stop(args):
            control.should_save = args.save_strategy != SaveStrategy.NO
            control.should_training_stop = True

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Raise, so that nothing after training takes the model for a finished one."""
        # a signal reaches one process before the last step is over, another one behind it
        self._all_stop(args)
        self.run.defer_stop(False)
        if self.run.stop_asked:
            raise Preempted(
                f"stopped at step {state.global_step}; continue with --resume_from_checkpoint last"
            )

    def _all_stop(self, args: TrainingArguments) -> bool:
        """Return whether any process was asked to stop, so that all stop at one step.

        Those that continued would wait forever. A signal that comes while they agree counts at the
        next step, on every process.
        """
        if args.world_size == 1:
            return self.run.stop_asked
        asked = torch.tensor(int(self.run.stop_asked), device=args.device)  # ()
        torch.distributed.all_reduce(asked, op=torch.distributed.ReduceOp.MAX)
        if asked.item():
            self.run.ask_to_stop()
        return bool(asked.item())


def _add(state: TrainerState, logs: dict[str, Any], numbers: dict[str, float]) -> None:
    """Add numbers to the current log line of the trackers and the history."""
    logs.update(numbers)
    state.log_history[-1].update(numbers)
