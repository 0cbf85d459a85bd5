"""Turn converted instruction rows into token ids and labels, and refuse bad ones.

Rows come out with `input_ids` and `labels` (IGNORED_LABEL where nothing is learned); TRL's
SFTTrainer takes them as they are.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, cast

from datasets import Dataset, Features, List, Value
from transformers import PreTrainedTokenizerBase

from hfstack.data.places import SHOWN_ROWS, FindPlaces, RefusedRows
from hfstack.errors import DataError
from hfstack.logs import get_logger
from hfstack.progress import follow_calls
from hfstack.row_counts import RowCounts
from hfstack.tasks.sft.columns import report_spanned_seams
from hfstack.tokens.chat import encode_for_generation, render_chat
from hfstack.tokens.seams import count_shared, encode_joined
from hfstack.tokens.special_tokens import IGNORED_LABEL, require_eos_id
from hfstack.tokens.turns import Turn, is_learned

logger = get_logger(__name__)

_OPENING_TOKENS = 8  # of a plain text, when a model is asked to continue it
_BATCH_ROWS = 100  # between two steps of the bar

# what a row is encoded as: ids, labels, and the problem that makes it a bad row
Encoded = tuple[list[int], list[int], str | None]

_COLUMNS = Features(
    {
        "input_ids": List(Value("int32")),
        "labels": List(Value("int64")),
        "problem": Value("string"),
        "length": Value("int64"),
        "row": Value("int64"),
    }
)


def prompts_with_references(
    rows: Dataset, tokenizer: PreTrainedTokenizerBase, *, limit: int, longest: int | None = None
) -> list[tuple[list[int], str | None]]:
    """Return prompts as token ids, each with its reference answer, of the first rows.

    The prompt of a conversation is what comes before its last answer. Of plain text the first
    tokens are a prompt without a reference. Rows without an answer are passed over.

    Args:
        rows: from `columns.convert_rows`.
        limit: how many at most.
        longest: tokens of a prompt at most; None for any.
    """
    found: list[tuple[list[int], str | None]] = []
    for row in cast(Any, rows):
        if len(found) == limit:
            break

        prompt, reference = last_prompt_and_answer(row)
        if prompt is None:
            continue

        ids = encode_for_generation(tokenizer, prompt, row_tools(row))
        if reference is None:
            ids = ids[:_OPENING_TOKENS]
        if ids and (longest is None or len(ids) <= longest):
            found.append((ids, reference))

    return found


def encode_user_texts(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, *, chat: bool
) -> list[list[int]]:
    """Return texts as the token ids of prompts: a turn of the user, or as they are."""
    return [
        encode_for_generation(tokenizer, [{"role": "user", "content": text}] if chat else text)
        for text in texts
    ]


def encode_usable_rows(
    rows: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    name: str,
    max_length: int | None,
    assistant_only: bool,
    completion_only: bool,
    on_bad_row: str = "fail",
    truncate: bool = True,
    processes: int | None = None,
    row_counts: RowCounts | None = None,
    find_places: FindPlaces | None = None,
    own_template: str | None = None,
) -> Dataset:
    """Return `input_ids`, `labels` and `row` of usable rows; log what is left out.

    `row` is the index of the row that it was made of: a conversation becomes several where
    `encode_as_asked` splits it.

    Args:
        rows: from `columns.convert_rows`.
        tokenizer: with a chat template when the rows are conversations.
        name: what messages call the rows, such as `train`.
        max_length: tokens kept of a row; None for all.
        assistant_only: learn the assistant's turns alone, as the template marks them.
        completion_only: learn the completion alone, in rows of prompt + completion.
        on_bad_row: `fail`, or `skip` (and `quarantine`) to leave bad rows out.
        truncate: truncate what is longer than `max_length`; off when packing splits it instead.
        processes: processes that encode; this one by default.
        row_counts: gets what is left out.
        find_places: names bad rows by file and line; without it by their numbers.
        own_template: what the model is asked with, where the tokenizer has another that marks.

    Raises:
        DataError: rows without an assistant's turn, with an empty completion, with a prompt that
            fills `max_length`, or that the chat template refuses; or nothing is left.
    """
    kept_length = max_length if truncate else None

    def encode(row: dict[str, Any]) -> list[Encoded]:
        flags = {"assistant_only": assistant_only, "completion_only": completion_only}
        parts = encode_as_asked(row, tokenizer, own_template, **flags)
        if max_length is None:
            return parts
        return [
            (ids, labels, problem or _find_overlong_prompt(labels, max_length))
            for ids, labels, problem in parts
        ]

    encoded = _encode_parts(rows, encode, kept_length, name=name, processes=processes)
    report_spanned_seams(rows, tokenizer, name=name)

    # one bad part makes the whole conversation a bad row
    problems = [""] * len(rows)
    for index, problem in zip(encoded["row"][:], encoded["problem"][:], strict=True):
        problems[index] = problems[index] or problem
    if any(problems):
        _report_problems(rows, problems, name=name, on_bad_row=on_bad_row, find_places=find_places)
        if row_counts is not None:
            for reason, count in _reasons(problems).items():
                row_counts.leave_out(name, reason, count)
        encoded = encoded.select(
            [place for place, index in enumerate(encoded["row"][:]) if not problems[index]]
        )

    if not len(encoded):
        raise DataError(f"no {name} row is left of {len(rows)}")
    if kept_length is not None:
        _report_truncated(encoded["length"][:], name=name, max_length=kept_length)
    return encoded.select_columns(["input_ids", "labels", "row"])


def _encode_parts(
    rows: Dataset,
    encode: Callable[[dict[str, Any]], list[Encoded]],
    kept_length: int | None,
    *,
    name: str,
    processes: int | None,
) -> Dataset:
    """Return the parts that rows are encoded to, with `_COLUMNS`."""
    several = processes is not None and processes > 1  # each would count its own part
    followed = encode
    if not several:
        followed = follow_calls(encode, f"encoding {name} rows", total=len(rows))

    def encode_batch(batch: dict[str, list[Any]], indices: list[int]) -> dict[str, list[Any]]:
        found: dict[str, list[Any]] = {column: [] for column in _COLUMNS}
        for index, values in zip(indices, zip(*batch.values(), strict=True), strict=True):
            for ids, labels, problem in followed(dict(zip(batch, values, strict=True))):
                found["input_ids"].append(ids[:kept_length])
                found["labels"].append(labels[:kept_length])
                found["problem"].append(problem or "")
                found["length"].append(len(ids))
                found["row"].append(index)
        return found

    encoded = rows.map(
        encode_batch,
        batched=True,
        batch_size=_BATCH_ROWS,
        with_indices=True,
        features=_COLUMNS,
        remove_columns=rows.column_names,
        num_proc=processes,
        desc=f"Encoding {name}",
        load_from_cache_file=False,
    )

    if len(encoded) > len(rows):
        logger.info(
            "the chat template renders earlier answers otherwise than the last one: %d %s "
            "conversations become %d rows, so that each answer is learned as it is asked for",
            len(rows),
            name,
            len(encoded),
        )
    return encoded


def encode_as_asked(
    row: dict[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    own_template: str | None,
    *,
    assistant_only: bool,
    completion_only: bool,
) -> list[Encoded]:
    """Return a row as the model will read it: one, or several of a conversation.

    The model's own template may render an answer in one way while it is the last, and in another
    once more turns follow: Qwen 3 leaves out the thoughts of earlier answers. A row that learned
    all answers of such a conversation would learn some behind other tokens than the model is asked
    with. It is split: each answer is learned at the end of its own row, behind the turns before it.

    Args:
        row: from `columns.convert_rows`.
        tokenizer: with the template that marks the assistant's tokens.
        own_template: the template that is saved with the model; None where it is the same.
        assistant_only: learn the assistant's turns alone, as the template marks them.
        completion_only: learn the completion alone, in rows of prompt + completion.
    """
    encoded = encode_row(
        row, tokenizer, assistant_only=assistant_only, completion_only=completion_only
    )
    if own_template is None or encoded[2] is not None or "messages" not in row:
        return [encoded]

    turns: list[Turn] = json.loads(row["messages"])
    render = partial(render_chat, tokenizer, tools=row_tools(row))
    asked = partial(render, chat_template=own_template)
    try:
        # glm-4's variant goes on after the last answer, with the token that ends it
        if render(turns, tokenize=False).startswith(asked(turns, tokenize=False)):
            return [encoded]

        # the answers that are learned, as in `encode_row`
        given = row["prompt_turns"] if completion_only and not row["history"] else 0
        answers = [place for place in range(given, len(turns)) if is_learned(turns[place])]
        parts: list[Encoded] = []
        for place in answers:
            ids, labels, problem = _encode_last_answer(turns[: place + 1], asked, render)
            if problem is not None:
                return [([], [], problem)]

            # a call, its result and the next answer of one question stay together
            if parts and ids[: len(parts[-1][0])] == parts[-1][0]:
                earlier = parts.pop()[1]
                labels[: len(earlier)] = earlier
            parts.append((ids, labels, None))
    except DataError as error:
        return [([], [], str(error).partition(" (on ")[0])]
    return parts


def _encode_last_answer(
    turns: Sequence[Turn], asked: Callable[..., Any], marked: Callable[..., Any]
) -> Encoded:
    """Return a conversation in one rendering, its last answer marked by another."""
    options = {"tokenize": True, "return_dict": True}
    ids: list[int] = asked(turns, **options)["input_ids"]
    rendered = marked(turns, return_assistant_tokens_mask=True, **options)
    mask: list[int] = rendered["assistant_masks"]

    end = len(mask) - mask[::-1].index(1) if any(mask) else 0
    start = next((place + 1 for place in range(end - 1, -1, -1) if not mask[place]), 0)
    length = len(mask) - start
    if not end or ids[-length:] != rendered["input_ids"][start:]:
        return ids, [], "the chat template that marks answers renders the last one otherwise"

    kept = len(ids) - length
    learned = [i if m else IGNORED_LABEL for i, m in zip(ids[kept:], mask[start:], strict=True)]
    return ids, [IGNORED_LABEL] * kept + learned, None


def encode_row(
    row: dict[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    *,
    assistant_only: bool,
    completion_only: bool,
) -> Encoded:
    """Return (ids, labels, problem) of one converted row.

    The problem is None when it can be learned from.
    """
    if "messages" in row:
        return _encode_conversation(row, tokenizer, assistant_only, completion_only)

    for name in ("text", "prompt", "completion"):
        if isinstance(row.get(name), int | float):  # a column of a table that holds numbers alone
            return [], [], f"{name} is {row[name]!r}, not text; write numbers as text in a .jsonl"

    text = row["text"] if "text" in row else row["completion"]
    if not isinstance(text, str) or not text.strip():
        return [], [], "empty text" if "text" in row else "empty completion"

    prompt = row.get("prompt", "")
    if "prompt" in row and (not isinstance(prompt, str) or not prompt.strip()):
        return [], [], "empty prompt"

    # prompt and completion are one text, as reward and dpo read it
    ids, prompt_length = encode_joined(tokenizer, prompt, text)
    ids.append(require_eos_id(tokenizer))
    masked = prompt_length if completion_only and "prompt" in row else 0
    return ids, [IGNORED_LABEL] * masked + ids[masked:], None


def read_conversations(
    rows: Dataset,
) -> Iterator[tuple[list[Turn], list[dict[str, Any]] | None]]:
    """Yield turns and tools of the converted conversations that could be read."""
    for row in cast(Any, rows.select_columns(["messages", "tools", "problem"])):
        if not row["problem"]:
            yield json.loads(row["messages"]), row_tools(row)


def row_tools(row: dict[str, Any]) -> list[dict[str, Any]] | None:
    """Return the schemas of the tools of a converted row; None without any."""
    return json.loads(row["tools"]) if row.get("tools") else None


def _encode_conversation(
    row: dict[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    assistant_only: bool,
    completion_only: bool,
) -> Encoded:
    """Return (ids, labels, problem) of a row of messages."""
    if row["problem"]:
        return [], [], row["problem"]

    turns: list[Turn] = json.loads(row["messages"])
    answers = [turn for turn in turns if turn["role"] == "assistant"]
    if not answers:
        return [], [], "no assistant turn"
    if any(_is_empty(turn) for turn in answers):
        return [], [], "empty completion (an assistant turn without content)"
    if not any(map(is_learned, answers)):
        return [], [], "every assistant turn has weight 0"

    render = partial(render_chat, tokenizer, tools=row_tools(row), tokenize=True, return_dict=True)
    try:
        encoded = render(turns, return_assistant_tokens_mask=assistant_only)
    except DataError as error:
        # without the turns that the message ends with: the caller shows the row
        return [], [], str(error).partition(" (on ")[0]

    ids: list[int] = encoded["input_ids"]
    labels = list(ids)

    if assistant_only:
        mask: list[int] = encoded["assistant_masks"]
        labels = [
            token if learned else IGNORED_LABEL for token, learned in zip(ids, mask, strict=True)
        ]
        if not any(mask):
            return ids, labels, "the chat template marks no assistant tokens"

    # the answers of a history are learned as those of any conversation, its questions are not
    if completion_only and row["prompt_turns"] and not (assistant_only and row["history"]):
        prompt = turns[: row["prompt_turns"]]
        shared = count_shared(encode_for_generation(tokenizer, prompt, row_tools(row)), ids)
        labels[:shared] = [IGNORED_LABEL] * shared

    for start, end in _find_turns_to_mask(turns, ids, render, assistant_only=assistant_only):
        inside = assistant_only and start > 0 and labels[start - 1] != IGNORED_LABEL
        if inside and labels[start] != IGNORED_LABEL:
            return ids, labels, "weight 0: the chat template renders turns otherwise when more come"
        labels[start:end] = [IGNORED_LABEL] * (end - start)
    return ids, labels, None


def _find_turns_to_mask(
    turns: Sequence[Turn],
    ids: Sequence[int],
    render: Callable[..., Any],
    *,
    assistant_only: bool,
) -> Iterator[tuple[int, int]]:
    """Yield where the assistant's turns of weight 0 begin and end among the tokens.

    A turn begins where the turns before it, rendered alone, and the whole conversation part. It
    ends where the next turn begins; of labels of the assistant alone, where its next turn begins,
    so that an end token that differs at the end of a text (gpt-oss) is masked too.
    """

    def begin(index: int) -> int:
        if index == len(turns):
            return len(ids)
        return count_shared(render(turns[:index])["input_ids"], ids) if index else 0

    for index, turn in enumerate(turns):
        if turn["role"] != "assistant" or is_learned(turn):
            continue

        following = index + 1
        while assistant_only and following < len(turns) and turns[following]["role"] != "assistant":
            following += 1
        yield begin(index), begin(following)


def _is_empty(turn: dict[str, Any]) -> bool:
    """Return whether a turn has neither text nor a tool call."""
    return not turn["content"].strip() and not turn.get("tool_calls")


def _find_overlong_prompt(labels: Sequence[int], max_length: int) -> str | None:
    """Return the problem of a row whose first scored token would be truncated."""
    scored = (index for index, label in enumerate(labels) if label != IGNORED_LABEL)
    first = next(scored, len(labels))
    if first < max_length:
        return None
    return f"prompt too long: {first} tokens leave none of --max_length {max_length} for the answer"


def last_prompt_and_answer(
    row: dict[str, Any],
) -> tuple[list[dict[str, Any]] | str | None, str | None]:
    """Return what comes before the last answer of a row, and that answer.

    Plain text has no answer; (None, None) where one is missing.
    """
    if "text" in row:
        return row["text"], None

    if "prompt" in row:
        if row["prompt"] and row["completion"]:
            return row["prompt"], row["completion"]
        return None, None

    if row["problem"]:
        return None, None

    turns: list[Turn] = json.loads(row["messages"])
    last = max((index for index, turn in enumerate(turns) if is_learned(turn)), default=0)
    if last == 0 or not turns[last]["content"].strip():
        return None, None
    return turns[:last], turns[last]["content"]


def _report_problems(
    rows: Dataset,
    problems: Sequence[str],
    *,
    name: str,
    on_bad_row: str,
    find_places: FindPlaces | None,
) -> None:
    """Refuse bad rows, or log how many are left out and why."""
    bad = [
        (name, number, f"{problem} ({_excerpt(rows[number - 1])})")
        for number, problem in enumerate(problems, 1)
        if problem
    ]
    shown = [(split, number) for split, number, _ in bad[:SHOWN_ROWS]]
    refused = RefusedRows(
        bad,
        "fix them, or leave them out with --on_bad_row skip" if on_bad_row == "fail" else "",
        find_places(shown) if find_places is not None else (),
    )
    if on_bad_row == "fail":
        raise refused

    counts = ", ".join(f"{count} {reason}" for reason, count in _reasons(problems).most_common())
    logger.warning("left out %d of %d %s rows (%s); %s", len(bad), len(rows), name, counts, refused)


def _reasons(problems: Sequence[str]) -> Counter[str]:
    """Count the rows that have a problem, by what is wrong without its details."""
    return Counter(problem.partition(":")[0] for problem in problems if problem)


def _report_truncated(lengths: Sequence[int], *, name: str, max_length: int) -> None:
    """Log how many rows do not end where their answer ends."""
    truncated = sum(length > max_length for length in lengths)
    if truncated:
        logger.warning(
            "%d of %d %s rows are longer than --max_length %d and lose the end",
            truncated,
            len(lengths),
            name,
            max_length,
        )


def _excerpt(row: dict[str, Any]) -> str:
    """Return the beginning of a row's first value, in one line."""
    text = " ".join(str(next(iter(row.values()))).split())
    return repr(text[:60])
