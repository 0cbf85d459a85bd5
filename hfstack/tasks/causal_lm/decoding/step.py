"""Define one step of decoding: tokens appended to a cache, and what follows them.

Legend: r rows, t tokens appended to each, S columns of the cache with them, V vocabulary.
"""

from typing import NamedTuple, Protocol

from torch import Tensor
from transformers.cache_utils import Cache


class DecodingStep(NamedTuple):
    """The result of one step of decoding."""

    logits: Tensor  # (r, V) fp32, of the next token
    values: Tensor | None  # (r,) fp32, of the state before the next token; None: there are none
    cache: Cache


class DecodeStep(Protocol):
    """Appends tokens at positions, (r, t) each, to a cache; returns what follows."""

    def __call__(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        /,
        *,
        attention_mask: Tensor | None,
        cache: Cache | None,
    ) -> DecodingStep:
        """Take one step; the mask is (r, S), or None when no row is padded."""
        ...
