"""Rows run through cleaning in order, with counts, masked examples and flat memory."""

import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from hfstack.data.cleaning.dedup import ExactDuplicates
from hfstack.data.cleaning.filters import repeated_ngrams, too_many_symbols, too_short
from hfstack.data.cleaning.pipeline import (
    CleaningReport,
    TextArgs,
    clean_documents,
    clean_text,
)
from hfstack.data.reading.jsonl import write_jsonl
from hfstack.errors import ConfigError, DataError

ROWS = [
    {"id": 0, "text": "The fox found a red ball near the river &amp; went home."},
    {"id": 1, "text": "too short"},
    {"id": 2, "text": "Write to bob@example.org or call (212) 555-0123 about the ball."},
    {"id": 3, "text": "The fox found a red ball near the river & went home."},
    {"id": 4, "text": "The Mona Lisa doesnâ€™t have eyebrows, said the owl."},
    {"id": 5, "text": "白日依山盡，黃河入海流。欲窮千里目，更上一層樓。"},
    {"id": 6, "text": "ping 8.8.8.8"},
]


def test_order_reasons_and_counts() -> None:
    report = CleaningReport()
    rows = list(clean_documents(iter(ROWS), [too_short, ExactDuplicates()], report))
    assert [(row["id"], reason and reason.partition(":")[0]) for row, reason in rows] == [
        *(
            (0, None),
            (1, "too_short"),
            (2, None),
            (3, "exact_duplicate"),
            (4, None),
            (5, None),
            (6, "too_short"),
        )
    ]
    assert rows[0][0]["text"] == ROWS[3]["text"]
    assert rows[2][0] == {"id": 2, "text": "Write to [EMAIL] or call [PHONE] about the ball."}
    assert ROWS[2]["text"].startswith("Write to bob@"), "the caller's rows are left as they are"
    kept = [row["text"] for row, reason in rows if reason is None]
    assert report.metrics() == {
        "documents_in": 7,
        "documents_out": 4,
        "documents_dropped": 3,
        "characters_in": sum(len(row["text"]) for row in ROWS),
        "characters_out": sum(map(len, kept)),
        "bytes_in": sum(len(row["text"].encode()) for row in ROWS),
        "duplicates_removed": 1,
        "documents_repaired": 1,
        "documents_masked": 1,
        "dropped_exact_duplicate": 1,
        "dropped_too_short": 2,
        "masked_email": 1,
        "masked_phone": 1,
    }
    assert report.changed == {"markup": 1, "masked": 1, "mojibake": 1}


def test_tables_show_masked_examples() -> None:
    report = CleaningReport()
    unmasked = lambda text: clean_text(text, mask=[])  # noqa: E731
    list(clean_documents(iter(ROWS), [too_short], report, clean=unmasked))
    columns, rows = report.dropped_table()
    assert columns == ["reason", "documents", "share", "examples"]
    assert rows == [
        [
            *("too_short", 2, "28.57%"),
            "9 characters, fewer than 32: too short | 12 characters, fewer than 32: ping [IP]",
        ]
    ]
    assert report.changed_table() == (
        ["change", "documents", "places"],
        [["markup", 1, ""], ["mojibake", 1, ""]],
    )


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"id": 1, "txt": "a"}, r"row 2 has no column 'text'; found: id, txt; --text_column txt\?"),
        (
            {"n": "7", "story": "a b"},
            r"row 2 has no column 'text'; found: n, story; --text_column story\?",
        ),
        (
            {"id": 1},
            "row 2 has no column 'text'; found: id; name the column of texts with --text_column",
        ),
        (
            {"text": None},
            "row 2: column 'text' holds NoneType instead of text; leave .* --on_bad_row skip",
        ),
        ({"text": 3}, "row 2: column 'text' holds int instead of text"),
    ],
)
def test_rows_without_text_are_refused(row: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        list(clean_documents([ROWS[0], row], [], CleaningReport()))


def test_rows_without_text_may_be_dropped() -> None:
    report = CleaningReport()
    rows = list(clean_documents([{"text": None}, ROWS[0]], [], report, skip_no_text=True))
    assert [reason for _, reason in rows] == ["no_text: NoneType", None]
    assert report.dropped == {"no_text": 1}


def test_nothing_left_is_an_error_with_reasons() -> None:
    report = CleaningReport()
    list(clean_documents([{"text": "short"}, {"text": "##"}], [too_short], report))
    with pytest.raises(
        DataError, match="all 2 documents were dropped: too_short 2; for example: '5 characters"
    ) as error:
        report.refuse_nothing_left()
    assert "\n" not in str(error.value)
    with pytest.raises(DataError, match="all 0 documents were dropped: none was read"):
        CleaningReport().refuse_nothing_left()


def test_pii_kinds_are_checked() -> None:
    assert TextArgs(mask_pii=["none"]).mask_pii == []
    with pytest.raises(
        ConfigError, match="mask_pii: unknown kind 'ssn'; choose from email, ip, cn_id"
    ):
        TextArgs(mask_pii=["email", "ssn"])


def peak_bytes(count: int, folder: Path) -> int:
    """Peak of Python's allocations while `count` documents of about 2 kB are cleaned and
    written."""

    def rows() -> Iterator[dict[str, object]]:
        for number in range(count):
            words = (f"word{(number * 31 + i * i) % 9973}" for i in range(250))
            yield {
                "id": number,
                "text": f"<p>{' '.join(words)}</p> 鲁迅写信给 a{number}@example.org",
            }

    report = CleaningReport()
    tracemalloc.start()
    try:
        with write_jsonl(folder / f"{count}.jsonl") as write:
            for row, reason in clean_documents(
                rows(), [too_short, too_many_symbols, repeated_ngrams], report
            ):
                assert reason is None
                write(row)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_is_flat(tmp_path: Path) -> None:
    """8 times the input takes the memory of one: the duplicate index aside, nothing is kept of a
    document.
    """
    peak_bytes(50, tmp_path)  # caches of the regular expressions and of numpy
    once, eight_times = peak_bytes(100, tmp_path), peak_bytes(800, tmp_path)
    assert eight_times < 1.1 * once + 20_000, (
        f"{once} bytes for 100 documents, {eight_times} for 800"
    )


def test_files_are_whole_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    with (
        pytest.raises(DataError, match=r"column|bytes is no JSON value"),
        write_jsonl(path) as write,
    ):
        write({"text": "a"})
        assert not path.exists()
        write({"text": b"bytes"})
    assert list(tmp_path.iterdir()) == []
    with write_jsonl(path) as write:
        write({"text": "中文", "title": "lone \ud83d"})
    assert path.read_bytes() == '{"text": "中文", "title": "lone \\ud83d"}\n'.encode()
