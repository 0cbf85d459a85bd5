"""Arrow files in both forms, as save_to_disk, pandas and polars write them."""

import gzip
import zipfile
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.feather
import pyarrow.ipc
import pytest
from datasets import Dataset

from hfstack.data.reading.files import data_file
from hfstack.data.sources import DataArgs, load_splits
from hfstack.errors import DataError

ROWS: list[dict[str, Any]] = [
    {"text": f"The owl is {n}.", "label": "ab"[n % 2], "tags": ["x"] * (n % 3), "score": n / 2}
    for n in range(25)
]
TABLE = pyarrow.Table.from_pylist(ROWS)


def write(path: Path, form: str) -> Path:
    if form == "datasets":
        Dataset.from_list(ROWS).save_to_disk(str(path.parent / "saved"))
        (file,) = (path.parent / "saved").glob("*.arrow")
        return file.rename(path)
    if form == "feather":
        pyarrow.feather.write_feather(TABLE, str(path), compression="zstd", chunksize=7)
        return path
    make = pyarrow.ipc.new_file if form == "file" else pyarrow.ipc.new_stream
    with make(str(path), TABLE.schema) as writer:
        writer.write_table(TABLE, max_chunksize=7)
    return path


def read(path: Path) -> list[Any]:
    args = DataArgs(datasets=[str(path)], eval_fraction=0)  # pyright: ignore
    return load_splits(args)["train"].to_list()


@pytest.mark.parametrize("form", ["file", "stream", "feather", "datasets"])
@pytest.mark.parametrize("packed", ["", ".gz", ".zip"])
def test_rows_come_out_as_they_went_in(tmp_path: Path, form: str, packed: str) -> None:
    path = write(tmp_path / ("rows.feather" if form == "feather" else "rows.arrow"), form)
    if packed == ".gz":
        packed_path = path.with_name(path.name + packed)
        packed_path.write_bytes(gzip.compress(path.read_bytes()))
    elif packed:
        packed_path = tmp_path / "rows.zip"
        with zipfile.ZipFile(packed_path, "w") as archive:
            archive.write(path, path.name)
    else:
        packed_path = path
    assert read(packed_path) == ROWS


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"FEA1" + bytes(40), "Feather's first version.* to_parquet"),
        (b"no table at all, but some text", "truncated or damaged Arrow file after row 0"),
    ],
)
def test_what_cannot_be_read_is_one_line(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "rows.feather"
    path.write_bytes(content)
    with pytest.raises(DataError, match=said) as caught:
        read(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("form", ["file", "stream"])
def test_a_truncated_file_is_one_line(tmp_path: Path, form: str) -> None:
    path = write(tmp_path / "rows.arrow", form)
    path.write_bytes(path.read_bytes()[:-900])
    with pytest.raises(DataError, match=r"rows.arrow: truncated or damaged Arrow file"):
        read(path)
    assert data_file(path).is_binary
