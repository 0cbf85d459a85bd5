"""Parquet that stands for more than a machine holds is read row by row, or refused."""

import itertools
import resource
import zipfile
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from hfstack.data.reading import opening, parquet
from hfstack.data.reading.bad_rows import BadRow
from hfstack.data.reading.files import data_file
from hfstack.data.reading.folders import expand_files
from hfstack.data.reading.parquet import read_parquet
from hfstack.errors import DataError

MIB = 1 << 20


def write(path: Path, columns: dict[str, Any]) -> Path:
    table = pyarrow.table(columns)
    pyarrow.parquet.write_table(table, path, compression="zstd", store_schema=False)
    return path


def repeated(values: list[str], rows: int) -> pyarrow.Array:
    """Return cells that name a few values by number."""
    numbers = pyarrow.array([row % len(values) for row in range(rows)], pyarrow.int32())
    return pyarrow.DictionaryArray.from_arrays(numbers, pyarrow.array(values))


def rows_of(path: Path, most: int | None = None, **changes: Any) -> list[Any]:
    rows = read_parquet(replace(data_file(path), **changes))
    return [row for _, row, _ in itertools.islice(rows, most)]


def test_cells_that_are_there_once_and_named_often_take_the_memory_of_few(tmp_path: Path) -> None:
    """Under 1 kB stands for 100,000 cells of 1 MiB, 100 GiB; so does a list in a single row."""
    path = write(tmp_path / "a.parquet", {"text": repeated(["x" * MIB], 100_000)})
    assert path.stat().st_size < 1000
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert [len(row["text"]) for row in rows_of(path, 80)] == [MIB] * 80

    cells = pyarrow.ListArray.from_arrays([0, 1, 50_001], repeated(["y" * MIB], 50_001))
    rows = rows_of(write(tmp_path / "b.parquet", {"texts": cells}))
    assert len(rows[0]["texts"][0]) == MIB
    assert isinstance(rows[1], BadRow) and "64 MiB" in rows[1].detail
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib < 384 * 1024


def test_a_row_larger_than_the_limit_is_a_bad_one(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"text": ["a", "b" * 3000, "c"] * 700, "n": range(2100)})
    rows = rows_of(path, max_row_bytes=2000)
    assert [type(row) is BadRow for row in rows] == [False, True, False] * 700
    assert rows[-1] == {"text": "c", "n": 2099}


def test_columns_that_come_as_numbers_have_the_same_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat = [[{"role": "user", "content": f"hello {at % 7}"}, {"role": "bot"}] for at in range(3000)]
    columns = {"text": [None, "a", "bb"] * 1000, "chat": chat, "score": [0.5, None] * 1500}
    path = write(tmp_path / "a.parquet", columns)
    plain = rows_of(path)
    assert plain[3] == {
        "text": None,
        "chat": [{"role": "user", "content": "hello 3"}, {"role": "bot", "content": None}],
        "score": None,
    }
    monkeypatch.setattr(parquet, "_MOST_BATCH_BYTES", 4000)
    assert rows_of(path) == plain


def test_what_unpacks_to_more_than_any_text_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "_UNPACKED_FREE_BYTES", MIB)
    zeros = {"text": ["x" * 999 + str(at) for at in range(100)] * 40}
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(
        pyarrow.table(zeros), path, compression="zstd", use_dictionary=False
    )
    with pytest.raises(DataError, match="a.parquet: it unpacks to more than 200 times its size"):
        rows_of(path)

    # members of an archive that are each below the limit, and together are not
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(8):
            archive.writestr(f"{number}.txt", "0" * (MIB // 2))
    with pytest.raises(DataError, match="a.zip: it unpacks to more than 200 times its size"):
        expand_files(str(tmp_path / "a.zip"))


def test_text_that_is_marked_as_bytes_decimals_and_maps(tmp_path: Path) -> None:
    table = pyarrow.table(
        {
            "text": pyarrow.array(["né".encode(), b"b"], pyarrow.binary()),
            "picture": pyarrow.array([b"\xff\xd8", None], pyarrow.large_binary()),
            "score": pyarrow.array([Decimal("3.50"), None], pyarrow.decimal128(5, 2)),
            "whole": pyarrow.array([Decimal(7), Decimal(8)], pyarrow.decimal128(9, 0)),
            "map": pyarrow.array(
                [[("k", "v")], []], pyarrow.map_(pyarrow.string(), pyarrow.string())
            ),
        }
    )
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    first, second = (row for _, row, _ in read_parquet(data_file(tmp_path / "a.parquet")))
    assert first["text"] == "né" and first["picture"] == b"\xff\xd8" and first["score"] == 3.5
    assert (first["whole"], type(first["whole"])) == (7, int) and first["map"] == [("k", "v")]
    assert second["text"] == "b" and second["score"] is None and second["map"] == []
