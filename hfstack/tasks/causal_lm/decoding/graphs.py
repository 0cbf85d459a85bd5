"""Replay steps of decoding as CUDA graphs, one for each bucket of their sizes.

A step of a small model launches hundreds of kernels, and the launches take longer than the kernels.
A graph launches all of them at once. It reads and writes fixed addresses and has fixed shapes: it
computes a bucket of rows over a bucket of columns, of which those that no completion uses are
masked or not read. Weights are read where they lie, so that a graph sees every update of them.

A graph is captured when its bucket is first met, behind the step that was taken without one, and is
used if it computes what that step did. Where it does not, or cannot be captured, all steps are
taken without graphs, and a warning says why.

Legend: r rows in use, R of a bucket; S columns filled, C of a bucket; H heads, d size of a head,
V vocabulary.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer

from hfstack.logs import get_logger
from hfstack.tasks.causal_lm.decoding.slots import SlotCache, SlotLayer
from hfstack.tasks.causal_lm.decoding.step import DecodeStep, DecodingStep

logger = get_logger(__name__)

# Columns of the buckets: multiples of it. Attention over masked columns costs little beside a
# capture, which takes as long as a few steps without a graph.
_BUCKET_COLUMNS = 128

# Probability by which a graph's next token may differ from that of the step without one, in total
# variation: other shapes choose other kernels, and in bf16 logits near 20 are an eighth apart.
_TOLERANCE, _HALF_TOLERANCE = 1e-3, 0.1

# Given a function that works on fixed tensors, returns one that does the same to them again.
Capture = Callable[[Callable[[], None]], Callable[[], None]]


class CudaCapture:
    """Captures a function as a CUDA graph; all graphs share one pool of memory."""

    def __init__(self) -> None:
        self._pool: Any = None

    def __call__(self, run: Callable[[], None], /) -> Callable[[], None]:
        """Return what replays a function.

        Raises:
            RuntimeError: the function waits for the device, or does what a graph cannot hold.
        """
        current, side = torch.cuda.current_stream(), torch.cuda.Stream()
        side.wait_stream(current)
        with torch.cuda.stream(side), _as_in_capture():
            run()  # what is made at first use, such as workspaces, may wait

            # A capture that fails leaves the random numbers of the device unusable, so that what
            # would make it fail is found before.
            before = torch.cuda.get_sync_debug_mode()
            torch.cuda.set_sync_debug_mode("error")
            try:
                run()
            finally:
                torch.cuda.set_sync_debug_mode(before)
        current.wait_stream(side)

        graph = torch.cuda.CUDAGraph()
        # other threads may use the device meanwhile
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            run()
        self._pool = self._pool or graph.pool()
        return graph.replay


@contextlib.contextmanager
def _as_in_capture() -> Iterator[None]:
    """Let models take the paths that they take in a capture, which look at no values."""
    asked = torch.cuda.is_current_stream_capturing
    torch.cuda.is_current_stream_capturing = lambda: True
    try:
        yield
    finally:
        torch.cuda.is_current_stream_capturing = asked


@contextlib.contextmanager
def _casts_inside(device: torch.device) -> Iterator[None]:
    """Let autocast cast weights each time: a graph would read an old copy."""
    kind = device.type
    with torch.autocast(
        kind,
        dtype=torch.get_autocast_dtype(kind),
        enabled=torch.is_autocast_enabled(kind),
        cache_enabled=False,
    ):
        yield


class _FixedLayer(DynamicLayer):
    """The first rows and columns of a layer's slots, written on the device."""

    def __init__(self, slots: SlotLayer, rows: int, columns: int, column: Tensor) -> None:
        super().__init__()
        self.keys = cast(Tensor, slots.keys)[:rows, :, :columns]  # (R, H, C, d)
        self.values = cast(Tensor, slots.values)[:rows, :, :columns]  # (R, H, C, d)
        self.column = column  # (1,)
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write one column (R, H, 1, d) in place; return all columns."""
        keys, values = cast(Tensor, self.keys), cast(Tensor, self.values)
        keys.index_copy_(2, self.column, key_states.to(keys.dtype))
        values.index_copy_(2, self.column, value_states.to(values.dtype))
        return keys, values

    def get_seq_length(self) -> int:
        """Return the columns before the last, which the query sees unless masked."""
        return cast(Tensor, self.keys).shape[-2] - 1


@dataclass
class _Graph:
    """One bucket's graph and the tensors that it reads."""

    tokens: Tensor  # (R,)
    positions: Tensor  # (R,)
    starts: Tensor  # (R,) first columns of the prompts
    column: Tensor  # (1,) that is written
    tables: int  # how often the cache's tables were allocated before
    replay: Callable[[], None]

    @classmethod
    def of_size(cls, rows: int, device: torch.device, *, tables: int) -> "_Graph":
        """Return one that is not captured yet."""
        tokens, positions, starts = torch.zeros(3, rows, dtype=torch.long, device=device)
        column = torch.zeros(1, dtype=torch.long, device=device)
        return cls(tokens, positions, starts, column, tables, replay=lambda: None)

    def fill(self, tokens: Tensor, positions: Tensor, starts: Tensor, *, column: int) -> None:
        """Set what the next replay reads.

        Rows that are not in use attend to all columns: those of none would become NaN, and spread.
        """
        rows = len(tokens)
        self.tokens[:rows] = tokens
        self.positions[:rows] = positions
        self.starts[:rows] = starts
        self.starts[rows:] = 0
        self.column.fill_(column)


class GraphedSteps:
    """Steps of one token for each slot, by graphs that are captured when needed.

    Args:
        step: one step of the model, without a graph.
        model: whose weights the step reads.
        capture: makes a function repeatable.
    """

    def __init__(self, step: DecodeStep, model: PreTrainedModel, capture: Capture) -> None:
        self._step = step
        self._model = model
        self._capture = capture
        self._refused = False

        self._cache: SlotCache | None = None
        self._graphs: dict[tuple[int, int], _Graph] = {}
        self._made_for: tuple[Any, ...] | None = None
        self._logits: Tensor | None = None  # (slots, V), which all graphs write to
        self._values: Tensor | None = None  # (slots,)

    def open_cache(self, layers: int, *, slots: int, columns: int) -> SlotCache:
        """Return an empty cache: the last one with its graphs, where it is large enough."""
        # A graph reads weights where they were, which a merge may have moved; under autocast the
        # tables are of another type.
        kind = self._model.device.type
        weights = (*self._model.parameters(), *self._model.buffers())
        autocast = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind)
        made_for = (autocast, *(weight.data_ptr() for weight in weights))

        cache = self._cache
        fits = cache is not None and cache.slots >= slots and cache.columns >= columns
        if cache is None or not fits or made_for != self._made_for:
            self.close_cache()
            cache = self._cache = SlotCache(layers, slots=slots, columns=columns, at_once=True)
            self._made_for = made_for
        cache.empty()
        return cache

    def close_cache(self, *, keep_bytes: float = 0) -> None:
        """Free the cache and its graphs, unless they take at most some bytes."""
        logits = 0 if self._logits is None else self._logits.nbytes
        if self._cache is not None and self._cache.count_bytes() + logits > keep_bytes:
            self._cache = self._logits = self._values = None
            self._graphs = {}

    def replay(
        self, tokens: Tensor, positions: Tensor, starts: Tensor, *, cache: SlotCache
    ) -> DecodingStep | None:
        """Append a token to each slot by a graph.

        The next replay overwrites what is returned. Returns None, and does nothing, where there is
        no graph of this size.

        Args:
            tokens: (r,) of the slots in use.
            positions: (r,) of these tokens.
            starts: (r,) the first columns of the slots' prompts.
            cache: opened here, with a free column.
        """
        graph = self._graphs.get(self._bucket(cache, cache.filled + 1))
        if graph is None or graph.tables != cache.allocations:
            return None

        graph.fill(tokens, positions, starts, column=cache.filled)
        graph.replay()
        cache.advance()
        return self._result(cache)

    def learn(
        self,
        tokens: Tensor,
        positions: Tensor,
        starts: Tensor,
        *,
        cache: SlotCache,
        expected: DecodingStep,
    ) -> None:
        """Capture the step that was just taken without a graph, and compare the two.

        Args:
            tokens: as of `replay`.
            positions: as of `replay`.
            starts: as of `replay`.
            cache: with the column that the step has filled.
            expected: what the step returned.
        """
        rows, columns = self._bucket(cache, cache.filled)
        # a window leaves out other columns at each step, and a graph's mask is of all columns
        if self._refused or columns > self._shortest_window():
            return

        column = cache.filled - 1
        written = [table[:rows, :, column].clone() for table in cache.tables()]
        graph = _Graph.of_size(rows, self._model.device, tables=cache.allocations)
        graph.fill(tokens, positions, starts, column=column)
        try:
            graph.replay = self._capture(self._run(graph, cache, columns, expected))
            graph.replay()
            reason = self._difference(cache, expected)
        # what a graph cannot hold fails in as many ways as there are models
        except Exception as error:
            reason = str(error).strip().partition("\n")[0]

        if reason is None:
            self._graphs[rows, columns] = graph
            return

        for table, before in zip(cache.tables(), written, strict=True):
            table[:rows, :, column] = before
        self._refused = True
        self._graphs = {}
        logger.warning(
            "%s generates without CUDA graphs, which takes longer: %s (--rollout_cuda_graphs "
            "false does not try them)",
            type(self._model).__name__,
            reason,
        )

    def _run(
        self, graph: _Graph, cache: SlotCache, columns: int, expected: DecodingStep
    ) -> Callable[[], None]:
        """Return what a graph is captured of, the step on its tensors."""
        if self._logits is None:
            self._logits = expected.logits.new_zeros(cache.slots, expected.logits.shape[1])
            if expected.values is not None:
                self._values = expected.values.new_zeros(cache.slots)
        logits, values, rows = self._logits, self._values, len(graph.tokens)

        device = graph.tokens.device
        every = torch.arange(columns, device=device)  # (C,)
        layers: list[Any] = [
            _FixedLayer(layer, rows, columns, graph.column) for layer in cache.slot_layers
        ]

        def run() -> None:
            used = (every >= graph.starts[:, None]) & (every <= graph.column)  # (R, C)
            with _casts_inside(device), torch.no_grad():
                step = self._step(
                    graph.tokens[:, None],
                    graph.positions[:, None],
                    attention_mask=used.long(),
                    cache=Cache(layers=layers),
                )
            logits[:rows].copy_(step.logits)
            if values is not None:
                values[:rows].copy_(cast(Tensor, step.values))

        return run

    def _result(self, cache: SlotCache) -> DecodingStep:
        """Return what the last replay wrote for the rows in use."""
        assert self._logits is not None
        values = None if self._values is None else self._values[: cache.rows]
        return DecodingStep(self._logits[: cache.rows], values, cache)

    def _difference(self, cache: SlotCache, expected: DecodingStep) -> str | None:
        """Return in words how a replay differs from the step, or None."""
        found = self._result(cache)
        probabilities = found.logits.softmax(-1) - expected.logits.softmax(-1)  # (r, V)
        largest = float(probabilities.abs().sum(-1).max() / 2)

        allowed = _TOLERANCE if self._computes_in_fp32() else _HALF_TOLERANCE
        # not of NaN, which is no agreement
        if largest <= allowed:
            return None
        return f"the probabilities of a graph differ from those of the step by {largest:.2g}"

    def _computes_in_fp32(self) -> bool:
        casts = torch.is_autocast_enabled(self._model.device.type)
        return self._model.dtype == torch.float32 and not casts

    def _bucket(self, cache: SlotCache, filled: int) -> tuple[int, int]:
        """Return the rows and columns of the smallest graph that holds a step."""
        rows = 1 << (cache.rows - 1).bit_length()
        columns = -(-filled // _BUCKET_COLUMNS) * _BUCKET_COLUMNS
        return min(rows, cache.slots), min(columns, cache.columns)

    def _shortest_window(self) -> float:
        """Return how many columns every layer attends to."""
        config = self._model.config.get_text_config(decoder=True)
        return getattr(config, "sliding_window", None) or float("inf")
