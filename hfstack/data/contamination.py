"""Count evaluation rows that stand in training text, by runs of 13 words.

A run counts as Brown et al. 2020 (arXiv:2005.14165, appendix C) have it. Texts are compared as
`clean` compares them: case, punctuation and white space are left out. In scripts without spaces a
unit is a character, and a run has 20. An evaluation text shorter than a run is looked for as a
whole, unless it has under 8 units. A run that more than 10 evaluation rows share, such as that of a
system prompt, says nothing about a row and is not looked for.

What is found is in the training text; what is not found may be there in other words.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from hfstack.data.cleaning.filters import ngram_hashes, split_units, unit_hashes
from hfstack.data.columns import strings_of
from hfstack.logs import get_logger
from hfstack.row_counts import RowCounts

logger = get_logger(__name__)

WORDS, CHARACTERS, LEAST = 13, 20, 8
_SHARED_BY = 10
# An eighth of a second of one core: one or two percent of the shortest run that trains anything.
_CHEAP_CHARACTERS = 1_000_000
# About 100 MB of hashes: more evaluation text than anybody reads.
_MOST_EVAL_CHARACTERS = 50_000_000
_SAMPLED_ROWS = 64
_FILTER_BITS = 20
_JOINED_CHARACTERS = 100_000
_BETWEEN = " endoftexthfstack "  # a word of no text, so that no run reaches over it


@dataclass
class Overlap:
    """How many evaluation rows stand in training text, and what was compared."""

    eval_rows: int = 0
    eval_rows_checked: int = 0  # those with a run that is their own
    overlapping: int = 0  # share a run of 13 words with training text
    whole: int = 0  # each of their runs is there
    train_texts: int = 0
    train_texts_checked: int = 0
    example: str = ""

    def counts(self) -> dict[str, int]:
        """Return the numbers alone, for run.json: the example is training text."""
        return {name: value for name, value in asdict(self).items() if isinstance(value, int)}

    def sentence(self) -> str:
        """Return what the log and the card say."""
        looked = f"{self.train_texts_checked:,} of {self.train_texts:,} training texts"
        if self.train_texts_checked == self.train_texts:
            looked = f"the {self.train_texts:,} training texts"
        unread = self.eval_rows - self.eval_rows_checked
        rest = (
            f"; {unread:,} rows were not compared (too short, shared by many, or too many)"
            if unread
            else ""
        )
        return (
            f"{self.overlapping:,} of {self.eval_rows_checked:,} evaluation rows share a run of "
            f"{WORDS} words with {looked}, {self.whole:,} stand there whole{rest}"
        )


@dataclass
class _Index:
    """Runs of the evaluation rows, and which of them were found."""

    rows: int = 0
    known: dict[int, np.ndarray] = field(default_factory=dict)  # length -> (N,) sorted hashes
    owners: dict[int, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)  # run, row
    found: dict[int, np.ndarray] = field(default_factory=dict)  # length -> (N,) bool
    likely: dict[int, np.ndarray] = field(default_factory=dict)  # length -> table of first bits


def check_splits(
    splits: dict[str, Any],
    columns: Iterable[str],
    *,
    asked: bool | None,
    row_counts: RowCounts,
) -> None:
    """Look for the eval rows of a run in its train rows; record and log what is found.

    Args:
        splits: "train" and maybe "eval" as Datasets.
        columns: those whose texts are compared.
        asked: True to read all training text, False for none; None reads evenly spaced rows up to
            one million characters.
        row_counts: gets the result.
    """
    if asked is False or "eval" not in splits:
        return

    shared = set(columns) & set(splits["train"].column_names) & set(splits["eval"].column_names)
    if not shared:
        return
    train, held = (splits[name].select_columns(sorted(shared)) for name in ("train", "eval"))
    most, places = _MOST_EVAL_CHARACTERS, range(len(train))
    if asked is None:
        most, places = _CHEAP_CHARACTERS, range(0, len(train), _step(train))
    texts = ("\n".join(strings_of(row)) for row in _iterate(train.select(places)))
    found = find_overlap(_iterate(held), texts, most_characters=most)
    found.train_texts = len(train)

    if not found.eval_rows:
        return
    row_counts.contamination = found.counts()
    log_overlap(found, asked=asked is not None)


def find_overlap(
    rows: Iterable[Any], texts: Iterable[str], *, most_characters: int = _MOST_EVAL_CHARACTERS
) -> Overlap:
    """Look for each row in the texts.

    Memory grows with the rows, not with the texts.

    Args:
        rows: texts, or rows of which every string is looked for.
        texts: of training.
        most_characters: rows behind so many are not looked for.
    """
    index = _index_rows(rows, most_characters)
    overlap = Overlap(eval_rows=index.rows)
    for count, joined in join_texts(texts):
        overlap.train_texts += count
        if run := _mark(index, joined):
            overlap.example = overlap.example or run
    overlap.train_texts_checked = overlap.train_texts

    # how many runs each row has, and how many of them were found
    total, hits = np.zeros(index.rows, dtype=int), np.zeros(index.rows, dtype=int)
    for length, (runs, owners) in index.owners.items():
        np.add.at(total, owners, 1)
        np.add.at(hits, owners, index.found[length][runs])
    overlap.eval_rows_checked = int((total > 0).sum())
    overlap.overlapping = int((hits > 0).sum())
    overlap.whole = int(((hits == total) & (total > 0)).sum())
    return overlap


def log_overlap(overlap: Overlap, *, asked: bool = True) -> None:
    """Log what was found, as a warning where rows stand in the training text whole."""
    advice = ""
    if overlap.train_texts_checked < overlap.train_texts and not asked:
        advice = "; --check_contamination true compares all"
    say = logger.warning if overlap.whole else logger.info
    shown = f", such as {overlap.example[:80]!r}" if overlap.example else ""
    say("contamination: %s%s%s", overlap.sentence(), shown, advice)


def _iterate(rows: Any) -> Iterator[tuple[Any, ...]]:
    """Yield the values of each row of a Dataset, which is fast by batches."""
    for batch in rows.iter(batch_size=1000):
        yield from zip(*batch.values(), strict=True)


def _step(train: Any) -> int:
    """Return every how many rows are read so that it costs next to nothing."""
    places = range(0, len(train), max(1, len(train) // _SAMPLED_ROWS))
    sizes = [sum(map(len, strings_of(row))) for row in _iterate(train.select(places))]
    return max(1, math.ceil(len(train) * sum(sizes) / len(sizes) / _CHEAP_CHARACTERS))


def _index_rows(rows: Iterable[Any], most_characters: int) -> _Index:
    """Return the runs of the rows up to so many characters."""
    index, characters = _Index(), 0
    parts: dict[int, tuple[list[np.ndarray], list[np.ndarray]]] = {}
    for number, row in enumerate(rows):
        index.rows = number + 1
        for text in strings_of(row):
            characters += len(text)
            hashes = unit_hashes(text)
            length = CHARACTERS if split_units(text).unspaced else WORDS
            length = min(length, len(hashes))
            if length < LEAST or characters > most_characters:
                continue
            runs = np.unique(ngram_hashes(hashes, length))
            hashes_so_far, owners = parts.setdefault(length, ([], []))
            hashes_so_far.append(runs)
            owners.append(np.full(len(runs), number))

    for length, (hashes_so_far, owners) in parts.items():
        owner = np.concatenate(owners)
        known, runs = np.unique(np.concatenate(hashes_so_far), return_inverse=True)

        # What many rows share is boilerplate; a row may hold a run in two of its texts.
        pairs = np.unique(np.stack([runs, owner]), axis=1)  # (2, P)
        own = np.bincount(pairs[0], minlength=len(known)) <= _SHARED_BY
        index.owners[length] = (pairs[0][own[pairs[0]]], pairs[1][own[pairs[0]]])
        index.known[length] = known
        index.found[length] = np.zeros(len(known), dtype=bool)

        table = np.zeros(1 << _FILTER_BITS, dtype=bool)
        table[known >> np.uint64(64 - _FILTER_BITS)] = True
        index.likely[length] = table
    return index


def join_texts(texts: Iterable[str]) -> Iterator[tuple[int, str]]:
    """Join texts to a hundred thousand characters, and count them: it is faster."""
    joined: list[str] = []
    characters = 0
    for text in texts:
        joined.append(text)
        characters += len(text)
        if characters >= _JOINED_CHARACTERS:
            yield len(joined), _BETWEEN.join(joined)
            joined, characters = [], 0
    if joined:
        yield len(joined), _BETWEEN.join(joined)


def _mark(index: _Index, text: str) -> str | None:
    """Mark the runs that stand in a text; return one of them, for people to read."""
    hashes = unit_hashes(text)
    example = None
    for length, known in index.known.items():
        ngrams = ngram_hashes(hashes, length)
        # A table of the first bits leaves out most before they are searched for.
        likely = np.flatnonzero(index.likely[length][ngrams >> np.uint64(64 - _FILTER_BITS)])
        places = np.searchsorted(known, ngrams[likely]).clip(max=len(known) - 1)
        there = known[places] == ngrams[likely]
        index.found[length][places[there]] = True

        if example is None and there.any():
            start = int(likely[there][0])
            units = split_units(text)
            joiner = "" if units.unspaced else " "
            example = joiner.join(units.words[start : start + length])
    return example
