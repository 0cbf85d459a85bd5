"""Rows of local files as a memory-mapped table that a second run finds again."""

import errno
import json
import os
from pathlib import Path
from typing import Any

import datasets.config
import pytest
from datasets import Value

from hfstack.data.reading import cache as row_cache
from hfstack.data.reading.cache import load_rows
from hfstack.data.reading.files import _hash_once as fingerprints
from hfstack.data.reading.files import data_file
from hfstack.errors import DataError
from tests.faults import CODES, NAMES, Faults


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache" / "hfstack"


def jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    )
    return path


def test_rows_come_back_as_they_were(tmp_path: Path) -> None:
    rows = [
        {
            "id": number,
            "text": "word \u4e2d" * (number % 9),
            "tags": ["a"] * (number % 3),
            "chat": [{"role": "user"}],
        }
        for number in range(5000)
    ]
    dataset = load_rows([data_file(jsonl(tmp_path / "a.jsonl", rows))])
    assert dataset.to_list() == rows
    assert dataset.cache_files  # memory-mapped, not in memory


def test_second_run_reads_nothing_and_a_changed_file_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{"text": "old"}])
    load_rows([data_file(path)])
    jsonl(path, [{"text": "new"}, {"text": "newer"}])
    assert load_rows([data_file(path)])["text"][:] == ["new", "newer"]
    assert load_rows([data_file(path)], max_rows=1)["text"][:] == ["new"]

    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("the file was read again")

    monkeypatch.setattr(row_cache, "read_rows", fail)
    assert load_rows([data_file(path)])["text"][:] == ["new", "newer"]
    # nothing half-written is left
    assert {each.suffix for each in cache.iterdir()} == {"", ".lock"}


def test_column_types_may_widen_after_many_rows(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"n": number, "late": None, "chat": [{"role": "user"}]} for number in range(300)
    ]
    rows += [{"n": 0.5, "late": "text", "chat": [{"role": "user", "name": "x"}]}]
    rows += [{"n": 7, "late": None, "chat": []}]
    dataset = load_rows([data_file(jsonl(tmp_path / "a.jsonl", rows))])
    assert dataset.features["n"] == Value("float64")
    assert dataset.features["late"] == Value("string")
    assert dataset[299] == {"n": 299.0, "late": None, "chat": [{"role": "user", "name": None}]}
    assert dataset[300] == {"n": 0.5, "late": "text", "chat": [{"role": "user", "name": "x"}]}
    assert len(dataset) == 302


def test_value_that_arrow_cannot_hold(tmp_path: Path, cache: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{"n": 1.5}, {"n": 2**60 + 1}])
    with pytest.raises(
        DataError, match=r"a\.jsonl: column 'n': a value does not fit.*the row begins \{\"n\": 1"
    ) as caught:
        load_rows([data_file(path)])
    assert "\n" not in str(caught.value)
    assert [each.suffix for each in cache.iterdir()] == [".lock"]


def test_failed_read_leaves_no_cache(tmp_path: Path, cache: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{"n": 1}, "{"])
    for _ in range(2):
        with pytest.raises(DataError, match="line 2"):
            load_rows([data_file(path)])
    assert [each.suffix for each in cache.iterdir()] == [".lock"]


def test_report_and_quarantine_are_repeated_from_the_cache(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{"n": 1}, "{", {"n": None}])
    for run in ("one", "two"):
        caplog.clear()
        load_rows(
            [data_file(path)], on_bad_row="quarantine", quarantine_file=tmp_path / run / "bad.jsonl"
        )
        assert json.loads((tmp_path / run / "bad.jsonl").read_text())["line"] == 2
        assert "left out 1 of 3 rows: bad JSON; first: " in caplog.text
        assert "column 'n' is null in 1 of 2 rows" in caplog.text


def test_unwritable_cache_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "file" / "cache")
    with pytest.raises(
        DataError, match=r"cannot write the cache .*: Not a directory; HF_DATASETS_CACHE may"
    ):
        load_rows([data_file(jsonl(tmp_path / "a.jsonl", [{"n": 1}]))])


@pytest.mark.parametrize("name", ["rows.arrow", "report.json"])
def test_a_damaged_cache_is_made_again(
    tmp_path: Path,
    cache: Path,
    name: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{"n": number} for number in range(50)])
    load_rows([data_file(path)])
    damaged = next(cache.glob(f"*/{name}"))
    content = damaged.read_bytes()
    damaged.write_bytes(content[: len(content) // 2])
    assert load_rows([data_file(path)])["n"][:] == list(range(50))
    assert "is damaged: reading the files again" in caplog.text and damaged.read_bytes() == content
    flipped = bytearray(content)
    flipped[-20] ^= 1
    damaged.write_bytes(bytes(flipped))
    assert load_rows([data_file(path)])["n"][:] == list(range(50))


@pytest.mark.parametrize("code", CODES, ids=NAMES)
@pytest.mark.parametrize(
    ("name", "at"),
    [
        *(("report.json", at) for at in ("open", "read")),
        *(("rows.arrow", at) for at in ("open", "read", "stat")),
    ],
)
def test_a_cache_that_could_not_be_read_is_not_damaged(
    tmp_path: Path, cache: Path, code: int, name: str, at: str
) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{"n": number} for number in range(50)])
    load_rows([data_file(path)])
    # In a new process nothing is known of the file yet.
    fingerprints.cache_clear()
    before = {file: file.stat().st_ino for file in cache.glob("*/*")}

    with Faults() as faults:
        faults.plant(code, name, at=at)
        with pytest.raises(DataError, match=rf"{name} could not be read in 4 tries") as refusal:
            load_rows([data_file(path)])
    assert os.strerror(code) in str(refusal.value) and "HF_DATASETS_CACHE" not in str(refusal.value)
    assert {file: file.stat().st_ino for file in cache.glob("*/*")} == before

    with Faults() as faults:
        faults.plant(code, name, at=at, times=2)
        assert load_rows([data_file(path)])["n"][:] == list(range(50))
    assert {file: file.stat().st_ino for file in cache.glob("*/*")} == before


def test_a_damaged_cache_stays_until_the_files_are_read_again(tmp_path: Path, cache: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{"n": number} for number in range(50)])
    load_rows([data_file(path)])
    damaged = next(cache.glob("*/report.json"))
    damaged.write_text("{")
    with Faults() as faults:
        faults.plant(errno.EIO, "a.jsonl", at="read")
        with pytest.raises(DataError, match=r"a\.jsonl: cannot be read: Input/output error"):
            load_rows([data_file(path)])
    assert damaged.read_text() == "{" and (damaged.parent / "rows.arrow").is_file()
    assert load_rows([data_file(path)])["n"][:] == list(range(50))
    assert {each.suffix for each in cache.iterdir()} == {"", ".lock"}
