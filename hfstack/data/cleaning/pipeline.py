"""Normalise, mask and filter rows, and report what happened to them.

A check is called with one text and returns None to keep it, or a reason: the filters of filters.py
beside this file, and the duplicate and contamination checks of dedup.py.
"""

import difflib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from hfstack.data.cleaning.code import CODE_KINDS
from hfstack.data.cleaning.code_pii import mask_code, mask_json
from hfstack.data.cleaning.filters import Filter
from hfstack.data.cleaning.normalise import normalise_parts
from hfstack.data.cleaning.pii import PII_KINDS, mask_pii
from hfstack.errors import ConfigError, DataError

_EXAMPLES_OF_EACH = 2  # of each reason
_EXAMPLE_CHARACTERS = 60


@dataclass
class TextArgs:
    """What is done to each document's text, and which documents count as the same."""

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


def clean_documents(
    rows: Iterable[dict[str, Any]],
    checks: Sequence[Filter],
    report: CleaningReport,
    *,
    clean: Callable[[str], CleanText] = clean_text,
    text_column: str = "text",
    skip_no_text: bool = False,
) -> Iterator[Checked]:
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

    Raises:
        DataError: the column is missing, or a row holds no text in it.
    """
    for number, row in enumerate(rows, 1):
        report.documents_in += 1
        text = row.get(text_column)
        if not isinstance(text, str):
            reason = _no_text(row, text_column, number, skip_no_text)
            report.drop(reason, "")
            yield row, reason
            continue

        # ASCII, which most texts are, need not be encoded to be counted.
        report.characters_in += len(text)
        report.bytes_in += (
            len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
        )

        cleaned, changes, masked = clean(text)
        reason = next((reason for check in checks if (reason := check(cleaned))), None)
        if reason:
            report.drop(reason, cleaned)
        else:
            report.documents_out += 1
            report.characters_out += len(cleaned)
            report.changed.update(changes)
            report.changed.update(["masked"] if masked else [])
            report.masked.update(masked)

        yield {**row, text_column: cleaned}, reason


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


def format_table(columns: list[str], rows: list[list[Any]]) -> str:
    """Return a table as text, numbers to the right.

    The last column may be of any width.
    """
    cells = [columns]
    for row in rows:
        cells.append([f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row])

    last = len(columns) - 1
    widths = [max(len(row[index]) for row in cells) for index in range(len(columns))]
    lines = []
    for row in cells:
        parts = [
            cell.ljust(widths[index]) if index in (0, last) else cell.rjust(widths[index])
            for index, cell in enumerate(row)
        ]
        lines.append("  ".join(parts).rstrip())

    return "\n".join(lines)
