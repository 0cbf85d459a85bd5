"""Choose which documents are held out, and write each where it belongs."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from hfstack.data.cleaning.dedup import text_hash
from hfstack.data.cleaning.pipeline import Checked, CleaningReport
from hfstack.data.reading.jsonl import write_jsonl
from hfstack.errors import DataError
from hfstack.logs import get_logger

logger = get_logger(__name__)

_MOST_WAITING = 10_000  # documents in memory until one is held out


def held_out(text: str, fraction: float) -> bool:
    """Return whether a document is held out for evaluation.

    A `fraction` in [0, 1) of all is. It depends on the text alone: a document stays on its side
    when others are added, removed or reordered.
    """
    return _place(text) < fraction * 2**64


def _place(text: str) -> int:
    """Return where a text stands in the order of holding out, below 2**64."""
    return text_hash(text, b"eval split")


def choose_files(
    documents: Iterable[Checked], text_column: str, fraction: float
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield documents, each with the name of its file: train, eval or dropped.

    Where the share for eval is less than one document, the one that it would hold out first is.
    Until one is held out the others wait, so that each file keeps the order of the rows; after
    10,000 of them none is looked for.

    Args:
        documents: each with the reason to drop it, or None.
        text_column: column of the text.
        fraction: share of documents to hold out, by `held_out`.
    """
    waiting: list[dict[str, Any]] = []
    none_yet = fraction > 0

    for row, reason in documents:
        if reason:
            yield "dropped", {**row, "dropped_reason": reason}
            continue

        is_held_out = held_out(row[text_column], fraction)
        if none_yet and not is_held_out and len(waiting) < _MOST_WAITING:
            waiting.append(row)
            continue

        for one in waiting:
            yield "train", one
        waiting, none_yet = [], False
        yield "eval" if is_held_out else "train", row

    if waiting:
        logger.warning(
            "eval_fraction %g holds out none of %d documents, so one is held out all the same",
            fraction,
            len(waiting),
        )
        places = [_place(row[text_column]) for row in waiting]
        first = places.index(min(places))
        for number, row in enumerate(waiting):
            yield "eval" if number == first else "train", row


def write_documents(
    documents: Iterable[Checked],
    report: CleaningReport,
    folder: Path,
    *,
    text_column: str,
    eval_fraction: float = 0.0,
    save_dropped: bool = False,
) -> dict[str, float]:
    """Write each document as it comes; the files get their names when all are whole.

    Return how many are in train.jsonl, and in eval.jsonl.

    Args:
        documents: rows, each with the reason to drop it or None.
        report: filled by whoever gives the documents.
        folder: of the files.
        text_column: column of the text.
        eval_fraction: share of the documents for eval.jsonl; without any there is no such file.
        save_dropped: also write dropped.jsonl.

    Raises:
        DataError: no document is left, or none for one of the files.
    """
    names = ["train", *["eval"] * bool(eval_fraction), *["dropped"] * save_dropped]
    counts = dict.fromkeys(names, 0)

    with ExitStack() as files:
        write = {name: files.enter_context(write_jsonl(folder / f"{name}.jsonl")) for name in names}

        for name, row in choose_files(documents, text_column, eval_fraction):
            if name in write:
                write[name](row)
                counts[name] += 1

        report.refuse_nothing_left()
        if empty := [name for name in ("train", "eval") if counts.get(name) == 0]:
            raise DataError(
                f"eval_fraction {eval_fraction} leaves no document for {empty[0]}.jsonl; change it"
            )

    return {f"documents_{name}": count for name, count in counts.items() if name != "dropped"}
