"""Average what is measured of held-out pairs over pairs, not over batches.

TRL's trainers of pairs average the means of batches, so that the one pair of a short last batch
counts as much as a whole batch, and DPO's counts twice the pairs that several processes repeat to
fill it. Here every pair counts once, whatever the batches and the processes.
"""

from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from hfstack.errors import refusals_of_upstream

if TYPE_CHECKING:
    from transformers import Trainer
else:
    Trainer = object


class EachPairCounts(Trainer):
    """What TRL's DPOTrainer or ORPOTrainer is combined with; named before it."""

    _pairs_of_batches: list[int] | None = None

    @refusals_of_upstream()
    def __init__(self, **given: Any) -> None:
        """Build TRL's trainer; what it refuses is one line."""
        super().__init__(**given)

    def prediction_step(self, model: Any, inputs: Any, *args: Any, **settings: Any) -> Any:
        """Evaluate one batch, and note how many pairs it has over all processes."""
        with self._without_repeated_pairs():
            result = super().prediction_step(model, inputs, *args, **settings)

        ones = torch.ones(_pairs_in(inputs), device=self.args.device)
        pairs = len(self.accelerator.gather_for_metrics(ones))
        self._pairs_of_batches = [*(self._pairs_of_batches or []), pairs]
        return result

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log; the metrics of an evaluation are means over pairs."""
        pairs, self._pairs_of_batches = self._pairs_of_batches, None
        if pairs:
            means = _means_of_batches(self)
            for name, values in means.items():
                if len(values) == len(pairs):
                    total = sum(v * n for v, n in zip(values, pairs, strict=True))
                    means[name] = [total / sum(pairs)]

        super().log(logs, start_time)

    @contextmanager
    def _without_repeated_pairs(self) -> Iterator[None]:
        """Cut what processes gather of the last batch to the pairs that there are."""
        accelerator: Any = self.accelerator
        gather = accelerator.gather

        def gather_each_once(values: Any) -> Any:
            state = accelerator.gradient_state
            found = gather(values)
            if state.end_of_dataloader and state.remainder > 0 and found.dim():
                return found[: state.remainder]
            return found

        accelerator.gather = gather_each_once
        try:
            yield
        finally:
            del accelerator.gather  # what was set on the object hid the method


def _pairs_in(inputs: Any) -> int:
    """Count the pairs of a batch of DPO (chosen above rejected) or of ORPO."""
    if "chosen_input_ids" in inputs:
        return len(inputs["chosen_input_ids"])
    return len(inputs["input_ids"]) // 2


def _means_of_batches(trainer: Any) -> MutableMapping[str, list[float]]:
    """Return where a trainer keeps the means of the batches that it has evaluated."""
    kept = trainer._stored_metrics if hasattr(trainer, "_stored_metrics") else trainer._metrics
    return kept["eval"]
