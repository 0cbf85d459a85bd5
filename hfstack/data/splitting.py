"""Mix datasets by weight, and hold out rows so that no text is on both sides."""

import hashlib
import json
from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy

from hfstack.errors import DataError
from hfstack.logs import get_logger

if TYPE_CHECKING:
    from datasets import Dataset

logger = get_logger(__name__)

# What is held out when nobody says how much. An accuracy of 20 rows has a 95 % interval of 40
# points.
_HELD_OUT_SHARE = 0.05
_FEW_HELD_OUT_ROWS = 20
_MOST_HELD_OUT_SHARE = 0.2
_NUMBER_TYPES = {"int8", "int16", "int32", "int64", "float16", "float32", "float64"}


class Splits(dict[str, Any]):
    """Rows by split, "train" and maybe "eval", and the sources they were read from.

    Args:
        rows: of each split.
        inputs: for run.json, the description of the sources of each role, `train` and `eval`.
    """

    def __init__(self, rows: dict[str, Any], inputs: dict[str, list[dict[str, Any]]]) -> None:
        super().__init__(rows)
        self.inputs = inputs


def mix(
    parts: "Sequence[Dataset]",
    *,
    weights: Sequence[float],
    names: Sequence[str],
    seed: int,
    read: Collection[str] = (),
) -> "Dataset":
    """Join datasets so that each has its weight's share of the rows.

    With all weights 1, take every row.

    The mixture is as long as it can be without repeating a row: the dataset that is shortest for
    its share is used whole, and of the others a random choice that depends on `seed` alone. Only
    columns that all have are kept.

    Raises:
        DataError: a column of `read` has another type in another dataset, or they share none.
    """
    # Late, because it imports pandas, which reading row by row does not need.
    from datasets import concatenate_datasets

    if len(parts) == 1:
        return parts[0]
    parts = _with_common_columns(parts, names, read)

    if any(weight != 1 for weight in weights):
        shares = [weight / sum(weights) for weight in weights]
        total = min(len(part) / share for part, share in zip(parts, shares, strict=True))
        chosen = []

        for index, (part, share, name) in enumerate(zip(parts, shares, names, strict=True)):
            count = max(1, min(len(part), round(total * share)))
            generator = numpy.random.default_rng([seed, index])
            rows = numpy.sort(generator.choice(len(part), size=count, replace=False))
            logger.info(
                "mixture: %.1f %% from %s (%d of its %d rows)", 100 * share, name, count, len(part)
            )
            chosen.append(part.select(rows))

        parts = chosen

    return concatenate_datasets(list(parts))


def interleave(
    streams: Sequence[Iterator[dict[str, Any]]],
    *,
    weights: Sequence[float],
    names: Sequence[str],
    seed: int,
) -> Iterator[dict[str, Any]]:
    """Join streams of rows.

    With weights, draw each row's stream by its share until one is used up.
    """
    if len(streams) == 1 or all(weight == 1 for weight in weights):
        for stream in streams:
            yield from stream
        return

    shares = numpy.asarray(weights) / sum(weights)
    counts = [0] * len(streams)
    generator = numpy.random.default_rng(seed)

    while True:
        for index in generator.choice(len(streams), size=1000, p=shares):
            row = next(streams[index], None)
            if row is None:
                used = ", ".join(
                    f"{count} from {name}" for count, name in zip(counts, names, strict=True)
                )
                logger.info("mixture ends with %s: rows used: %s", names[index], used)
                return

            counts[index] += 1
            yield row


def usual_share(rows: int | None) -> float:
    """Return the share of the rows to hold out where nobody says how much.

    Args:
        rows: how many there are; None when that is not known.
    """
    if not rows:
        return _HELD_OUT_SHARE
    return max(_HELD_OUT_SHARE, min(_FEW_HELD_OUT_ROWS / rows, _MOST_HELD_OUT_SHARE))


def hold_out(
    rows: "Dataset", *, fraction: float, seed: int, text_column: str
) -> "tuple[Dataset, Dataset]":
    """Return (train, eval) with about `fraction` of the rows in eval.

    Equal texts are always on the same side.

    Rows are ranked by a hash of their text and `seed`, and the first ones are held out. So the
    choice does not depend on the order of the rows, and adding rows moves few of them. Raises
    DataError when a side would be empty.
    """
    wanted = round(fraction * len(rows))
    if wanted == 0:
        hint = "raise it, name eval_datasets, or set --eval_fraction 0"
        raise DataError(
            f"no eval rows: eval_fraction {fraction} of {len(rows)} rows is less than one row; "
            f"{hint}"
        )

    # Texts in the order of their hashes, until those held out have as many rows as wanted.
    keys = _text_keys(rows, seed, text_column)
    ranked, group, sizes = numpy.unique(keys, return_inverse=True, return_counts=True)
    groups = int(numpy.searchsorted(numpy.cumsum(sizes), wanted)) + 1
    held = group < groups
    if held.all():
        raise DataError(
            f"no train rows: the {len(rows)} rows hold only {len(ranked)} different texts; give "
            "eval_datasets"
        )

    duplicates = len(rows) - len(ranked)
    if duplicates:
        logger.info(
            "%d of %d rows repeat a text; every copy stays on one side of the split",
            duplicates,
            len(rows),
        )

    if held.sum() < _FEW_HELD_OUT_ROWS:
        logger.warning(
            "only %d of %d rows are held out: what is measured on them has wide intervals; name "
            "eval_datasets, or raise --eval_fraction",
            held.sum(),
            len(rows),
        )
    return rows.select(numpy.flatnonzero(~held)), rows.select(numpy.flatnonzero(held))


def drop_overlap(train: "Dataset", evaluation: "Dataset", *, text_column: str) -> "Dataset":
    """Return train without the rows whose text is also in eval, and log their number."""
    shared = numpy.isin(_text_keys(train, 0, text_column), _text_keys(evaluation, 0, text_column))
    if not shared.any():
        return train

    if shared.all():
        raise DataError(
            f"no train rows: all {len(train)} rows of datasets are also in eval_datasets"
        )

    logger.warning(
        "left out %d of %d train rows whose text is also in eval_datasets", shared.sum(), len(train)
    )
    return train.select(numpy.flatnonzero(~shared))


def _text_keys(rows: "Dataset", seed: int, text_column: str) -> numpy.ndarray:
    """Return a 64-bit hash of each row's text.

    The text column, else the prompt, the messages, or the whole row.
    """
    column = next(
        (name for name in (text_column, "prompt", "messages") if name in rows.column_names), None
    )
    salt = seed.to_bytes(8, "little", signed=True)
    digests = bytearray()

    for batch in (rows.select_columns([column]) if column else rows).iter(batch_size=1000):
        assert isinstance(batch, dict)
        values = batch[column] if column else list(zip(*batch.values(), strict=True))
        for value in values:
            text = (
                value
                if isinstance(value, str)
                else json.dumps(value, ensure_ascii=False, default=str)
            )
            digests += hashlib.blake2b(text.encode(), digest_size=8, key=salt).digest()

    return numpy.frombuffer(bytes(digests), dtype="<u8")


def _with_common_columns(
    parts: "Sequence[Dataset]", names: Sequence[str], read: Collection[str]
) -> "list[Dataset]":
    """Keep the columns that all parts have with one type, and log the others.

    Integers and floats become floats.
    """
    from datasets import Features, Value

    features: dict[str, Any] = {}
    for column in parts[0].column_names:
        kinds = [part.features.get(column) for part in parts]
        # a column that is null throughout one file has no type of its own there
        known = [kind for kind in kinds if kind is not None and kind != Value("null")]
        if None in kinds:
            continue
        if all(kind == known[0] for kind in known):
            features[column] = known[0] if known else kinds[0]
        elif all(isinstance(kind, Value) and kind.dtype in _NUMBER_TYPES for kind in known):
            features[column] = Value("float64")
        elif column in read:
            held = ", ".join(
                f"{getattr(kind, 'dtype', kind)} in {name}"
                for kind, name in zip(kinds, names, strict=True)
            )
            raise DataError(f"column {column!r} holds other types: {held}; write it in one way")

    if not features:
        held = "; ".join(
            f"{name}: {', '.join(part.column_names)}"
            for name, part in zip(names, parts, strict=True)
        )
        raise DataError(
            f"datasets: they have no column in common ({held}); give files with the same columns"
        )

    for part, name in zip(parts, names, strict=True):
        if left := [column for column in part.column_names if column not in features]:
            logger.warning(
                "mixture: %s: left out the columns that not all have with one type: %s",
                name,
                ", ".join(left),
            )

    kept = [part.select_columns(list(features)) for part in parts]
    wanted = Features(features)
    return [part if part.features == wanted else part.cast(wanted) for part in kept]
