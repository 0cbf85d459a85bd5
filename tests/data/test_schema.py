"""What each task needs of its rows."""

from typing import Any

import pytest
from datasets import Dataset, IterableDataset

from hfstack.data.schema import TASKS, check_schema
from hfstack.errors import ConfigError, DataError

CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
GOOD: dict[str, dict[str, Any]] = {
    "text": {"text": "a"},
    "messages": {"messages": CHAT},
    "prompt+completion": {"prompt": "a", "completion": "b"},
    "prompt+chosen+rejected": {"prompt": CHAT[:1], "chosen": CHAT[1:], "rejected": CHAT[1:]},
    "text+label": {"text": "a", "label": 1},
}


@pytest.mark.parametrize("task", TASKS)
def test_good_rows_of_every_kind_pass(task: str) -> None:
    rows = [GOOD[task]] * 3
    looked_at = iter(rows)
    check_schema(looked_at, task)
    assert next(looked_at, None) is None
    check_schema(Dataset.from_list(rows), task)
    check_schema(IterableDataset.from_generator(lambda: iter(rows)), task)


@pytest.mark.parametrize(
    ("task", "row", "message"),
    [
        ("text", {"text": None}, "data row 2, column 'text': expected text, got null"),
        ("text", {"text": 5}, "column 'text': expected text, got int '5'"),
        ("text", {"body": "x"}, "data row 2: text needs the column 'text'; found: body"),
        (
            "messages",
            {"messages": "hi"},
            "expected a list of messages {role, content}, got str 'hi'",
        ),
        ("messages", {"messages": []}, "expected a list of messages"),
        ("messages", {"messages": ["hi"]}, "message 1: expected an object with role and content"),
        (
            "messages",
            {"messages": [{"role": "user"}]},
            "message 1: 'content' must be text, got null",
        ),
        (
            "messages",
            {"messages": [*CHAT, {"content": "x"}]},
            "message 3: 'role' must be text, got null",
        ),
        (
            "messages",
            {"messages": [{"from": "human", "value": "x"}]},
            "rename them to 'role' and 'content'",
        ),
        (
            "prompt+completion",
            {"prompt": "a", "completion": 3},
            "column 'completion': expected a list of messages",
        ),
        (
            "prompt+chosen+rejected",
            {"prompt": "a", "chosen": "b"},
            "needs the column 'rejected'; found: prompt, chosen",
        ),
        ("text+label", {"text": "a", "label": None}, "column 'label': expected a label"),
    ],
)
def test_wrong_value_is_named(task: str, row: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError) as caught:
        check_schema([GOOD[task], row], task)
    assert message in str(caught.value)


def test_text_column_and_row_number_in_a_dataset() -> None:
    rows = Dataset.from_list([{"id": 1, "story": "a"}] * 2500 + [{"id": 2, "story": None}])
    with pytest.raises(
        DataError, match=r"stories row 2501, column 'story': expected text, got null"
    ):
        check_schema(rows, "text", text_column="story", name="stories")
    check_schema(rows, "text", text_column="story", max_rows=2500)
    with pytest.raises(
        DataError, match="data row 1: text needs the column 'text'; found: id, story"
    ):
        check_schema(rows, "text")


def test_unknown_task() -> None:
    with pytest.raises(ConfigError, match="unknown task 'chat'; known are text, messages"):
        check_schema([], "chat")
