"""Evaluation rows that are planted in training text are found, others are not."""

import json
import random
from pathlib import Path

import pytest
from datasets import Dataset

from hfstack.data.contamination import check_splits, find_overlap
from hfstack.data.sources import DataArgs, load_splits
from hfstack.row_counts import RowCounts

WORDS = [f"{a}{b}" for a in "bcdfghklmnprst" for b in ("a", "e", "ino", "o", "uma", "ar", "is")]


def make_text(seed: int, words: int = 60) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=words))


def test_planted_rows_are_found_whatever_case_and_punctuation() -> None:
    held = [make_text(seed) for seed in range(20)]
    train = [make_text(seed) for seed in range(100, 200)]
    train[3] += " " + held[0].upper().replace(" ", ", ")  # whole, in another dress
    train[7] = " ".join(held[1].split()[10:30]) + ". " + train[7]  # 20 of its 60 words
    train[9] += " " + " ".join(held[2].split()[:12])  # 12 words: no run of 13

    found = find_overlap(held, train)
    assert (found.eval_rows, found.eval_rows_checked, found.train_texts) == (20, 20, 100)
    assert (found.overlapping, found.whole) == (2, 1)
    assert found.example == " ".join(held[0].split()[:13])
    assert found.sentence() == (
        "2 of 20 evaluation rows share a run of 13 words with the 100 training texts, 1 stand "
        "there whole"
    )


def test_short_rows_chinese_and_what_many_rows_share() -> None:
    """A row of 8 to 12 words is looked for as a whole, one of 7 is not, and a system prompt that
    all rows have is nobody's own.
    """
    chinese = "".join(map(chr, random.Random(5).sample(range(0x4E00, 0x5E00), 40)))
    short, shorter = make_text(1, words=9), make_text(2, words=7)
    found = find_overlap(
        [short, shorter, chinese], [f"x {short} y", f"x {shorter} y", f"好{chinese[5:30]}好"]
    )
    assert (found.eval_rows_checked, found.overlapping, found.whole) == (2, 2, 1)

    system = make_text(3, words=40)
    rows = [[system, make_text(seed)] for seed in range(10, 30)]
    found = find_overlap(rows, [system, rows[0][1]])
    assert (found.eval_rows_checked, found.overlapping, found.whole) == (20, 1, 1)
    assert "20 rows were not compared" in find_overlap([[system]] * 20, [system]).sentence()


def test_a_sample_is_read_by_default_and_everything_when_asked(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("hfstack.data.contamination._CHEAP_CHARACTERS", 20_000)
    held = Dataset.from_dict({"text": [make_text(seed) for seed in range(10)], "id": range(10)})
    texts = [make_text(seed) for seed in range(100, 400)]
    texts[1] = held[4]["text"] + " again"
    splits = {"train": Dataset.from_dict({"text": texts}), "eval": held}

    checked = {}
    for asked in (None, True, False):
        counts = RowCounts()
        check_splits(splits, {"text"}, asked=asked, row_counts=counts)
        checked[asked] = counts.contamination
    assert checked[None]["train_texts_checked"] < 100 < checked[None]["train_texts"] == 300
    assert checked[True]["train_texts_checked"] == 300 and checked[True]["whole"] == 1
    assert checked[False] == {}
    assert "--check_contamination true compares all" in caplog.text


def test_what_a_run_reads_is_compared_and_recorded(tmp_path: Path) -> None:
    train, held = tmp_path / "train.jsonl", tmp_path / "eval.jsonl"
    rows = [{"text": make_text(seed), "label": "a"} for seed in range(50)]
    held.write_text("".join(json.dumps({"text": row["text"], "label": "a"}) + "\n" for row in rows))
    rows[0]["text"] = f"Before. {rows[0]['text']} And behind."
    for row in rows[1:]:
        row["text"] = " ".join(reversed(row["text"].split()))
    train.write_text("".join(json.dumps(row) + "\n" for row in rows))

    counts = RowCounts()
    args = DataArgs(datasets=[str(train)], eval_datasets=[str(held)])  # pyright: ignore
    load_splits(args, row_counts=counts)
    found = counts.contamination
    assert (found["overlapping"], found["whole"], found["eval_rows"]) == (1, 1, 50)

    streamed = RowCounts()
    args = DataArgs(
        datasets=[str(train)],  # pyright: ignore
        eval_datasets=[str(held)],  # pyright: ignore
        streaming=True,
    )
    load_splits(args, row_counts=streamed, may_stream=True)
    assert streamed.contamination == {}
