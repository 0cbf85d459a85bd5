"""Turn instruction data into token ids and labels.

Conversations, prompt + completion, or plain text.

Rows come out with `input_ids` and `labels` (-100 where nothing is learned), packed or not; TRL's
SFTTrainer takes them as they are. Packing is best-fit decreasing (Ding et al. 2024,
arXiv:2404.10830): no document is cut to fill a row.

A packed row is kept apart by `position_ids` that restart at 0 in each document, and NO attention
mask, from which transformers builds the mask between documents for attention `sdpa` and `eager`; an
attention mask of ones would undo it. Flash attention wants the rows of a batch joined into one
instead: that is TRL's own collator. Joined rows under `sdpa` would cost the square of the whole
batch, so each attention gets the layout that it is good at.

Legend: B rows of a batch, T tokens of the longest.
"""

import json
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from trl import pack_dataset

from hfstack.errors import ConfigError, DataError
from hfstack.logs import get_logger
from hfstack.tokens.chat import _template, prompt_ids
from hfstack.training.checks import IGNORED_LABEL

logger = get_logger(__name__)

Kind = Literal["messages", "prompt+completion", "text"]

_PROMPTS = ("instruction", "question", "query", "input", "source", "user")
_CONTEXTS = ("input", "context", "passage")
_COMPLETIONS = ("output", "response", "answer", "completion", "target", "assistant")
_CONVERSATIONS = ("messages", "conversations", "conversation", "dialog", "dialogue", "chat")
# ShareGPT's names
_ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant"}
_SHOWN_FAULTS = 3
_OPENING_TOKENS = 8  # of a text, when a model is asked to go on with it


@dataclass(frozen=True)
class Columns:
    """Which columns hold what.

    `messages` names the column of conversations, which may also hold plain text.
    """

    prompt: str = "prompt"
    completion: str = "completion"
    context: str | None = None
    text: str = "text"


def kind_of_rows(rows: Dataset, columns: Columns) -> Kind:
    """Say what the rows hold, by their columns.

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

    flags = []
    if "prompt" not in found and (
        prompt := next((name for name in _PROMPTS if name in found), None)
    ):
        flags.append(f"--prompt_column {prompt}")
        context = next((name for name in _CONTEXTS if name in found and name != prompt), None)
        flags += [f"--context_column {context}"] if context else []

    if completion := next((name for name in _COMPLETIONS if name in found), None):
        flags += [f"--completion_column {completion}"] if completion != "completion" else []

    if not flags and (
        conversation := next((name for name in _CONVERSATIONS if name in found), None)
    ):
        flags.append(f"--text_column {conversation}")

    hint = (
        f"map them with {' '.join(flags)}"
        if flags
        else "map them with --prompt_column and --completion_column"
    )

    raise DataError(
        f"sft needs messages, prompt + completion, or text; found the columns {', '.join(found)}; "
        f"{hint}"
    )


def normalise(rows: Dataset, columns: Columns, *, as_chat: bool) -> Dataset:
    """Return rows with `messages`, with `prompt` and `completion`, or with `text`.

    Of conversations, `prompt_turns` says how many turns are the prompt.

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

    kind = kind_of_rows(rows, columns)
    if kind == "prompt+completion":
        _warn_of_unread_context(rows, columns)

    def convert(row: dict[str, Any]) -> dict[str, Any]:
        if kind == "text":
            return {"text": row[columns.text]}

        if kind == "messages":
            turns = row[columns.text if columns.text in row else "messages"]
            shown = json.dumps([_turn(turn) for turn in turns or []], ensure_ascii=False)
            return {"messages": shown, "prompt_turns": 0}

        prompt, completion = row[columns.prompt], row[columns.completion]
        context = row[columns.context] if columns.context else None
        if context and isinstance(prompt, str):
            prompt = f"{prompt}\n\n{context}"

        if isinstance(prompt, list) or isinstance(completion, list) or as_chat:
            before = _turns(prompt, "user")
            shown = json.dumps([*before, *_turns(completion, "assistant")], ensure_ascii=False)
            return {"messages": shown, "prompt_turns": len(before)}

        return {"prompt": prompt, "completion": completion}

    # Conversations are kept as JSON: Arrow would give every turn the keys of all turns, and
    # templates read them.
    return rows.map(convert, remove_columns=rows.column_names, desc="Reading rows")


def questions(
    rows: Dataset, tokenizer: PreTrainedTokenizerBase, *, limit: int, longest: int | None = None
) -> list[tuple[list[int], str | None]]:
    """Return prompts as token ids, with the answers of the rows, of the first rows.

    Only rows that have both count.

    Of a conversation the last answer is asked for; of plain text the first tokens are a prompt
    without a reference.

    Args:
        rows: from `normalise`.
        limit: how many at most.
        longest: tokens of a prompt at most; None for any.
    """
    found: list[tuple[list[int], str | None]] = []
    for row in cast(Any, rows):
        if len(found) == limit:
            break
        prompt, reference = _last_question(row)
        if prompt is None:
            continue

        ids = prompt_ids(tokenizer, prompt)
        ids = ids[:_OPENING_TOKENS] if reference is None else ids
        if ids and (longest is None or len(ids) <= longest):
            found.append((ids, reference))

    return found


def encode_split(
    rows: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    name: str,
    max_length: int | None,
    assistant_only: bool,
    completion_only: bool,
    on_bad_row: str = "fail",
    cut: bool = True,
    processes: int | None = None,
) -> Dataset:
    """Return `input_ids` and `labels` of usable rows, and log what was left out.

    Args:
        rows: from `normalise`.
        tokenizer: with a chat template when the rows are conversations.
        name: what messages call the rows, such as `train`.
        max_length: tokens kept of a row; None for all.
        assistant_only: learn the assistant's turns alone, as the template marks them.
        completion_only: learn the completion alone, in rows of prompt + completion.
        on_bad_row: `fail`, or `skip` (and `quarantine`) to leave bad rows out.
        cut: cut what is longer than `max_length`; off when packing splits it instead.
        processes: processes that encode; this one by default.

    Raises:
        DataError: rows without an assistant's turn, with an empty completion, with a prompt that
            fills `max_length`, or that the chat template refuses; or nothing is left.
    """

    def encode(row: dict[str, Any]) -> dict[str, Any]:
        ids, labels, problem = encode_row(
            row, tokenizer, assistant_only=assistant_only, completion_only=completion_only
        )
        length = len(ids)

        first = next(
            (index for index, label in enumerate(labels) if label != IGNORED_LABEL), length
        )
        if problem is None and max_length is not None and first >= max_length:
            problem = (
                f"prompt too long: {first} tokens leave none of --max_length {max_length} for "
                "the answer"
            )

        kept = max_length if cut else None
        return {
            "input_ids": ids[:kept],
            "labels": labels[:kept],
            "problem": problem or "",
            "length": length,
        }

    encoded = rows.map(
        encode,
        remove_columns=rows.column_names,
        num_proc=processes,
        desc=f"Encoding {name}",
        load_from_cache_file=False,
    )

    problems: list[str] = encoded["problem"][:]
    bad = [index for index, problem in enumerate(problems) if problem]
    if bad:
        _report_problems(rows, problems, bad, name=name, on_bad_row=on_bad_row)
        encoded = encoded.select([index for index, problem in enumerate(problems) if not problem])

    if not len(encoded):
        raise DataError(f"no {name} row is left of {len(rows)}")
    if max_length is not None and cut:
        _report_truncated(encoded["length"][:], name=name, max_length=max_length)
    return encoded.select_columns(["input_ids", "labels"])


def encode_row(
    row: dict[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    *,
    assistant_only: bool,
    completion_only: bool,
) -> tuple[list[int], list[int], str | None]:
    """Return (ids, labels, problem) of one normalised row.

    The problem is None when it can be learned from.
    """
    if "messages" in row:
        return _encode_conversation(row, tokenizer, assistant_only, completion_only)
    eos: Any = tokenizer.eos_token_id

    text = row["text"] if "text" in row else row["completion"]
    if not isinstance(text, str) or not text.strip():
        return [], [], "empty text" if "text" in row else "empty completion"
    before: list[int] = []

    if "prompt" in row:
        if not isinstance(row["prompt"], str) or not row["prompt"].strip():
            return [], [], "empty prompt"
        before = prompt_ids(tokenizer, row["prompt"])

    ids = cast(list[int], tokenizer(text, add_special_tokens="text" in row)["input_ids"])
    ids = ids if ids[-1] == eos else [*ids, eos]
    learned = [IGNORED_LABEL] * len(before) if completion_only else before
    return [*before, *ids], [*learned, *ids], None


def pack(rows: Dataset, *, max_length: int, strategy: str) -> Dataset:
    """Return rows of at most `max_length` tokens that hold whole documents.

    `seq_lengths` has their lengths.

    Raises:
        ConfigError: `strategy` is `wrapped`, which cuts documents and lets them read each other.
    """
    if strategy == "wrapped":
        raise ConfigError(
            "--packing_strategy wrapped lets packed documents read each other; use bfd or bfd_split"
        )

    packed = pack_dataset(rows, max_length, strategy, {"load_from_cache_file": False})
    tokens = sum(map(sum, packed["seq_lengths"][:]))
    filled = tokens / (len(packed) * max_length)
    logger.info(
        "packed %d rows into %d of %d tokens, %.1f %% full",
        len(rows),
        len(packed),
        max_length,
        100 * filled,
    )

    return packed


@dataclass(frozen=True)
class PackedCollator:
    """Stack packed rows (B, T): positions restart in each document, without a mask.

    Padding is a document of its own.

    The first token of a document is not scored: what precedes it in the row is another document's
    end.
    """

    pad_id: int

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Return `input_ids`, `labels` and `position_ids`, each (B, T) int64."""
        width = max(len(row["input_ids"]) for row in rows)
        ids = torch.full((len(rows), width), self.pad_id)  # (B, T)
        labels = torch.full((len(rows), width), IGNORED_LABEL)  # (B, T)
        positions = torch.zeros((len(rows), width), dtype=torch.int64)  # (B, T)

        for index, row in enumerate(rows):
            used = len(row["input_ids"])
            ids[index, :used] = torch.tensor(row["input_ids"])
            labels[index, :used] = torch.tensor(row["labels"])
            lengths = [*row.get("seq_lengths", [used]), width - used]
            positions[index] = torch.cat([torch.arange(length) for length in lengths])

        labels[positions == 0] = IGNORED_LABEL
        return {"input_ids": ids, "labels": labels, "position_ids": positions}


def _last_question(row: dict[str, Any]) -> tuple[list[dict[str, Any]] | str | None, str | None]:
    """What comes before the last answer of a row, and that answer.

    None and None where there is no answer.
    """
    if "text" in row:
        return row["text"], None

    if "prompt" in row:
        return (
            (row["prompt"], row["completion"])
            if row["prompt"] and row["completion"]
            else (None, None)
        )

    turns = json.loads(row["messages"])
    last = max(
        (index for index, turn in enumerate(turns) if turn.get("role") == "assistant"), default=0
    )
    answered = last > 0 and isinstance(turns[last].get("content"), str)

    return (turns[:last], turns[last]["content"]) if answered else (None, None)


def _encode_conversation(
    row: dict[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    assistant_only: bool,
    completion_only: bool,
) -> tuple[list[int], list[int], str | None]:
    turns: list[dict[str, Any]] = json.loads(row["messages"])
    answers = [turn for turn in turns if turn.get("role") == "assistant"]
    if not answers:
        return [], [], "no assistant turn"

    if any(
        not str(turn.get("content") or "").strip() and not turn.get("tool_calls")
        for turn in answers
    ):
        return [], [], "empty completion (an assistant turn without content)"

    try:
        encoded = _template(tokenizer, turns, return_assistant_tokens_mask=assistant_only)
    except DataError as error:
        return [], [], str(error).rpartition(" (on ")[0]  # the row is shown by the caller

    ids: list[int] = encoded["input_ids"]
    labels = list(ids)

    if assistant_only:
        mask: list[int] = encoded["assistant_masks"]
        labels = [
            token if learned else IGNORED_LABEL for token, learned in zip(ids, mask, strict=True)
        ]
        if not any(mask):
            return ids, labels, "the chat template marks no assistant tokens"

    if completion_only and row["prompt_turns"]:
        before = prompt_ids(tokenizer, turns[: row["prompt_turns"]])
        shared = next(
            (i for i, pair in enumerate(zip(before, ids, strict=False)) if pair[0] != pair[1]),
            len(before),
        )
        labels[:shared] = [IGNORED_LABEL] * shared

    return ids, labels, None


def _turn(turn: dict[str, Any]) -> dict[str, Any]:
    """One message with `role` and `content`.

    ShareGPT's `from` and `value` mean the same.
    """
    if "from" in turn and "value" in turn:
        return {"role": _ROLES.get(turn["from"], turn["from"]), "content": turn["value"]}
    return {key: value for key, value in turn.items() if value is not None}


def _turns(value: Any, role: str) -> list[dict[str, Any]]:
    return (
        [_turn(turn) for turn in value]
        if isinstance(value, list)
        else [{"role": role, "content": value}]
    )


def _warn_of_unread_context(rows: Dataset, columns: Columns) -> None:
    """Warn of a second column of text that is not read.

    Rows of instruction and input lose what they ask about when it is forgotten.
    """
    if columns.context is not None:
        return
    read: Collection[str] = (columns.prompt, columns.completion)

    for name in _CONTEXTS:
        if name in rows.column_names and name not in read:
            filled = sum(bool(value) for value in rows[name][:])
            if filled:
                logger.warning(
                    "%d rows have text in the column %r, which is not read: --context_column %s "
                    "reads it",
                    filled,
                    name,
                    name,
                )


def _report_problems(
    rows: Dataset, problems: Sequence[str], bad: Sequence[int], *, name: str, on_bad_row: str
) -> None:
    """Refuse bad rows, or log how many are left out and why."""
    shown = "; ".join(
        f"row {index + 1} ({_excerpt(rows[index])}): {problems[index]}"
        for index in bad[:_SHOWN_FAULTS]
    )

    if on_bad_row == "fail":
        raise DataError(
            f"{len(bad)} of {len(rows)} {name} rows cannot be learned from: {shown}; "
            "fix them, or leave them out with --on_bad_row skip"
        )

    reasons = Counter(problems[index].partition(":")[0] for index in bad)
    counts = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
    logger.warning("left out %d of %d %s rows (%s); %s", len(bad), len(rows), name, counts, shown)


def _report_truncated(lengths: Sequence[int], *, name: str, max_length: int) -> None:
    """Log how many rows do not end where their answer ends."""
    cut = sum(length > max_length for length in lengths)
    if cut:
        logger.warning(
            "%d of %d %s rows are longer than --max_length %d and lose the end",
            cut,
            len(lengths),
            name,
            max_length,
        )


def _excerpt(row: dict[str, Any]) -> str:
    text = " ".join(str(next(iter(row.values()))).split())
    return repr(text[:60])
