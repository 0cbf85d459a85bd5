"""Damaged data files, over all formats, and odd rows, over all loaders: good rows or one line."""

import bz2
import gzip
import io
import json
import lzma
import math
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import datasets.config
import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from hfstack.data.places import BadRows
from hfstack.data.reading.folders import expand_files
from hfstack.data.reading.rows import ReadReport, read_rows
from hfstack.data.sources import DataArgs, load_splits
from hfstack.errors import HfstackError
from hfstack.tasks.classification.data import LabelArgs, load_labelled
from hfstack.tasks.preferences.data import load_preferences
from hfstack.tasks.preferences.rows import PreferenceArgs
from hfstack.tasks.question_answering.data import read_questions
from hfstack.tasks.rl.prompts import load_prompts
from hfstack.tasks.seq2seq.data import read_sources_and_targets
from hfstack.tasks.sft.columns import Columns, convert_rows
from hfstack.tasks.sft.encoding import encode_usable_rows
from hfstack.tasks.token_classification.data import read_sentences
from tests.fuzz.json_values import damaged, mutated
from tests.fuzz.limits import Tally, check_many, outcome, short
from tests.fuzz.second_reader import find_foreign_rows

ROWS = [{"text": f"line {at} with words", "label": at % 3, "score": at / 4} for at in range(30)]
SEEDS = st.integers(0, 2**32 - 1)
OnBadRow = Literal["fail", "skip", "quarantine"]


def _plain() -> dict[str, bytes]:
    """Return a whole file of each format."""
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    cells = [",".join(ROWS[0]), *(f'"{r["text"]}",{r["label"]},{r["score"]}' for r in ROWS)]
    table = "\n".join(cells) + "\n"
    parquet = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), parquet)
    return {
        "jsonl": lines.encode(),
        "json": json.dumps(ROWS).encode(),
        "csv": table.encode(),
        "tsv": table.replace('"', "").replace(",", "\t").encode(),
        "txt": "\n\n".join(row["text"] for row in ROWS).encode(),
        "conll": "\n".join("one O\ntwo B-PER\nthree I-PER\n" for _ in ROWS).encode(),
        "parquet": parquet.getvalue(),
    }


def _packed() -> dict[str, bytes]:
    """Return the files of all formats, plain and in each compression."""
    plain = _plain()
    found = dict(plain)
    pack: dict[str, Callable[[bytes], bytes]] = {
        "gz": gzip.compress,
        "zst": zstandard.compress,
        "xz": lzma.compress,
        "bz2": bz2.compress,
    }
    for suffix, compress in pack.items():
        found[f"jsonl.{suffix}"] = compress(plain["jsonl"])
        found[f"csv.{suffix}"] = compress(plain["csv"])
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as inside:
        inside.writestr("a.jsonl", plain["jsonl"])
    return found | {"zip": archive.getvalue()}


FILES = _packed()


def check_damaged_file(
    folder: Path, suffix: str, number: int, on_bad_row: OnBadRow, tally: Tally
) -> None:
    """Read a damaged file; every row that comes out has the columns of the others."""
    path = folder / f"a.{suffix}"
    path.write_bytes(damaged(FILES[suffix], number))
    report = ReadReport()
    rows = outcome(
        lambda: list(
            read_rows(
                expand_files(str(path)),
                on_bad_row=on_bad_row,
                quarantine_file=folder / "bad.jsonl",
                report=report,
            )
        ),
        tally,
    )
    if isinstance(rows, HfstackError):
        return
    assert rows and all(row.keys() == rows[0].keys() for row in rows)
    for row in rows:
        for value in row.values():
            assert not isinstance(value, float) or math.isfinite(value)
            assert not isinstance(value, str) or value.encode() is not None
    assert find_foreign_rows(path, rows, list(ROWS[0])) == []
    if on_bad_row == "fail":
        assert not report.bad_rows


CHAT = [{"role": "user", "content": "Name a fox."}, {"role": "assistant", "content": "Rusty."}]
CASES: dict[str, dict[str, Any]] = {
    "text": {"text": "A fox ran home.", "id": 3},
    "chat": {"messages": CHAT},
    "prompts": {"prompt": "Name a fox.", "completion": "Rusty."},
    "pairs": {"prompt": "Name a fox.", "chosen": "Rusty.", "rejected": "Stone."},
    "chat pairs": {"chosen": CHAT, "rejected": [CHAT[0], {"role": "assistant", "content": "No."}]},
    "ratings": {"prompt": "Name a fox.", "completion": "Rusty.", "rating": 4.0},
    "thumbs": {"prompt": "Name a fox.", "completion": "Rusty.", "label": True},
    "labels": {"text": "A good day.", "label": "good"},
    "many labels": {"text": "A good day.", "label": ["good", "day"]},
    "questions": {
        "context": "Rusty is a fox.",
        "question": "Who is a fox?",
        "answers": {"text": ["Rusty"], "answer_start": [0]},
    },
    "articles": {
        "title": "a",
        "paragraphs": [
            {
                "context": "Rusty is a fox.",
                "qas": [
                    {
                        "id": "1",
                        "question": "Who?",
                        "answers": [{"text": "Rusty", "answer_start": 0}],
                    }
                ],
            }
        ],
    },
    "tags": {"tokens": ["Rusty", "ran"], "tags": ["B-PER", "O"]},
    "translations": {"translation": {"en": "a fox", "de": "ein Fuchs"}},
}


def _load_sft(args: DataArgs, tokenizer: Any, folder: Path) -> Any:
    rows = load_splits(args)["train"]
    columns = Columns("prompt", "completion", "context", "text")
    converted = convert_rows(rows, columns, as_chat=True)
    return encode_usable_rows(
        converted,
        tokenizer,
        name="train",
        max_length=64,
        assistant_only=False,
        completion_only=False,
        on_bad_row=args.on_bad_row,
    )


def _load_questions(args: DataArgs, tokenizer: Any, folder: Path) -> Any:
    columns = ("question", "context", "answers")
    return read_questions(
        load_splits(args)["train"], columns=columns, name="train", bad_rows=BadRows(args.on_bad_row)
    )


def _load_tags(args: DataArgs, tokenizer: Any, folder: Path) -> Any:
    return read_sentences(
        load_splits(args)["train"],
        tokens_column="tokens",
        name="train",
        bad_rows=BadRows(args.on_bad_row),
    )


def _load_pairs(args: DataArgs, tokenizer: Any, folder: Path) -> Any:
    columns = ("translation.en", "translation.de")
    return read_sources_and_targets(
        load_splits(args)["train"], columns, name="train", bad_rows=BadRows(args.on_bad_row)
    )


def _load_prompts(args: DataArgs, tokenizer: Any, folder: Path) -> Any:
    return load_prompts(args, recipe="rloo", as_chat=True, quarantine_file=folder / "bad.jsonl")


def _load_preferences(form: Any, args: DataArgs, tokenizer: Any, folder: Path) -> Any:
    return load_preferences(args, PreferenceArgs(), form=form)


def _load_labelled(args: DataArgs, tokenizer: Any, folder: Path) -> Any:
    return load_labelled(args, LabelArgs())


LOADERS: dict[Callable[..., Any], tuple[str, ...]] = {
    _load_sft: ("text", "chat", "prompts"),
    partial(_load_preferences, "pairs"): ("pairs", "chat pairs", "ratings", "thumbs"),
    partial(_load_preferences, "labels"): ("pairs", "ratings", "thumbs", "chat pairs"),
    _load_labelled: ("labels", "many labels", "text"),
    _load_questions: ("questions", "articles"),
    _load_tags: ("tags",),
    _load_pairs: ("translations",),
    _load_prompts: ("prompts", "chat", "text"),
}
CHOICES = [(loader, case) for loader, cases in LOADERS.items() for case in cases]


def check_odd_rows(
    folder: Path, tokenizer: Any, choice: int, number: int, on_bad_row: OnBadRow, tally: Tally
) -> None:
    """Load rows of which some, or all, are odd inside; loaders return rows or one line."""
    loader, case = CHOICES[choice % len(CHOICES)]
    good = CASES[case]
    rows = [good] * 4 + [mutated(good, number), mutated(good, number + 1)]
    if number % 3 == 0:
        rows = [mutated(good, number)] * 3
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    args = DataArgs(datasets=[str(path)], eval_fraction=0.0, on_bad_row=on_bad_row)  # type: ignore[list-item]
    loaded = outcome(lambda: loader(args, tokenizer, folder), tally)
    assert loaded is not None


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(folder / "cache"))


SUFFIXES, ON_BAD_ROW = st.sampled_from(sorted(FILES)), st.sampled_from(["fail", "skip"])
CHOSEN = st.integers(0, len(CHOICES) - 1)


@short(150)
@given(suffix=SUFFIXES, number=SEEDS, on_bad_row=ON_BAD_ROW)
def test_damaged_files(
    folder: Path, tally: Tally, suffix: str, number: int, on_bad_row: OnBadRow
) -> None:
    check_damaged_file(folder, suffix, number, on_bad_row, tally)


@short(60)
@given(choice=CHOSEN, number=SEEDS, on_bad_row=ON_BAD_ROW)
def test_odd_rows(
    folder: Path,
    tiny_tokenizer: Any,
    tally: Tally,
    choice: int,
    number: int,
    on_bad_row: OnBadRow,
) -> None:
    check_odd_rows(folder, tiny_tokenizer, choice, number, on_bad_row, tally)


@pytest.mark.parametrize(
    ("suffix", "number", "on_bad_row"),
    [
        ("txt", 3607564414, "skip"),
        ("txt", 3358169014, "skip"),
        ("csv.bz2", 3906883823, "fail"),
    ],
)
def test_files_that_were_read_wrongly_or_slowly(
    folder: Path, tally: Tally, suffix: str, number: int, on_bad_row: OnBadRow
) -> None:
    check_damaged_file(folder, suffix, number, on_bad_row, tally)
    assert tally.seconds < 2


@pytest.mark.slow
def test_many_damaged_files(folder: Path, tally: Tally) -> None:
    suffixes = sorted(FILES)
    check_many(
        1,
        tally,
        lambda choose: (
            choose.choice(suffixes),
            choose.randrange(2**32),
            choose.choice(["fail", "skip"]),
        ),
        lambda *case: check_damaged_file(folder, *case, tally),
    )


@pytest.mark.slow
def test_many_odd_rows(folder: Path, tiny_tokenizer: Any, tally: Tally) -> None:
    check_many(
        2,
        tally,
        lambda choose: (
            choose.randrange(len(CHOICES)),
            choose.randrange(2**32),
            choose.choice(["fail", "skip"]),
        ),
        lambda *case: check_odd_rows(folder, tiny_tokenizer, *case, tally),
    )
