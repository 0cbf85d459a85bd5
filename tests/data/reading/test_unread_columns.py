"""A column that nothing reads never stops a run, whatever is in it; one that is read does."""

import csv
import json
import re
from pathlib import Path
from typing import Any

import datasets.config
import pyarrow
import pyarrow.parquet
import pytest

from hfstack.data.reading.cache import load_rows
from hfstack.data.reading.folders import expand_files
from hfstack.data.reading.read_report import ReadReport
from hfstack.data.reading.rows import read_rows
from hfstack.data.sources import DataArgs, Source, load_splits
from hfstack.errors import DataError

CHANGES: dict[str, list[Any]] = {
    "another type": [1, "A131"],
    "a list": ["a", ["a"]],
    "an object": [{"a": 1}, "none"],
    "another type inside": [{"a": 1}, {"a": "x"}],
    "another type deeper": [{"a": [{"b": 1}]}, {"a": [{"b": "x"}]}],
    "a large number": [1, 2**70],
    "a large number inside": [{"n": 1}, {"n": 2**70}],
    "not a number": [0.5, float("nan")],
    "not a number inside": [{"a": 0.5}, {"a": float("inf")}],
    "half of a pair": ["a", "\ud83d"],
}
FITTING: dict[str, list[Any]] = {
    "null, then text": [None, "a"],
    "null inside, then a number": [{"a": None}, {"a": 1}],
    "a list of none, then of objects": [[], [{"a": 1}]],
    "integers, then a decimal": [1, 2.5],
    "objects of other keys": [{"a": 1}, {"b": 2}],
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def rows_with(values: list[Any], count: int = 300) -> list[dict[str, Any]]:
    """The first value in all rows but the last, which has the second."""
    rows = [{"text": f"t{number}", "more": values[0]} for number in range(count)]
    return [*rows[:-1], rows[-1] | {"more": values[1]}]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def splits_of(*paths: Path) -> Any:
    return load_splits(DataArgs([Source(str(path)) for path in paths], eval_fraction=0))["train"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_value_of_another_kind(tmp_path: Path, name: str, change: str) -> None:
    rows = rows_with(CHANGES[change])
    files = expand_files(str(write(tmp_path / name, rows)))
    found = load_rows(files, columns={"text"})
    assert found.to_list() == [{"text": row["text"]} for row in rows]
    # rows that pass through keep what JSON can hold
    passed = list(read_rows(files, columns={"text"}))
    assert [row["text"] for row in passed] == [row["text"] for row in rows]
    assert json.loads(json.dumps(passed[0]))["more"] == CHANGES[change][0]

    with pytest.raises(DataError, match=r"(line|row) \d+|does not fit a column"):
        load_rows(files, columns={"text", "more"})


@pytest.mark.parametrize(
    ("value", "detail"),
    [
        ("NaN", "NaN is not a JSON value; use null"),
        ("[1.5, -Infinity]", "-Infinity is not a JSON value; use null"),
        (r'{"x": "\ud83d"}', "half of a surrogate pair in 'a', which no UTF-8 text can hold"),
    ],
)
@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_values_that_no_column_can_hold_where_it_is_read(
    tmp_path: Path, name: str, value: str, detail: str
) -> None:
    path = tmp_path / name
    row = f'{{"text": "t", "a": {value}}}'
    path.write_text(f"[{row}]" if name == "a.json" else row)
    with pytest.raises(DataError, match=re.escape(f"{name} line 1: {detail}")):
        list(read_rows(expand_files(str(path))))
    assert next(read_rows(expand_files(str(path)), columns={"text"}))["text"] == "t"


@pytest.mark.parametrize("change", FITTING)
def test_a_column_that_fits_a_table_stays(tmp_path: Path, change: str) -> None:
    rows = rows_with(FITTING[change])
    found = splits_of(write(tmp_path / "a.jsonl", rows))
    assert set(found.column_names) == {"text", "more"}
    assert [row["text"] for row in found] == [row["text"] for row in rows]


def test_keys_in_some_rows_alone(tmp_path: Path) -> None:
    rows = [{"text": "a", "id": 1}] * 200 + [{"text": "b"}, {"text": "c", "id": 3, "new": 1}]
    found = splits_of(write(tmp_path / "a.jsonl", rows))
    assert found.column_names == ["text"]
    assert found["text"][-3:] == ["a", "b", "c"]
    with pytest.raises(DataError, match=r"line 203: key 'txet' where a\.jsonl line 1 has 'text'"):
        splits_of(write(tmp_path / "a.jsonl", [*rows, {"txet": "d"}]))


def test_keys_without_end_are_no_columns(tmp_path: Path) -> None:
    rows = [
        {"text": str(number), "counts": {f"word{number}-{part}": 1 for part in range(9)}}
        for number in range(500)
    ]
    assert splits_of(write(tmp_path / "a.jsonl", rows)).column_names == ["text"]


def test_csv_cells_that_are_no_numbers_after_the_first_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    with path.open("w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(["text", "label", "id"])
        writer.writerows([f"t{number}", number % 2, number] for number in range(150))
        writer.writerow(["last", 1, "A131"])
    args = DataArgs([Source(str(path))], eval_fraction=0)
    found = load_splits(args, {"text", "label"})["train"]
    assert found.column_names == ["text", "label"]
    assert found[-1] == {"text": "last", "label": "1"}
    found = load_splits(args, {"text", "label"}, numbers={"label"})["train"]
    assert found[-1] == {"text": "last", "label": 1, "id": "A131"}
    with pytest.raises(DataError, match=r"a\.csv line 152: column 'id' is an integer in the first"):
        load_splits(args, {"text", "id"}, numbers={"id"})


def test_files_of_unlike_schema(tmp_path: Path) -> None:
    shards = [
        {"text": ["a"], "id": [1], "when": [None]},
        {"text": ["b"], "id": ["x"], "extra": [1.5]},
        {"text": ["c"], "id": [2], "when": [3]},
    ]
    for number, columns in enumerate(shards):
        pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / f"{number}.parquet")
    found = splits_of(tmp_path)
    assert found.to_list() == [{"text": "a"}, {"text": "b"}, {"text": "c"}]
    # and as datasets of their own
    apart = splits_of(*sorted(tmp_path.glob("*.parquet")))
    assert apart.to_list() == found.to_list()


def test_what_is_left_out_is_said_once_and_again_from_the_cache(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", rows_with([1, "A131"]))
    report = ReadReport()
    list(read_rows(expand_files(str(path)), columns={"text"}, report=report))
    assert report.left_out == {
        "more": "a.jsonl line 300: column 'more' holds text 'A131' here but integer in a.jsonl "
        "line 1"
    }
    assert splits_of(path).column_names == splits_of(path).column_names == ["text"]
    # a recipe that reads the column sees the same file otherwise
    args = DataArgs([Source(str(path))], eval_fraction=0, on_bad_row="skip")
    assert len(load_splits(args, {"text", "more"})["train"]) == 299


def test_rows_without_a_column_in_common_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"a": 1}, {"b": 2}])
    with pytest.raises(DataError, match=r"no column is in all rows: a, b"):
        splits_of(path)


def test_streams(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [*rows_with([1, "A131"]), {"text": "last"}])
    args = DataArgs([Source(str(path))], eval_fraction=0, streaming=True)
    texts = {row["text"] for row in load_splits(args, may_stream=True)["train"]}
    assert len(texts) == 301 and "last" in texts
