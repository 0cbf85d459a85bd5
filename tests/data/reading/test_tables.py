"""Reading tables: quoted cells of csv files, and quotes as characters of tsv files."""

from pathlib import Path

import pytest

from hfstack.data.reading.bad_rows import BadRow
from hfstack.data.reading.files import data_file
from hfstack.data.reading.formats import read_file
from hfstack.errors import DataError

CELLS = ['" he never thought', "a plain row", 'she said "yes" "', 'the 5" disk', '"', "'tis"]


def test_a_quote_in_a_tsv_is_a_character_of_the_text(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text("text\tlabel\r\n" + "".join(f"{cell}\t1\r\n" for cell in CELLS * 9))

    said: list[str] = []
    rows = list(read_file(data_file(path), said.append))
    assert [row for _, row, _ in rows] == [{"text": cell, "label": "1"} for cell in CELLS * 9]
    assert [line for line, _, _ in rows] == list(range(2, 2 + 9 * len(CELLS)))
    assert said == []


def test_a_tsv_that_was_quoted_like_a_csv_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text('text\tlabel\nplain\t0\n"he said ""no"""\t1\n')
    said: list[str] = []
    assert len(list(read_file(data_file(path), said.append))) == 2
    assert len(said) == 1 and said[0].startswith("line 3 has a cell quoted as in csv files")

    path.write_text('"text"\t"label"\n"plain"\t"0"\n')
    with pytest.raises(DataError, match=r'a\.tsv line 1: the header names the column "text" with'):
        list(read_file(data_file(path)))


def test_a_csv_keeps_its_quoting(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('text,label\n"two\nlines, ""quoted""",1\n')
    rows = [(line, row) for line, row, _ in read_file(data_file(path))]
    assert rows == [(2, {"text": 'two\nlines, "quoted"', "label": "1"})]


def test_bad_lines_of_a_tsv_keep_their_text_and_line(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_bytes(b"text\tlabel\na\t1\n\nb\n\xff\t1\n")
    bad = [
        (line, row.detail) for line, row, _ in read_file(data_file(path)) if isinstance(row, BadRow)
    ]
    assert bad == [
        (4, "1 cells where the header has 2"),
        (5, "invalid UTF-8 at byte 18 of the file (0xff)"),
    ]
