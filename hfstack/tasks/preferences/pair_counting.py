"""Average what is measured of held-out pairs or thumbs over them, not batches.

TRL's trainers average the means of batches, so that the one pair of a short last batch counts as
much as a whole batch, and DPO's counts twice the pairs that several processes repeat to fill it.
Here every pair, and every answer with its thumb, counts once, whatever the batches and processes.
"""

from collections.abc import Callable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from typing import Any

from trl import RewardTrainer

from hfstack.errors import refusals_of_upstream
from hfstack.training.token_average import EachRowCounts


class EachPairCounts(EachRowCounts):
    """What TRL's trainers of pairs are combined with; named before them."""

    _weights: list[dict[str, float]] | None = None  # of each batch, by what is averaged

    @refusals_of_upstream()
    def __init__(self, **given: Any) -> None:
        """Build TRL's trainer; what it refuses is one line."""
        super().__init__(**given)

    def prediction_step(self, model: Any, inputs: Any, *args: Any, **settings: Any) -> Any:
        """Evaluate one batch, and note how many pairs it has over all processes."""
        own = {"pairs": float(_pairs_in(inputs))} | _tokens_of_sides(inputs)
        with self._without_repeated_pairs():
            result = super().prediction_step(model, inputs, *args, **settings)

        self._weights = [*(self._weights or []), self.count_once(own)]
        return result

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log; the metrics of an evaluation are means over pairs, of logits over tokens."""
        weights, self._weights = self._weights, None
        if weights:
            means = _means_of_batches(self)
            for name, values in means.items():
                if len(values) == len(weights):
                    counts = [batch.get(name, batch["pairs"]) for batch in weights]
                    means[name] = [_over_batches(name)(values, counts)]

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
                # of a reward model's pair both sides are rows; in the last batch it is alone
                sides = max(len(found) // max(self.args.world_size, 1), 1)
                return found[: state.remainder * sides]
            return found

        accelerator.gather = gather_each_once
        try:
            yield
        finally:
            del accelerator.gather  # what was set on the object hid the method


class PairwiseRewardTrainer(EachPairCounts, RewardTrainer):
    """TRL's trainer, with metrics that are means over held-out pairs."""


class EachThumbCounts(EachRowCounts):
    """What TRL's KTOTrainer is combined with; named before it."""

    _weights: list[dict[str, float]] | None = None  # of each batch, by what is averaged

    def prediction_step(self, model: Any, inputs: Any, *args: Any, **settings: Any) -> Any:
        """Evaluate one batch, and note how many good and bad answers it has."""
        good, scored = inputs["label"].bool(), inputs["completion_mask"][:, 1:].sum(1)  # (B,)
        own = {
            "chosen": float(good.sum()),
            "rejected": float((~good).sum()),
            "logits/chosen": float(scored[good].sum()),
            "logits/rejected": float(scored[~good].sum()),
        }
        result = super().prediction_step(model, inputs, *args, **settings)
        self._weights = [*(self._weights or []), self.count_once(own)]
        return result

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log; the metrics of an evaluation are means over answers, or over their tokens."""
        weights, self._weights = self._weights, None
        if weights:
            means = _means_of_batches(self)
            for name, values in means.items():
                # a batch without good answers has no mean of them
                of_batches = [number for number in _thumb_weights(name, weights) if number]
                if len(values) == len(of_batches):
                    means[name] = [_mean(values, of_batches)]
            if means.get("rewards/chosen") and means.get("rewards/rejected"):
                good, bad = means["rewards/chosen"], means["rewards/rejected"]
                if len(good) == len(bad) == 1:
                    means["rewards/margins"] = [good[0] - bad[0]]

        super().log(logs, start_time)


def _thumb_weights(name: str, batches: Sequence[dict[str, float]]) -> list[float]:
    """Return by what the means of batches are weighed: answers, or their tokens."""
    if name.startswith("logits/"):
        return [batch[name] for batch in batches]
    if name == "entropy":
        return [batch["logits/chosen"] + batch["logits/rejected"] for batch in batches]
    side = name.rpartition("/")[2]
    if side in ("chosen", "rejected"):
        return [batch[side] for batch in batches]
    return [batch["chosen"] + batch["rejected"] for batch in batches]


def _mean(values: Sequence[float], weights: Sequence[float]) -> float:
    """Return the mean of values by their weights."""
    return sum(v * n for v, n in zip(values, weights, strict=True)) / sum(weights)


def _over_batches(name: str) -> Callable[[Sequence[float], Sequence[float]], float]:
    """Return what makes one number of the batches' own: a mean, least or greatest."""
    extremes = {"min_reward": min, "max_reward": max}
    if name in extremes:
        return lambda values, weights: extremes[name](values)
    return _mean


def _tokens_of_sides(inputs: Any) -> dict[str, float]:
    """Return how many tokens the logits of a batch of DPO are of, by metric."""
    if "completion_mask" not in inputs:
        return {}
    sides = inputs["completion_mask"][:, 1:].sum(1).chunk(2)
    chosen, rejected = (float(side.sum()) for side in sides)
    return {
        "logits/chosen": chosen,
        "logits/rejected": rejected,
        "entropy": chosen + rejected,
    }


def _pairs_in(inputs: Any) -> int:
    """Count the pairs of a batch of DPO (chosen above rejected) or of ORPO."""
    if "chosen_input_ids" in inputs:
        return len(inputs["chosen_input_ids"])
    return len(inputs["input_ids"]) // 2


def _means_of_batches(trainer: Any) -> MutableMapping[str, list[float]]:
    """Return where a trainer keeps the means of the batches that it has evaluated."""
    kept = trainer._stored_metrics if hasattr(trainer, "_stored_metrics") else trainer._metrics
    return kept["eval"]
