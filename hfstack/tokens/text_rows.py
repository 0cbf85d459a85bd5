"""Encode rows of one text or a pair for a classifier, and pad them to batches.

Rows that are empty or too long are counted and logged.

Legend: B rows of a batch, T tokens of the longest, C outputs of a model.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, cast, get_args

import torch
from transformers import PreTrainedTokenizerBase

from hfstack.errors import ConfigError, DataError
from hfstack.logs import get_logger
from hfstack.progress import follow
from hfstack.row_counts import RowCounts

logger = get_logger(__name__)

_TEXTS_AT_ONCE = 1000  # between two steps of the bar

Overlong = Literal["truncate", "drop", "fail", "cut"]
"""What is done with a text that is too long; `cut` is the name of `truncate` before 0.2."""


def read_overlong(value: str) -> Overlong:
    """Return what `--overlong` says, by its name of today.

    Raises:
        ConfigError: it is none of them.
    """
    if value not in get_args(Overlong):
        raise ConfigError(f"overlong must be truncate, drop or fail, got {value!r}")
    if value == "cut":
        logger.warning(
            "--overlong cut is now --overlong truncate; the old name will be removed in 0.3"
        )
        return "truncate"
    return cast(Overlong, value)


def encode_texts(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    pairs: Sequence[str] | None = None,
    *,
    max_length: int | None,
) -> list[dict[str, list[int]]]:
    """Return `input_ids` of each text or pair, and `token_type_ids` where used.

    A tokenizer with separators joins a pair in its own way (`[CLS] a [SEP] b [SEP]`); for one
    without, as of most causal models, a newline separates them. Of a pair that is too long the
    longer text is truncated.
    """
    if pairs is not None and tokenizer.sep_token_id is None:
        texts = [f"{text}\n{pair}" for text, pair in zip(texts, pairs, strict=True)]
        pairs = None
    if not texts:
        return []

    truncation: dict[str, Any] = {}
    if max_length is not None:
        truncation = {"truncation": True, "max_length": max_length}

    rows: list[dict[str, list[int]]] = []
    starts = range(0, len(texts), _TEXTS_AT_ONCE)
    for start in follow(starts, "encoding thousands of texts", total=len(starts)):
        end = start + _TEXTS_AT_ONCE
        with settings_kept(tokenizer):
            encoded = tokenizer(
                list(texts[start:end]),
                list(pairs[start:end]) if pairs is not None else None,
                return_attention_mask=False,
                verbose=False,
                **truncation,
            )

        # Of what a tokenizer gives, the columns that a model reads; pad_rows makes the mask.
        names = [name for name in ("input_ids", "token_type_ids") if name in encoded]
        columns = [cast(list[list[int]], encoded[name]) for name in names]
        rows += [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]
    return rows


@contextmanager
def settings_kept(tokenizer: PreTrainedTokenizerBase) -> Iterator[None]:
    """Truncate and pad for a while, and leave the tokenizer as it was.

    A fast one keeps how it truncated last, and is saved with it: whoever reads tokenizer.json by
    the library alone, or serves it, would have every text truncated there in silence.
    """
    core: Any = getattr(tokenizer, "backend_tokenizer", None)
    if core is None:
        yield
        return

    truncation, padding = core.truncation, core.padding
    try:
        yield
    finally:
        core.no_truncation()
        core.no_padding()
        if truncation is not None:
            core.enable_truncation(**truncation)
        if padding is not None:
            core.enable_padding(**padding)


def read_texts(
    rows: Mapping[str, Sequence[Any]],
    columns: tuple[str, str | None],
    *,
    first_row: int = 1,
    name: str = "row",
) -> tuple[list[str], list[str] | None, list[int]]:
    """Return the texts, the second texts or None, and the indices of empty rows.

    Args:
        rows: columns by name.
        first_row: number of the first row, for messages.

    Raises:
        DataError: a column is missing, or a value is not text.
    """
    found: list[list[str]] = []
    for column in columns:
        if column is None:
            continue

        if column not in rows:
            raise DataError(
                f"no column {column!r} in the {name}s: found {', '.join(rows)}; set --text_column"
            )

        values = list(rows[column])
        for index, value in enumerate(values):
            if not isinstance(value, str):
                raise DataError(f"{name} {first_row + index}: {column} is {value!r}, not text")

        found.append(values)

    empty = sorted(
        {index for values in found for index, value in enumerate(values) if not value.strip()}
    )
    return found[0], found[1] if len(found) > 1 else None, empty


def usable_rows(
    encoded: Sequence[Mapping[str, Sequence[int]]],
    empty: Sequence[int],
    *,
    max_length: int | None,
    overlong: Overlong,
    skip_empty: bool,
    name: str,
    row_counts: RowCounts | None = None,
) -> list[int]:
    """Return the indices of the rows to use, and log what is truncated or left out.

    Args:
        encoded: the rows, not truncated.
        skip_empty: leave rows with an empty text out, instead of refusing them.
        row_counts: gets what is left out.

    Raises:
        DataError: a text is empty, a row is too long with `overlong` "fail", or no row is left.
    """
    if empty and not skip_empty:
        raise DataError(
            f"{name} row {empty[0] + 1}: the text is empty ({len(empty)} such rows); remove them, "
            "or --on_bad_row skip"
        )

    row_counts = RowCounts() if row_counts is None else row_counts
    left_out = set(empty)
    row_counts.leave_out(name, "empty", len(empty))
    if empty:
        logger.warning(
            "%s: left out %d of %d rows whose text is empty", name, len(empty), len(encoded)
        )

    # The rows are not truncated yet, so that the message can say how long the longest is.
    longest = max_length if max_length is not None else float("inf")
    long = [index for index, row in enumerate(encoded) if len(row["input_ids"]) > longest]
    if long:
        most = max(len(encoded[index]["input_ids"]) for index in long)
        fact = (
            f"{name}: {len(long)} of {len(encoded)} texts are longer than {max_length} tokens "
            f"(longest {most})"
        )

        if overlong == "fail":
            raise DataError(
                f"{fact}, first row {long[0] + 1}: --overlong truncate or drop, or a larger "
                "--max_length"
            )

        done = "they are truncated" if overlong == "truncate" else "they are left out"
        logger.warning("%s: %s", fact, done)
        if overlong == "drop":
            row_counts.leave_out(name, "too long", len(set(long) - left_out))
            left_out |= set(long)

    kept = [index for index in range(len(encoded)) if index not in left_out]
    if not kept:
        raise DataError(f"{name}: no row is left of {len(encoded)}")
    return kept


def choose_max_length(asked: int | None, *limits: int | None) -> int | None:
    """Return the longest text in tokens: the number asked for, else the lowest limit.

    Raises:
        ConfigError: more was asked for than the model's context, or less than any text fits into.
    """
    known = [limit for limit in limits if limit is not None]
    longest = min(known) if known else None

    if asked is not None and asked < 4:
        raise ConfigError(f"--max_length must be at least 4, got {asked}")

    if asked is not None and longest is not None and asked > longest:
        raise ConfigError(
            f"--max_length {asked} is longer than the model's context: use --max_length {longest}"
        )

    return asked if asked is not None else longest


def pad_rows(rows: Sequence[Mapping[str, Any]], *, pad_token_id: int) -> dict[str, torch.Tensor]:
    """Return a batch padded on the right: ids, mask, and the rows' other columns."""
    width = max(len(row["input_ids"]) for row in rows)
    tokens = torch.full((len(rows), width), pad_token_id)  # (B, T)
    batch = {"input_ids": tokens, "attention_mask": torch.zeros_like(tokens)}

    if "token_type_ids" in rows[0]:
        batch["token_type_ids"] = torch.zeros_like(tokens)

    for index, row in enumerate(rows):
        length = len(row["input_ids"])
        batch["attention_mask"][index, :length] = 1
        for name in ("input_ids", "token_type_ids"):
            if name in batch:
                batch[name][index, :length] = torch.as_tensor(row[name])

    if "labels" in rows[0]:
        batch["labels"] = torch.tensor([row["labels"] for row in rows])  # (B,) or (B, C)
    return batch
