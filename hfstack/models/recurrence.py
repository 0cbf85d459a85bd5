"""Hold the state of a recurrent language model, and split batches into documents.

Shapes: B rows, T tokens, H hidden_size, L layers, S segments, N tokens that are not padding,
M places in packed order.
A state is `(h,)` for a GRU and `(h, c)` for an LSTM, each (L, B, H).
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import LongTensor, Tensor
from transformers.cache_utils import Cache


class RecurrentCache(Cache):
    """The state after the last token, in place of keys and values.

    Its size does not depend on the tokens seen.
    """

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.state: tuple[Tensor, ...] | None = None
        self.token_count = 0

    def __len__(self) -> int:
        return 0 if self.state is None else self.state[0].shape[0]

    def advance(self, state: tuple[Tensor, ...], token_count: int) -> None:
        """Replace the state by the one after `token_count` more columns, padding included."""
        self.state = state
        self.token_count += token_count

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the number of columns seen, padding included.

        `generate` drops as many from a prompt that it continues.
        """
        return self.token_count

    def get_max_length(self, layer_idx: int | None = None) -> int:
        """Return -1: there is no longest sequence."""
        return -1

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Return (columns seen with the query, 0), as a cache of every token would."""
        return self.token_count + query_length, 0

    def reset(self) -> None:
        """Forget everything."""
        self.state, self.token_count = None, 0

    def _select(self, rows: Tensor) -> None:
        if self.state is not None:
            self.state = tuple(part.index_select(1, rows.to(part.device)) for part in self.state)

    def reorder_cache(self, beam_idx: LongTensor) -> None:
        """Give row i the state of row `beam_idx[i]`, as beam search asks."""
        self._select(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the rows `indices`, in that order."""
        self._select(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row `repeats` times, copies side by side."""
        self._select(torch.arange(self.batch_size).repeat_interleave(repeats))

    def crop(self, tokens_to_remove: int) -> None:
        """Refuse: a state cannot be rolled back to an earlier token.

        Raises:
            RuntimeError: always, unless there is nothing to remove.
        """
        if tokens_to_remove != 0:
            raise RuntimeError(
                "a recurrent state cannot be rolled back: keep a copy of the cache from before the "
                "tokens"
            )

    @property
    def batch_size(self) -> int:
        """Return B, or -1 before the first forward."""
        return -1 if self.state is None else self.state[0].shape[1]

    @property
    def is_initialized(self) -> bool:
        """Return whether a forward has filled it."""
        return self.state is not None

    @property
    def is_croppable(self) -> bool:
        """Return False: see `crop`."""
        return False

    @property
    def is_compileable(self) -> bool:
        """Return False: else `generate` would build four-dimensional attention masks."""
        return False


class Slab(NamedTuple):
    """Consecutive offsets at which the same segments run side by side."""

    steps: int
    """How many offsets."""
    width: int
    """How many segments, which are the longest ones."""


@dataclass(frozen=True)
class Segments:
    """A batch split into independent sequences, longest first, in dense slabs.

    A slab is a (steps, width) block.

    Packed order is slab after slab, time-major within each: M = the sum of steps * width places.
    """

    slabs: tuple[Slab, ...]
    """Narrower and narrower, since a segment that has ended is in no later slab."""
    token_index: Tensor
    """(M,) index of each place's token in the flattened (B * T) batch; any token at a filler."""
    real: Tensor
    """(M,) bool, False at a filler: a place after the end of a segment that ends in its slab."""
    row: Tensor
    """(S,) the row that each segment comes from."""
    continues: Tensor
    """(S,) bool: the segment begins with the row's incoming state, not with zeros."""
    ended_row: Tensor
    """(rows with a token,) rows whose state changes."""
    ended_by: Tensor
    """(rows with a token,) the segment that leaves its final state to the row."""


def split_segments(valid: Tensor, starts: Tensor, *, filler_fraction: float) -> Segments | None:
    """Split each row at its document starts and drop its padding.

    All documents can then run side by side.

    Args:
        valid: (B, T) bool, False where a token is padding.
        starts: (B, T) bool, True at the first token of a document; ignored where `valid` is False.
        filler_fraction: how much of a slab's width may end inside it, in [0, 1). With 0 there are
            no fillers, so final states are right, but there are as many slabs as distinct lengths.

    Returns:
        The segments, or None when every token is padding.
    """
    token_index = valid.flatten().nonzero().squeeze(1)  # (N,)
    if token_index.numel() == 0:
        return None

    # Where segments begin among the N tokens, and how long they are.
    row = token_index // valid.shape[1]  # (N,)
    first_of_row = torch.diff(row, prepend=row.new_tensor([-1])) != 0
    starts = starts.flatten()[token_index]  # (N,)
    begins = (first_of_row | starts).nonzero().squeeze(1)  # (S,)
    lengths = torch.diff(begins, append=begins.new_tensor([len(row)]))  # (S,)
    lengths, longest_first = lengths.sort(descending=True, stable=True)  # (S,)
    begins_sorted = begins[longest_first]

    # The token of every place, slab after slab.
    slabs = _plan_slabs(lengths.tolist(), filler_fraction)
    places, real, offset = [], [], 0
    for steps, width in slabs:
        time = torch.arange(offset, offset + steps, device=row.device)[:, None]  # (steps, 1)
        running = time < lengths[:width]  # (steps, width)
        places.append(torch.where(running, begins_sorted[:width] + time, 0).flatten())
        real.append(running.flatten())
        offset += steps

    # The last segment of a row leaves its final state to it; (S,) in the order of the batch.
    ends_row = torch.diff(row[begins], append=row.new_tensor([-1])) != 0
    rank = torch.empty_like(longest_first)
    rank[longest_first] = torch.arange(len(rank), device=row.device)
    return Segments(
        slabs=slabs,
        token_index=token_index[torch.cat(places)],
        real=torch.cat(real),
        row=row[begins_sorted],
        continues=(first_of_row & ~starts)[begins_sorted],
        ended_row=row[begins][ends_row],
        ended_by=rank[ends_row],
    )


def _plan_slabs(lengths: list[int], filler_fraction: float) -> tuple[Slab, ...]:
    """Return slabs that hold segments of these lengths, longest first."""
    slabs, offset, width = [], 0, len(lengths)
    while width:
        kept = width - int(width * filler_fraction)  # so many must run to the end of the slab
        end = lengths[kept - 1]
        slabs.append(Slab(steps=end - offset, width=width))
        offset = end
        while width and lengths[width - 1] <= end:
            width -= 1
    return tuple(slabs)


def lstm_precision(inputs: Tensor) -> AbstractContextManager[Any]:
    """Run an LSTM in fp32 under autocast where the CPU has no bf16 kernel for it.

    Without AVX-512 oneDNN has none, and torch 2.13 ends in an error instead of using its own.
    """
    autocast = inputs.device.type == "cpu" and torch.is_autocast_enabled("cpu")
    if not autocast or torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return nullcontext()
    return torch.autocast("cpu", enabled=False)
