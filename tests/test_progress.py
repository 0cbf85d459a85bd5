"""Long work says how far it is: a line a minute in a log, in words that a person uses."""

import logging
import time
from collections.abc import Iterator

import pytest
from datasets import Dataset
from transformers import PreTrainedTokenizerFast

from hfstack import progress
from hfstack.progress import describe_progress, follow, follow_calls, round_span
from hfstack.tasks.preferences.encode import encode_pairs, encode_sides
from hfstack.tasks.seq2seq import data as seq2seq_data
from hfstack.tokens import text_rows


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "1 second"),
        (20, "20 seconds"),
        (89, "89 seconds"),
        (95, "2 minutes"),
        (200, "3 minutes"),
        (5400, "2 hours"),
        (200_000, "2 days"),
    ],
)
def test_a_span_is_said_in_one_unit(seconds: float, text: str) -> None:
    assert round_span(seconds) == text


def test_progress_is_a_share_and_the_time_left() -> None:
    assert describe_progress(1200, 4000, 60) == "1,200 of 4,000 (30 %), about 2 minutes left"
    assert describe_progress(4000, 4000, 60) == "4,000 of 4,000 (100 %)"
    assert describe_progress(1200, None, 60) == "1,200"


def test_a_log_gets_a_line_a_minute(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = 0.0

    def items() -> Iterator[int]:
        nonlocal clock
        for number in range(1024):
            clock += 0.125
            yield number

    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: False, raising=False)
    monkeypatch.setattr(time, "monotonic", lambda: clock)
    with caplog.at_level(logging.INFO, logger="hfstack"):
        assert list(follow(items(), "reading rows", total=1024)) == list(range(1024))

    assert caplog.messages == [
        "reading rows: 480 of 1,024 (47 %), about 68 seconds left",
        "reading rows: 960 of 1,024 (94 %), about 8 seconds left",
    ]


def test_a_function_that_another_library_calls_is_followed_in_the_same_way(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = 0.0

    def encode(number: int) -> int:
        nonlocal clock
        clock += 0.125
        return number

    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: False, raising=False)
    monkeypatch.setattr(time, "monotonic", lambda: clock)
    followed = follow_calls(encode, "encoding train rows", total=1024)
    with caplog.at_level(logging.INFO, logger="hfstack"):
        assert [followed(number) for number in range(1024)] == list(range(1024))
    assert caplog.messages == [
        "encoding train rows: 480 of 1,024 (47 %), about 68 seconds left",
        "encoding train rows: 960 of 1,024 (94 %), about 8 seconds left",
    ]


def test_encoding_before_the_first_step_is_followed(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tiny_tokenizer: PreTrainedTokenizerFast,
) -> None:
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: False, raising=False)
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0)
    caplog.set_level(logging.INFO, logger="hfstack")
    pair = {"prompt": "Who?", "chosen": "The fox.", "rejected": "An owl."}
    texts = [f"fox {number}" for number in range(5)]
    whole = [tiny_tokenizer(text)["input_ids"] for text in texts]

    # in parts it gives what it gives at once
    for module in (text_rows, seq2seq_data):
        monkeypatch.setattr(module, "_TEXTS_AT_ONCE", 2)
    encoded = text_rows.encode_texts(tiny_tokenizer, texts, max_length=None)
    assert [row["input_ids"] for row in encoded] == whole
    ended, _ = seq2seq_data.encode_ended(texts, tiny_tokenizer, max_length=64, ends=[1])
    assert [ids[: len(short)] for ids, short in zip(ended, whole, strict=True)] == whole

    rows = Dataset.from_list([pair] * 2)
    assert len(encode_pairs(rows, tiny_tokenizer, max_length=64)[0]) == 2
    assert len(encode_sides({"train": rows}, tiny_tokenizer)["train"]) == 2
    said = [message.partition(":")[0] for message in caplog.messages]
    for what in ("thousands of texts", "thousands of sources", "pairs of train"):
        assert said.count(f"encoding {what}") >= 2
