"""Read instruction data: conversations, prompt + completion, or plain text."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from datasets import Dataset

from hfstack.errors import ConfigError, DataError
from hfstack.logs import get_logger

logger = get_logger(__name__)

RowFormat = Literal["messages", "prompt+completion", "text"]

# Names that public instruction data give these columns: a message suggests the flags that map them.
_PROMPT_NAMES = ("instruction", "question", "query", "input", "source", "user")
_CONTEXT_NAMES = ("input", "context", "passage")
_COMPLETION_NAMES = ("output", "response", "answer", "completion", "target", "assistant")
_CONVERSATION_NAMES = ("messages", "conversations", "conversation", "dialog", "dialogue", "chat")

# ShareGPT's names of the roles
_ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant"}


@dataclass(frozen=True)
class Columns:
    """Which columns hold what.

    `text` names the column of plain text or of conversations.
    """

    prompt: str = "prompt"
    completion: str = "completion"
    context: str | None = None
    text: str = "text"


def detect_format(rows: Dataset, columns: Columns) -> RowFormat:
    """Return what the rows hold, judged by their columns.

    Raises:
        DataError: none of the three is there; the message names the columns found and the flags
            that map them.
    """
    found = rows.column_names
    if columns.context is not None and columns.context not in found:
        raise DataError(
            f"--context_column {columns.context}: no such column; found: {', '.join(found)}"
        )

    if {columns.prompt, columns.completion} <= set(found):
        return "prompt+completion"

    for name in (columns.text, "messages"):
        if name in found:
            return "text" if isinstance(rows[0][name], str) else "messages"

    flags = _suggest_flags(found) or ["--prompt_column", "and", "--completion_column"]
    raise DataError(
        f"sft needs messages, prompt + completion, or text; found the columns {', '.join(found)}; "
        f"map them with {' '.join(flags)}"
    )


def convert_rows(rows: Dataset, columns: Columns, *, as_chat: bool) -> Dataset:
    """Return rows with `messages`, with `prompt` and `completion`, or with `text`.

    Conversations are JSON text, with `prompt_turns`: how many turns are the prompt.

    Args:
        rows: as they were loaded.
        columns: which columns to read.
        as_chat: make a conversation of prompt + completion: one turn of the user, one of the
            assistant.

    Raises:
        ConfigError: the rows are streamed.
        DataError: the columns are others.
    """
    if not isinstance(rows, Dataset):
        raise ConfigError(
            "sft reads all rows before it trains, to check and to pack them: drop --streaming"
        )

    row_format = detect_format(rows, columns)
    if row_format == "prompt+completion":
        _warn_of_unread_context(rows, columns)

    def convert(row: dict[str, Any]) -> dict[str, Any]:
        if row_format == "text":
            return {"text": row[columns.text]}

        if row_format == "messages":
            turns = row[columns.text if columns.text in row else "messages"]
            return _conversation([_as_turn(turn) for turn in turns or []], prompt_turns=0)

        return _convert_prompt_and_completion(row, columns, as_chat=as_chat)

    return rows.map(convert, remove_columns=rows.column_names, desc="Reading rows")


def _convert_prompt_and_completion(
    row: dict[str, Any], columns: Columns, *, as_chat: bool
) -> dict[str, Any]:
    prompt, completion = row[columns.prompt], row[columns.completion]
    context = row[columns.context] if columns.context else None
    if context and isinstance(prompt, str):
        prompt = f"{prompt}\n\n{context}"

    if as_chat or isinstance(prompt, list) or isinstance(completion, list):
        before = _as_turns(prompt, "user")
        turns = [*before, *_as_turns(completion, "assistant")]
        return _conversation(turns, prompt_turns=len(before))

    return {"prompt": prompt, "completion": completion}


def _conversation(turns: Sequence[dict[str, Any]], *, prompt_turns: int) -> dict[str, Any]:
    """Return a row of one conversation.

    Its turns are JSON text because Arrow would give every turn the keys of all turns, and templates
    read them.
    """
    return {"messages": json.dumps(turns, ensure_ascii=False), "prompt_turns": prompt_turns}


def _as_turns(value: Any, role: str) -> list[dict[str, Any]]:
    """Return the turns of a prompt or completion; plain text is one turn of `role`."""
    if isinstance(value, list):
        return [_as_turn(turn) for turn in value]
    return [{"role": role, "content": value}]


def _as_turn(turn: dict[str, Any]) -> dict[str, Any]:
    """Return one message with `role` and `content`.

    ShareGPT's `from` and `value` mean the same.
    """
    if "from" in turn and "value" in turn:
        return {"role": _ROLES.get(turn["from"], turn["from"]), "content": turn["value"]}
    return {key: value for key, value in turn.items() if value is not None}


def _suggest_flags(found: Sequence[str]) -> list[str]:
    """Return the flags that map columns with usual names; none when no name is known."""

    def first_of(names: Sequence[str]) -> str | None:
        return next((name for name in names if name in found), None)

    flags: list[str] = []
    prompt = None if "prompt" in found else first_of(_PROMPT_NAMES)
    if prompt is not None:
        flags.append(f"--prompt_column {prompt}")
        context = first_of([name for name in _CONTEXT_NAMES if name != prompt])
        if context is not None:
            flags.append(f"--context_column {context}")

    completion = first_of(_COMPLETION_NAMES)
    if completion not in (None, "completion"):
        flags.append(f"--completion_column {completion}")

    conversation = first_of(_CONVERSATION_NAMES)
    if not flags and conversation is not None:
        flags.append(f"--text_column {conversation}")
    return flags


def _warn_of_unread_context(rows: Dataset, columns: Columns) -> None:
    """Warn of a second column of text that is not read.

    Rows of instruction and input lose what they ask about when it is forgotten.
    """
    if columns.context is not None:
        return

    for name in _CONTEXT_NAMES:
        if name not in rows.column_names or name in (columns.prompt, columns.completion):
            continue

        filled = sum(bool(value) for value in rows[name][:])
        if filled:
            logger.warning(
                "%d rows have text in the column %r, which is not read: --context_column %s "
                "reads it",
                filled,
                name,
                name,
            )
