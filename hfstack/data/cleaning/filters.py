"""Decide from a text alone whether it is worth training on.

By its length, symbols, repetition and lost characters.

A filter is a function of one text that returns None to keep it, or why not: `too_short: 12
characters, fewer than 32`. The reason that is counted is the part before the colon.

Thresholds come from these papers, and each default says from which:

- Gopher: Rae et al. 2021, arXiv:2112.11446, table A1 and section A.1.1
- C4: Raffel et al. 2020, arXiv:1910.10683, section 2.2
- RefinedWeb: Penedo et al. 2023, arXiv:2306.01116, appendix G.1, applies Gopher's rules to web text
  unchanged

They were stated for languages that put spaces between words. Where a language does not (Chinese,
Japanese, Thai, Lao, Khmer, Burmese), a unit is one character, and a word of the paper counts as two
units.
"""

import re
import zlib
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np

Filter = Callable[[str], str | None]

UNSPACED_SCRIPTS = (
    # Thai and Lao, Burmese, Khmer
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"
    # CJK, kana
    "\u3005-\u3007\u3041-\u30fa\u30fc-\u30ff\u3400-\u4dbf"
    "\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
_UNSPACED_CHARACTER = re.compile(f"[{UNSPACED_SCRIPTS}]")
# vowel signs, which \w leaves out
_MARK_RANGES = "\u0300-\u036f\u0591-\u05bd\u064b-\u065f\u0900-\u0963\u0966-\u0dff"
_COMBINING_MARK = re.compile(f"[{_MARK_RANGES}]")
# this and the next: what _UNIT_MARKED finds in such text, 2 and 4 times as fast
_UNIT_ASCII = re.compile("[a-z0-9]+")
_UNIT = re.compile(f"[{UNSPACED_SCRIPTS}]|[^\\W_{UNSPACED_SCRIPTS}]+")
_UNIT_MARKED = re.compile(f"[{UNSPACED_SCRIPTS}]|(?:[^\\W_{UNSPACED_SCRIPTS}]|[{_MARK_RANGES}])+")
_UNITS_PER_WORD = 2  # the average Chinese word in running text has between 1.5 and 2 characters
# 2**64 / golden ratio, odd: Knuth's multiplicative hashing
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


class Units(NamedTuple):
    """The words of a text, or its characters in a script without spaces.

    Case and punctuation are left out.
    """

    words: list[str]
    """The U units, in order."""
    unspaced: bool
    """Return whether most units are of a script that puts no spaces between words."""
    characters: int
    """Letters, digits and marks in all units."""


# The filters and the duplicate checks ask for the same text one after another.
@lru_cache(maxsize=1)
def split_units(text: str) -> Units:
    """Split a text into units; mixed text has both words and single characters."""
    folded = text.casefold()
    if folded.isascii():
        words, unspaced = _UNIT_ASCII.findall(folded), 0
    else:
        words = (_UNIT_MARKED if _COMBINING_MARK.search(folded) else _UNIT).findall(folded)
        unspaced = len(_UNSPACED_CHARACTER.findall(folded))
    characters = sum(map(len, words))
    return Units(words, 2 * unspaced > len(words), characters)


@lru_cache(maxsize=1)
def unit_hashes(text: str) -> np.ndarray:
    """Return (U,) uint64 hashes of units that are the same in every process."""
    words = split_units(text).words
    checksums = map(zlib.crc32, map(str.encode, words))
    return np.fromiter(checksums, dtype=np.uint64, count=len(words)) * _MULTIPLIER


def ngram_hashes(hashes: np.ndarray, length: int) -> np.ndarray:
    """Return (U - length + 1,) uint64 hashes of all runs of `length` units.

    (0,) when there are fewer units.
    """
    count = len(hashes) - length + 1
    if count <= 0:
        return hashes[:0]

    # Runs of 1, 2, 4... units are joined as the binary digits of `length` say: 13 = 1 + 4 + 8 takes
    # 5 steps, not 12.
    runs, runs_length, total, total_length = hashes, 1, None, 0
    while total_length < length:
        if length & runs_length:
            piece = runs[total_length : total_length + count]
            total = piece if total is None else _hash_pairs(total, piece)
            total_length += runs_length
        if total_length < length:
            runs = _hash_pairs(runs[:-runs_length], runs[runs_length:])
            runs_length *= 2

    assert total is not None
    return total


def _hash_pairs(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Hash pairs of hashes: all (N,) uint64, where arithmetic wraps."""
    both = left * _MULTIPLIER + right
    both ^= both >> np.uint64(29)
    both *= _MULTIPLIER
    return both


def too_short(text: str, *, characters: int = 32, characters_unspaced: int = 10) -> str | None:
    """Refuse texts under a number of characters.

    In scripts without spaces, where a character says more, `characters_unspaced`. The defaults keep
    a sentence and a four-line poem (24 characters with punctuation). They are ours, and far below
    Gopher's 50 words, which is meant for web pages.
    """
    if len(text) >= characters:
        return None

    least = characters_unspaced if split_units(text).unspaced else characters
    if len(text) >= least:
        return None
    return f"too_short: {len(text)} characters, fewer than {least}"


def too_long(text: str, *, characters: int = 10_000_000) -> str | None:
    """Refuse dumps that are no document; the default, ours, keeps the longest novels."""
    if len(text) <= characters:
        return None
    return f"too_long: {len(text)} characters, more than {characters}"


def broken_encoding(text: str, *, share: float = 0.005) -> str | None:
    """Refuse texts that lost characters: U+FFFD, and 锟斤拷 (U+FFFD read as GBK)."""
    lost = text.count("\ufffd") + 3 * text.count("锟斤拷")
    if lost <= share * len(text):
        return None
    return f"broken_encoding: {lost} of {len(text)} characters lost"


def placeholder_text(text: str) -> str | None:
    """Refuse pages that carry `lorem ipsum` (C4)."""
    if "lorem ipsum" not in text.casefold():
        return None
    return "placeholder_text: lorem ipsum"


def too_many_symbols(text: str, *, share: float = 0.4, marks_per_word: float = 0.1) -> str | None:
    """Refuse texts with too much punctuation, or too many hashes and ellipses.

    Over `share` of what is not blank, or 0.1 hashes and ellipses a word.

    `marks_per_word` is Gopher's; `share` is ours: Chinese verse, which has much punctuation, is at
    0.2.
    """
    units = split_units(text)
    visible = len(text) - sum(map(text.count, " \n\t\u3000"))
    if visible - units.characters > share * visible:
        return (
            f"too_many_symbols: {visible - units.characters} of {visible} characters are no "
            "letters or digits"
        )

    words = len(units.words) / (_UNITS_PER_WORD if units.unspaced else 1)
    # …… is one ellipsis in Chinese
    marks = text.count("#") + text.count("...") + text.count("…") - text.count("……")
    if marks > max(3, marks_per_word * words):
        return f"too_many_symbols: {marks} hashes and ellipses in {words:.0f} words"
    return None


def too_few_words(text: str, *, share: float = 0.8) -> str | None:
    """Refuse tables of numbers: under `share` of the words have a letter.

    The default is Gopher's. It drops everything under 50 words first; such a text is refused here
    when numbers are its larger part.
    """
    words = split_units(text).words
    numbers = sum(map(str.isdigit, words))
    allowed_share = 1 - share if len(words) >= _GOPHER_LEAST_WORDS else 0.5
    if numbers <= allowed_share * len(words):
        return None
    return f"too_few_words: {numbers} of {len(words)} words are numbers"


def odd_word_length(text: str, *, shortest: float = 2, longest: float = 10) -> str | None:
    """Refuse encoded data and spelled-out letters by their mean word length.

    Gopher keeps 3 to 10 characters. The lower bound here is 2, since Korean words average under 3
    syllables. Scripts without spaces are not measured.
    """
    units = split_units(text)
    if units.unspaced or not units.words:
        return None

    mean = units.characters / len(units.words)
    if shortest <= mean <= longest:
        return None
    return f"odd_word_length: {mean:.1f} characters on average"


def repeated_lines(
    text: str, *, line_share: float = 0.3, character_share: float = 0.2, least: int = 5
) -> str | None:
    """Refuse texts whose lines repeat.

    The limits are 0.3 of the lines, or lines with 0.2 of the characters (Gopher).

    Only texts of `least` lines or more are measured, so that a short poem may have a refrain; names
    of speakers (lines that end in a colon) are not lines of text.
    """
    if text.count("\n") < least - 1:
        return None

    lines = [line for line in map(str.strip, text.split("\n")) if line and line[-1] not in ":："]
    if len(lines) < least:
        return None

    distinct = set(lines)
    repeated = len(lines) - len(distinct)
    repeated_characters = sum(map(len, lines)) - sum(map(len, distinct))
    if repeated > line_share * len(lines) or repeated_characters > character_share * len(text):
        return f"repeated_lines: {repeated} of {len(lines)} lines"

    return None


_GOPHER_LEAST_WORDS = 50
_TOP_SHARES = {2: 0.20, 3: 0.18, 4: 0.16}  # Gopher: words in the most frequent n-gram
# Gopher: words in any repeated n-gram
_DUPLICATE_SHARES = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}


def repeated_ngrams(
    text: str, *, leniency: float = 1.0, short_distinct: float = 0.25
) -> str | None:
    """Refuse repetitive texts by Gopher's limits on repeated word n-grams.

    There are limits on the most frequent n-gram and on all repeated ones. Shares are of units
    rather than of characters, and the most frequent n-gram must occur three times to count. Under
    50 words, which Gopher would drop, verse may repeat itself: there only less than
    `short_distinct` distinct units (ours) are refused. `leniency` multiplies every limit of
    Gopher's.
    """
    units = split_units(text)
    scale = _UNITS_PER_WORD if units.unspaced else 1
    total = len(units.words)

    if total < _GOPHER_LEAST_WORDS * scale:
        distinct = len(set(units.words))
        if distinct >= short_distinct * total:
            return None
        return f"repeated_ngrams: {distinct} distinct of {total} units"

    hashes = unit_hashes(text)
    return _too_frequent_ngram(hashes, scale, leniency) or _too_many_repeats(
        hashes, scale, leniency
    )


def _too_frequent_ngram(hashes: np.ndarray, scale: int, leniency: float) -> str | None:
    """Return why the most frequent n-gram is too frequent, or None."""
    total = len(hashes)
    limits = {
        n * scale: max(2, int(leniency * share * total / (n * scale)))
        for n, share in _TOP_SHARES.items()
    }
    lowest = min(limits.values())

    for length, times in limits.items():
        ordered = np.sort(ngram_hashes(hashes, length))
        if not _occurs_over(ordered, lowest):
            break  # a longer run cannot be more frequent

        if _occurs_over(ordered, times):
            return (
                f"repeated_ngrams: one run of {length} units occurs over {times} times in {total}"
            )

    return None


def _too_many_repeats(hashes: np.ndarray, scale: int, leniency: float) -> str | None:
    """Return why too much of a text lies in n-grams that came before, or None."""
    total = len(hashes)
    lowest = leniency * min(_DUPLICATE_SHARES.values())

    for words, share in _DUPLICATE_SHARES.items():
        length = words * scale
        covered = _covered_by_repeats(hashes, length, lowest)
        if covered > leniency * share * total:
            return (
                f"repeated_ngrams: runs of {length} units that came before make up {covered} of "
                f"{total}"
            )

        if covered <= lowest * total:
            break  # whatever repeats in a longer run repeats in this one

    return None


def _occurs_over(ordered: np.ndarray, times: int) -> bool:
    """Return whether a value occurs more than `times` times in a sorted array."""
    return bool((ordered[times:] == ordered[: max(0, len(ordered) - times)]).any())


def _covered_by_repeats(hashes: np.ndarray, length: int, ignored_share: float) -> int:
    """Return how many units lie in an n-gram that occurs earlier in the text.

    0 when that is surely under `ignored_share`.
    """
    ngrams = ngram_hashes(hashes, length)
    ordered = np.sort(ngrams)
    repeats = int(np.count_nonzero(ordered[1:] == ordered[:-1]))
    if repeats * length <= ignored_share * len(hashes):
        return 0

    # A later copy of an n-gram covers its units: +1 where it begins, -1 where it ends.
    order = np.argsort(ngrams, kind="stable")
    later = order[1:][ngrams[order[1:]] == ngrams[order[:-1]]]
    edges = np.zeros(len(hashes) + 1, dtype=np.int64)
    np.add.at(edges, later, 1)
    np.add.at(edges, later + length, -1)

    return int(np.count_nonzero(np.cumsum(edges[:-1])))
