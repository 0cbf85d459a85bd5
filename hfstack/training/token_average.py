"""Average what an evaluation measures over its rows or tokens, not batches.

The Trainer averages the means of batches by their rows (transformers 5.23), and TRL its shares of
right tokens by batches: a batch of few tokens counts as much as one of many, so that the loss of
rows of different lengths depends on `--per_device_eval_batch_size`. Several processes fill their
last batches with rows that were there before, which then count twice. Here each row, and of token
models each token, counts once, whatever the batches and the processes.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

import torch
from accelerate import PartialState
from accelerate.data_loader import DataLoaderShard
from accelerate.state import GradientState
from transformers.trainer_pt_utils import find_batch_size

from hfstack.errors import ConfigError
from hfstack.tokens.special_tokens import IGNORED_LABEL

if TYPE_CHECKING:
    from transformers import Trainer
else:
    Trainer = object


class EachRowCounts(Trainer):
    """What a Trainer is combined with to count rows once; named before it."""

    means_are_local = False  # the loss of a process is the mean of its own rows, come what may

    _sums: list[tuple[float, float]] | None = None  # (summed loss, weight) of each batch

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """Return the held-out rows in batches that repeat none in between."""
        return _share_rows(self, super().get_eval_dataloader(eval_dataset))

    def get_test_dataloader(self, test_dataset: Any) -> Any:
        """Return rows in batches that repeat none in between."""
        return _share_rows(self, super().get_test_dataloader(test_dataset))

    def prediction_step(self, model: Any, inputs: Any, *args: Any, **settings: Any) -> Any:
        """Evaluate one batch, and note its loss with the number of what it is a mean of."""
        weight = self.weigh(inputs)  # before TRL takes columns out of the batch
        whole = self._divisor(inputs)
        result = cast(Any, super().prediction_step(model, inputs, *args, **settings))

        if self._sums is not None and result[0] is not None:
            repeated = self.is_repeated()
            summed = float(result[0]) * (weight if whole is None else whole) if weight else 0.0
            self._sums.append((0.0, 0.0) if repeated else (summed, weight))
        return result

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **settings: Any) -> Any:
        """Evaluate all batches; the loss is a mean over all that was weighed."""
        self._sums = []
        output: Any = super().evaluation_loop(
            *args, metric_key_prefix=metric_key_prefix, **settings
        )
        sums, self._sums = self._sums, None

        name = f"{metric_key_prefix}_loss"
        if sums and name in output.metrics:
            own = torch.tensor(sums, dtype=torch.float32, device=self.args.device)  # (batches, 2)
            batches: torch.Tensor = cast(Any, self.accelerator.reduce(own, "sum")).double()
            losses, weights = batches.sum(0).tolist()
            output.metrics[name] = losses / max(weights, 1)
            self.average_shares(batches[:, 1].tolist())
        return output

    def weigh(self, inputs: Any) -> float:
        """Return of how many rows a batch is."""
        return float(find_batch_size(inputs) or 0)

    def average_shares(self, weights: list[float]) -> None:
        """Average what else was kept of each batch; nothing by default.

        Args:
            weights: of each batch, over all processes.
        """

    def count_once(self, counts: dict[str, float]) -> dict[str, float]:
        """Return counts of a batch over all processes, without what is repeated."""
        own = torch.tensor(list(counts.values()), device=self.args.device)
        whole: Any = self.accelerator.reduce(own * (not self.is_repeated()), "sum")
        return dict(zip(counts, whole.tolist(), strict=True))

    def is_repeated(self) -> bool:
        """Return whether the batch of this process is a row that another one has already."""
        return is_repeated_batch()

    def _divisor(self, inputs: Any) -> float | None:
        """Return by what upstream divides this process's sum; None for its own weight.

        It may divide by the labels of all processes, and multiply by their number.
        """
        own: Any = self
        if self.means_are_local or self.args.world_size == 1:
            return None
        if not (self.args.average_tokens_across_devices and _passes_count(self)):
            return None
        count = own._get_num_items_in_batch([inputs], self.args.device)
        return None if count is None else float(count) / self.args.world_size


def is_repeated_batch() -> bool:
    """Return whether another process has the rows of this batch already."""
    processes, state = PartialState(), GradientState()
    last = processes.num_processes > 1 and state.end_of_dataloader and state.remainder > 0
    return last and processes.process_index >= state.remainder


class EachTokenCounts(EachRowCounts):
    """What a Trainer of token models is combined with; named before it."""

    def weigh(self, inputs: Any) -> float:
        """Return how many tokens of a batch are scored."""
        labels = inputs.get("labels")
        if getattr(labels, "ndim", 0) != 2:  # a class of each row, not of its tokens
            return super().weigh(inputs)
        # upstream's own mark: the label of a place is the next token
        scored = labels[:, 1:] if cast(Any, self)._loss_shifts_labels else labels
        return float((scored != IGNORED_LABEL).sum())

    def average_shares(self, weights: list[float]) -> None:
        """Average what TRL keeps of each batch, such as the share of right tokens."""
        kept = getattr(self, "_metrics", {}).get("eval", {})
        for name, values in kept.items():
            if len(values) == len(weights) and sum(weights):
                total = sum(v * n for v, n in zip(values, weights, strict=True))
                kept[name] = [total / sum(weights)]


class _Shares:
    """Rows of one process, in batches: whole ones, a shorter one, then single rows.

    All processes have as many batches, of as many rows, in the rows' order. Rows that are left over
    come alone, one a process, so that those repeated beside them are whole batches of their own.

    Args:
        rows: how many there are.
        batch_size: rows of a whole batch of one process.
        processes: how many share them.
        index: of this process.
    """

    batch_size = 1  # of the last batch, by which accelerate finds the repeated rows

    def __init__(self, rows: int, batch_size: int, processes: int, index: int) -> None:
        self.rows = rows
        self.num_processes = processes
        self.index = index
        whole, left = divmod(rows, batch_size * processes)
        shorter, alone = divmod(left, processes)
        self.sizes = [batch_size] * whole + [shorter] * (shorter > 0) + [1] * (alone > 0)

    def __len__(self) -> int:
        return len(self.sizes)

    def __iter__(self) -> Iterator[list[int]]:
        start = 0
        for size in self.sizes:
            first = start + self.index * size
            yield [number % self.rows for number in range(first, first + size)]
            start += size * self.num_processes


def _share_rows(trainer: Any, loader: Any) -> Any:
    """Return a loader whose rows several processes share as `_Shares` says.

    Raises:
        ConfigError: rows are streamed, so that they have no number, and the last of them would be
            repeated.
    """
    args, accelerator = trainer.args, trainer.accelerator
    if args.world_size == 1:
        return loader
    rows: Any = cast(Any, loader).dataset
    if isinstance(rows, torch.utils.data.IterableDataset):
        raise ConfigError(
            "held-out rows cannot be streamed to several processes, which would count some twice: "
            "give a Dataset, or run one process"
        )
    if args.dataloader_drop_last or not isinstance(loader, DataLoaderShard):
        return loader

    shares = _Shares(len(rows), args.eval_batch_size, args.world_size, args.process_index)
    kept = ("collate_fn", "num_workers", "pin_memory", "persistent_workers", "prefetch_factor")
    settings = {name: getattr(loader, name) for name in kept}
    return DataLoaderShard(rows, device=accelerator.device, batch_sampler=shares, **settings)


def _passes_count(trainer: Any) -> bool:
    """Return whether upstream gives the loss a count of the labels of all processes."""
    return bool(trainer.model_accepts_loss_kwargs or trainer.compute_loss_func)
