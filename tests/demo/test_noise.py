"""Planted noise: the right share, the right kinds, the truth beside it, and a score for
cleaners."""

from collections import Counter
from itertools import pairwise

import ftfy
import pytest

from hfstack.demo.noise import DROPPED, FAULTS, noisy_corpus, score_cleaning
from hfstack.demo.stories import story

ROWS = list(noisy_corpus(2, 3000, share=0.3))
BY_ID = {row["id"]: row for row in ROWS}


def rows_with(fault: str) -> list[dict]:
    return [row for row in ROWS if row["planted"] == fault]


def shingles(text: str) -> set[tuple[str, ...]]:
    words = text.split()
    return {tuple(words[start : start + 5]) for start in range(len(words) - 4)}


def test_rows_do_not_depend_on_the_count():
    assert list(noisy_corpus(2, 100, share=0.3)) == ROWS[:100]


def test_share_and_kinds():
    counts = Counter(row["planted"] for row in ROWS)
    assert set(counts) == {None, *FAULTS}
    assert 0.27 < 1 - counts[None] / len(ROWS) < 0.33
    assert all(counts[fault] > 0.02 * len(ROWS) for fault in FAULTS)
    assert [row["planted"] for row in noisy_corpus(2, 50, share=0.0)] == [None] * 50


def test_ids_are_unique_and_in_order():
    assert all(one["id"] < other["id"] for one, other in pairwise(ROWS))


def test_other_rows_are_the_stories_themselves():
    clean = [(index, row) for index, row in enumerate(ROWS) if row["planted"] is None][:200]
    assert all(row["text"] == story(2, index).text for index, row in clean)


def test_duplicates_name_an_earlier_clean_row():
    for row in ROWS:
        assert (row["source"] is not None) == (
            row["planted"] in ("exact_duplicate", "near_duplicate")
        )
        if row["source"]:
            source = BY_ID[row["source"]]
            assert source["planted"] is None
            assert source["id"] < row["id"]
            assert (source["text"] == row["text"]) == (row["planted"] == "exact_duplicate")


def test_near_duplicates_share_most_of_their_shingles():
    for row in rows_with("near_duplicate"):
        own, other = shingles(row["text"]), shingles(BY_ID[row["source"]]["text"])
        assert 0.7 < len(own & other) / len(own | other) < 1


def test_mojibake_can_be_mended():
    for row in rows_with("mojibake"):
        index = int(row["id"].removeprefix("demo-"))
        assert any(mark in row["text"] for mark in ("â€", "Ã"))
        repaired = ftfy.fix_text(row["text"])  # which also straightens the quotes
        assert (
            repaired.replace(" — ", ", ").replace("é", "e").replace("Á", "A")
            == story(2, index).text
        )


@pytest.mark.parametrize(
    ("fault", "sign"),
    [("html", "</"), ("html", "&nbsp;"), ("boilerplate", "\n\n"), ("repeated_lines", "\n")],
)
def test_signs_of_damage(fault: str, sign: str):
    assert all(sign in row["text"] for row in rows_with(fault))


def test_control_characters_are_invisible_ones():
    for row in rows_with("control_characters"):
        visible = "".join(letter for letter in row["text"] if letter.isprintable())
        assert 0 < len(row["text"]) - len(visible) <= 6
        assert visible == story(2, int(row["id"].removeprefix("demo-"))).text


def test_junk_is_junk():
    assert all(len(row["text"]) < 20 for row in rows_with("too_short"))
    for row in rows_with("symbol_soup"):
        assert sum(letter.isalpha() for letter in row["text"]) < 0.5 * len(row["text"])
    assert all(len(set(row["text"].splitlines())) == 1 for row in rows_with("repeated_lines"))


def test_a_perfect_and_a_lazy_cleaner_are_told_apart():
    perfect = score_cleaning(ROWS, {row["id"] for row in ROWS if row["planted"] not in DROPPED})
    assert perfect["recall"] == perfect["precision"] == perfect["kept_good"] == 1
    lazy = score_cleaning(ROWS, set(BY_ID))
    assert (lazy["recall"], lazy["kept_good"]) == (0, 1)
    assert "recall_html" not in lazy, "a row to be repaired is not to be dropped"
    harsh = score_cleaning(ROWS, set())
    assert (harsh["recall"], harsh["kept_good"]) == (1, 0)
    assert harsh["precision"] < 0.2
    no_short = {row["id"] for row in ROWS if row["planted"] != "too_short"}
    assert score_cleaning(ROWS, no_short)["recall_too_short"] == 1
    assert score_cleaning(ROWS, no_short)["recall"] == pytest.approx(1 / len(DROPPED))


def test_the_cleaner_of_this_package_finds_the_junk():
    from hfstack.data.cleaning import filters
    from hfstack.data.cleaning.dedup import duplicate_checks
    from hfstack.data.cleaning.pipeline import CleaningReport, clean_documents

    checks = [
        filters.too_short,
        filters.too_many_symbols,
        filters.too_few_words,
        filters.repeated_lines,
        filters.repeated_ngrams,
        *duplicate_checks(True, 0.8, 64),
    ]
    cleaned = clean_documents(iter(ROWS), checks, CleaningReport())
    scores = score_cleaning(ROWS, {row["id"] for row, reason in cleaned if reason is None})
    assert scores["kept_good"] >= 0.99
    assert scores["precision"] >= 0.99
    assert scores["recall_near_duplicate"] >= 0.6
    assert scores["recall"] >= 0.9
