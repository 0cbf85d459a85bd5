"""Read instruction data: conversations, prompt + completion, or plain text."""

import json
from collections.abc import Container, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from hfstack.data.places import FindPlaces, place_finder
from hfstack.data.sources import DataArgs, load_splits
from hfstack.data.splitting import Splits
from hfstack.errors import ConfigError, DataError
from hfstack.logs import get_logger
from hfstack.progress import follow_calls
from hfstack.row_counts import RowCounts
from hfstack.runs.rendering import Form, describe_rendering
from hfstack.runs.run import Run
from hfstack.tokens.seams import spans_seam
from hfstack.tokens.turns import (
    SYSTEM_NAMES,
    TOOLS_NAMES,
    Turn,
    columns_beside,
    is_conversation,
    read_tools,
    read_turns,
    with_system,
)

logger = get_logger(__name__)

RowFormat = Literal["messages", "prompt+completion", "text"]

_ROWS_WITH_SEAMS = 500  # rows whose end of the prompt is looked at

# Names that public instruction data give these columns: a message suggests the flags that map them.
_PROMPT_NAMES = ("instruction", "question", "query", "input", "source", "user")
_CONTEXT_NAMES = ("input", "context", "passage")
_COMPLETION_NAMES = ("output", "response", "answer", "completion", "target", "assistant")
_CONVERSATION_NAMES = ("messages", "conversations", "conversation", "dialog", "dialogue", "chat")

_HISTORY_NAME = "history"  # LLaMA-Factory's column of earlier questions and answers


@dataclass(frozen=True)
class Columns:
    """Which columns hold what.

    `text` names the column of plain text or of conversations.
    """

    prompt: str = "prompt"
    completion: str = "completion"
    context: str | None = None
    text: str = "text"


def load_instructions(
    data_args: DataArgs,
    columns: Columns,
    *,
    quarantine_file: Path,
    row_counts: RowCounts | None = None,
) -> tuple[Splits, FindPlaces]:
    """Load the splits, no prompt on both sides, and what names rows by file and line.

    Where the prompts have a column of their own the split goes by it.
    """
    key = columns.text if columns.prompt == "prompt" else columns.prompt
    named = {columns.prompt, columns.completion, columns.context or columns.text, columns.text}
    splits = load_splits(
        replace(data_args, text_column=key),
        {*named, *_CONVERSATION_NAMES, *SYSTEM_NAMES, *TOOLS_NAMES, _HISTORY_NAME},
        purpose="conversations",
        quarantine_file=quarantine_file,
        row_counts=row_counts,
    )

    # what stands in the rows as in the files; rows that are streamed are refused later
    found = splits["train"].column_names or []
    texts = [columns.prompt, columns.completion]
    if not set(texts) <= set(found):
        texts = [_text_or_turns(found, columns)]
    others = [name for name in found if name not in texts]
    sources = [*data_args.datasets, *data_args.eval_datasets]
    return splits, place_finder(splits, texts, others, sources, "conversations")


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

    if name := _text_or_turns(found, columns):
        value = rows[0][name]
        is_text = isinstance(value, str) and not is_conversation(value)
        if is_text and name in _CONVERSATION_NAMES and value.lstrip().startswith("[{"):
            raise DataError(
                f"the column {name!r} holds text that begins as a list of turns and is none: "
                f"{value[:60]!r}; write it as JSON, which tables keep whole"
            )
        return "text" if is_text else "messages"

    flags = _suggest_flags(found) or ["--prompt_column", "and", "--completion_column"]
    raise DataError(
        f"sft needs messages, prompt + completion, or text; found the columns {', '.join(found)}; "
        f"map them with {' '.join(flags)}"
    )


def convert_rows(
    rows: Dataset, columns: Columns, *, as_chat: bool, row_counts: RowCounts | None = None
) -> Dataset:
    """Return rows with `messages`, with `prompt` and `completion`, or with `text`.

    Conversations are JSON text, with `prompt_turns`: how many turns are the prompt.

    Args:
        rows: as they were loaded.
        columns: which columns to read.
        as_chat: make a conversation of prompt + completion: one turn of the user, one of the
            assistant.
        row_counts: gets the names of the columns.

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
    beside = find_beside(rows, columns, row_format, as_chat=as_chat, row_counts=row_counts)

    def convert(row: dict[str, Any]) -> dict[str, Any]:
        if row_format == "text":
            return {"text": row[_text_or_turns(row, columns)]}

        if row_format == "prompt+completion" and not _is_chat(row, columns, as_chat=as_chat):
            prompt = _with_context(row, columns)
            return {"prompt": prompt, "completion": row[columns.completion]}
        return _convert_conversation(row, columns, row_format, beside)

    # datasets knows a function of a package by its name: it would reuse what an older version made
    return rows.map(
        follow_calls(convert, "reading rows", total=len(rows)),
        remove_columns=rows.column_names,
        desc="Reading rows",
        load_from_cache_file=False,
    )


def record_form(run: Run, rows: Dataset, tokenizer: PreTrainedTokenizerBase) -> None:
    """Record what converted rows are: turns, prompt + completion, or text alone."""
    form: Form = "chat" if "messages" in rows.column_names else "plain"
    form = "text" if "text" in rows.column_names else form
    run.record.rendering = describe_rendering(tokenizer, form)


def find_beside(
    rows: Dataset,
    columns: Columns,
    row_format: RowFormat,
    *,
    as_chat: bool,
    row_counts: RowCounts | None = None,
) -> dict[str, str]:
    """Return the columns that the chat template reads beside the turns.

    Returns:
        Names of columns by what they hold: `system`, `tools`, `history`.
    """
    found = rows.column_names
    read = {_text_or_turns(found, columns)}
    if row_format == "prompt+completion":
        read = {columns.prompt, columns.completion, columns.context} & set(found)
    spare = [name for name in found if name not in read]

    beside: dict[str, str] = {}
    if row_format == "messages" or (len(rows) and _is_chat(rows[0], columns, as_chat=as_chat)):
        beside = columns_beside(rows, spare)
        if row_format == "prompt+completion" and _HISTORY_NAME in spare:
            beside["history"] = _HISTORY_NAME

    unread = [name for name in spare if name not in beside.values()]
    if row_counts is not None:
        row_counts.name_columns(found, [*read, *beside.values()])

    named = {*SYSTEM_NAMES, *TOOLS_NAMES, _HISTORY_NAME}
    if lost := [name for name in unread if name in named and any(rows[name])]:
        logger.warning(
            "the columns %s are not read: only conversations have a place for them",
            ", ".join(lost),
        )
    return beside


def _text_or_turns(found: Container[str], columns: Columns) -> str:
    """Return the column of texts or conversations, the one that was named first."""
    names = (columns.text, "messages", "conversations")
    return next((name for name in names if name in found), "")


def _is_chat(row: dict[str, Any], columns: Columns, *, as_chat: bool) -> bool:
    """Return whether a row of prompt + completion becomes a conversation."""
    values = (row.get(columns.prompt), row.get(columns.completion))
    return as_chat or any(isinstance(value, list) for value in values)


def _convert_conversation(
    row: dict[str, Any], columns: Columns, row_format: RowFormat, beside: dict[str, str]
) -> dict[str, Any]:
    """Return a row of one conversation, or of what is wrong with it."""
    given = {use: row[name] for use, name in beside.items()}
    answer: list[Turn] = []
    try:
        if row_format == "messages":
            value = row[_text_or_turns(row, columns)]
            before = read_turns(value or [], "user")
        else:
            before = _read_history(given.get("history"))
            before += read_turns(_with_context(row, columns), "user")
            answer = read_turns(row[columns.completion], "assistant")

        before = with_system(before, given.get("system"))
        tools = read_tools(given.get("tools"))
    except DataError as error:
        row = {"messages": json.dumps(row, ensure_ascii=False, default=str)}
        return row | {"prompt_turns": 0, "history": False, "tools": "", "problem": str(error)}

    # JSON text because Arrow would give every turn the keys of all turns, and templates read them
    return {
        "messages": json.dumps([*before, *answer], ensure_ascii=False),
        "prompt_turns": len(before) if answer else 0,
        "history": bool(given.get("history")),
        "tools": json.dumps(tools, ensure_ascii=False) if tools else "",
        "problem": "",
    }


def _with_context(row: dict[str, Any], columns: Columns) -> Any:
    """Return the prompt of a row, with the text of the context column below it."""
    prompt = row[columns.prompt]
    context = row[columns.context] if columns.context else None
    filled = isinstance(prompt, str) and context is not None and str(context).strip()
    return f"{prompt}\n\n{context}" if filled else prompt


def _read_history(value: Any) -> list[Turn]:
    """Return the turns of earlier questions and answers: pairs of texts, or turns."""
    if isinstance(value, str) and value.strip():  # a cell of a table
        try:
            value = json.loads(value)
        except ValueError:
            raise DataError(f"history is text that is no JSON: {value[:60]!r}") from None
    if is_conversation(value):
        return read_turns(value or [], "user")

    turns: list[Turn] = []
    for pair in value or []:
        if not isinstance(pair, list) or len(pair) != 2:
            raise DataError(f"history is a list of [question, answer], got {str(pair)[:60]!r}")
        turns += [*read_turns(pair[0], "user"), *read_turns(pair[1], "assistant")]
    return turns


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


def report_spanned_seams(rows: Dataset, tokenizer: PreTrainedTokenizerBase, *, name: str) -> None:
    """Log in how many of the first rows one token spans prompt and completion.

    It is learned with the completion. But the prompt alone ends with another token when the model
    is used, so that it goes on from tokens that it was not trained on.
    """
    if not {"prompt", "completion"} <= set(rows.column_names):
        return

    first = rows.select(range(min(len(rows), _ROWS_WITH_SEAMS)))
    joined = [(str(row["prompt"] or ""), str(row["completion"] or "")) for row in cast(Any, first)]
    spanned = [pair for pair in joined if all(pair) and spans_seam(tokenizer, *pair)]
    if spanned:
        logger.warning(
            "%d of the first %d %s rows: one token spans the end of the prompt and the beginning "
            "of the completion, such as %r + %r; it is learned with the completion, but a prompt "
            "alone ends with another token: move white space from the prompt's end to the "
            "completion's beginning",
            len(spanned),
            len(first),
            name,
            spanned[0][0][-20:],
            spanned[0][1][:20],
        )
