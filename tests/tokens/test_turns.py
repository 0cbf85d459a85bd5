"""Turns of every source come out as chat templates read them."""

from typing import Any

import pytest

from hfstack.errors import DataError
from hfstack.tokens.turns import is_conversation, read_tools, read_turns

CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("Hi", {"role": "user", "content": "Hi"}),
        ({"from": "human", "value": "Hi"}, {"role": "user", "content": "Hi"}),
        ({"from": "observation", "value": "3"}, {"role": "tool", "content": "3"}),
        (
            {"from": "function_call", "value": '{"name": "add", "arguments": {"a": 1}}'},
            {"role": "assistant", "content": "", "tool_calls": [CALL]},
        ),
        (
            {"role": "assistant", "content": None, "function_call": CALL["function"]},
            {"role": "assistant", "content": "", "tool_calls": [CALL]},
        ),
        (
            {"role": "user", "content": [{"type": "text", "text": "a "}, {"text": "b"}, "c"]},
            {"role": "user", "content": "a bc"},
        ),
        (
            {
                "role": "assistant",
                "content": [{"type": "thinking", "thinking": "Hm."}, {"type": "text", "text": "3"}],
            },
            {"role": "assistant", "content": "3", "reasoning_content": "Hm."},
        ),
        (
            {"role": "assistant", "content": "3", "thinking": "Hm.", "weight": 1, "name": "x"},
            {"role": "assistant", "content": "3", "reasoning_content": "Hm.", "name": "x"},
        ),
        # as Arrow fills it up: the keys of other rows are null
        (
            {
                "role": "assistant",
                "content": "",
                "weight": None,
                "tool_calls": [
                    {"id": "7", "function": {"name": "add", "arguments": {"a": 1, "city": None}}}
                ],
            },
            {"role": "assistant", "content": "", "tool_calls": [{"id": "7", **CALL}]},
        ),
        (
            {"role": "assistant", "content": "a", "train": False},
            {"role": "assistant", "content": "a", "weight": 0},
        ),
        ({"role": "USER", "content": "a"}, {"role": "user", "content": "a"}),
        ({"from": "AI ", "value": "a"}, {"role": "assistant", "content": "a"}),
        ({"role": "critic", "content": "a"}, {"role": "critic", "content": "a"}),
        (
            {"role": "tool_call", "content": '{"name": "add", "arguments": "{\\"a\\": 1}"}'},
            {"role": "assistant", "content": "", "tool_calls": [CALL]},
        ),
        ({"role": "tool_response", "content": "3"}, {"role": "tool", "content": "3"}),
        (
            {"role": "assistant", "content": "a", "train": 0},
            {"role": "assistant", "content": "a", "weight": 0},
        ),
        (
            {"role": "Assistant", "content": "a", "training": False},
            {"role": "assistant", "content": "a", "weight": 0},
        ),
        (
            {"role": "assistant", "content": "a", "loss": 1, "train_on_turn": True},
            {"role": "assistant", "content": "a"},
        ),
        # the weight of what is never learned says nothing, and a number is no switch
        ({"role": "user", "content": "a", "weight": 0}, {"role": "user", "content": "a"}),
        (
            {"role": "assistant", "content": "a", "loss": 1.5},
            {"role": "assistant", "content": "a", "loss": 1.5},
        ),
    ],
)
def test_a_turn_is_read(given: Any, expected: dict[str, Any]) -> None:
    assert read_turns(given if isinstance(given, str) else [given], "user") == [expected]


@pytest.mark.parametrize(
    ("turn", "problem"),
    [
        ("Hi", "a turn is an object with role and content, got 'Hi'"),
        ({"content": "Hi"}, "a turn without a role"),
        ({"role": "user"}, "a turn of user without content"),
        ({"role": "user", "content": 5}, "content must be text or a list of parts, got '5'"),
        ({"role": "user", "content": [{"type": "image_url"}]}, "a part of content is 'image_url'"),
        ({"role": "assistant", "content": "a", "weight": 0.5}, "weight 0.5 of a turn"),
        ({"from": "function_call", "value": "add(1)"}, "a tool call is an object with a name"),
        ({"role": "assistant", "tool_calls": [{"id": "1"}]}, "a tool call without a name"),
    ],
)
def test_what_is_no_turn_is_named(turn: Any, problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        read_turns([turn], "user")


def test_conversations_may_be_json_text() -> None:
    text = '[{"from": "human", "value": "Hi"}]'
    assert is_conversation(text) and not is_conversation("[1, 2]") and not is_conversation("Hi [")
    assert read_turns(text, "user") == [{"role": "user", "content": "Hi"}]

    # as pandas writes a list into a cell: \d is no escape, and None is no content
    cell = r"""[{'role': 'user', 'content': "it's \d"}, {'role': 'assistant', 'content': None}]"""
    assert is_conversation(cell) and not is_conversation("[{'role': 'user'} {'role': 'user'}]")
    assert read_turns(cell, "user") == [
        {"role": "user", "content": r"it's \d"},
        {"role": "assistant", "content": ""},
    ]
    with pytest.raises(DataError, match="neither text nor a list of turns: 4"):
        read_turns(4, "assistant")


def test_tools_are_schemas() -> None:
    function = {
        "name": "add",
        "parameters": {"properties": {"a": {"type": "number", "enum": None}}},
    }
    plain = {"name": "add", "parameters": {"properties": {"a": {"type": "number"}}}}
    schema = {"type": "function", "function": plain}
    assert read_tools([function]) == read_tools([schema]) == [schema]
    assert read_tools('[{"name": "add"}]') == [{"type": "function", "function": {"name": "add"}}]
    assert read_tools(None) == read_tools("") == read_tools("[]") == []
    with pytest.raises(DataError, match="a tool is a JSON schema with a name, got 'hammer'"):
        read_tools(["hammer"])
