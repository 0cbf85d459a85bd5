"""Detect non-finite losses and gradients, and loss spikes, before the optimizer.

Legend: B rows of a micro-batch, T tokens, M micro-batches of a step.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Sized
from typing import Any, cast

import torch
from transformers import (
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_callback import ExportableState

from hfstack.errors import ConfigError
from hfstack.logs import get_logger
from hfstack.runs.environment import uses_deepspeed

logger = get_logger(__name__)

_SHOWN_ROWS = 4
_ROW_CHARACTERS = 60
_READ_TOKENS = 40
_SEARCH_S = 30  # a run that ends anyway may look for its rows so long
_SEARCHED_AT_ONCE = 256


class StepWatch:
    """Keep what one optimizer step read and its losses, by hooks on the forward pass.

    Nothing is copied and nothing is read back from the device until somebody asks.

    Args:
        model: the model whose training passes are watched; passes without gradient, as in
            generation, are not.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        # ids (B, T) and loss () of each M
        self._batches: list[tuple[torch.Tensor | None, torch.Tensor | None]] = []
        self._handle = model.register_forward_hook(self._keep, with_kwargs=True)

    def begin_step(self) -> None:
        """Forget the step before."""
        self._batches.clear()

    def close(self) -> None:
        """Take the hook off the model."""
        self._handle.remove()

    def losses(self) -> torch.Tensor | None:
        """Return the losses (M,) of this step, or None where the trainer computes them."""
        found = [loss.detach().float().reshape(()) for _, loss in self._batches if loss is not None]
        return torch.stack(found) if found else None

    def describe_rows(self, tokenizer: Any, dataset: Any = None) -> str:
        """Describe how the rows of this step begin, first those of a non-finite loss.

        Args:
            tokenizer: turns ids into text; ids are shown where it is none.
            dataset: the training rows, to say the number of each row in them; None to leave the
                numbers out.
        """
        # A spike, unlike a NaN, belongs to no micro-batch: then all of the step are shown.
        batches = list(enumerate(self._batches))
        guilty = [
            (number, (ids, loss))
            for number, (ids, loss) in batches
            if loss is not None and not torch.isfinite(loss).all()
        ]

        rows: list[tuple[str, list[int]]] = []
        for micro_batch, (ids, _) in guilty or batches:
            if ids is not None and ids.dim() == 2:
                rows += [
                    (f"{row} of micro-batch {micro_batch}", one)
                    for row, one in enumerate(ids.tolist())
                ]

        if not rows:
            return ""
        first = rows[:_SHOWN_ROWS]
        padding = getattr(tokenizer, "pad_token_id", None)
        numbers = find_rows(dataset, [ids for _, ids in first], padding)
        shown = []
        for (place, ids), number in zip(first, numbers, strict=True):
            in_data = "" if number is None else f", row {number} of the training data"
            shown.append(f"{place}{in_data}: {_beginning(ids, tokenizer)}")

        more = f" and {len(rows) - len(first)} more" if len(rows) > len(first) else ""
        return f"the rows of this step: {', '.join(shown)}{more}"

    def _keep(
        self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        if module.training and torch.is_grad_enabled():
            ids = kwargs.get("input_ids", args[0] if args else None)
            loss = output.get("loss") if isinstance(output, dict) else None
            self._batches.append((ids if isinstance(ids, torch.Tensor) else None, loss))


def gradient_norm(model: torch.nn.Module) -> torch.Tensor | None:
    """Return the 2-norm () over all gradients, or None when the engine has them."""
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    if not gradients:
        return None
    norm = torch.nn.utils.get_total_norm(gradients)
    whole = getattr(norm, "full_tensor", None)  # of a sharded model, each process has a part
    return whole() if whole is not None else norm


class SkipSpikes(TrainerCallback, ExportableState):
    """Skip a step whose loss is far above those before it: no weight changes.

    The rule is that of OLMo-core's SkipStepOptimizer (Allen Institute for AI; used for OLMo 2 32B),
    on the loss alone: skip when it is more than `sigmas` standard deviations above the mean of the
    last `window` steps. Off unless it is given to `protect`. `RollBackSpikes` of
    hfstack.training.roll_back goes back to a checkpoint as well.

    Args:
        sigmas: how many standard deviations are a spike.
        window: steps that are looked back on; nothing is skipped before half of them are known.
    """

    def __init__(self, sigmas: float = 6.0, window: int = 128) -> None:
        if sigmas <= 0 or window < 4:
            raise ConfigError(
                f"SkipSpikes needs sigmas above 0 and a window of at least 4, got {sigmas} and "
                f"{window}"
            )

        self.sigmas, self.window = sigmas, window
        self.skipped = 0
        self.left_out_until = 0  # the last step whose gradient is dropped
        self._losses: deque[float] = deque(maxlen=window)
        self._watch: StepWatch | None = None

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps of this callback."""
        settings = {"sigmas": self.sigmas, "window": self.window}
        kept = {
            "losses": list(self._losses),
            "skipped": self.skipped,
            "left_out_until": self.left_out_until,
        }
        return {"args": settings, "attributes": kept}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Watch the model; on a resume, load the losses before it."""
        if uses_deepspeed(args):
            raise ConfigError(
                "SkipSpikes does not work with DeepSpeed, which steps by itself; leave it out"
            )
        self._watch = StepWatch(kwargs["model"])
        known = cast(dict[str, Any], state.stateful_callbacks)
        kept = known.setdefault(type(self).__name__, self.state())
        self.restore(kept["attributes"])

    def restore(self, attributes: dict[str, Any]) -> None:
        """Take over what a checkpoint kept, as `state` gave it."""
        self._losses = deque(attributes["losses"], maxlen=self.window)
        self.skipped = attributes["skipped"]
        # a checkpoint of before may not know it
        self.left_out_until = attributes.get("left_out_until", 0)

    def use_checkpoints(self, wait: Callable[[], None]) -> None:
        """Take what waits until no checkpoint is being verified; skipping needs none."""

    def answer_spike(self, step: int, args: TrainingArguments, model: Any, optimizer: Any) -> int:
        """Return the last step to skip because of a spike at `step`: the spike itself."""
        return step

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Forget what the step before read."""
        assert self._watch is not None
        self._watch.begin_step()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Drop the gradient of a spike, on all processes alike."""
        assert self._watch is not None
        losses = self._watch.losses()
        if losses is None:
            raise ConfigError(
                "SkipSpikes reads the loss that the model returns, and this trainer computes it "
                "outside"
            )

        mean = losses.mean()  # ()
        if args.world_size > 1:
            torch.distributed.all_reduce(mean)
            mean /= args.world_size

        loss, step = mean.item(), state.global_step + 1
        if step > self.left_out_until and self._is_spike(loss):
            rows = self._watch.describe_rows(kwargs.get("processing_class"))
            logger.warning("step %d is skipped: its loss %.4g is a spike; %s", step, loss, rows)
            self.left_out_until = self.answer_spike(
                step, args, kwargs["model"], kwargs["optimizer"]
            )

        if step <= self.left_out_until:
            self.skipped += 1
            kwargs["model"].zero_grad(set_to_none=True)

        self._losses.append(loss)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Log how many steps were skipped so far."""
        if "loss" in kwargs["logs"]:
            kwargs["logs"]["skipped_steps"] = self.skipped
            state.log_history[-1]["skipped_steps"] = self.skipped

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take the hook off the model."""
        assert self._watch is not None
        self._watch.close()

    def _is_spike(self, loss: float) -> bool:
        """Compare with the steps before; a rise that lasts is accepted in time."""
        known = len(self._losses)
        if known < max(2, self.window // 2):
            return False
        mean = sum(self._losses) / known
        deviation = math.sqrt(sum((one - mean) ** 2 for one in self._losses) / (known - 1))
        return loss - mean > self.sigmas * deviation


def find_rows(dataset: Any, wanted: list[list[int]], pad_id: int | None) -> list[int | None]:
    """Return the dataset row that each batch row was made of, or None.

    Rows are compared by their ids, since no Trainer says which ones it sampled; the search costs a
    run nothing before it fails. Rows that a trainer builds of others (pairs, rollouts, joined
    documents) are in no dataset as such.

    Args:
        dataset: what the Trainer samples from; not searched unless it can be indexed and has
            `input_ids`.
        wanted: rows of a batch, T ids each, maybe padded.
        pad_id: the id that pads them.
    """
    found: list[int | None] = [None] * len(wanted)
    if not isinstance(dataset, Sized) or not len(dataset):
        return found
    deadline = time.monotonic() + _SEARCH_S
    table = cast(Any, dataset)
    read = getattr(table, "__getitems__", None) or (
        lambda numbers: [table[number] for number in numbers]
    )

    for start in range(0, len(dataset), _SEARCHED_AT_ONCE):
        end = min(start + _SEARCHED_AT_ONCE, len(dataset))
        for number, row in enumerate(read(list(range(start, end))), start):
            if not isinstance(row, dict) or "input_ids" not in row:
                return found
            ids = torch.as_tensor(row["input_ids"]).tolist()
            for place, batch_row in enumerate(wanted):
                if found[place] is None and _is_made_of(batch_row, ids, pad_id):
                    found[place] = number

        if None not in found or time.monotonic() > deadline:
            break

    return found


def _is_made_of(batch_row: list[int], ids: list[int], pad_id: int | None) -> bool:
    """Return whether a batch row is these ids, truncated or padded to its length."""
    length, size = len(ids), len(batch_row)
    if length >= size:
        return ids[:size] == batch_row
    padding = [pad_id] * (size - length)
    return batch_row in (ids + padding, padding + ids)


def _beginning(ids: list[int], tokenizer: Any) -> str:
    """Return how a row begins, as text where there is a tokenizer."""
    known = ids[:_READ_TOKENS]
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        return f"ids {known[:8]}"
    text = str(tokenizer.decode([token for token in known if token >= 0], skip_special_tokens=True))
    return repr(text if len(text) <= _ROW_CHARACTERS else text[:_ROW_CHARACTERS] + "...")
