"""Keep keys and values in slots that completions take and leave, in place.

A cache that grows copies all that it holds for each token. Here every completion has a slot, a row
of tables that are allocated in buckets of columns; the columns of all rows end at the same place,
so that a completion that joins later begins at a later column, and what is before it is masked.
Layers with a sliding window keep every column too: the model's mask leaves out what is beyond it.

Legend: s slots, r rows in use, C columns allocated, S columns filled, H heads, d size of a head.
"""

from typing import Any, cast

from torch import Tensor
from transformers import DynamicCache, PretrainedConfig
from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer

BUCKET = 64  # columns; tables are allocated in multiples of it


class SlotLayer(DynamicLayer):
    """Keys and values of one layer, (s, H, C, d) each; r rows and S columns are used."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = 0
        self.filled = 0

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write the next columns (r, H, t, d) in place; return all that are filled."""
        assert self.keys is not None and self.values is not None
        end = self.filled + key_states.shape[-2]
        keys, values = self.keys[: self.rows, :, :end], self.values[: self.rows, :, :end]
        keys[:, :, self.filled :] = key_states
        values[:, :, self.filled :] = value_states
        self.filled = end
        return keys, values

    def get_seq_length(self) -> int:
        """Return the columns that are filled."""
        return self.filled

    def allocate(self, like: DynamicLayer, slots: int, columns: int) -> None:
        """Make room for slots and columns, shaped like another layer; keep the content."""
        self.keys = self._grown(self.keys, cast(Tensor, like.keys), slots, columns)
        self.values = self._grown(self.values, cast(Tensor, like.values), slots, columns)
        self.is_initialized = True

    def _grown(self, old: Tensor | None, like: Tensor, slots: int, columns: int) -> Tensor:
        # zeros: masked columns are read, and what is not finite would spread
        grown = like.new_zeros(slots, like.shape[1], columns, like.shape[3])
        if old is not None:
            grown[: self.rows, :, : self.filled] = old[: self.rows, :, : self.filled]
        return grown


class SlotCache(Cache):
    """The slots of all layers.

    Args:
        layers: how many the model has.
        slots: rows that are in use at most.
        columns: that a completion needs at most, with its prompt.
        at_once: allocate all of them with the first prompts, so that tables stay where they are.
    """

    def __init__(self, layers: int, *, slots: int, columns: int, at_once: bool = False) -> None:
        super().__init__(layers=[SlotLayer() for _ in range(layers)])
        self.slots = slots
        self.longest = columns
        self.at_once = at_once
        self.columns = 0  # allocated
        self.allocations = 0  # how often tables were allocated

    @property
    def slot_layers(self) -> list[SlotLayer]:
        """Return the layers."""
        return cast(list[SlotLayer], self.layers)

    @property
    def rows(self) -> int:
        """Return the slots that are in use."""
        return self.slot_layers[0].rows

    @property
    def filled(self) -> int:
        """Return the columns that are filled."""
        return self.slot_layers[0].filled

    def tables(self) -> list[Tensor]:
        """Return keys and values (s, H, C, d) of all layers, once there are any."""
        found = [table for layer in self.slot_layers for table in (layer.keys, layer.values)]
        return [table for table in found if table is not None]

    def count_bytes(self) -> int:
        """Return the size of the tables."""
        return sum(table.nbytes for table in self.tables())

    def empty(self) -> None:
        """Free all slots, and keep the tables."""
        for table in self.tables():
            table.zero_()  # what is not finite would spread
        for layer in self.slot_layers:
            layer.rows = layer.filled = 0

    def advance(self) -> None:
        """Count one more column as filled, which was written to the tables themselves."""
        for layer in self.slot_layers:
            layer.filled += 1

    def add(self, prefilled: Cache, rows: Tensor) -> None:
        """Append rows (k,) of a cache of prompts, each to a slot, with the same end.

        An empty cache takes the prompts' columns; otherwise they must not be more than its own.
        """
        first = self.slot_layers[0].rows
        sources = cast(list[DynamicLayer], prefilled.layers)
        for layer, source in zip(self.slot_layers, sources, strict=True):
            keys, values = cast(Tensor, source.keys), cast(Tensor, source.values)  # (u, H, P, d)
            width = keys.shape[2]
            if first == 0:
                layer.filled = width
            assert width <= layer.filled, "prompts come in order, the longest first"

            if layer.keys is None or layer.filled > self.columns:
                layer.allocate(source, self.slots, self._bucket(layer.filled))
                self.allocations += 1
            layer.rows = first + len(rows)
            columns = slice(layer.filled - width, layer.filled)
            cast(Tensor, layer.keys)[first : layer.rows, :, columns] = keys[rows]
            cast(Tensor, layer.values)[first : layer.rows, :, columns] = values[rows]

        self.columns = cast(Tensor, self.slot_layers[0].keys).shape[2]

    def keep(self, count: int, *, holes: Tensor, movers: Tensor) -> None:
        """Free rows: move `movers` to `holes`, and keep the first `count`."""
        for layer in self.slot_layers:
            for table in (cast(Tensor, layer.keys), cast(Tensor, layer.values)):
                if len(holes):
                    table[holes, :, : layer.filled] = table[movers, :, : layer.filled]
            layer.rows = count

    def is_full(self) -> bool:
        """Return whether the next token has no column yet."""
        return self.filled == self.columns

    def drop_columns(self, count: int) -> None:
        """Drop the first columns, which no row uses, and grow where none are left."""
        for layer in self.slot_layers:
            rows, left = layer.rows, layer.filled - count
            if count:
                for table in (cast(Tensor, layer.keys), cast(Tensor, layer.values)):
                    table[:rows, :, :left] = table[:rows, :, count : layer.filled].clone()
                layer.filled = left
            if left == self.columns:
                layer.allocate(layer, self.slots, self._bucket(left + 1))
                self.allocations += 1

        self.columns = cast(Tensor, self.slot_layers[0].keys).shape[2]

    def _bucket(self, needed: int) -> int:
        """Return the columns to allocate: half as many again as needed, up to the longest."""
        wanted = max(needed, min(needed * 3 // 2, self.longest))
        if self.at_once:
            wanted = max(needed, self.longest + BUCKET)  # fewer than these are not dropped
        return -(-wanted // BUCKET) * BUCKET


def layers_of_keys_and_values(config: PretrainedConfig) -> int | None:
    """Return how many layers a model's cache has, or None.

    None where some keep another state than the keys and values of single tokens (recurrent and
    convolutional layers), share them, or attend in chunks.
    """
    text_config: Any = config.get_text_config(decoder=True)
    layers = DynamicCache(config=config).layers
    plain = all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)
    chunked = getattr(text_config, "attention_chunk_size", None) is not None
    return len(layers) if plain and not chunked else None
