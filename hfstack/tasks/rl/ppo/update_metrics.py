"""Collect the metrics of rollouts and updates between two logs.

Legend: M metrics of an update.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from hfstack.tasks.rl.ppo.formulas import Reduce


class TrainingMetrics:
    """The metrics since the last log.

    The state is the metrics of each rollout, the sums of the updates' metrics over all chunks of
    this process, and how many updates they took for how long.

    Args:
        names: of the M metrics of an update.
        device: of their sums.
    """

    def __init__(self, names: Sequence[str], device: torch.device) -> None:
        self.updates = 0  # gradients that were computed
        self.skipped = 0  # those that no step was taken with
        self.rollouts: list[dict[str, float]] = []
        self._names = names
        self._sums = torch.zeros(len(names), device=device)  # (M,)
        self._seconds = 0.0

    def add_rollout(self, metrics: dict[str, float]) -> None:
        """Add the metrics of a rollout, `episodes` among them."""
        self.rollouts.append(metrics)

    def add_chunk(self, sums: Tensor) -> None:
        """Add the sums (M,) of the loss of a chunk."""
        self._sums += sums

    def add_update(self, *, taken: bool = True) -> None:
        """Count one optimizer step, which `target_kl` may have turned into none."""
        self.updates += 1
        self.skipped += not taken

    def add_seconds(self, seconds: float) -> None:
        """Add the time of a training step."""
        self._seconds += seconds

    def pop(self, reduce: Reduce, *, skipped_updates: int) -> dict[str, float]:
        """Return the means over rollouts and updates, and start again from nothing.

        `episodes` is the last rollout's. Every process must call it, after at least one update.

        Args:
            reduce: sums over processes.
            skipped_updates: since the last log, because of `target_kl`.
        """
        rollouts, metrics = self.rollouts, {}
        for name in rollouts[-1] if rollouts else ():
            known = [rollout[name] for rollout in rollouts if name in rollout]
            metrics[name] = known[-1] if name == "episodes" else sum(known) / len(known)

        sums = reduce(self._sums).tolist()
        for name, value in zip(self._names, sums, strict=True):
            metrics[name] = value / self.updates

        metrics["policy/updates"] = self.updates - self.skipped
        metrics["policy/skipped_updates"] = skipped_updates + self.skipped
        metrics["time/update_s"] = self._seconds / max(1, len(rollouts))

        self.updates, self.skipped, self.rollouts, self._seconds = 0, 0, [], 0.0
        self._sums.zero_()
        return metrics
