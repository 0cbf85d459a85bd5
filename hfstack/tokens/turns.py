"""Read conversations as public data writes them: roles, parts, calls, weights.

Whatever the source, a turn comes out as chat templates read it: `role`, `content` as text, and
where there are any `reasoning_content`, `tool_calls` with arguments as objects, `weight` 0, and the
keys that were given beside them. Sources:

    messages            OpenAI and Hugging Face: {role, content}, content as text or in parts
    ShareGPT            {from, value} with human, gpt, function_call, observation
    weights             OpenAI's `weight`, axolotl's `train`, ms-swift's `loss`
    cells of tables     JSON text, or what Python prints, as pandas writes lists into CSV
"""

import ast
import json
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from hfstack.errors import DataError
from hfstack.json_forms import without_nulls

Turn = dict[str, Any]

# columns beside a conversation that go into the chat template: of OpenAI, LLaMA-Factory, OpenOrca
SYSTEM_NAMES = ("system", "system_prompt")
TOOLS_NAMES = ("tools", "functions")
TOOLS_KEY = "tools"  # where a prompt of online training carries them, in its first turn

# names of the roles in ShareGPT, LLaMA-Factory and OpenAI's first format of function calls
_ROLES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "ai": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "tool_call": "assistant",
    "observation": "tool",
    "function": "tool",
    "function_response": "tool",
    "tool_response": "tool",
    **{name: name for name in ("system", "developer", "user", "assistant", "tool")},
}
TEXT_PARTS = ("text", "input_text", "output_text")  # types of a part of a content
_CALLS = ("function_call", "tool_call")  # turns whose text is a call: ShareGPT, ms-swift
_THOUGHTS = ("reasoning_content", "reasoning", "thinking")
# true or false, or 1 or 0, where OpenAI has a weight
_SWITCHES = ("train", "training", "train_on_turn", "loss")

# keys that are read here; templates read others, such as `name` and `tool_call_id`
_READ_KEYS = {
    *("role", "from", "content", "value", "tool_calls", "function_call", "weight"),
    *_THOUGHTS,
}


def read_turns(value: Any, role: str) -> list[Turn]:
    """Return the turns of a conversation; of a text, one turn of `role`.

    Raises:
        DataError: what is wrong, without its place: a turn without a role, content that is no text.
    """
    if isinstance(value, str) and is_conversation(value):
        value = _from_json(value)
    if isinstance(value, str) or value is None:
        value = {"role": role, "content": value}
    if isinstance(value, dict):
        return [_read_turn(value)]
    if not isinstance(value, list):
        raise DataError(f"neither text nor a list of turns: {value!r}; write numbers as text")
    return [_read_turn(turn) for turn in value]


def extract_text(prompt_or_completion: Any) -> str:
    """Return the text of a prompt or completion, plain or a conversation.

    The messages of a conversation become paragraphs.
    """
    if isinstance(prompt_or_completion, str):
        return prompt_or_completion
    return "\n\n".join(str(message["content"]) for message in prompt_or_completion)


def is_conversation(value: Any) -> bool:
    """Return whether a value is a list of turns, or text that holds one."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = _from_json(value)
    return isinstance(value, list) and all(
        isinstance(turn, dict) and {"role", "from"} & set(turn) for turn in value
    )


def read_tools(value: Any) -> list[dict[str, Any]]:
    """Return the schemas of a row's tools, each as {type, function}.

    Args:
        value: a list of schemas, or of functions alone; either may be JSON text.

    Raises:
        DataError: what is wrong, without its place.
    """
    tools = _from_json(value)
    if isinstance(tools, dict):
        tools = [tools]
    tools = [_from_json(tool) for tool in tools or []]

    for tool in tools:
        if not isinstance(tool, dict) or not (tool.get("name") or tool.get("function")):
            raise DataError(f"a tool is a JSON schema with a name, got {str(tool)[:60]!r}")
    return [without_nulls(_as_function(tool)) for tool in tools]


def columns_beside(rows: Mapping[str, Any] | Any, names: Sequence[str]) -> dict[str, str]:
    """Return which of these columns hold a system turn and the schemas of tools.

    A column of that name may hold other things, such as the tools of a craft: its first value says.

    Args:
        rows: columns by name, such as a Dataset.
        names: the columns that nothing else reads.

    Returns:
        The names of the columns by their use: `system`, `tools`.
    """
    found: dict[str, str] = {}
    for use, usual in (("system", SYSTEM_NAMES), ("tools", TOOLS_NAMES)):
        name = next((name for name in usual if name in names), None)
        first = next((value for value in rows[name] if value), None) if name else None
        if name is None or first is None:
            continue

        try:
            if use == "tools" and not read_tools(first):
                continue
        except DataError:
            continue
        found[use] = name
    return found


def with_system(turns: list[Turn], text: Any) -> list[Turn]:
    """Return the turns behind a system turn of this text; none for an empty text.

    Raises:
        DataError: the turns begin with another system turn, or the text is none.
    """
    if text is not None and not isinstance(text, str):
        raise DataError(f"the system column must hold text, got {str(text)[:60]!r}")
    if not text or not text.strip():
        return turns

    if turns and turns[0]["role"] == "system":
        if turns[0]["content"].strip() != text.strip():
            raise DataError("a system turn and another text in the system column: keep one of them")
        return turns
    return [{"role": "system", "content": text}, *turns]


def with_tools(turns: list[Turn], tools: list[dict[str, Any]]) -> list[Turn]:
    """Return the turns with the schemas of their tools in the first one.

    So a prompt stays one value wherever it goes; `split_tools` takes them out again before anything
    is rendered.
    """
    return [{**turns[0], TOOLS_KEY: tools}, *turns[1:]] if tools else turns


def split_tools(turns: Sequence[Turn]) -> tuple[list[Turn], list[dict[str, Any]] | None]:
    """Return the turns as chat templates read them, and their tools or None."""
    tools = turns[0].get(TOOLS_KEY) if turns else None
    if not tools:
        return list(turns), None
    first = {key: value for key, value in turns[0].items() if key != TOOLS_KEY}
    return [first, *turns[1:]], tools


def is_learned(turn: Turn) -> bool:
    """Return whether a turn is an answer to learn: the assistant's, not of weight 0."""
    return turn.get("role") == "assistant" and turn.get("weight", 1) != 0


def _read_turn(turn: Any) -> Turn:
    if not isinstance(turn, dict):
        raise DataError(f"a turn is an object with role and content, got {str(turn)[:60]!r}")

    # Arrow gives every turn the keys of all turns: null means that the turn has none
    given = {key: value for key, value in turn.items() if value is not None}
    name = given.get("role", given.get("from"))
    if not isinstance(name, str):
        raise DataError(f"a turn without a role: {json.dumps(given, default=str)[:60]}")

    # some sources write roles in capitals, which templates would print as names of their own
    known = name.strip().casefold()
    result: Turn = {"role": _ROLES.get(known, name), "content": ""}
    content = given.get("content", given.get("value"))
    if content is None and result["role"] != "assistant":
        raise DataError(f"a turn of {result['role']} without content")
    text, thoughts = _read_content(content or "")
    result["content"] = text

    thoughts += [given[key] for key in _THOUGHTS if key in given][:1]
    if thoughts and any(thoughts):
        result["reasoning_content"] = "\n".join(map(str, thoughts))

    # ShareGPT's calls are the text of a turn of their own
    calls = given.get("tool_calls", given.get("function_call"))
    if known in _CALLS and not calls:
        calls, result["content"] = text, ""
    if calls:
        result["tool_calls"] = _read_calls(calls)

    if result["role"] == "assistant" and _read_weight(given) == 0:
        result["weight"] = 0

    unread = _READ_KEYS | {key for key in _SWITCHES if _is_switch(given.get(key))}
    return result | {key: value for key, value in given.items() if key not in unread}


def _read_content(content: Any) -> tuple[str, list[str]]:
    """Return the text of a content, and the thoughts that stand in parts of their own.

    Parts of text are joined as they are, as the templates of vision models do.
    """
    if isinstance(content, str):
        return content, []
    if not isinstance(content, list):
        raise DataError(f"content must be text or a list of parts, got {str(content)[:60]!r}")

    texts, thoughts = [], []
    for part in content:
        kind = part.get("type") or "text" if isinstance(part, dict) else "text"
        text = part.get(kind, part.get("text")) if isinstance(part, dict) else part

        if kind in ("thinking", "reasoning") and isinstance(text, str):
            thoughts.append(text)
        elif kind in TEXT_PARTS and isinstance(text, str):
            texts.append(text)
        else:
            raise DataError(
                f"a part of content is {kind if isinstance(part, dict) else str(part)[:40]!r}, and "
                "only text can be learned: take it out, or leave the row out"
            )

    return "".join(texts), thoughts


def _read_calls(calls: Any) -> list[dict[str, Any]]:
    """Return tool calls as {type, function: {name, arguments}}, arguments an object.

    OpenAI writes the arguments as JSON text, which most templates would quote a second time.
    """
    found = _from_json(calls)
    found = [found] if isinstance(found, dict) else found
    if not isinstance(found, list) or not all(isinstance(call, dict) for call in found):
        raise DataError(f"a tool call is an object with a name, got {str(calls)[:60]!r}")

    read = []
    for call in map(_as_function, found):
        function = without_nulls(call["function"])
        if not isinstance(function, dict) or not function.get("name"):
            raise DataError(f"a tool call without a name: {json.dumps(call, default=str)[:60]}")
        arguments = _from_json(function.get("arguments", {}))
        read.append(without_nulls(call) | {"function": function | {"arguments": arguments}})
    return read


def _read_weight(turn: Turn) -> int:
    """Return 0 for a turn that is not learned, else 1."""
    weight = turn.get("weight", 1)
    if weight not in (0, 1):
        raise DataError(f"weight {weight!r} of a turn: only 0 and 1 can be trained")
    off = any(_is_switch(turn.get(key)) and not turn[key] for key in _SWITCHES)
    return 0 if off else int(weight)


def _is_switch(value: Any) -> bool:
    """Return whether a value says yes or no, which a loss of 1.5 does not."""
    return isinstance(value, int) and value in (0, 1)


def _as_function(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a tool or call as {type, function}; some sources give the function alone."""
    if schema.get("function"):
        return {"type": "function"} | schema
    return {"type": "function", "function": schema}


def _from_json(value: Any) -> Any:
    """Return what text of JSON or of Python's objects holds; anything else as it is."""
    if not isinstance(value, str) or not value.strip():
        return value or None
    try:
        return json.loads(value)
    except ValueError:
        pass

    # pandas writes a list of turns into a cell as Python prints it, in single quotes
    text = value.strip()
    if text[0] not in "[{" or text[-1] not in "]}":
        return value
    try:
        with warnings.catch_warnings(action="ignore"):  # of backslashes within the texts
            return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return value
