"""Read OpenAssistant's trees of messages, nested or one message a row.

A message may have several replies, which people ranked: 0 is the best. What was deleted, or failed
its review, goes with all that follows it.
"""

from collections.abc import Iterator
from typing import Any

from hfstack.data.reading.bad_rows import BadRow, NumberedRow

Row = dict[str, Any]

_MESSAGE = {"message_id", "text", "role"}
_TREE_ROLES = {"prompter": "user"}
_OF_TREE = ("message_tree_id", "lang")  # what is kept beside a conversation


def is_message(row: Row) -> bool:
    """Return whether a row is one message of a tree."""
    return row.keys() >= {*_MESSAGE, "parent_id"}


def is_tree(row: Row) -> bool:
    """Return whether a row is a tree: its first message, with the replies inside."""
    first = row.get("prompt", row)
    return isinstance(first, dict) and first.keys() >= {*_MESSAGE, "replies"}


def gather_trees(numbered: Iterator[NumberedRow]) -> Iterator[NumberedRow]:
    """Yield the trees of messages in any order, each at its first message's line."""
    messages: dict[str, Row] = {}
    lines: dict[str, int] = {}
    for line, row, text in numbered:
        if isinstance(row, BadRow):
            yield line, row, text
        elif not is_message(row):
            yield line, BadRow("other layout", f"expected a message, got {list(row)}"), text
        elif row["message_id"] in messages:
            detail = f"the message_id {row['message_id']!r} occurs twice"
            yield line, BadRow("a message twice", detail), text
        else:
            messages[row["message_id"]] = {**row, "replies": []}
            lines[row["message_id"]] = line

    for name, message in messages.items():
        parent = message["parent_id"]
        if parent in messages:
            messages[parent]["replies"].append(message)
        elif parent is not None:
            detail = f"the message that it replies to is not in the file: parent_id {parent!r}"
            yield lines[name], BadRow("no parent", detail), None

    for name, message in messages.items():
        if message["parent_id"] is None:
            yield lines[name], message, None


def best_conversation(tree: Row) -> Iterator[Row]:
    """Yield the conversation of the best reply at each step, to its last answer.

    So the subset of openassistant-guanaco was made, on which most models of these data learned.
    """
    path = [_first_message(tree)] if _is_usable(_first_message(tree)) else []
    while path and (replies := _replies(path[-1])):
        path.append(replies[0])
    while path and path[-1]["role"] != "assistant":
        path.pop()
    if path:
        yield {"messages": [_turn(message) for message in path]} | _of_tree(tree)


def ranked_answers(tree: Row) -> Iterator[Row]:
    """Yield prompt, completions and ranks where two answers or more are ranked."""
    first = _first_message(tree)
    paths = [[first]] if _is_usable(first) else []
    while paths:
        path = paths.pop()
        replies = _replies(path[-1])
        paths += [[*path, reply] for reply in reversed(replies)]

        ranked = [
            reply
            for reply in replies
            if reply["role"] == "assistant" and reply.get("rank") is not None
        ]
        if len(ranked) > 1:
            row: Row = {"prompt": [_turn(message) for message in path]}
            row["completions"] = [[_turn(reply)] for reply in ranked]
            yield row | {"ranks": [reply["rank"] for reply in ranked]} | _of_tree(tree)


def _first_message(tree: Row) -> Row:
    first = tree.get("prompt")
    return first if isinstance(first, dict) else tree


def _is_usable(message: Row) -> bool:
    return not message.get("deleted") and message.get("review_result") is not False


def _replies(message: Row) -> list[Row]:
    """Return the replies that are usable, the best first, those without a rank last."""
    usable = [reply for reply in message.get("replies") or [] if _is_usable(reply)]
    return sorted(usable, key=lambda reply: (reply.get("rank") is None, reply.get("rank") or 0))


def _turn(message: Row) -> Row:
    return {"role": _TREE_ROLES.get(message["role"], message["role"]), "content": message["text"]}


def _of_tree(tree: Row) -> Row:
    known = {**_first_message(tree), **tree}
    return {name: known[name] for name in _OF_TREE if name in known}
