"""What Trainer takes for its data loader: iterating writes a rollout, then goes through it num_ppo_epochs times."""

from collections.abc import Callable, Iterator
from typing import Any

import torch

from hfstack.tasks.rl.ppo.config import PPOConfig
from hfstack.tasks.rl.ppo.experience import Experience
from hfstack.tasks.rl.ppo.math import Reduce


class RolloutLoader:
    """One rollout for each iteration; the state is its index.

    It is not prepared by accelerate, whose loaders fetch one batch ahead: the next rollout would be written before the
    last update of this one.

    Args:
        args: the settings.
        dataset: the prompts; Trainer reads their number.
        collect: writes and scores the rollout of an index.
        reduce: sums over processes.
        process_index: part of the seed, so that processes shuffle apart.
    """

    def __init__(
        self,
        args: PPOConfig,
        dataset: Any,
        *,
        collect: Callable[[int], Experience],
        reduce: Reduce,
        process_index: int,
    ) -> None:
        self.args = args
        self.dataset = dataset
        self.rollout = 0
        self._collect = collect
        self._reduce = reduce
        self._process_index = process_index

    def set_epoch(self, epoch: int) -> None:
        """Trainer's epoch is the index of the rollout."""
        self.rollout = epoch

    def __len__(self) -> int:
        """Batches of a rollout: optimizer steps times accumulation."""
        return self.args.steps_per_rollout * self.args.gradient_accumulation_steps

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield what `PPOTrainer.training_step` takes: the experience, the rows of a batch, its minibatch's tokens."""
        args = self.args
        experience = self._collect(self.rollout)
        seed = args.seed * 1_000_003 + self.rollout * 7919 + self._process_index
        generator = torch.Generator().manual_seed(seed)
        orders = [torch.randperm(args.rollout_size, generator=generator) for _ in range(args.num_ppo_epochs)]
        minibatches = torch.stack(orders).view(args.steps_per_rollout, -1)  # (steps, episodes of a step)
        tokens = self._reduce(experience.token_counts[minibatches].sum(1).double())
        for rows, total in zip(minibatches.tolist(), tokens.tolist(), strict=True):
            for first in range(0, len(rows), args.per_device_train_batch_size):
                chosen = rows[first : first + args.per_device_train_batch_size]
                yield {"experience": experience, "rows": chosen, "tokens": max(total, 1.0)}
