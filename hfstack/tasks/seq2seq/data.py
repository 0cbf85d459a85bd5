"""Encode source texts and their targets for an encoder-decoder.

Every text ends with the model's end token, whether its tokenizer puts one there or not: a decoder
learns from it when to stop.

Legend: B rows of a batch, S tokens of the longest source, T tokens of the longest target.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import torch
from datasets import Dataset
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from hfstack.errors import ConfigError, DataError
from hfstack.logs import get_logger
from hfstack.tokens.text_rows import Overlong, pad_rows

logger = get_logger(__name__)

_IGNORED_LABEL = -100
_FLAGS = (
    "name them with --source_column and --target_column (a part of a mapping as translation.en)"
)


@dataclass(frozen=True)
class Pair:
    """A source text and its targets: one, or several that are equally right."""

    source: str
    targets: list[str]


@dataclass(frozen=True)
class Encoded:
    """Rows as the model reads them, and beside each the pair that it is of."""

    rows: Dataset  # input_ids (S,), labels (T,)
    pairs: list[Pair]
    places: list[int]  # of the pairs in the split, from 0


def read_pairs(
    rows: Dataset, columns: tuple[str, str], *, name: str, skip_empty: bool = False
) -> list[Pair]:
    """Return the pairs of a split.

    Args:
        columns: of the source and the target; `translation.en` is the part `en` of the mapping in
            `translation`.
        name: of the split, for messages.
        skip_empty: leave rows with an empty source or without any target out, instead of refusing
            them.

    Raises:
        DataError: a column is missing, a value is no text, a text is empty, or no row is left.
    """
    for column, what in zip(columns, ("source", "target"), strict=True):
        if column not in rows.column_names and column.partition(".")[0] not in rows.column_names:
            found = ", ".join(rows.column_names)
            raise DataError(f"{name}: no column {column!r} for the {what}, found {found}; {_FLAGS}")

    pairs: list[Pair] = []
    empty: list[tuple[int, str]] = []

    for number, row in enumerate(cast(Any, rows), 1):
        source, target = (text_at(row, column, place=f"{name} row {number}") for column in columns)
        listed = [target] if isinstance(target, str | None) else target

        if not isinstance(source, str | None):
            raise DataError(f"{name} row {number}: {columns[0]} is {str(source)[:40]!r}, not text")

        if not isinstance(listed, list) or not all(isinstance(text, str | None) for text in listed):
            raise DataError(
                f"{name} row {number}: {columns[1]} is {str(target)[:40]!r}, not text or a list "
                "of texts"
            )

        targets = [text for text in listed if text and text.strip()]
        if source and source.strip() and targets:
            pairs.append(Pair(source, targets))
        else:
            empty.append((number, "target" if source and source.strip() else "source"))

    if empty and not skip_empty:
        number, what = empty[0]
        raise DataError(
            f"{name} row {number}: the {what} is empty ({len(empty)} such rows); remove them, or "
            "--on_bad_row skip"
        )

    if empty:
        logger.warning(
            "%s: left out %d of %d rows whose source or target is empty",
            name,
            len(empty),
            len(rows),
        )

    if not pairs:
        raise DataError(f"{name}: no row is left of {len(rows)}")
    return pairs


def text_at(row: Mapping[str, Any], column: str, *, place: str) -> Any:
    """Return what a row has in a column, or in a part of it: `translation.en`.

    Raises:
        DataError: there is neither; `place` names the row.
    """
    if column in row:
        return row[column]
    outer, _, inner = column.partition(".")
    if inner and isinstance(row.get(outer), Mapping) and inner in row[outer]:
        return row[outer][inner]

    inside = (
        f" ({outer} has {', '.join(row[outer])})" if isinstance(row.get(outer), Mapping) else ""
    )
    raise DataError(f"{place} has no column {column!r}, found {', '.join(row)}{inside}; {_FLAGS}")


def encode_pairs(
    pairs: Sequence[Pair],
    tokenizer: PreTrainedTokenizerBase,
    *,
    lengths: tuple[int, int],
    ends: Sequence[int],
    prefix: str = "",
    overlong: Overlong = "cut",
    name: str,
    held_out: bool = False,
) -> Encoded:
    """Return the pairs as token ids.

    Texts that are too long are cut, left out or refused, and counted in any case.

    Args:
        lengths: most tokens of a source and of a target, the end included.
        ends: tokens that end a text; the first is put where the tokenizer puts none.
        prefix: put in front of each source, such as "translate English to German: ".
        held_out: the rows become new ones: one for each pair, its first target as the label,
            longest source first, so that a batch holds sources of about one length. Otherwise one
            row for each target.

    Raises:
        ConfigError: `overlong` is no such way.
        DataError: a text is too long with `overlong` "fail", or no row is left.
    """
    if overlong not in get_args(Overlong):
        raise ConfigError(
            f"--overlong is {overlong!r}: choose one of {', '.join(get_args(Overlong))}"
        )

    owners = [
        index
        for index, pair in enumerate(pairs)
        for _ in (pair.targets[:1] if held_out else pair.targets)
    ]

    texts = {
        "source": [prefix + pairs[index].source for index in owners],
        "target": [
            target for pair in pairs for target in (pair.targets[:1] if held_out else pair.targets)
        ],
    }

    ids: dict[str, list[list[int]]] = {}
    left_out: set[int] = set()

    for kind, limit in zip(("source", "target"), lengths, strict=True):
        ids[kind], whole = encode_ended(
            texts[kind], tokenizer, max_length=limit, ends=ends, side=cast(Any, kind)
        )
        long = [row for row, length in enumerate(whole) if length > limit]
        if long:
            _say_overlong(kind, long, whole, limit, overlong=overlong, name=name)
            left_out |= set(long) if overlong == "drop" else set()

    kept = [row for row in range(len(owners)) if row not in left_out]
    if not kept:
        raise DataError(f"{name}: no row is left of {len(pairs)}")
    if held_out:
        kept.sort(key=lambda row: -len(ids["source"][row]))

    columns = {
        "input_ids": [ids["source"][row] for row in kept],
        "labels": [ids["target"][row] for row in kept],
    }

    places = [owners[row] for row in kept]
    return Encoded(Dataset.from_dict(columns), [pairs[place] for place in places], places)


def encode_ended(
    texts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    ends: Sequence[int],
    side: Literal["source", "target"] = "source",
) -> tuple[list[list[int]], list[int]]:
    """Return the ids of each text, truncated and ended, and the lengths before.

    At most `max_length` ids, the last an end token.

    Args:
        ends: tokens that end a text; the first is put where the tokenizer puts none.
        side: some tokenizers, as Marian's, write source and target in different vocabularies.
    """
    keyword = "text_target" if side == "target" else "text"

    def encode(chosen: Sequence[str], **cut: Any) -> list[list[int]]:
        settings: dict[str, Any] = {
            keyword: list(chosen),
            "return_attention_mask": False,
            "verbose": False,
        }
        return [list(ids) for ids in cast(Any, tokenizer(**settings, **cut)["input_ids"])]

    if not texts:
        return [], []
    own_end = bool(set(ends) & set(encode([""])[0]))
    added = [] if own_end else [ends[0]]
    rows = [ids + added for ids in encode(texts)]
    whole = [len(ids) for ids in rows]

    long = [index for index, length in enumerate(whole) if length > max_length]
    if long:
        shorter = encode(
            [texts[index] for index in long], truncation=True, max_length=max_length - len(added)
        )
        for index, ids in zip(long, shorter, strict=True):
            rows[index] = ids + added

    return rows, whole


def collate_pairs(
    rows: Sequence[Mapping[str, Sequence[int]]],
    *,
    pad_token_id: int,
    shift: Callable[..., torch.Tensor],
) -> dict[str, torch.Tensor]:
    """Return a batch: ids and mask (B, S), labels (B, T), and the decoder's inputs.

    Labels are -100 where nothing is scored.

    Both sides are padded on the right, whatever the tokenizer prefers: BART and Marian count
    positions from the left.

    Args:
        shift: `prepare_decoder_input_ids_from_labels` of the model. The decoder's ids are in the
            batch because a smoothed loss takes the labels out of it.
    """
    batch = pad_rows([{"input_ids": row["input_ids"]} for row in rows], pad_token_id=pad_token_id)
    # (B, T)
    labels = pad_sequence(
        [torch.as_tensor(row["labels"]) for row in rows],
        batch_first=True,
        padding_value=_IGNORED_LABEL,
    )
    return batch | {"labels": labels, "decoder_input_ids": shift(labels=labels)}


def _say_overlong(
    kind: str,
    long: Sequence[int],
    whole: Sequence[int],
    limit: int,
    *,
    overlong: Overlong,
    name: str,
) -> None:
    most = max(whole[row] for row in long)
    fact = (
        f"{name}: {len(long)} of {len(whole)} {kind}s are longer than {limit} tokens (longest "
        f"{most})"
    )

    if overlong == "fail":
        raise DataError(
            f"{fact}, the first is text {long[0] + 1}: --overlong cut or drop, or a larger "
            f"--max_{kind}_length"
        )

    logger.warning(
        "%s: %s", fact, "their ends are cut" if overlong == "cut" else "they are left out"
    )
