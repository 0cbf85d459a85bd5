"""Measure how varied texts are, and how well word counts alone predict them.

A baseline for real models.
"""

import math
import re
import zlib
from collections import Counter
from collections.abc import Sequence
from itertools import chain

_WORD_OR_SIGN = re.compile(r"[A-Za-z']+|[^A-Za-z'\s]")
_EDGE = "\n"


def variety(texts: Sequence[str]) -> dict[str, float]:
    """Measure texts of one kind.

    Returns:
        word_types (distinct words, letter case ignored), words_per_text, distinct_5gram_share
        (distinct runs of five words over all of them), zlib_bits_per_byte (bits per UTF-8 byte
        after zlib at level 9).
    """
    tokens = [[word.lower() for word in re.findall(r"[A-Za-z']+", text)] for text in texts]
    runs = Counter(
        chain.from_iterable(
            zip(*(words[shift:] for shift in range(5)), strict=False) for words in tokens
        )
    )

    joined = "\n".join(texts).encode()
    return {
        "word_types": len(set(chain.from_iterable(tokens))),
        "words_per_text": sum(map(len, tokens)) / max(1, len(texts)),
        "distinct_5gram_share": len(runs) / max(1, runs.total()),
        "zlib_bits_per_byte": 8 * len(zlib.compress(joined, 9)) / max(1, len(joined)),
    }


def ngram_bits_per_byte(train: Sequence[str], held_out: Sequence[str], *, order: int) -> float:
    """Return the bits per UTF-8 byte of a word n-gram model on held-out texts.

    Ends of texts are included.

    Interpolated by Witten and Bell's method (1991), down to a uniform share for each word of the
    vocabulary and one for unseen words, so it is a rough figure: the letters of an unseen word are
    not paid for.
    """
    counts: list[Counter[tuple[str, ...]]] = [Counter() for _ in range(order)]
    totals: list[Counter[tuple[str, ...]]] = [Counter() for _ in range(order)]
    followers: list[Counter[tuple[str, ...]]] = [Counter() for _ in range(order)]

    for words in map(_padded, train, [order] * len(train)):
        for length in range(order):
            for end in range(order - 1, len(words)):
                gram = tuple(words[end - length : end + 1])
                followers[length][gram[:-1]] += gram not in counts[length]
                counts[length][gram] += 1
                totals[length][gram[:-1]] += 1

    vocabulary_size = len(counts[0]) + 1
    bits = 0.0

    # From the shortest context to the longest: each one gives what it never saw to the one before.
    for words in map(_padded, held_out, [order] * len(held_out)):
        for end in range(order - 1, len(words)):
            probability = 1 / vocabulary_size
            for length in range(order):
                gram = tuple(words[end - length : end + 1])
                if total := totals[length][gram[:-1]]:
                    distinct = followers[length][gram[:-1]]
                    probability = (counts[length][gram] + distinct * probability) / (
                        total + distinct
                    )

            bits -= math.log2(probability)

    return bits / sum(len(text.encode()) for text in held_out)


def _padded(text: str, order: int) -> list[str]:
    return [_EDGE] * (order - 1) + _WORD_OR_SIGN.findall(text) + [_EDGE]
