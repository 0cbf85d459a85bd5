"""Reading one file of each format as numbered rows, and naming what is wrong with it."""

import contextlib
import gzip
import json
import time
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from hfstack.data.reading.bad_rows import BadRow
from hfstack.data.reading.files import data_file
from hfstack.data.reading.formats import read_file
from hfstack.errors import DataError


def write(folder: Path, name: str, content: str | bytes) -> Path:
    data = content.encode() if isinstance(content, str) else content
    (folder / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return folder / name


def rows_of(path: Path) -> list[tuple[int, Any]]:
    """Return line and row of a file; a bad row as its detail."""
    return [
        (line, row.detail if isinstance(row, BadRow) else row)
        for line, row, _ in read_file(data_file(path))
    ]


def test_jsonl_keeps_true_line_numbers(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", '\ufeff{"a": 1}\r\n\n  {"a": "é"}\n{"a": 3}')
    assert rows_of(path) == [(1, {"a": 1}), (3, {"a": "é"}), (4, {"a": 3})]


def test_nan_in_parquet_is_null(tmp_path: Path) -> None:
    table = pyarrow.table({"a": [1.5, float("nan"), None], "b": ["x", "y", "z"]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    assert [row["a"] for _, row in rows_of(tmp_path / "a.parquet")] == [1.5, None, None]


@pytest.mark.parametrize(
    ("line", "detail"),
    [
        (b'{"a": "x" "b": 2}', "column 11: Expecting ',' delimiter, got '\"b\": 2}'"),
        (b'{"a": 1', "column 8: Expecting ',' delimiter, got the end of the line"),
        (b'{"a": 1} {"a": 2}', "column 10: Extra data, got '{\"a\": 2}'"),
        (b'{"a": 1, "a": 2}', "the key 'a' occurs twice in one object"),
        (b'{"a": {"b": 1, "b": 2}}', "the key 'b' occurs twice in one object"),
        (b"[1, 2]", "expected an object {...}, got [1, 2]"),
        (b'{"a": "\xff"}', "invalid UTF-8 at byte 16 of the file (0xff)"),
        (b"[" * 100_000, "more than 64 lists and objects in one another"),
        (
            b'{"a": ' + b"[" * 70 + b"]" * 70 + b"}",
            "more than 64 lists and objects in one another",
        ),
        (b'{"\\ud83d": 1}', "half of a surrogate pair in '\\ud83d', which no UTF-8 text can hold"),
    ],
)
def test_jsonl_bad_line(tmp_path: Path, line: bytes, detail: str) -> None:
    path = write(tmp_path, "a.jsonl", b'{"a": 0}\n' + line + b'\n{"a": "\\ud83d\\ude00"}\n')
    assert rows_of(path) == [(1, {"a": 0}), (2, detail), (3, {"a": "\U0001f600"})]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.jsonl",
            "text,label\nhello,1\n",
            r"a\.jsonl line 1: this looks like a table.*rename it to \.csv",
        ),
        ("a.jsonl", '[\n{"a": 1}\n]', r"one JSON document over several lines.*rename it to \.json"),
        (
            "a.json",
            '{\n"a": 1\n}',
            r"a\.json line 1: this is one JSON document over several lines, expected one object",
        ),
        (
            "a.csv",
            '{"text": "a"}\n{"text": "b"}\n',
            r"a\.csv line 1: this looks like JSON.*rename it to \.jsonl",
        ),
        (
            "a.csv",
            "text;label\na;1\n",
            r"the columns are separated by ';', not by ','; write it with commas",
        ),
        ("a.csv", "text\tlabel\na\t1\n", r"separated by '\\t', not by ','; rename it to \.tsv"),
        ("a.tsv", "text,label\na,1\n", r"separated by ',', not by '\\t'; rename it to \.csv"),
        ("a.csv", ",text\n0,a\n", r"column 1 of the header has no name; pandas writes"),
        ("a.csv", "text,text\na,b\n", r"names the column 'text' twice"),
        ("a.csv", "hello there,1\nbye,0\n", r"no header: '1' is a number"),
        ("a.csv", b"te\xffxt,label\na,1\n", r"line 1: invalid UTF-8 at byte 2"),
    ],
)
def test_file_of_another_kind_is_refused_whole(
    tmp_path: Path, name: str, content: str | bytes, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        rows_of(write(tmp_path, name, content))


def test_json_array_is_read_in_chunks_with_lines(tmp_path: Path) -> None:
    rows = [
        {"a": number, "text": "word \u4e2d " * (number % 50), "b": {"c": [number]}}
        for number in range(5000)
    ]
    path = write(tmp_path, "a.json", json.dumps(rows, indent=1, ensure_ascii=False))
    read = rows_of(path)
    assert [row for _, row in read] == rows
    assert read[0][0] == 2
    assert path.read_text().splitlines()[read[4999][0] - 1] == " {"
    assert rows_of(write(tmp_path, "b.json", " [ ] ")) == []
    assert rows_of(write(tmp_path, "c.json", '{"a": 1}\n{"a": 2}\n')) == [
        (1, {"a": 1}),
        (2, {"a": 2}),
    ]
    assert rows_of(write(tmp_path, "d.json", '[{"a": 1}, 5]'))[1] == (1, "expected an object {...}")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[\n{"a": 1},\n{"a": 2', r"line 3: Expecting ',' delimiter; if the file is truncated"),
        ('[\n{"a": 1},\n{"a": "x', r"line 3: Unterminated string"),
        ('[\n{"a": 1}\n{"a": 2}\n]', r"line 3: expected ',' or '\]', got '\{'"),
        ('[\n{"a": 1},', r"line 2: the array is never closed"),
        ('[\n{"a": 1}\n]\nmore', r"more text after the end of the array"),
        ('[\n{"a": 1},\n{"a": 1, "a": 2}]', r"line 3: the key 'a' occurs twice"),
        ('[\n{"a": 1},\n{"a" 1},\n' + '{"a": 1},' * 100_000, r"line 3: Expecting ':' delimiter"),
        (b'[{"a": "' + b"x" * 1_000_000 + b"\xff", r"invalid UTF-8 at byte 1000008"),
    ],
)
def test_json_array_with_a_mistake_ends_the_file(
    tmp_path: Path, content: str | bytes, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        rows_of(write(tmp_path, "a.json", content))


def test_csv_cells_stay_text_and_lines_are_where_rows_begin(tmp_path: Path) -> None:
    path = write(
        tmp_path, "a.csv", '\ufefftext,label\nNA,null\n"two\nlines, one cell",None\n\nlast,\n'
    )
    assert rows_of(path) == [
        (2, {"text": "NA", "label": "null"}),
        (3, {"text": "two\nlines, one cell", "label": "None"}),
        (6, {"text": "last", "label": ""}),
    ]


def test_csv_bad_rows(tmp_path: Path) -> None:
    path = write(
        tmp_path, "a.csv", b'a,b\n1,2,3\n"x"y,2\n\xe9,2\nok,2\n1\n"never closed,2\nmore,2\n'
    )
    assert rows_of(path) == [
        (2, "3 cells where the header has 2"),
        (3, "',' expected after '\"'"),
        (4, "invalid UTF-8 at byte 17 of the file (0xe9)"),
        (5, {"a": "ok", "b": "2"}),
        (6, "1 cells where the header has 2"),
        (7, "a quoted cell begins here and never ends"),
    ]


def test_csv_long_cell(tmp_path: Path) -> None:
    assert (
        len(rows_of(write(tmp_path, "a.csv", "text\n" + "x" * 500_000 + "\n"))[0][1]["text"])
        == 500_000
    )


def test_tsv(tmp_path: Path) -> None:
    assert rows_of(write(tmp_path, "a.tsv", "a\tb\n1,5\tx\n")) == [(2, {"a": "1,5", "b": "x"})]


def test_parquet_plain_and_compressed(tmp_path: Path) -> None:
    plain = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a", None, "c"], "n": [1, 2, 3]}), plain)
    expected = [(1, {"text": "a", "n": 1}), (2, {"text": None, "n": 2}), (3, {"text": "c", "n": 3})]
    assert rows_of(plain) == expected
    assert rows_of(write(tmp_path, "b.parquet.gz", plain.read_bytes())) == expected
    plain.write_bytes(plain.read_bytes()[:-20])
    with pytest.raises(
        DataError, match=r"a\.parquet: truncated or damaged parquet file after row 0"
    ):
        rows_of(plain)


def test_txt_documents(tmp_path: Path) -> None:
    lines = write(tmp_path, "lines.txt", "first doc\nsecond doc\n" * 100 + "\nlast\n")
    assert [row["text"] for _, row in rows_of(lines)][-3:] == ["first doc", "second doc", "last"]
    paragraphs = write(
        tmp_path, "paragraphs.txt.gz", "\n\nTitle\n\nline one\n  line two  \n\n \nend\n"
    )
    assert rows_of(paragraphs) == [
        (3, {"text": "Title"}),
        (5, {"text": "line one\n  line two"}),
        (9, {"text": "end"}),
    ]
    marked = write(tmp_path, "marked.txt", "One.\n\nTwo.\n<|endoftext|>\nThree.\n<|endoftext|>\n")
    assert rows_of(marked) == [(1, {"text": "One.\n\nTwo."}), (5, {"text": "Three."})]
    broken = write(tmp_path, "broken.txt", b"fine\nb\xffd\nfine\n")
    assert rows_of(broken)[1] == (2, "invalid UTF-8 at byte 6 of the file (0xff)")


def test_of_a_document_with_a_broken_line_nothing_is_left(tmp_path: Path) -> None:
    """Its other lines would be a text that nobody wrote."""
    bad = "invalid UTF-8 at byte 10 of the file (0xff)"
    path = write(tmp_path, "a.txt", b"one\n\ntwo\nx\xff\nthree\n\nfour\nfive\n")
    assert rows_of(path) == [(1, {"text": "one"}), (4, bad), (7, {"text": "four\nfive"})]
    last = write(tmp_path, "b.txt", b"one\n\ntwo\nx\xff\nthree\n")
    assert rows_of(last) == [(1, {"text": "one"}), (4, bad)]
    marked = write(tmp_path, "c.txt", b"a\n<|endoftext|>\nb\n\xff\nc\n<|endoftext|>\nd\n")
    assert [row["text"] for _, row in rows_of(marked) if isinstance(row, dict)] == ["a", "d"]


@pytest.mark.parametrize("cell", ["1" * 200_000 + "x", '"' * 200_000 + "x"])
@pytest.mark.parametrize("suffix", ["csv", "tsv"])
def test_one_long_cell_is_judged_in_linear_time(tmp_path: Path, suffix: str, cell: str) -> None:
    """A number of 200,000 digits that is none took 20 seconds, and so did as many quotes."""
    separator = "," if suffix == "csv" else "\t"
    header = write(tmp_path, f"a.{suffix}", f"{cell}{separator}b\n1{separator}2\n")
    row = write(tmp_path, f"b.{suffix}", f"a{separator}b\n{cell}{separator}2\n")
    began = time.process_time()
    for path in (header, row):
        with contextlib.suppress(DataError):
            rows_of(path)
    assert time.process_time() - began < 3


def test_a_header_of_a_hundred_thousand_columns_takes_no_minutes(tmp_path: Path) -> None:
    """As a damaged archive may unpack to; each name was once compared with every other."""
    names = [f"c{number}" for number in range(100_000)]
    path = write(tmp_path, "a.csv", ",".join([*names, "c7"]) + "\n")
    began = time.process_time()
    with pytest.raises(DataError, match="the header names the column 'c7' twice"):
        rows_of(path)
    assert time.process_time() - began < 5
