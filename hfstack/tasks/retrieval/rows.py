"""Read rows of a query and its passage: with negatives, or with a score.

Held-out rows measure search among texts that were not trained on. So a passage, or with
`hold_out_by="query"` a query, is on one side of the split only, whichever column it stands in.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

from datasets import Dataset

from hfstack.data.places import REFUSED, BadRows, RowProblem, rows_by_line
from hfstack.data.sources import DataArgs, load_splits
from hfstack.errors import DataError
from hfstack.logs import get_logger
from hfstack.row_counts import RowCounts

logger = get_logger(__name__)

HoldOutBy = Literal["passage", "query"]


@dataclass
class RowsArgs:
    """What a row consists of."""

    query_column: str = "query"
    """Column of the question or of the first text."""
    passage_column: str = "passage"
    """Column of the text that answers it, or of the second text of a pair."""
    negatives_column: str = "negatives"
    """Column of texts that do not answer it: a text or a list of them; read where it is there."""
    score_column: str = "score"
    """Column of how alike the two texts are, a number; read where it is there."""
    hold_out_by: HoldOutBy = "passage"
    """What is new in held-out rows: passage (neither its passages nor its queries are trained on),
    or query (new questions to passages that are known, such as a FAQ).
    """


@dataclass(frozen=True)
class TextPair:
    """A query and its passage, with texts that do not answer it or with a score."""

    query: str
    passage: str
    negatives: tuple[str, ...] = ()
    score: float | None = None


Pairs = dict[str, list[TextPair]]


def load_text_pairs(
    data_args: DataArgs, rows_args: RowsArgs, *, quarantine_file: Path, row_counts: RowCounts
) -> tuple[Pairs, dict[str, list[dict[str, Any]]]]:
    """Return the pairs of each split, and what run.json says of the sources.

    Train rows that share a text with held-out ones are left out, and counted.

    Raises:
        ConfigError: rows would be streamed, though they are compared with each other.
        DataError: a column is missing, a row has no text, some rows have negatives or a score and
            others none, or no train row is left.
    """
    args = rows_args
    split_by = args.query_column if args.hold_out_by == "query" else args.passage_column
    columns = (args.query_column, args.passage_column, args.negatives_column, args.score_column)
    splits = load_splits(
        replace(data_args, text_column=split_by),
        columns,
        numbers=columns[3:],
        quarantine_file=quarantine_file,
        row_counts=row_counts,
    )

    # rows are refused by the line of their file, whatever has been left out before
    sources = [*data_args.datasets, *data_args.eval_datasets]
    bad_rows = BadRows(data_args.on_bad_row, quarantine_file, row_counts)
    with rows_by_line(splits, columns[:2], columns[2:], sources):
        pairs: Pairs = {
            name: read_text_pairs(rows, args, name, bad_rows) for name, rows in splits.items()
        }
    row_counts.name_columns(splits["train"].column_names, columns)

    if held_out := pairs.get("eval", []):
        kept = leave_out_shared(pairs["train"], held_out, by=args.hold_out_by)
        row_counts.leave_out("train", "with a held-out text", len(pairs["train"]) - len(kept))
        pairs["train"] = kept
    return pairs, splits.inputs


def read_text_pairs(
    rows: Dataset, args: RowsArgs, name: str, bad_rows: BadRows = REFUSED
) -> list[TextPair]:
    """Return the pairs of a split.

    Args:
        name: of the split, for messages.
        bad_rows: what becomes of rows that cannot be used.

    Raises:
        DataError: as `load_text_pairs`.
    """
    found = rows.column_names
    for column, flag in (
        (args.query_column, "query_column"),
        (args.passage_column, "passage_column"),
    ):
        if column not in found:
            raise DataError(f"{name}: no column {column!r}, found {', '.join(found)}; set --{flag}")

    numbered: dict[int, TextPair] = {}
    problems: list[RowProblem] = []
    for number, row in enumerate(cast(Any, rows), 1):
        try:
            numbered[number] = _read_text_pair(row, args)
        except DataError as error:
            problems.append((name, number, str(error)))

    # one loss for all rows: it reads either, or neither
    for column, has in (
        (args.negatives_column, lambda pair: bool(pair.negatives)),
        (args.score_column, lambda pair: pair.score is not None),
    ):
        lacking = [number for number, pair in numbered.items() if not has(pair)]
        if len(lacking) < len(numbered):
            detail = f"{column} is empty, and other rows have one"
            problems += [(name, number, detail) for number in lacking]
            numbered = {number: pair for number, pair in numbered.items() if has(pair)}

    bad_rows.settle(name, rows, problems)
    pairs = list(numbered.values())
    if not pairs:
        raise DataError(f"{name}: no rows")
    return pairs


def _read_text_pair(row: Mapping[str, Any], args: RowsArgs) -> TextPair:
    """Return the pair of a row.

    Raises:
        DataError: a text is none or empty, or the score is no number.
    """
    texts = []
    for column in (args.query_column, args.passage_column):
        value = row[column]
        if not isinstance(value, str):
            raise DataError(f"{column} is {str(value)[:40]!r}, not text")
        if not value.strip():
            raise DataError(f"{column} is empty")
        texts.append(value)

    negatives = tuple(_negatives_of(row.get(args.negatives_column), args.negatives_column))
    if texts[1] in negatives:
        raise DataError(f"{args.passage_column} is among its own {args.negatives_column}")

    score = row.get(args.score_column)
    is_number = isinstance(score, int | float) and not isinstance(score, bool)
    if score is not None and not (is_number and math.isfinite(score)):
        raise DataError(f"{args.score_column} is {str(score)[:40]!r}, not a number")
    if score is not None and negatives:
        raise DataError(f"it has both {args.score_column} and {args.negatives_column}: keep one")
    return TextPair(texts[0], texts[1], negatives, None if score is None else float(score))


def _negatives_of(value: Any, column: str) -> Iterator[str]:
    """Yield the negatives of a row: a text, a list of texts, or nothing."""
    for text in [value] if isinstance(value, str | None) else value:
        if not isinstance(text, str | None):
            raise DataError(f"{column} is {str(text)[:40]!r}, not text or a list of texts")
        if text and text.strip():
            yield text


def leave_out_shared(
    train: Sequence[TextPair], held_out: Sequence[TextPair], *, by: HoldOutBy
) -> list[TextPair]:
    """Return the train pairs that share no text with held-out ones; log how many do.

    Raises:
        DataError: none is left.
    """
    if by == "query":
        queries = {pair.query for pair in held_out}
        kept = [pair for pair in train if pair.query not in queries]
    else:
        # what is searched for or found may be no negative of training either
        known = {text for pair in held_out for text in (pair.query, pair.passage)}
        kept = [
            pair for pair in train if known.isdisjoint((pair.query, pair.passage, *pair.negatives))
        ]

    if not kept:
        raise DataError(
            f"no train rows: each of {len(train)} has a text of a held-out row; --hold_out_by "
            "query keeps the queries apart alone"
        )
    if len(kept) < len(train):
        logger.warning(
            "left out %d of %d train rows, which have a text of held-out rows",
            len(train) - len(kept),
            len(train),
        )
    return kept


def as_columns(pairs: Sequence[TextPair]) -> Dataset:
    """Return pairs as the losses read them: query, passage, negatives or score.

    Of rows with unequal numbers of negatives each keeps as many as the shortest has.
    """
    columns: dict[str, list[Any]] = {
        "query": [pair.query for pair in pairs],
        "passage": [pair.passage for pair in pairs],
    }
    counts = [len(pair.negatives) for pair in pairs]
    if counts and max(counts) > min(counts):
        logger.warning(
            "rows have %d to %d negatives: the first %d of each are read",
            min(counts),
            max(counts),
            min(counts),
        )
    for place in range(min(counts, default=0)):
        columns[f"negative_{place + 1}"] = [pair.negatives[place] for pair in pairs]
    if pairs and pairs[0].score is not None:
        columns["score"] = [pair.score for pair in pairs]
    return Dataset.from_dict(columns)
