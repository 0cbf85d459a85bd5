"""Normalise, mask and filter rows, and report what happened to them.

A check is called with one text and returns None to keep it, or a reason: the filters of filters.py
beside this file, and the duplicate and contamination checks of dedup.py.
"""

import difflib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

from hfstack.data.cleaning.code import CODE_KINDS
from hfstack.data.cleaning.code_pii import mask_code, mask_json
from hfstack.data.cleaning.filters import Filter
from hfstack.data.cleaning.normalise import normalise_parts
from hfstack.data.cleaning.pii import PII_KINDS, mask_pii
from hfstack.data.cleaning.workers import map_texts
from hfstack.errors import ConfigError, DataError

_EXAMPLES_OF_EACH = 2  # of each reason
_EXAMPLE_CHARACTERS = 60


@dataclass
class TextArgs:
    """What is done to each document, by how many processes; which are the same."""

    strip_markup: bool = True
    """Remove HTML tags and entities, wiki markup, BBCode and Markdown marks; programs, and fenced
    or indented code in prose, are left alone.
    """
    strip_boilerplate: bool = True
    """Remove short lines of cookie and privacy notices, share buttons and copyright."""
    mask_pii: list[str] = field(default_factory=lambda: ["email", "ip", "phone"])
    """Personal data to replace by placeholders: email, ip, phone, cn_id, us_ssn, uk_nino, card; or
    none.
    """
    drop_duplicates: bool = True
    """Drop documents whose text, after normalisation, is exactly that of one before."""
    near_duplicate_threshold: float = 0.8
    """Drop documents whose 5-word (5-character) shingles are this similar to one before, in (0, 1];
    0 turns it off.
    """
    minhash_permutations: int = 128
    """Length of the MinHash signatures that estimate the similarity; more is more exact and slower.
    """
    workers: int = 1
    """Processes that clean and filter; the files are the same, byte for byte."""

    def __post_init__(self) -> None:
        if self.mask_pii == ["none"]:
            self.mask_pii = []
        if unknown := set(self.mask_pii) - set(PII_KINDS):
            raise ConfigError(
                f"mask_pii: unknown kind {sorted(unknown)[0]!r}; choose from "
                f"{', '.join(PII_KINDS)}, or none"
            )


@dataclass
class CleaningReport:
    """What happened to the documents, filled by `clean_documents`.

    Its size does not depend on their number.
    """

    documents_in: int = 0
    documents_out: int = 0
    characters_in: int = 0
    characters_out: int = 0
    bytes_in: int = 0
    """Length of the texts in UTF-8."""
    dropped: Counter[str] = field(default_factory=Counter)
    """Documents by reason."""
    changed: Counter[str] = field(default_factory=Counter)
    """Documents that were kept, by change: mojibake, characters, markup, boilerplate, whitespace,
    masked; or that hold code, which was left as it is: code.
    """
    masked: Counter[str] = field(default_factory=Counter)
    """Places in kept documents, by kind of personal data."""
    examples: dict[str, list[str]] = field(default_factory=dict)

    def drop(self, reason: str, text: str) -> None:
        """Count a dropped document, and keep the first ones of each reason as examples.

        One short line each, all personal data masked.
        """
        name, _, detail = reason.partition(": ")
        self.dropped[name] += 1

        examples = self.examples.setdefault(name, [])
        if len(examples) < _EXAMPLES_OF_EACH:
            start = " ".join(text[: 4 * _EXAMPLE_CHARACTERS].split())[:_EXAMPLE_CHARACTERS]
            examples.append(mask_pii(f"{detail}: {start}" if detail else start, PII_KINDS)[0])

    def refuse_nothing_left(self) -> None:
        """Raise DataError, with the reasons, when no document was kept."""
        if self.documents_out:
            return

        reasons = ", ".join(f"{name} {count}" for name, count in self.dropped.most_common())
        first = self.examples[self.dropped.most_common(1)[0][0]][0] if self.dropped else ""
        raise DataError(
            f"all {self.documents_in} documents were dropped: {reasons or 'none was read'}; for "
            f"example: {first!r}; is --text_column right? Limits are in FILTERS of the recipe, "
            "which `hfstack copy clean` copies here"
        )

    def dropped_table(self) -> tuple[list[str], list[list[Any]]]:
        """Return columns and rows of the dropped documents by reason, most frequent first."""
        rows: list[list[Any]] = [
            [name, count, f"{count / self.documents_in:.2%}", " | ".join(self.examples[name])]
            for name, count in _most_frequent_first(self.dropped)
        ]
        return ["reason", "documents", "share", "examples"], rows

    def changed_table(self) -> tuple[list[str], list[list[Any]]]:
        """Return columns and rows of the changes made to the documents that were kept."""
        rows: list[list[Any]] = [
            [name, count, ""] for name, count in _most_frequent_first(self.changed)
        ]
        rows += [
            [f"masked {kind}", "", places] for kind, places in _most_frequent_first(self.masked)
        ]
        return ["change", "documents", "places"], rows

    def metrics(self) -> dict[str, float]:
        """Return the counts by the names under which run.json keeps them."""
        return {
            "documents_in": self.documents_in,
            "documents_out": self.documents_out,
            "documents_dropped": self.dropped.total(),
            "characters_in": self.characters_in,
            "characters_out": self.characters_out,
            "bytes_in": self.bytes_in,
            "duplicates_removed": self.dropped["exact_duplicate"] + self.dropped["near_duplicate"],
            "documents_repaired": self.changed["mojibake"],
            "documents_masked": self.changed["masked"],
            **({"documents_code": self.changed["code"]} if self.changed["code"] else {}),
            **{f"dropped_{name}": count for name, count in sorted(self.dropped.items()) if count},
            **{f"masked_{kind}": places for kind, places in sorted(self.masked.items())},
        }


def _most_frequent_first(counts: Counter[str]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


Checked = tuple[dict[str, Any], str | None]
"""A row with its cleaned text, and the reason to drop it or None."""


class CleanText(NamedTuple):
    """A text after cleaning, with its changes and what was masked in it.

    Changes are those of `normalise`, masked places those of `mask_pii` by kind.
    """

    text: str
    changes: frozenset[str]
    masked: dict[str, int]


_MASK_PART = {"code": mask_code, "json": mask_json}


def clean_text(
    text: str,
    *,
    strip_markup: bool = True,
    strip_boilerplate: bool = True,
    mask: Sequence[str] = ("email", "ip", "phone"),
) -> CleanText:
    """Normalise a text and mask the personal data in it, by kinds of `pii.PII_KINDS`.

    What is code keeps its characters; `code` is among the changes when there is any.
    """
    parts, changes = normalise_parts(
        text, strip_markup=strip_markup, strip_boilerplate=strip_boilerplate
    )

    masked: Counter[str] = Counter()
    pieces = []
    for part in parts:
        mask_part = _MASK_PART.get(part.kind, mask_pii)
        piece, places = mask_part(part.text, mask)
        pieces.append(piece)
        masked.update(places)

    if any(part.kind in CODE_KINDS for part in parts):
        changes |= {"code"}
    return CleanText("".join(pieces), changes, dict(masked))


class OrderedCheck(ABC):
    """Judge a text by those before it.

    It has two parts, so that several processes can do the first: what the check needs to know of a
    text, and the answer, which is asked for in the order of the texts.
    """

    @abstractmethod
    def fingerprint(self, text: str) -> Any:
        """Return what the check needs to know of a text; it depends on the text alone."""

    @abstractmethod
    def admit(self, fingerprint: Any) -> str | None:
        """Return None and remember the text, or the reason to refuse it."""

    def __call__(self, text: str) -> str | None:
        return self.admit(self.fingerprint(text))


class JudgedText(NamedTuple):
    """What can be said of a text without the texts before it.

    `refusal` is the reason of the filter that objects; the fingerprints are those of the ordered
    checks that are asked before it.
    """

    cleaned: CleanText
    fingerprints: list[Any]
    refusal: str | None


JudgeElsewhere = Callable[
    [Callable[[str], JudgedText]], Iterable[tuple[dict[str, Any], JudgedText | None]]
]
"""Calls a function with the text of each row, on other machines; None for a row without text."""


def clean_documents(
    rows: Iterable[dict[str, Any]],
    checks: Sequence[Filter],
    report: CleaningReport,
    *,
    clean: Callable[[str], CleanText] = clean_text,
    text_column: str = "text",
    skip_no_text: bool = False,
    workers: int = 1,
    elsewhere: JudgeElsewhere | None = None,
) -> Generator[Checked, None, None]:
    """Yield every row with its cleaned text, and None or the reason it is refused for.

    Rows come in their order and one at a time. Personal data is masked before any check, so no
    reason quotes it.

    Args:
        rows: mappings that hold a text in `text_column`; the other columns are passed on untouched.
        checks: filters and duplicate checks, asked in this order.
        report: receives the counts.
        clean: what is done to each text before it is checked.
        text_column: the column to clean.
        skip_no_text: drop rows without text, with the reason `no_text`, instead of raising.
        workers: processes that clean and filter; 1 is this one. What comes out is the same.
        elsewhere: what cleans and filters on other machines, in place of `rows` and `workers`.

    Raises:
        DataError: the column is missing, or a row holds no text in it.
        MachineError: a worker was ended from outside.
    """
    if elsewhere is not None:
        judged = _ask_ordered(elsewhere(partial(_judge_text, clean=clean, checks=checks)), checks)
    elif workers == 1:
        judged = _judge_here(rows, checks, clean, text_column)
    else:
        judge_one = partial(_judge_text, clean=clean, checks=checks)
        judged = _ask_ordered(map_texts(judge_one, rows, text_column, workers=workers), checks)

    for number, (row, cleaned, reason) in enumerate(judged, 1):
        report.documents_in += 1
        if cleaned is None:
            reason = _no_text(row, text_column, number, skip_no_text)
            report.drop(reason, "")
            yield row, reason
            continue

        # ASCII, which most texts are, need not be encoded to be counted.
        text = row[text_column]
        report.characters_in += len(text)
        report.bytes_in += (
            len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
        )

        if reason:
            report.drop(reason, cleaned.text)
        else:
            report.documents_out += 1
            report.characters_out += len(cleaned.text)
            report.changed.update(cleaned.changes)
            report.changed.update(["masked"] if cleaned.masked else [])
            report.masked.update(cleaned.masked)

        yield {**row, text_column: cleaned.text}, reason


_Judged = tuple[dict[str, Any], CleanText | None, str | None]
"""A row, its cleaned text or None where it has no text, and the reason to refuse it or None."""


def _judge_here(
    rows: Iterable[dict[str, Any]],
    checks: Sequence[Filter],
    clean: Callable[[str], CleanText],
    text_column: str,
) -> Iterator[_Judged]:
    """Clean and check each row here; no check is asked after one that refuses."""
    for row in rows:
        text = row.get(text_column)
        if not isinstance(text, str):
            yield row, None, None
            continue

        cleaned = clean(text)
        yield row, cleaned, next((why for check in checks if (why := check(cleaned.text))), None)


def _ask_ordered(
    judged: Iterable[tuple[dict[str, Any], JudgedText | None]], checks: Sequence[Filter]
) -> Iterator[_Judged]:
    """Ask the ordered checks, in order, about rows that others have cleaned."""
    ordered = [check for check in checks if isinstance(check, OrderedCheck)]
    for row, judgement in judged:
        if judgement is None:
            yield row, None, None
            continue

        # A filter that objects leaves the checks behind it without a fingerprint.
        asked = zip(ordered, judgement.fingerprints, strict=False)
        found = (why for check, fingerprint in asked if (why := check.admit(fingerprint)))
        yield row, judgement.cleaned, next(found, judgement.refusal)


def _judge_text(
    text: str, *, clean: Callable[[str], CleanText], checks: Sequence[Filter]
) -> JudgedText:
    """Clean a text, ask the filters, and take its fingerprints for the ordered checks."""
    cleaned = clean(text)
    fingerprints = []
    for check in checks:
        if isinstance(check, OrderedCheck):
            fingerprints.append(check.fingerprint(cleaned.text))
        elif reason := check(cleaned.text):
            return JudgedText(cleaned, fingerprints, reason)

    return JudgedText(cleaned, fingerprints, None)


def _no_text(row: dict[str, Any], text_column: str, number: int, skip: bool) -> str:
    """Return why a row without text is dropped; raise DataError where it may not be.

    A missing column is always an error: it is a wrong option rather than a bad row.
    """
    if text_column not in row:
        # the column of a similar name, else the one with the longest text
        texts = {name: value for name, value in row.items() if isinstance(value, str)}
        by_length = sorted(texts, key=lambda name: -len(texts[name]))
        close = difflib.get_close_matches(text_column, texts, n=1) or by_length

        hint = "name the column of texts with --text_column"
        if close:
            hint = f"--text_column {close[0]}?"
        raise DataError(
            f"row {number} has no column {text_column!r}; found: {', '.join(row) or 'none'}; {hint}"
        )

    found = type(row[text_column]).__name__
    if not skip:
        raise DataError(
            f"row {number}: column {text_column!r} holds {found} instead of text; leave such rows "
            "out with --on_bad_row skip, or name another column with --text_column"
        )

    return f"no_text: {found}"
