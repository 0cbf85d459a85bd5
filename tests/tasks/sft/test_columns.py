"""Columns by any name become prompt + completion, or their flags are named."""

import json
from typing import Any

import pytest
from datasets import Dataset

from hfstack.errors import DataError
from hfstack.row_counts import RowCounts
from hfstack.tasks.sft.columns import Columns, convert_rows, detect_format


def converted(row: dict[str, Any], *, as_chat: bool = True, **columns: str) -> dict[str, Any]:
    return convert_rows(Dataset.from_list([row]), Columns(**columns), as_chat=as_chat)[0]


def test_columns_are_mapped_or_named(caplog: pytest.LogCaptureFixture) -> None:
    row = {"instruction": "Add", "input": "1 2", "output": "3"}
    mapped = converted(
        row, prompt="instruction", context="input", completion="output", as_chat=False
    )
    assert mapped == {"prompt": "Add\n\n1 2", "completion": "3"}
    converted(row, prompt="instruction", completion="output")
    assert (
        "1 rows have text in the column 'input', which is not read: --context_column input"
        in caplog.text
    )
    empty = converted(
        row | {"input": ""},
        prompt="instruction",
        context="input",
        completion="output",
        as_chat=False,
    )
    assert empty["prompt"] == "Add"
    for found, hint in {
        ("question", "answer"): "--prompt_column question --completion_column answer",
        ("prompt", "response"): "--completion_column response",
        ("dialogue",): "--text_column dialogue",
        ("x", "y"): "--prompt_column and --completion_column",
    }.items():
        with pytest.raises(
            DataError, match=f"found the columns {', '.join(found)}; map them with {hint}"
        ):
            detect_format(Dataset.from_list([dict.fromkeys(found, "a")]), Columns())


def test_columns_beside_the_turns_are_read_or_named(caplog: pytest.LogCaptureFixture) -> None:
    turns = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]
    tools = [{"name": "add", "parameters": {}}]
    row = {"conversations": turns, "tools": tools, "system_prompt": "Be brief.", "id": 7}
    found = converted(row | {"parallel_tool_calls": False}, text="conversations")
    assert json.loads(found["messages"])[0] == {"role": "system", "content": "Be brief."}
    assert json.loads(found["tools"])[0]["function"]["name"] == "add"

    counts = RowCounts()
    rows = Dataset.from_list([row | {"parallel_tool_calls": False}])
    convert_rows(rows, Columns(text="conversations"), as_chat=True, row_counts=counts)
    assert counts.columns_used == ["conversations", "tools", "system_prompt"]
    assert counts.columns_not_used == ["id", "parallel_tool_calls"]

    # a column of the same name that holds no schemas stops nothing
    assert converted(row | {"tools": ["hammer"]}, text="conversations")["tools"] == ""
    assert "the columns tools are not read" in caplog.text
    plain = {"prompt": "Hi", "completion": "Hello.", "system": "Be brief."}
    assert converted(plain, as_chat=False) == {"prompt": "Hi", "completion": "Hello."}
    assert "the columns system are not read: only conversations" in caplog.text
    assert detect_format(Dataset.from_list([{"text": json.dumps(turns)}]), Columns()) == "messages"


def test_cells_of_tables_are_conversations_or_refused() -> None:
    turns = [{"role": "user", "content": "it's"}, {"role": "assistant", "content": "so"}]
    for cell in (json.dumps(turns), repr(turns)):  # repr is what pandas writes
        assert json.loads(converted({"messages": cell})["messages"]) == turns

    # numpy leaves the commas out, and a plain text of this is no conversation
    with pytest.raises(DataError, match=r"'messages' holds text that begins as a list of turns"):
        converted({"messages": repr(turns).replace("}, {", "}\n {")})

    row = {"prompt": "2 + 2", "completion": 4}
    assert "neither text nor a list of turns: 4" in converted(row)["problem"]
    assert converted(row, as_chat=False) == row


def test_a_history_is_pairs_or_turns_also_in_a_cell() -> None:
    before = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
    row = {"prompt": "Where?", "completion": "Here."}
    for history in ([["Hi", "Hello."]], '[["Hi", "Hello."]]', before, json.dumps(before)):
        found = converted(row | {"history": history})
        assert json.loads(found["messages"])[:2] == before
        assert (found["prompt_turns"], found["history"]) == (3, True)

    assert converted(row | {"history": "[]"})["prompt_turns"] == 1
    assert "history is text that is no JSON" in converted(row | {"history": "Hi; Hello"})["problem"]
