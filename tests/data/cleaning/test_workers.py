"""Texts that are judged in several processes: the same result, and the end of a worker."""

import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from hfstack.data.cleaning.dedup import duplicate_checks
from hfstack.data.cleaning.filters import repeated_ngrams, too_short
from hfstack.data.cleaning.pipeline import CleaningReport, clean_documents
from hfstack.data.cleaning.workers import map_texts
from hfstack.demo.noise import noisy_corpus
from hfstack.errors import DataError, MachineError


def texts(count: int) -> list[dict[str, Any]]:
    return [{"id": number, "text": f"text {number} " * (number % 7)} for number in range(count)]


def length_and_process(text: str) -> tuple[int, int]:
    return len(text), os.getpid()


def test_order_and_rows_without_text() -> None:
    """Rows come in their order whichever worker took them, and those without text as None."""
    rows = texts(1500)
    rows[700]["text"] = None
    found = list(map_texts(length_and_process, iter(rows), "text", workers=2))

    assert [row for row, _ in found] == rows
    assert found[700][1] is None
    assert all(result[0] == len(row["text"]) for row, result in found if result)
    processes = {result[1] for _, result in found if result}
    assert os.getpid() not in processes
    assert 1 <= len(processes) <= 2


def test_the_same_documents_reports_and_index() -> None:
    """Any number of workers keeps and refuses the same documents, for the same reasons.

    A filter behind the duplicate checks and a lambda among the checks included.
    """
    rows = list(noisy_corpus(0, 900, share=0.4))
    results = []
    for workers in (1, 2, 3):
        duplicates = duplicate_checks(True, 0.8, 64)
        checks = [too_short, *duplicates, lambda text: repeated_ngrams(text)]
        report = CleaningReport()
        found = list(clean_documents(iter(rows), checks, report, workers=workers))
        results.append((found, report, [check.index_bytes for check in duplicates]))

    assert results[0] == results[1] == results[2]
    reasons = set(results[0][1].dropped)
    assert {"exact_duplicate", "near_duplicate", "too_short", "repeated_ngrams"} <= reasons


def test_few_rows_are_read_ahead() -> None:
    """What is read ahead does not grow with the rows, so that neither does memory."""
    read = 0

    def rows() -> Iterator[dict[str, Any]]:
        nonlocal read
        for row in texts(20_000):
            read += 1
            yield row

    ahead = 0
    for count, _ in enumerate(map_texts(len, rows(), "text", workers=2), 1):
        ahead = max(ahead, read - count)
    assert read == 20_000
    assert ahead <= 6 * 256


def test_an_unreadable_row_ends_it_in_its_turn() -> None:
    """What was read before comes first, so that a mistake in it is the one that is named."""

    def rows() -> Iterator[dict[str, Any]]:
        yield from texts(300)
        raise DataError("row 301 is torn")

    seen = 0
    with pytest.raises(DataError, match="row 301 is torn"):
        for _ in map_texts(len, rows(), "text", workers=2):
            seen += 1
    assert seen == 300


def test_a_killed_worker_ends_in_one_line() -> None:
    def kill_itself(text: str) -> int:
        if text.startswith("text 900 "):
            os.kill(os.getpid(), signal.SIGKILL)
        return len(text)

    with pytest.raises(MachineError, match="one of 2 workers was ended from outside") as caught:
        list(map_texts(kill_itself, iter(texts(3000)), "text", workers=2))
    assert "\n" not in str(caught.value)


def test_a_bug_in_a_filter_keeps_its_traceback() -> None:
    def divide(text: str) -> float:
        return 1 / len(text)

    with pytest.raises(ZeroDivisionError) as caught:
        list(map_texts(divide, iter(texts(10)), "text", workers=2))
    assert "in divide" in str(caught.value.__cause__)


def test_workers_leave_when_nobody_reads_on() -> None:
    """Closing the iterator early ends the workers."""
    found = map_texts(length_and_process, iter(texts(5000)), "text", workers=2)
    worker = next(result[1] for _, result in found if result)
    os.kill(worker, 0)

    found.close()
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)
