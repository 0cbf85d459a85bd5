"""Rows checked against each other: keys, types, nulls, and what is done with bad rows."""

import json
import logging
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hfstack.data.reading.files import data_file
from hfstack.data.reading.read_report import ReadReport
from hfstack.data.reading.rows import read_rows
from hfstack.errors import ConfigError, DataError


def jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    )
    return path


def read(*files: Path, **settings: Any) -> list[dict[str, Any]]:
    return list(read_rows([data_file(file) for file in files], **settings))


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    # off once setup_logging has run
    caplog.set_level(logging.INFO, logger="hfstack")
    return caplog


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", "", r"a\.jsonl: the file has no rows"),
        ("a.jsonl", "\n\n", r"a\.jsonl: the file has no rows"),
        ("a.json", "[]", r"a\.json: the file has no rows"),
        ("a.csv", "text,label\n", r"a\.csv: the file has a header but no rows"),
        ("a.tsv", "text\tlabel\n", r"a\.tsv: the file has a header but no rows"),
        ("a.csv", "", r"a\.csv: the file has no rows"),
        ("a.txt", "\n \n", r"a\.txt: the file has no rows"),
    ],
)
@pytest.mark.parametrize("on_bad_row", ["fail", "skip"])
def test_empty_file(tmp_path: Path, name: str, content: str, message: str, on_bad_row: Any) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message if on_bad_row == "fail" else "no rows"):
        read(tmp_path / name, on_bad_row=on_bad_row)


LONG = "a" * 5000


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("a.jsonl", f'{{"text": "one"}}\n{{"text": "{LONG}"}}\n{{"text": "two"}}\n', 2),
        ("a.csv", f'text,x\none,a\n"{LONG}",a\ntwo,a\n', 3),
        ("a.csv", f"text,x\none,a\n{LONG[:900]},{LONG}\ntwo,a\n", 3),
        ("a.tsv", f"text\tx\none\ta\n{LONG}\ta\ntwo\ta\n", 3),
        ("a.txt", f"one\n{LONG}\ntwo\n", 2),
        ("a.txt", f"one\n\n{'part of it' * 40}\n{LONG}\nand more\n\ntwo\n\n", 3),
        ("a.conll", "one O\n\n" + f"{LONG[:90]} O\n" * 30 + "\ntwo O\n", 3),
    ],
)
def test_a_row_that_is_too_large_is_one_bad_row(
    tmp_path: Path, name: str, content: str, line: int
) -> None:
    (tmp_path / name).write_text(content)
    file = replace(data_file(tmp_path / name), max_row_bytes=1000)

    with pytest.raises(DataError, match=rf"{name} line {line}: more than 0.0009537 MiB in one row"):
        list(read_rows([file]))
    report = ReadReport()
    rows = list(read_rows([file], on_bad_row="skip", report=report))
    assert [row.get("text") or row["tokens"][0] for row in rows] == ["one", "two"]
    assert report.bad_rows == {"too large": 1}


@pytest.mark.parametrize(
    ("value", "detail"),
    [
        ("1e999", "column 'n' holds inf, which 64 bits cannot hold"),
        ("1" + "0" * 30, r"column 'n' holds 10000000000000000000... of 31 digits, which"),
    ],
)
def test_a_number_beyond_64_bits_is_a_bad_row(tmp_path: Path, value: str, detail: str) -> None:
    for begin, rest in (("", ""), ('{"list": [1, 2.5, ', "]}"), ('{"in": ', "}")):
        shown = detail.replace("'n'", {"": "'n'", "]}": r"'n.list\[\]'", "}": "'n.in'"}[rest])
        rows = [f'{{"n": {begin}1.5{rest}}}', f'{{"n": {begin}{value}{rest}}}']
        path = jsonl(tmp_path / "a.jsonl", rows)
        with pytest.raises(DataError, match=rf"a\.jsonl line 2: {shown}"):
            read(path)
        assert len(read(path, on_bad_row="skip")) == 1


def test_malformed_line_270000_is_named_with_its_column(tmp_path: Path) -> None:
    rows: list[Any] = [{"id": number, "text": "a"} for number in range(270_010)]
    rows[269_999] = '{"id": 269999, "text": "a" oops}'
    path = jsonl(tmp_path / "big.jsonl", rows)
    with pytest.raises(
        DataError,
        match=r"big\.jsonl line 270000: column 28: Expecting ',' delimiter, got 'oops\}'; fix it",
    ) as caught:
        read(path)
    assert "\n" not in str(caught.value)
    assert len(read(path, on_bad_row="skip")) == 270_009


@pytest.mark.parametrize(
    ("bad", "detail"),
    [
        (
            {"text": 5, "n": 1},
            r"line 151: column 'text' holds integer '5' here but text in a\.jsonl line 1",
        ),
        (
            {"text": "5", "n": "1"},
            r"line 151: column 'n' holds text '1' here but integer in a\.jsonl line 1",
        ),
        (
            {"text": "x", "n": True},
            r"'n' holds true/false 'True' here but integer in a\.jsonl line 1",
        ),
        ({"text": ["x"], "n": 1}, r"'text' holds list .* here but text in a\.jsonl line 1"),
        ({"txet": "x", "n": 1}, r"line 151: key 'txet' where a\.jsonl line 1 has 'text'"),
        (
            {"text": "x"},
            r"line 151: no key 'n', which a\.jsonl line 1 has; write null for no value",
        ),
        ({"text": "x", "n": 1, "more": 2}, r"line 151: key 'more', which a\.jsonl line 1 has not"),
    ],
)
def test_row_unlike_the_first_rows(tmp_path: Path, bad: dict[str, Any], detail: str) -> None:
    rows: list[Any] = [{"text": "x", "n": 1}] * 150
    path = jsonl(tmp_path / "a.jsonl", [*rows, bad, rows[0]])
    with pytest.raises(DataError, match=detail) as caught:
        read(path)
    assert "--on_bad_row skip" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert read(path, on_bad_row="skip") == [*rows, rows[0]]


def test_odd_first_row_is_the_bad_one_not_all_others(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{"txet": "odd"}, {"text": 5}, *[{"text": "x"}] * 8])
    with pytest.raises(DataError, match=r"line 1: key 'txet' where a\.jsonl line 2 has 'text'"):
        read(path)
    assert read(path, on_bad_row="skip") == [{"text": "x"}] * 8


def test_key_order_does_not_matter_and_types_inside_do(tmp_path: Path) -> None:
    chat = {
        "id": 1,
        "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": None}],
    }
    other = {"messages": [{"role": "user", "content": "a", "name": "b"}], "id": 2}
    assert read(jsonl(tmp_path / "a.jsonl", [chat, other])) == [chat, other]
    broken = {"id": 3, "messages": [{"role": "user", "content": ["a"]}]}
    with pytest.raises(
        DataError,
        match=(
            r"line 3: column 'messages\[\]\.content' holds list .* here but text in a\.jsonl "
            r"line 1"
        ),
    ):
        read(jsonl(tmp_path / "a.jsonl", [chat, other, broken]))
    with pytest.raises(
        DataError,
        match=r"line 2: column 'tokens\[\]' holds integer '1' here but text in b\.jsonl line 1",
    ):
        read(
            jsonl(
                tmp_path / "b.jsonl",
                [{"tokens": ["a"] * 50}, {"tokens": ["a"] * 20 + [1] + ["a"] * 20}],
            )
        )


def test_integers_and_floats_may_share_a_column(tmp_path: Path) -> None:
    rows = [{"score": 1}, {"score": 2.5}, {"score": 3}]
    assert read(jsonl(tmp_path / "a.jsonl", rows)) == rows


def test_nulls_are_kept_and_reported(tmp_path: Path, logged: pytest.LogCaptureFixture) -> None:
    rows = [{"text": "a", "n": None}, {"text": None, "n": 1}, {"text": "b", "n": None}]
    report = ReadReport()
    assert read(jsonl(tmp_path / "a.jsonl", rows), report=report) == rows
    assert report.nulls == {"n": 2, "text": 1}
    assert "column 'n' is null in 2 of 3 rows; first: " in logged.text
    assert report.first_null["text"].endswith("a.jsonl line 2")


def test_csv_numbers(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text,label,score,zip,mixed\nNA,0,1,0123,7\nnull,-1,2.5,04,x\n7,2,,1,\n")
    assert read(path) == [
        {"text": "NA", "label": 0, "score": 1, "zip": "0123", "mixed": "7"},
        {"text": "null", "label": -1, "score": 2.5, "zip": "04", "mixed": "x"},
        {"text": "7", "label": 2, "score": None, "zip": "1", "mixed": ""},
    ]
    path.write_text("text,label\n" + "good,1\n" * 120 + "bad,NA\n")
    with pytest.raises(
        DataError,
        match=r"a\.csv line 122: column 'label' is an integer in the first rows.*here 'NA'",
    ):
        read(path)
    path.write_text("text,label\n" + "good,1\n" * 120 + "bad,1.5\n")
    with pytest.raises(
        DataError, match=r"line 122: column 'label' is an integer in the first rows"
    ):
        read(path)


def test_skip_counts_by_reason_and_never_drops_everything(
    tmp_path: Path, logged: pytest.LogCaptureFixture
) -> None:
    good = {"text": "x"}
    path = jsonl(tmp_path / "a.jsonl", [good, "{", good, good, {"text": 1}, {"text": 2}])
    report = ReadReport()
    assert read(path, on_bad_row="skip", report=report) == [good] * 3
    assert report.bad_rows == {"bad JSON": 1, "mixed types": 2}
    assert "left out 2 of 6 rows: mixed types; first: " in logged.text
    with pytest.raises(
        DataError, match=r"a\.jsonl: all 3 rows are bad; first: .*line 1: column 10"
    ):
        read(jsonl(path, ['{"text": }'] * 3), on_bad_row="skip")


def test_quarantine_keeps_file_line_reason_and_raw_text(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{"text": "x"}, '{"text": "cut', {"text": "x"}, {"text": 7}])
    table = tmp_path / "b.csv"
    table.write_text("text\nx\na,b\n")
    out = tmp_path / "new" / "bad.jsonl"
    assert len(read(path, table, on_bad_row="quarantine", quarantine_file=out)) == 3
    entries = [json.loads(line) for line in out.read_text().splitlines()]
    assert [
        (entry["file"], entry["line"], entry["reason"], entry["text"]) for entry in entries
    ] == [
        (str(path), 2, "bad JSON", '{"text": "cut'),
        (str(path), 4, "mixed types", '{"text": 7}'),
        (str(table), 3, "ragged row", "a,b"),
    ]
    with pytest.raises(ConfigError, match="no quarantine_file"):
        read(path, on_bad_row="quarantine")
    with pytest.raises(ConfigError, match="must be fail, skip or quarantine, got 'ignore'"):
        read(path, on_bad_row="ignore")


def test_several_files_are_one_source(tmp_path: Path, logged: pytest.LogCaptureFixture) -> None:
    one = jsonl(tmp_path / "a.jsonl", [{"text": "x"}])
    two = jsonl(tmp_path / "b.jsonl", [{"text": 1}])
    with pytest.raises(
        DataError,
        match=r"b\.jsonl line 1: column 'text' holds integer '1' here but text in a\.jsonl line 1",
    ):
        read(one, two)
    empty = jsonl(tmp_path / "c.jsonl", [])
    assert read(empty, one, on_bad_row="skip") == [{"text": "x"}]
    assert "c.jsonl: the file has no rows" in logged.text


def test_max_rows_counts_good_rows(tmp_path: Path) -> None:
    path = jsonl(
        tmp_path / "a.jsonl", [{"n": 0}, "{", *[{"n": number} for number in range(1, 300)]]
    )
    assert [row["n"] for row in read(path, on_bad_row="skip", max_rows=3)] == [0, 1, 2]


def test_memory_stays_flat_as_the_file_grows(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    peaks_bytes = []
    for count in (1_000, 8_000):  # 2 and 16 MB
        with path.open("w") as out:
            out.writelines(json.dumps({"text": "word " * 400}) + "\n" for _ in range(count))
        tracemalloc.start()
        try:
            assert sum(1 for _ in read_rows([data_file(path)])) == count
            peaks_bytes.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    assert peaks_bytes[1] < 1.05 * peaks_bytes[0]


@pytest.mark.shared
def test_real_data_reads_without_a_bad_row(shared_data: Path) -> None:
    files = sorted(shared_data.glob("*/*.jsonl.gz"))
    assert files
    reports = {}
    for file in files:
        reports[file.name] = ReadReport()
        rows = read_rows(
            [data_file(file)], on_bad_row="skip", report=reports[file.name], max_rows=500
        )
        assert next(rows)
        for _ in rows:
            pass
    assert {name: report.bad_rows for name, report in reports.items() if report.bad_rows} == {}


def test_what_is_said_of_files_is_said_once_for_all(
    tmp_path: Path, logged: pytest.LogCaptureFixture
) -> None:
    paths = [tmp_path / f"{number}.txt" for number in range(30)]
    for path in paths:
        path.write_text("one\ntwo\n")
    empty = [tmp_path / f"{number}.jsonl" for number in range(30)]
    for path in empty:
        path.write_text("")

    assert len(read(*paths)) == 60
    assert [record.message for record in logged.records] == [
        f"{paths[0]} and 29 more: one document is a line (30 files)"
    ]
    logged.clear()
    assert read(*empty, jsonl(tmp_path / "z.jsonl", [{"a": 1}]), on_bad_row="skip") == [{"a": 1}]
    assert [record.message for record in logged.records] == [
        f"{empty[0]} and 29 more: the file has no rows"
    ]
