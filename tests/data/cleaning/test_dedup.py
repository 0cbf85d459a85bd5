"""Duplicates are found exactly and nearly, evaluation text is found inside documents, and the index
stays small.
"""

import gzip
import json
import random
from functools import partial
from pathlib import Path

import pytest
from datasketch import MinHash, MinHashLSH

from hfstack.data.cleaning.dedup import (
    Contamination,
    ExactDuplicates,
    HashSet,
    NearDuplicates,
    duplicate_checks,
    shingle_hashes,
    text_hash,
)
from hfstack.data.cleaning.pipeline import clean_text
from hfstack.data.cleaning.splits import held_out
from hfstack.data.columns import strings_of
from hfstack.data.sources import Source
from hfstack.errors import ConfigError, DataError

WORDS = [f"{a}{b}" for a in "bcdfghklmnprst" for b in ("a", "e", "ino", "o", "uma", "ar", "is")]


def make_text(seed: int, words: int = 120) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=words))


def make_chinese(seed: int, characters: int = 200) -> str:
    return "".join(
        chr(0x4E00 + number) for number in random.Random(seed).choices(range(1500), k=characters)
    )


def jaccard(one: str, other: str) -> float:
    a, b = set(shingle_hashes(one).tolist()), set(shingle_hashes(other).tolist())
    return len(a & b) / len(a | b)


def test_hash_set_is_a_set() -> None:
    draw = random.Random(0)
    numbers = [*(draw.getrandbits(64) for _ in range(5000)), 0, 1, 2**64 - 1]
    found = HashSet()
    assert [found.add(number) for number in numbers].count(False) == 1  # 0 is stored as 1
    assert not any(found.add(number) for number in numbers)
    assert all(number in found for number in numbers)
    assert 12345 not in found
    assert len(found) == len(numbers) - 1


@pytest.mark.parametrize("count", [2_000, 5_000, 20_000])
def test_bytes_per_document(count: int) -> None:
    """12 to 24 bytes a hash: one hash a document for exact duplicates, one for each of 12 bands for
    near ones.
    """
    exact, near = ExactDuplicates(), NearDuplicates()
    for seed in range(count):
        assert exact(str(seed)) is None
    assert 12 <= exact.index_bytes / count <= 24
    for seed in range(count // 10):
        near(make_text(seed, words=12))
    assert near.bands == 12
    assert 12 * 12 <= near.index_bytes / (count // 10) <= max(12 * 24, 8 * 1024 * 10 / count)


def test_exact_duplicates_keep_the_first() -> None:
    check = ExactDuplicates()
    assert [check(text) for text in ("a b", "a  b", "a b", "甲", "甲")] == [
        None,
        None,
        "exact_duplicate",
        None,
        "exact_duplicate",
    ]


@pytest.mark.parametrize(
    ("make", "join"),
    [
        (make_text, lambda text, extra: f"{text} {extra}"),
        (make_chinese, lambda text, extra: text + extra),
    ],
)
def test_near_duplicates_are_found_and_others_are_not(make, join) -> None:
    check = NearDuplicates()
    originals = [make(seed) for seed in range(100)]
    assert [check(text) for text in originals] == [None] * 100
    alike = [join(text, make(1000 + seed)[:20]) for seed, text in enumerate(originals)]
    assert min(map(jaccard, originals, alike)) > 0.87
    assert sum(check(text) is not None for text in alike) > 85
    related = [
        join(text[: len(text) // 2], make(2000 + seed)) for seed, text in enumerate(originals)
    ]
    assert max(map(jaccard, originals, related)) < 0.5
    assert sum(check(text) is not None for text in related) <= 1


def test_punctuation_and_case_make_no_difference() -> None:
    check = NearDuplicates()
    assert check("白日依山盡，黃河入海流。欲窮千里目，更上一層樓。") is None
    assert check("白日依山盡。黃河入海流！\n欲窮千里目；更上一層樓") == "near_duplicate"
    assert check("Hello, there!") is None
    assert check("hello THERE") == "near_duplicate"
    assert check("...") is None
    assert check("...") is None  # nothing to compare


def test_same_decisions_as_datasketch_alone() -> None:
    """Theirs against ours: an index of MinHashLSH, with keys and buckets, refuses the same
    texts."""
    texts = [make_text(seed) for seed in range(60)]
    draw = random.Random(0)
    for seed in range(60):
        words = texts[seed].split()
        for _ in range(seed % 5):
            words[draw.randrange(len(words))] = "changed"
        texts.append(" ".join(words))
    ours, theirs = NearDuplicates(), MinHashLSH(threshold=0.8, num_perm=128, weights=(0.2, 0.8))
    expected = []
    for number, text in enumerate(texts):
        minhash = MinHash(num_perm=128, hashfunc=int)
        minhash.update_batch(shingle_hashes(text).tolist())
        expected.append(bool(theirs.query(minhash)))
        if not expected[-1]:
            theirs.insert(number, minhash)
    assert [ours(text) is not None for text in texts] == expected
    assert 20 < sum(expected) < 60


def test_bad_settings_are_told() -> None:
    with pytest.raises(
        ConfigError,
        match=r"near_duplicate_threshold must be in \(0, 1\], or 0 to turn it off, got 1.5",
    ):
        NearDuplicates(threshold=1.5)
    with pytest.raises(ConfigError, match="minhash_permutations must be at least 16, got 4"):
        NearDuplicates(permutations=4)
    with pytest.raises(ConfigError, match="minhash_permutations 16 cannot resolve similarity 1.0"):
        NearDuplicates(threshold=1.0, permutations=16)
    assert duplicate_checks(exact=False, threshold=0) == []


def test_held_out_depends_on_the_text_alone() -> None:
    texts = [make_text(seed, words=8) for seed in range(4000)]
    share = sum(held_out(text, 0.1) for text in texts) / len(texts)
    assert 0.08 < share < 0.12
    assert not any(held_out(text, 0.0) for text in texts)
    # More is held out of the same: nothing changes sides the other way.
    assert all(held_out(text, 0.2) for text in texts if held_out(text, 0.1))
    assert text_hash("a") != text_hash("a", b"eval split")


def test_contamination_english() -> None:
    question = (
        "Which small animal found the red ball near the river before the sun went down that day?"
    )
    check = Contamination([question, "too few words here"])
    assert (check.texts, check.ignored_texts) == (2, 1)
    assert check(make_text(1)) is None
    assert check(f"{make_text(2)} {question.upper()} {make_text(3)}") == (
        "contaminated: which small animal found the red ball near the river before the sun"
    )
    # 10 words in common
    assert check("Which small animal found the red ball near the river, and who saw it?") is None


def test_contamination_chinese_without_spaces() -> None:
    line = "锣鼓经是大陆传统器乐及戏曲里面常用的打击乐记谱方法，以中文字的声音模拟敲击乐的声音。"
    check = Contamination([line])
    assert check("据说" + line.replace("，", "") + "很有意思") is not None
    assert check("锣鼓经是大陆传统器乐，" + make_chinese(0)) is None


def test_contamination_by_a_short_text_needs_all_of_it() -> None:
    """8 to 12 words are looked for as a whole; under 8 they are ignored, and said to be."""
    check = Contamination(
        [
            "the quick brown fox jumps over the lazy dog",
            "the quick brown fox jumps over the lazy cat now",
        ]
    )
    assert check("See how the quick brown fox jumps over the lazy dog again") is not None
    assert check("the quick brown fox jumps over the lazy cat now and then") is not None
    assert check("the quick brown fox jumps over the lazy cat today") is None
    assert check("the quick brown fox jumps over the") is None
    with pytest.raises(DataError, match="none of the 2 texts has 8 words or characters"):
        Contamination(["yes", "no"])


def test_contamination_reads_every_column(tmp_path: Path) -> None:
    row = {
        "id": 1,
        "qa": {"question": "Who?", "answers": [make_text(5, 30), None]},
        "email": "x@y.org",
    }
    (tmp_path / "eval.jsonl").write_text(json.dumps(row), encoding="utf-8")
    check = Contamination.from_sources(
        [Source(str(tmp_path / "eval.jsonl"))], partial(clean_text, mask=["email"])
    )
    assert check(make_text(5, 30)) is not None
    assert list(strings_of(row)) == ["Who?", make_text(5, 30), "x@y.org"]
    missing = [Source(str(tmp_path / "gone.jsonl"))]
    with pytest.raises(DataError, match=r"--decontaminate: .*gone\.jsonl"):
        Contamination.from_sources(missing, clean_text)


@pytest.mark.shared
def test_contamination_of_real_chinese(shared_data: Path) -> None:
    """CMRC 2018 asks about paragraphs of zh_wiki, all of which are found; no poem holds any of its
    text.
    """
    check = Contamination.from_sources(
        [Source(str(shared_data / "qa" / "cmrc2018.jsonl.gz"))], clean_text
    )
    for name, everything in (("zh_wiki", True), ("zh_poetry", False)):
        with gzip.open(shared_data / "lm" / f"{name}.jsonl.gz", "rt", encoding="utf-8") as lines:
            texts = [
                clean_text(json.loads(line)["text"]).text
                for line, _ in zip(lines, range(200), strict=False)
            ]
        assert [check(text) is not None for text in texts] == [everything] * 200
