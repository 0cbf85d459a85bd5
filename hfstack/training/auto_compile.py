"""Compile the training step once the steps that are left pay for it.

`torch.compile` makes a step shorter and takes its time first, so it pays in long runs alone. What a
step takes is known after some of them, and how many are left is known as well: the callback
measures, decides, measures again, and goes back where compiling did not help.
"""

import os
import shutil
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch._dynamo.exc import TorchDynamoException
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hfstack.logs import get_logger

logger = get_logger(__name__)

MEASURED_STEPS = 20
WARM_UP_STEPS = 2  # that a measurement leaves out: the first calls compile, and fill caches

# Measured on one thread of a Xeon with AMX, with an empty cache of kernels; the gain is the smaller
# one of docs/benchmarks.md, rounded down. docs/recipes/pretrain_clm.md has the figures.
COMPILE_SECONDS = 15.0
COMPILE_SECONDS_PER_LAYER = 5.0
GAIN = 1.25
# Both are guesses on another machine: what is saved must be twice what compiling takes.
MARGIN = 2.0


@dataclass
class AutoCompileArgs:
    """Return whether a run compiles its training step."""

    auto_compile: bool = True
    """Compile the training step after 20 steps, where the steps that are left pay for it.
    --torch_compile true compiles at once.
    """


def seconds_that_pay(layers: int, *, core_share: float = 1.0) -> float:
    """Return from how many eager seconds on compiling a model pays.

    Args:
        layers: that are unrolled into one graph, which the time of compiling grows with.
        core_share: of a core that this process gets, below 1 beside other work.
    """
    compiling = (COMPILE_SECONDS + COMPILE_SECONDS_PER_LAYER * layers) / core_share
    return MARGIN * compiling / (1 - 1 / GAIN)


class AutoCompile(TrainerCallback):
    """Compile the forward and backward pass of training steps when it pays.

    Only between the beginning and the end of a step is `model.forward` the compiled one:
    evaluation, samples and saving see the model as it was, and a hook on it, such as those that
    look for a diverging loss, runs outside of the graph.

    Args:
        tokens_per_step: tokens of one optimizer step, for the rates that are said.
        layers: of the model.
    """

    def __init__(self, *, tokens_per_step: float, layers: int) -> None:
        self.tokens_per_step = tokens_per_step
        self.layers = layers
        self.rates: dict[str, float] = {}
        self._is_watching = False
        self._compiled: Callable[..., Any] | None = None
        self._has_failed = False
        self._restore: Callable[[], None] | None = None
        self._began = self._cpu_began = 0.0
        self._cpu_seconds = 0.0
        self._seconds: list[float] = []

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Say why training stays eager where that is known before the first step."""
        self._seconds, self._cpu_seconds = [], 0.0
        why = _why_eager(args, state.max_steps - state.global_step)
        self._is_watching = why is None and not args.torch_compile
        if why is not None and not args.torch_compile:
            logger.info("training is not compiled: %s", why)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the clock, and put the compiled forward pass in."""
        if self._compiled is not None:
            self._restore = _replace_forward(kwargs["model"], self._compiled)
        if self._is_watching:
            _synchronize()
            self._began, self._cpu_began = time.perf_counter(), time.process_time()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Put the own forward pass back, and decide once enough steps are measured."""
        if self._restore is not None:
            self._restore()
            self._restore = None
        if not self._is_watching:
            return

        _synchronize()
        self._seconds.append(time.perf_counter() - self._began)
        self._cpu_seconds += time.process_time() - self._cpu_began
        if self._compiled is not None and len(self._seconds) == 1:
            self.rates["compile_seconds"] = round(self._seconds[0], 1)
        if len(self._seconds) < MEASURED_STEPS:
            return
        # a median, since the first call of a kind and a busy machine lengthen single steps
        seconds = statistics.median(self._seconds[WARM_UP_STEPS:])
        core_share = min(1.0, self._cpu_seconds / sum(self._seconds))
        self._seconds = []

        if self._compiled is None:
            needed = seconds_that_pay(self.layers, core_share=max(core_share, 0.01))
            self._decide(seconds, needed, state.max_steps - state.global_step, kwargs["model"])
        else:
            self._compare(seconds)

    def metrics(self) -> dict[str, float]:
        """Return the rates before and after compiling, and the seconds it took.

        Nothing where training stayed eager.
        """
        return dict(self.rates) if "compiled_tokens_per_s" in self.rates else {}

    def _decide(self, seconds: float, needed: float, steps_left: int, model: Any) -> None:
        """Compile when the eager time that is left is at least `needed`."""
        rate = self.tokens_per_step / seconds
        self.rates = {"eager_tokens_per_s": round(rate, 1)}
        left = seconds * steps_left
        if left < needed:
            self._is_watching = False
            logger.info(
                "training is not compiled: the %d steps left take %.0f s, and it pays from %.0f s "
                "on (%.0f tokens/s)",
                steps_left,
                left,
                needed,
                rate,
            )
            return

        logger.info(
            "compiling the training step: %.0f tokens/s now, and the %d steps left take %.0f s",
            rate,
            steps_left,
            left,
        )
        self._compiled = self._compile(model)

    def _compile(self, model: Any) -> Callable[..., Any]:
        """Return a compiled forward pass that takes batches of one shape."""
        eager = model.forward
        compiled = torch.compile(eager)
        known: torch.Size | None = None

        def forward(*args: Any, **inputs: Any) -> Any:
            nonlocal known
            # The last batch of an epoch may be smaller; another graph for it would not pay.
            shape = inputs["input_ids"].shape
            known = shape if known is None else known
            if shape != known or self._has_failed:
                return eager(*args, **inputs)

            try:
                return compiled(*args, **inputs)
            except TorchDynamoException as error:
                self._give_up(f"it failed: {' '.join(str(error).split())[:200]}")
                return eager(*args, **inputs)

        return forward

    def _compare(self, seconds: float) -> None:
        """Say both rates, and go back to eager steps where these are faster."""
        self._is_watching = False
        rate = self.tokens_per_step / seconds
        self.rates["compiled_tokens_per_s"] = round(rate, 1)
        eager = self.rates["eager_tokens_per_s"]
        if rate < eager:
            self._give_up(f"it is not faster ({rate:.0f} tokens/s, {eager:.0f} before)")
            return
        logger.info(
            "compiled in %.0f s: %.0f tokens/s, %.0f before (%.2f times)",
            self.rates["compile_seconds"],
            rate,
            eager,
            rate / eager,
        )

    def _give_up(self, why: str) -> None:
        """Take eager steps from here on."""
        logger.warning("training goes on without torch.compile: %s", why)
        self._is_watching, self._has_failed = False, True
        self._compiled = None


def _why_eager(args: TrainingArguments, steps: int) -> str | None:
    """Return why steps are not compiled whatever they take, or None."""
    if args.world_size > 1 or args.n_gpu > 1:
        return "several devices train, and the time was measured on one (--torch_compile true)"
    if args.full_determinism:
        return "--full_determinism asks for the same numbers in each run"
    if steps <= MEASURED_STEPS:
        return f"{steps} steps are too few to measure what it would save"

    if args.device.type == "cpu":
        asked = os.environ.get("CXX")
        names = [asked] if asked else ["g++", "clang++"]
        if not any(shutil.which(name) for name in names):
            return f"no C++ compiler is found ({' or '.join(names)}); install g++"
    elif args.device.type != "cuda":
        return f"it was not measured on {args.device.type} (--torch_compile true)"
    elif find_spec("triton") is None:
        return "triton is not installed"
    return None


def _replace_forward(model: Any, forward: Callable[..., Any]) -> Callable[[], None]:
    """Replace the forward pass of a model; return what puts its own back."""
    own = vars(model).get("forward")
    model.forward = forward

    def restore() -> None:
        # that of the class shows again once the instance has none
        if own is None:
            del model.forward
        else:
            model.forward = own

    return restore


def _synchronize() -> None:
    """Wait for what the device was given, which it does later than the host."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
