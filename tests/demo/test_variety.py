"""Numbers worked out by hand, and the order that measures of variety must have on the stories."""

import math

import pytest

from hfstack.demo.stories import stories
from hfstack.demo.variety import ngram_bits_per_byte, variety


def test_variety_by_hand():
    measured = variety(["One two three four five six.", "one two three four five"])
    assert measured["word_types"] == 6
    assert measured["words_per_text"] == 5.5
    assert measured["distinct_5gram_share"] == pytest.approx(2 / 3)


def test_unigram_by_hand():
    """Trained on "a a" and its end: 3 tokens, 2 types, so P(a) = (2 + 2/3) / 5 and P(end) = (1 +
    2/3) / 5.
    """
    expected = -(math.log2(8 / 15) + math.log2(5 / 15)) / 1
    assert ngram_bits_per_byte(["a a"], ["a"], order=1) == pytest.approx(expected)


def test_bigram_by_hand():
    """Trained on "a b" and "a c": after a, b and c were seen once each, so P(b | a) = (1 + 2 P(b))
    / 4, and so on.
    """
    # unigrams: a 2, b 1, c 1, end 2 of 6 tokens, 4 types, vocabulary 5
    share = {word: (count + 4 / 5) / 10 for word, count in {"a": 2, "b": 1, "end": 2}.items()}
    first = (2 + share["a"]) / 3  # only a follows a beginning, twice
    second = (1 + 2 * share["b"]) / 4
    last = (1 + share["end"]) / 2  # only the end follows b, once
    expected = -math.log2(first * second * last) / 3
    assert ngram_bits_per_byte(["a b", "a c"], ["a b"], order=2) == pytest.approx(expected)


def test_longer_memory_predicts_the_stories_better_and_none_solves_them():
    texts = [told.text for told in stories(1, 1200)]
    one, two, three = (
        ngram_bits_per_byte(texts[:1100], texts[1100:], order=order) for order in (1, 2, 3)
    )
    assert one > two > three > 0.45
    assert variety(texts)["zlib_bits_per_byte"] > 1.9
