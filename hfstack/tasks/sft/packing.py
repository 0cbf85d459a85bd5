"""Pack whole documents into rows, and batch them so that they stay apart.

Packing is best-fit decreasing (Ding et al. 2024, arXiv:2404.10830): no document is split to fill a
row.

A packed row is kept apart by `position_ids` that restart at 0 in each document, and NO attention
mask, from which transformers builds the mask between documents for attention `sdpa` and `eager`; an
attention mask of ones would undo it. Flash attention wants the rows of a batch joined into one
instead: that is TRL's own collator. Joined rows under `sdpa` would cost the square of the whole
batch, so each attention gets the layout that it is good at.

Legend: B rows of a batch, T tokens of the longest.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from trl import pack_dataset

from hfstack.errors import ConfigError
from hfstack.logs import get_logger
from hfstack.tokens.special_tokens import IGNORED_LABEL

logger = get_logger(__name__)


def pack_documents(rows: Dataset, *, max_length: int, strategy: str) -> Dataset:
    """Return rows of at most `max_length` tokens that hold whole documents.

    `seq_lengths` has the lengths of the documents in each row.

    Raises:
        ConfigError: `strategy` is `wrapped`, which splits documents and lets them read each other.
    """
    if strategy == "wrapped":
        raise ConfigError(
            "--packing_strategy wrapped lets packed documents read each other; use bfd or bfd_split"
        )

    packed = pack_dataset(rows, max_length, strategy, {"load_from_cache_file": False})
    tokens = sum(map(sum, packed["seq_lengths"][:]))
    logger.info(
        "packed %d rows into %d of %d tokens, %.1f %% full",
        len(rows),
        len(packed),
        max_length,
        100 * tokens / (len(packed) * max_length),
    )
    return packed


@dataclass(frozen=True)
class PackedCollator:
    """Stack packed rows (B, T): positions restart in each document, without a mask.

    Padding is a document of its own. The first token of a document is not scored: what precedes it
    in the row is another document's end.
    """

    pad_id: int

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Return `input_ids`, `labels` and `position_ids`, each (B, T) int64."""
        width = max(len(row["input_ids"]) for row in rows)
        ids = torch.full((len(rows), width), self.pad_id)  # (B, T)
        labels = torch.full((len(rows), width), IGNORED_LABEL)  # (B, T)
        positions = torch.zeros((len(rows), width), dtype=torch.int64)  # (B, T)

        for index, row in enumerate(rows):
            used = len(row["input_ids"])
            ids[index, :used] = torch.tensor(row["input_ids"])
            labels[index, :used] = torch.tensor(row["labels"])

            lengths = [*row.get("seq_lengths", [used]), width - used]
            positions[index] = torch.cat([torch.arange(length) for length in lengths])

        labels[positions == 0] = IGNORED_LABEL
        return {"input_ids": ids, "labels": labels, "position_ids": positions}
