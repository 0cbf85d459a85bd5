"""Find what a chat template leaves out of a conversation, or marks wrongly.

The rendered text is compared with what the turns hold, without white space, since templates trim.
The longest piece is looked for first and taken out of the text, so that a short answer ("5") is not
found inside another turn.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

from transformers import PreTrainedTokenizerBase

from hfstack.errors import DataError
from hfstack.logs import get_logger
from hfstack.tokens.chat import render_chat, render_with_answers
from hfstack.tokens.turns import Turn, is_learned

logger = get_logger(__name__)

_THINK_TAG = re.compile(r"<(/?)think>")
# A shorter piece may stand in what a template writes by itself, such as the name of a role.
_TELLING_CHARACTERS = 12
_COMPARED_PROMPTS = 50  # rows whose prompt for generation is compared with what is trained
_SHOWN_TOKENS = 5
_STANDARD_KEYS = {"role", "content", "reasoning_content", "tool_calls"}

# what a piece is to a reader, such as "system turn", and its text
Piece = tuple[str, str]


def find_missing(
    tokenizer: PreTrainedTokenizerBase,
    turns: Sequence[Turn],
    tools: Sequence[dict[str, Any]] | None = None,
    *,
    assistant_only: bool = False,
) -> list[str]:
    """Return what the rendered conversation lacks: turns, thoughts, calls or tools.

    Args:
        tokenizer: with the chat template that is used.
        turns: of `read_turns`.
        tools: of `read_tools`.
        assistant_only: the loss is on what the template marks as the assistant's, so that an answer
            outside of the marks, or another turn inside, is named too.

    Raises:
        DataError: the template refuses the turns.
    """
    text, answers = render_with_answers(tokenizer, turns, tools)
    pieces = [*_tool_pieces(tools or []), *(piece for turn in turns for piece in _pieces(turn))]
    missing, _ = _take_out(pieces, _squeeze(text))
    if missing or not assistant_only:
        return missing

    learned = [piece for turn in turns if is_learned(turn) for piece in _pieces(turn)]
    unmarked, rest = _take_out(learned, _squeeze(answers))
    others = [piece for turn in turns if turn["role"] != "assistant" for piece in _pieces(turn)]
    long = [(name, piece) for name, piece in others if len(_squeeze(piece)) >= _TELLING_CHARACTERS]
    marked = [name for name, piece in long if _squeeze(piece) in rest]
    return [f"{name} outside of the generation block" for name in unmarked] + [
        f"{name} inside of the generation block" for name in marked
    ]


def shape_of(turns: Sequence[Turn], tools: Any) -> tuple[Any, ...]:
    """Return what a template may treat differently: roles, keys, thoughts, tools."""
    return bool(tools), *(
        (turn["role"], *sorted(turn), "<think>" in turn["content"]) for turn in turns
    )


def log_odd_turns(
    conversations: Iterable[Iterable[Turn]],
    tokenizer: PreTrainedTokenizerBase,
    *,
    weights: bool = False,
) -> None:
    """Log, with counts, keys that no template reads, and texts that become tokens.

    A turn whose text holds `<|im_end|>` or `</s>` ends there for the model, and goes on as what the
    text says: the tokenizer tells the template's own tokens from it by nothing.

    Args:
        weights: the recipe reads the weights of turns.
    """
    template = str(tokenizer.chat_template)
    read = _STANDARD_KEYS | ({"weight"} if weights else set())
    special = _special_tokens(tokenizer)
    counts: Counter[str] = Counter()
    holding: Counter[tuple[str, str]] = Counter()
    for turns in conversations:
        for turn in turns:
            counts.update(turn.keys() - read)
            holding.update((turn["role"], found) for found in set(special(turn["content"])))

    if holding:
        logger.warning(
            "texts that are read as special tokens: %s; such a turn ends or begins where its text "
            "says so: take them out of the rows, or write them otherwise",
            ", ".join(
                f"{token!r} in {count} turns of {role}"
                for (role, token), count in holding.most_common(_SHOWN_TOKENS)
            ),
        )

    unread = {
        key: count
        for key, count in counts.items()
        if not re.search(rf"\b{re.escape(key)}\b", template)
    }
    if unread:
        logger.warning(
            "keys of turns that the chat template does not read: %s",
            ", ".join(f"{key} ({count} turns)" for key, count in sorted(unread.items())),
        )


def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> Callable[[str], list[str]]:
    """Return what finds special tokens in a text, as the tokenizer does."""
    added = tokenizer.added_tokens_decoder.values()
    names = sorted((str(token.content) for token in added if token.special), key=len, reverse=True)
    if not names or tokenizer.split_special_tokens:
        return lambda text: []
    return re.compile("|".join(map(re.escape, names))).findall


def log_other_prompts(
    conversations: Iterable[tuple[Sequence[Turn], Any]], tokenizer: PreTrainedTokenizerBase
) -> None:
    """Warn where a prompt for generation is no beginning of what is trained.

    Templates of thinking models open a thought in the prompt (`<think>`), which answers without one
    are not trained behind: the model is asked in another way than it has learned. Answers whose
    white space the template trims, such as the indentation of code, and a template that writes the
    date are said too.
    """
    if "strftime_now" in str(tokenizer.chat_template):
        logger.info("the chat template writes today's date, so that each day trains another text")

    looked, other, trimmed, ending = 0, 0, 0, ""
    for turns, tools in islice(conversations, _COMPARED_PROMPTS):
        if not turns or turns[-1]["role"] != "assistant":
            continue

        try:
            options = {"tools": tools or None, "tokenize": False}
            asked = render_chat(tokenizer, turns[:-1], add_generation_prompt=True, **options)
            whole = render_chat(tokenizer, turns, **options)
        except DataError:
            continue
        looked += 1
        answers = [turn["content"] for turn in turns if turn["role"] == "assistant"]
        trimmed += any(text.strip() in whole and text not in whole for text in answers)
        if not whole.startswith(asked):
            other, ending = other + 1, asked[-30:]

    if trimmed:
        logger.warning(
            "the chat template trims the white space around answers of %d of %d conversations: "
            "what they begin or end with, such as indentation, is not learned",
            trimmed,
            looked,
        )
    if other:
        logger.warning(
            "%d of %d conversations are trained behind another prompt than the model is asked with,"
            " which ends with %r: answers with a thought, or another template, agree with it",
            other,
            looked,
            ending,
        )


def _pieces(turn: Turn) -> Iterator[Piece]:
    """Yield what has to stand in the text for a turn."""
    # The split gives texts, and between them the "" of an opening tag or the "/" of a closing one.
    split = turn["role"] == "assistant"
    parts = _THINK_TAG.split(turn["content"]) if split else [turn["content"]]
    for text, tag in zip(parts[::2], [*parts[1::2], ""], strict=True):
        yield ("thought" if tag == "/" else f"{turn['role']} turn"), text

    if "reasoning_content" in turn:
        yield "thought", turn["reasoning_content"]

    for call in turn.get("tool_calls", []):
        yield "tool call", call["function"]["name"]
        yield from (("tool call", text) for text in _texts(call["function"]["arguments"]))


def _tool_pieces(tools: Iterable[dict[str, Any]]) -> Iterator[Piece]:
    for tool in tools:
        for key in ("name", "description"):
            if isinstance(tool["function"].get(key), str):
                yield "tool schema", tool["function"][key]


def _texts(value: Any) -> Iterator[str]:
    """Yield the texts in the arguments of a call; numbers are spelled in many ways."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)


def _take_out(pieces: Iterable[Piece], text: str) -> tuple[list[str], str]:
    """Return the names of pieces that the text lacks, and the text without the others."""
    missing = []
    for name, piece in sorted(pieces, key=lambda piece: -len(_squeeze(piece[1]))):
        # as it is, or as the text inside JSON or Python that templates write
        text_alone = piece.strip()
        escaped = json.dumps(text_alone, ensure_ascii=False)[1:-1], repr(text_alone)[1:-1]
        spellings = [_squeeze(spelling) for spelling in (piece, *escaped)]
        found = next((spelling for spelling in spellings if spelling in text), None)
        if found is None:
            missing.append(name)
        elif found:
            text = text.replace(found, "\0", 1)
    return missing, text


def _squeeze(text: str) -> str:
    return "".join(text.split())
