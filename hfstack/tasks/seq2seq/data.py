"""Encode source texts and their targets for an encoder-decoder.

Every text ends with the model's end token, whether its tokenizer puts one there or not: a decoder
learns from it when to stop.

Legend: B rows of a batch, S tokens of the longest source, T tokens of the longest target.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
from datasets import Dataset
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from hfstack.data.places import REFUSED, BadRows, RowProblem, rows_by_line
from hfstack.data.sources import DataArgs, load_splits
from hfstack.errors import ConfigError, DataError
from hfstack.logs import get_logger
from hfstack.progress import follow
from hfstack.row_counts import RowCounts
from hfstack.tokens.special_tokens import IGNORED_LABEL
from hfstack.tokens.text_rows import Overlong, pad_rows, settings_kept

logger = get_logger(__name__)

_TEXTS_AT_ONCE = 1000  # between two steps of the bar

_COLUMN_HINT = (
    "name them with --source_column and --target_column (a part of a mapping as translation.en)"
)


@dataclass(frozen=True)
class Pair:
    """A source text and its targets: one, or several that are equally right."""

    source: str
    targets: list[str]


@dataclass(frozen=True)
class EncodedPairs:
    """Rows as the model reads them, and beside each the pair that it is of."""

    rows: Dataset  # input_ids (S,), labels (T,)
    pairs: list[Pair]
    places: list[int]  # of the pairs in the split, from 0


def load_sources_and_targets(
    data_args: DataArgs,
    columns: tuple[str, str],
    *,
    quarantine_file: Path,
    row_counts: RowCounts | None = None,
) -> tuple[dict[str, list[Pair]], dict[str, list[dict[str, Any]]]]:
    """Return the pairs of each split, and what run.json says of the sources.

    Equal sources stay on one side of the split. Arguments and errors are those of
    `read_sources_and_targets`.
    """
    outer = [column.partition(".")[0] for column in columns]
    by_source = replace(data_args, text_column=outer[0])
    splits = load_splits(
        by_source, {*outer, *columns}, quarantine_file=quarantine_file, row_counts=row_counts
    )

    bad_rows = BadRows(data_args.on_bad_row, quarantine_file, row_counts)
    found = set(splits["train"].column_names)
    read = [each if each in found else part for each, part in zip(columns, outer, strict=True)]
    sources = [*data_args.datasets, *data_args.eval_datasets]
    with rows_by_line(splits, read, (), sources):
        pairs = {
            name: read_sources_and_targets(rows, columns, name=name, bad_rows=bad_rows)
            for name, rows in splits.items()
        }
    return pairs, splits.inputs


def read_sources_and_targets(
    rows: Dataset,
    columns: tuple[str, str],
    *,
    name: str,
    bad_rows: BadRows = REFUSED,
) -> list[Pair]:
    """Return the pairs of source and targets of a split.

    Args:
        columns: of the source and the target; `translation.en` is the part `en` of the mapping in
            `translation`.
        name: of the split, for messages.
        bad_rows: what becomes of rows with an empty source, without any target, or with a value
            that is no text.

    Raises:
        DataError: a column is missing, a row cannot be used, or no row is left.
    """
    for column, what in zip(columns, ("source", "target"), strict=True):
        if column not in rows.column_names and column.partition(".")[0] not in rows.column_names:
            found = ", ".join(rows.column_names)
            raise DataError(
                f"{name}: no column {column!r} for the {what}, found {found}; {_COLUMN_HINT}"
            )

    pairs: list[Pair] = []
    problems: list[RowProblem] = []
    for number, row in enumerate(cast(Any, rows), 1):
        try:
            pairs.append(_read_source_and_targets(row, columns))
        except DataError as error:
            problems.append((name, number, str(error)))

    bad_rows.settle(name, rows, problems)
    if not pairs:
        raise DataError(f"{name}: no row is left of {len(rows)}")
    if bad_rows.row_counts is not None:
        used = [column for each in columns for column in (each, each.partition(".")[0])]
        bad_rows.row_counts.name_columns(rows.column_names, used)
    return pairs


def _read_source_and_targets(row: Mapping[str, Any], columns: tuple[str, str]) -> Pair:
    """Return the source and the targets of a row, without targets that are blank.

    Raises:
        DataError: a value is no text, or a text is empty.
    """
    source, target = (column_value(row, column) for column in columns)
    if not isinstance(source, str | None):
        raise DataError(f"{columns[0]} is {str(source)[:40]!r}, not text")

    listed = [target] if isinstance(target, str | None) else target
    if not isinstance(listed, list) or not all(isinstance(text, str | None) for text in listed):
        raise DataError(f"{columns[1]} is {str(target)[:40]!r}, not text or a list of texts")

    targets = [text for text in listed if text and text.strip()]
    for what, text in (("source", source and source.strip()), ("target", targets)):
        if not text:
            raise DataError(f"the {what} is empty")
    return Pair(cast(str, source), targets)


def column_value(row: Mapping[str, Any], column: str) -> Any:
    """Return what a row has in a column, or in a part of it: `translation.en`.

    Raises:
        DataError: there is neither.
    """
    if column in row:
        return row[column]

    outer, _, inner = column.partition(".")
    inside = ""
    if isinstance(row.get(outer), Mapping):
        if inner in row[outer]:
            return row[outer][inner]
        inside = f" ({outer} has {', '.join(row[outer])})"

    raise DataError(f"no column {column!r}, found {', '.join(row)}{inside}; {_COLUMN_HINT}")


def encode_sources_and_targets(
    pairs: Sequence[Pair],
    tokenizer: PreTrainedTokenizerBase,
    *,
    lengths: tuple[int, int],
    ends: Sequence[int],
    prefix: str = "",
    overlong: Overlong = "truncate",
    name: str,
    held_out: bool = False,
) -> EncodedPairs:
    """Return the pairs as token ids.

    Texts that are too long are truncated, left out or refused, and counted in any case.

    Args:
        lengths: most tokens of a source and of a target, the end included.
        ends: tokens that end a text; the first is added where the tokenizer adds none.
        prefix: put in front of each source, such as "translate English to German: ".
        overlong: what to do with texts that are longer: truncate them, drop the row, or fail.
        name: of the split, for messages.
        held_out: one row for each pair, its first target as the label, longest source first, so
            that a batch holds sources of about one length. Otherwise one row for each target, in
            order.

    Raises:
        ConfigError: `overlong` is none of these.
        DataError: a text is too long with `overlong` "fail", or no row is left.
    """
    if overlong not in get_args(Overlong):
        raise ConfigError(
            f"--overlong is {overlong!r}: choose one of {', '.join(get_args(Overlong))}"
        )

    # a row for each target of each pair, held out for the first target alone
    owners: list[int] = []
    texts: dict[str, list[str]] = {"source": [], "target": []}
    for index, pair in enumerate(pairs):
        targets = pair.targets[:1] if held_out else pair.targets
        owners += [index] * len(targets)
        texts["source"] += [prefix + pair.source] * len(targets)
        texts["target"] += targets

    ids: dict[str, list[list[int]]] = {}
    left_out: set[int] = set()
    for kind, limit in zip(("source", "target"), lengths, strict=True):
        ids[kind], whole = encode_ended(
            texts[kind], tokenizer, max_length=limit, ends=ends, side=cast(Any, kind)
        )
        long = [row for row, length in enumerate(whole) if length > limit]
        if long:
            _report_overlong(kind, long, whole, limit, overlong=overlong, name=name)
        if overlong == "drop":
            left_out |= set(long)

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
    return EncodedPairs(Dataset.from_dict(columns), [pairs[place] for place in places], places)


def encode_ended(
    texts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    ends: Sequence[int],
    side: Literal["source", "target"] = "source",
) -> tuple[list[list[int]], list[int]]:
    """Return the ids of each text, truncated and ended, and the lengths before.

    Each has at most `max_length` ids, the last an end token.

    Args:
        ends: tokens that end a text; the first is added where the tokenizer adds none.
        side: some tokenizers, such as Marian's, encode source and target by different vocabularies.
    """
    if not texts:
        return [], []

    def encode(chosen: Sequence[str], **truncation: Any) -> list[list[int]]:
        keyword = "text_target" if side == "target" else "text"
        found: list[list[int]] = []
        starts = range(0, len(chosen), _TEXTS_AT_ONCE)
        for start in follow(starts, f"encoding thousands of {side}s", total=len(starts)):
            part: dict[str, Any] = {keyword: list(chosen[start : start + _TEXTS_AT_ONCE])}
            encoded = tokenizer(return_attention_mask=False, verbose=False, **part, **truncation)
            found += [list(ids) for ids in cast(Any, encoded["input_ids"])]
        return found

    adds_end = bool(set(ends) & set(encode([""])[0]))
    added = [] if adds_end else [ends[0]]
    rows = [ids + added for ids in encode(texts)]
    whole = [len(ids) for ids in rows]

    # The tokenizer truncates, so that the end that it adds itself stays the last token.
    long = [index for index, length in enumerate(whole) if length > max_length]
    if long:
        with settings_kept(tokenizer):
            shorter = encode(
                [texts[i] for i in long], truncation=True, max_length=max_length - len(added)
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

    Labels are IGNORED_LABEL where nothing is scored.

    Both sides are padded on the right, whatever the tokenizer prefers: BART and Marian count
    positions from the left.

    Args:
        shift: as `decoder_shift` of the model gives it. The decoder's ids are in the
            batch because a smoothed loss takes the labels out of it.
    """
    batch = pad_rows([{"input_ids": row["input_ids"]} for row in rows], pad_token_id=pad_token_id)
    targets = [torch.as_tensor(row["labels"]) for row in rows]
    labels = pad_sequence(targets, batch_first=True, padding_value=IGNORED_LABEL)  # (B, T)
    return batch | {"labels": labels, "decoder_input_ids": shift(labels=labels)}


def _report_overlong(
    kind: str,
    long: Sequence[int],
    whole: Sequence[int],
    limit: int,
    *,
    overlong: Overlong,
    name: str,
) -> None:
    """Refuse texts that are too long, or log how many are truncated or left out."""
    most = max(whole[row] for row in long)
    fact = (
        f"{name}: {len(long)} of {len(whole)} {kind}s are longer than {limit} tokens (longest "
        f"{most})"
    )

    if overlong == "fail":
        raise DataError(
            f"{fact}, the first is text {long[0] + 1}: --overlong truncate or drop, or a "
            f"larger --max_{kind}_length"
        )

    logger.warning(
        "%s: %s", fact, "they are truncated" if overlong == "truncate" else "they are left out"
    )
