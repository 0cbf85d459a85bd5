"""The tables of docs/data.md, compared with the options, the suffixes and the messages."""

import json
import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import datasets.config
import pytest

from hfstack.data.reading.files import COMPRESSIONS, FORMATS
from hfstack.data.sources import DataArgs, Source, load_mixture, load_splits
from hfstack.errors import DataError

PAGE = "\n" + (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")


def table(title: str) -> dict[str, str]:
    """Return the first two columns of the first table behind a heading, without its head."""
    behind = PAGE.partition(f"\n{title}\n")[2]
    rows = re.search(r"(?:^\|.*\n)+", behind, re.MULTILINE)
    assert rows is not None, title
    cells = [re.split(r"(?<!\\)\|", line)[1:-1] for line in rows[0].splitlines()[2:]]
    return {row[0].strip(): row[1].strip() for row in cells}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def read(path: str, **settings: Any) -> list[Any]:
    return list(load_mixture(DataArgs(datasets=[Source(path)], **settings).datasets, seed=0))


def test_the_options_are_those_of_every_recipe() -> None:
    said = table("# Data")
    defaults = DataArgs()
    assert sorted(said) == sorted(f"`--{field.name}`" for field in fields(DataArgs))
    words = {None: ("none", "all", "0.05; of"), False: ("false",)}
    for field in fields(DataArgs):
        value, cell = getattr(defaults, field.name), said[f"`--{field.name}`"]
        expected = words.get(value) if value is None or value is False else (str(value),)
        if value != []:
            assert cell.startswith(expected), f"{field.name}: {value!r}, the page says {cell!r}"


def test_the_suffixes_are_those_that_are_read() -> None:
    said = set(re.findall(r"`\.(\w+)`", " ".join(table("## Files"))))
    assert said == {*FORMATS, "zip"}
    sentence = re.search(r"Each may end in ([^.]*(?:\.\w+`[^.]*)+) as well", PAGE)
    assert sentence and tuple(re.findall(r"`(\.\w+)`", sentence[1])) == COMPRESSIONS


def lines(*rows: Any, **named: str) -> str:
    """Return lines of JSON: a text as it stands, a number as so many usual rows."""
    usual = {"id": 1, "text": "a"}
    made: list[str] = []
    for row in rows:
        many = [usual] * row if isinstance(row, int) else [row]
        made += [one if isinstance(one, str) else json.dumps(one | named) for one in many]
    return "".join(f"{line}\n" for line in made)


# What is wrong, as the page says it: the file that shows it.
FAULTS: dict[str, tuple[str, str | bytes]] = {
    "bad JSON": ("a.jsonl", '{"text": "a"}\n{"text": "b" oops}\n'),
    "mixed types": ("a.jsonl", lines(200, {"id": 1, "text": 5})),
    "a misspelled key": ("a.jsonl", lines(200, {"id": 1, "txet": "a"})),
    "a missing key": ("a.jsonl", lines(200, {"text": "a"})),
    "a key twice in one object": ("a.jsonl", lines(6, '{"id": 1, "text": "a", "text": "b"}')),
    "a ragged row": ("a.csv", "id,text\n1,a\n2,b,c\n"),
    "the header among the rows": ("a.csv", "id,text\n1,a\n2,b\n3,c\nid,text\n4,d\n"),
    "not UTF-8": ("a.jsonl", b'{"text": "abc\xe9"}\n'),
    "half of a surrogate pair": ("a.jsonl", lines(3, '{"id": 1, "text": "\\ud83d"}')),
    "a number that 64 bits cannot hold": (
        "a.jsonl",
        "".join('{"score": 1.5}\n' for _ in range(8)) + '{"score": 1e999}\n',
    ),
    "a row of more than 64 MiB": ("a.jsonl", lines(4, {"id": 1, "text": "x" * (65 << 20)})),
    "deep nesting": ("a.jsonl", lines(5, '{"id": 1, "text": ' + "[" * 80 + "]" * 80 + "}")),
}


@pytest.mark.parametrize("what", table("## What is refused"))
def test_the_message_of_a_bad_row_is_the_one_of_the_page(what: str, folder: Path) -> None:
    name, content = FAULTS[what]
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    said = table("## What is refused")[what]
    message = re.match(r"`([^`]+)`", said)
    assert message is not None, said
    # numbers of the example stand for any, the line of the file is right here
    pattern = re.sub(r"270000|column 14|byte 13", r"\\S+ ?\\S*", re.escape(message[1]))
    with pytest.raises(DataError) as caught:
        read(name)
    assert re.search(pattern.replace(r"\-", "-"), str(caught.value)), str(caught.value)


WHOLE: dict[str, tuple[str, Callable[[], str | bytes]]] = {
    "a `.csv` separated by `;`": ("a.csv", lambda: "id;text\n1;a\n2;b\n"),
    "JSON in a `.csv`": ("a.csv", lambda: lines(3)),
    "a table in a `.jsonl`": ("a.jsonl", lambda: "id,text\n1,a\n"),
    "a header without names": ("a.csv", lambda: ",\n1,a\n"),
    "a syntax error in a JSON array": ("a.json", lambda: '[{"text": "a"}, {"text" "b"}]'),
    "bytes that are no text": ("a.jsonl", lambda: lines(3).encode("utf-32-le")),
}


@pytest.mark.parametrize("what", WHOLE)
def test_what_ends_a_run_whatever_is_done_with_bad_rows(what: str, folder: Path) -> None:
    assert what in " ".join(PAGE.split()), "the page calls it otherwise"
    name, content = WHOLE[what]
    made = content()
    (folder / name).write_bytes(made if isinstance(made, bytes) else made.encode())
    args = DataArgs(datasets=[Source(name)], on_bad_row="skip")
    with pytest.raises(DataError):
        load_mixture(args.datasets, seed=0, on_bad_row=args.on_bad_row)


def test_code_beside_data_is_never_run(folder: Path) -> None:
    """As Hub datasets have it: a script of the dataset's name."""
    (folder / "set").mkdir()
    (folder / "set" / "set.py").write_text("open('ran', 'w').close()\n")
    (folder / "set" / "a.jsonl").write_text(lines(2))
    assert len(read("set")) == 2 and not (folder / "ran").exists()
    with pytest.raises(DataError, match=r"set\.py: unknown kind of file"):
        read("./set/set.py")


def test_few_held_out_rows_are_warned_of(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "a.jsonl").write_text("".join(lines({"text": f"t {n}"}) for n in range(200)))
    args = DataArgs(datasets=[Source("a.jsonl")])
    assert len(load_splits(args)["eval"]) == 20 and "are held out" not in caplog.text
    load_splits(DataArgs(datasets=[Source("a.jsonl")], eval_fraction=0.05))
    assert "only 10 of 200 rows are held out" in caplog.text
