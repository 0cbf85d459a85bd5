"""A tour of messy files through every reader: right rows, or one line with file and line."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import datasets.config
import pytest

from hfstack.data.sources import DataArgs, load_splits
from hfstack.errors import DataError
from hfstack.row_counts import RowCounts
from hfstack.tasks.classification.data import LabelArgs, load_labelled
from hfstack.tasks.preferences.data import load_preferences
from hfstack.tasks.preferences.rows import PreferenceArgs
from hfstack.tasks.question_answering.data import read_questions
from hfstack.tasks.rl.prompts import load_prompts
from hfstack.tasks.seq2seq.data import load_sources_and_targets
from hfstack.tasks.sft.columns import Columns, convert_rows, load_instructions
from hfstack.tasks.token_classification.data import load_sentences


def classify(args: DataArgs) -> list[Any]:
    found = load_labelled(args, LabelArgs())
    return [(row["text"], row["label"]) for row in cast(Any, found.splits["train"])]


def tag(args: DataArgs) -> list[Any]:
    sentences, _, _ = load_sentences(
        args,
        tokens_column="tokens",
        tags_column=None,
        tag_names=(),
        bad_tags="fail",
        quarantine_file=Path("bad.jsonl"),
        row_counts=RowCounts(),
    )
    return [(" ".join(one.words), " ".join(one.tags)) for one in sentences["train"]]


def answer(args: DataArgs) -> list[Any]:
    columns = ("question", "context", "answers")
    rows = load_splits(args)["train"]
    found = read_questions(rows, columns=columns, name="train", sources=args.datasets)
    return [(one.question, one.context) for one in found]


def seq2seq(args: DataArgs) -> list[Any]:
    pairs, _ = load_sources_and_targets(
        args, ("source", "target"), quarantine_file=Path("bad.jsonl")
    )
    return [(one.source, *one.targets) for one in pairs["train"]]


def sft(args: DataArgs) -> list[Any]:
    splits, _ = load_instructions(args, Columns(), quarantine_file=Path("bad.jsonl"))
    rows = convert_rows(splits["train"], Columns(), as_chat=False)
    return [(row["prompt"], row["completion"]) for row in cast(Any, rows)]


def prompts(args: DataArgs) -> list[Any]:
    quarantine = Path("bad.jsonl")
    return list(
        load_prompts(args, recipe="rloo", as_chat=False, quarantine_file=quarantine)["train"]
    )


def pairs(args: DataArgs) -> list[Any]:
    rows = load_preferences(args, PreferenceArgs())["train"]
    return [(row["prompt"], row["chosen"], row["rejected"]) for row in cast(Any, rows)]


def thumbs(args: DataArgs) -> list[Any]:
    rows = load_preferences(args, PreferenceArgs(), form="labels")["train"]
    return [(row["prompt"], row["completion"], row["label"]) for row in cast(Any, rows)]


def text(args: DataArgs) -> list[Any]:
    return [row["text"] for row in load_splits(args)["train"]]


def lines(*rows: dict[str, Any]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


TABLE = 'text,label\nA good day,good\n"A bad, long day",bad\nfine,good\n'
READ = [("A good day", "good"), ("A bad, long day", "bad"), ("fine", "good")]
QUESTION = {"question": "Who?", "context": "Ada ran", "answers": {"text": [], "answer_start": []}}
TAGS = "Ada B-PER\nran O\n\nhe O\nBob B-PER\n"
TAGGED = [("Ada ran", "B-PER O"), ("he Bob", "O B-PER")]
LONG = "x" * 300_000
PAIR = {"prompt": "p", "chosen": "c", "rejected": "r"}
THUMBS = ({"prompt": "p", "completion": "a", "label": True},)

Case = tuple[Callable[[DataArgs], list[Any]], str, str | bytes, list[Any] | str]

CASES: dict[str, Case] = {
    # how bytes and lines are written
    "byte order mark": (classify, "a.csv", b"\xef\xbb\xbf" + TABLE.encode(), READ),
    "byte order mark of words": (tag, "a.conll", b"\xef\xbb\xbf" + TAGS.encode(), TAGGED),
    "utf-16": (classify, "a.csv", TABLE.encode("utf-16"), READ),
    "utf-16 of words": (tag, "a.conll", TAGS.encode("utf-16"), TAGGED),
    "latin-1": (
        seq2seq,
        "a.jsonl",
        lines({"source": "a", "target": "é"}).encode("latin-1"),
        r"a\.jsonl line 1: invalid UTF-8 at byte 27",
    ),
    "windows": (classify, "a.csv", TABLE.replace("\n", "\r\n"), READ),
    "old mac": (classify, "a.csv", TABLE.replace("\n", "\r"), READ),
    "old mac, words": (tag, "a.conll", TAGS.replace("\n", "\r"), TAGGED),
    "old mac, text": (text, "a.txt", "one\rtwo\r", ["one", "two"]),
    "empty lines": (classify, "a.csv", TABLE.replace("\nfine", "\n\n\nfine"), READ),
    "empty lines of json": (
        sft,
        "a.jsonl",
        "\n\n" + lines({"prompt": "p", "completion": "c"}) + "\n",
        [("p", "c")],
    ),
    # tables that are none, or hold more than one
    "ragged": (classify, "a.csv", TABLE + "a,b,c\n", r"a\.csv line 5: 3 cells where the header"),
    "short": (classify, "a.csv", TABLE + "few\n", r"a\.csv line 5: 1 cells where the header"),
    "two tables": (classify, "a.csv", TABLE + TABLE, r"a\.csv line 5: the header again"),
    "two tables with marks": (
        classify,
        "a.csv",
        TABLE.encode() + b"\xef\xbb\xbf" + TABLE.encode(),
        r"a\.csv line 5: the header again",
    ),
    "a column twice": (
        seq2seq,
        "a.tsv",
        "source\tsource\na\tb\n",
        "names the column 'source' twice",
    ),
    "semicolons": (classify, "a.csv", "text;label\na;b\n", "separated by ';', not by ','"),
    "no end of a quote": (classify, "a.csv", TABLE + '"b,good\n', r"line 5: a quoted cell begins"),
    "quotes in a tsv": (
        seq2seq,
        "a.tsv",
        'source\ttarget\n"Hm\tx\ny\t"z\n',
        [('"Hm', "x"), ("y", '"z')],
    ),
    "a long cell": (seq2seq, "a.csv", f"source,target\n{LONG},b\n", [(LONG, "b")]),
    # json that is no table
    "an array in lines": (sft, "a.jsonl", '[\n{"prompt": "p"}\n]\n', "rename it to .json"),
    "lines in json": (
        sft,
        "a.json",
        lines({"prompt": "p", "completion": "c"}) * 2,
        [("p", "c")] * 2,
    ),
    "a key twice": (sft, "a.jsonl", '{"prompt": "a", "prompt": "b"}\n', "'prompt' occurs twice"),
    "types that differ": (
        seq2seq,
        "a.jsonl",
        lines({"source": "a", "target": "b"}, {"source": "a", "target": 3}),
        r"a\.jsonl line 2: column 'target' holds integer '3' here but text",
    ),
    "an object for a text": (
        seq2seq,
        "a.jsonl",
        lines({"source": {"x": 1}, "target": "b"}),
        r"a\.jsonl line 1: source is .*not text",
    ),
    "a list for a text": (
        answer,
        "a.jsonl",
        lines(QUESTION | {"context": ["a"]}),
        r"a\.jsonl line 1: the context is empty, or no text",
    ),
    "an answer of another form": (
        answer,
        "a.jsonl",
        lines(
            QUESTION, QUESTION | {"question": "Why?", "answers": {"text": [], "answer_start": []}}
        ),
        [("Who?", "Ada ran"), ("Why?", "Ada ran")],
    ),
    "an empty answer": (
        pairs,
        "a.jsonl",
        lines(PAIR, PAIR | {"rejected": ""}),
        r"a\.jsonl line 2: rejected is empty; fix or remove it",
    ),
    "a word too many": (
        tag,
        "a.jsonl",
        lines({"tokens": ["a", "b"], "tags": ["O", "B-X"]}, {"tokens": ["c"], "tags": ["O", "O"]}),
        r"a\.jsonl line 2: 1 words but 2 tags",
    ),
    "parts of words in brackets": (
        tag,
        "a.conll",
        "Ada (PER*\nLee *)\nran *\n\nhe *\n",
        r"a\.conll: the tags are brackets, such as \(ORG",
    ),
    # values that look like others
    "numbers as texts": (
        classify,
        "a.csv",
        "text,label\n007,1\n3.50,0\n1e+05,1\n",
        [("007", 1), ("3.50", 0), ("1e+05", 1)],
    ),
    "numbers as targets": (
        seq2seq,
        "a.csv",
        "source,target\n1+1,2\n7/2,3.50\n",
        [("1+1", "2"), ("7/2", "3.50")],
    ),
    "numbers as completions": (sft, "a.tsv", "prompt\tcompletion\n2.0\t12\n", [("2.0", "12")]),
    "numbers as answers": (
        pairs,
        "a.csv",
        "prompt,chosen,rejected\n6*7,42,41.0\n",
        [("6*7", "42", "41.0")],
    ),
    "numbers, then words": (text, "a.csv", "text\n" + "12\n" * 101 + "x\n", ["12"] * 101 + ["x"]),
    "ratings of tables": (
        pairs,
        "a.csv",
        "prompt,completion,rating\n1,2,3.50\n1,4,10\n",
        [("1", "4", "2")],
    ),
    "no finite number": (
        classify,
        "a.csv",
        "text,label\na,1.5\nb,inf\n",
        r"a\.csv line 3: no label in column 'label', but 'inf'",
    ),
    "whole decimals": (classify, "a.csv", "text,label\na,1.0\nb,0.0\n", [("a", 1), ("b", 0)]),
    "words for no value": (seq2seq, "a.csv", "source,target\nnan,NA\n", [("nan", "NA")]),
    "an empty label": (classify, "a.csv", TABLE + "x,\n", r"a\.csv line 5"),
    "no number among numbers": (
        classify,
        "a.csv",
        "text,label\na,1\nb,nan\nc,0\nd,NA\n",
        r"^2 rows cannot be used, first: a\.csv line 3: no label in column 'label', but 'nan'",
    ),
    "none is a class": (
        classify,
        "a.csv",
        "text,label\na,none\nb,some\n",
        [("a", "none"), ("b", "some")],
    ),
    "no thumb": (
        thumbs,
        "a.jsonl",
        lines({"prompt": "p", "completion": "a", "label": 2}),
        r"a\.jsonl line 1: label is 2, no thumb: write true or false",
    ),
    "thumbs": (thumbs, "a.jsonl", lines(*THUMBS), [("p", "a", True)]),
}


@pytest.mark.parametrize("case", CASES.values(), ids=[name.replace(" ", "-") for name in CASES])
def test_messy_files(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, name, content, expected = case
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
    args = DataArgs(datasets=[name], eval_fraction=0.0)  # pyright: ignore[reportArgumentType]

    if isinstance(expected, str):
        with pytest.raises(DataError, match=expected) as caught:
            reader(args)
        assert "\n" not in str(caught.value)
    else:
        # 1.0 equals 1, and is a number where 1 is a class
        assert sorted(map(repr, reader(args))) == sorted(map(repr, expected))


BAD: dict[str, tuple[Any, ...]] = {
    # reader, a good row by its number, what makes it bad
    "classify": (classify, lambda n: {"text": f"t {n}", "label": "ab"[n % 2]}, {"label": ""}),
    "tag": (tag, lambda n: {"tokens": ["a", str(n)], "tags": ["O", "B-X"]}, {"tags": ["O"]}),
    "answer": (answer, lambda n: QUESTION | {"context": f"Ada {n}"}, {"question": ""}),
    "seq2seq": (seq2seq, lambda n: {"source": f"s {n}", "target": "t"}, {"target": " "}),
    "pairs": (pairs, lambda n: PAIR | {"prompt": f"p {n}"}, {"chosen": "r"}),
    "prompts": (prompts, lambda n: {"prompt": f"p {n}"}, {"prompt": " "}),
}


@pytest.mark.parametrize("task", BAD)
def test_bad_rows_are_named_by_their_lines_after_the_split(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    reader, make, fault = BAD[task]
    # none of the texts that rows are split by is bad, so that both sides have bad ones
    rows = [make(n) | (fault if n in (6, 18, 19, 20, 22, 23) else {}) for n in range(40)]
    Path("a.jsonl").write_text(lines(*rows))
    args = DataArgs(datasets=["a.jsonl"], eval_fraction=0.4)  # pyright: ignore[reportArgumentType]
    with pytest.raises(DataError, match=r"^(\d) rows cannot be used, first: (.*)") as caught:
        reader(args)
    named = {int(n) for n in re.findall(r"a\.jsonl line (\d+): ", str(caught.value))}
    count = int(str(caught.value)[0])
    assert 1 < count <= 6 and named <= {7, 19, 20, 21, 23, 24} and len(named) == min(count, 5)
