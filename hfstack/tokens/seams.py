"""Encode a prompt with its answer, and decode an answer, as one text.

Tokenizers of the SentencePiece family write a blank in front of every text that they encode, and
leave it out in front of every text that they decode. So an answer that is encoded, or decoded,
without its prompt gains or loses a blank: "a little" and " girl" become "a littlegirl". Here both
are read as one text, and only then split.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, cast

from transformers import PreTrainedTokenizerBase

from hfstack.tokens.chat import render_chat

_MARKER = "xyzzy"  # what is looked for in a rendered conversation; no template writes it


def encode_joined(
    tokenizer: PreTrainedTokenizerBase, prompt: str, answer: str
) -> tuple[list[int], int]:
    """Return the ids of the text `prompt + answer`, and how many are the prompt's.

    A token that spans the seam belongs to the answer: it is what has to be predicted where the
    prompt ends. The tokenizer's own start token is the prompt's; its end token is left out, so that
    the caller says whether the text ends.

    Offsets into the text say where the prompt ends. A tokenizer without offsets (one written in
    Python) is asked for the tokens of the prompt alone, and the prompt's are those that both begin
    with.
    """
    return _encode_at_seam(tokenizer, prompt, answer, add_special_tokens=True)[:2]


def spans_seam(tokenizer: PreTrainedTokenizerBase, prompt: str, answer: str) -> bool:
    """Return whether one token holds the prompt's end and the answer's beginning."""
    return _encode_at_seam(tokenizer, prompt, answer, add_special_tokens=True)[2]


def encode_behind(
    tokenizer: PreTrainedTokenizerBase, prompt_ids: Sequence[int], answer: str
) -> list[int]:
    """Return the ids of an answer behind a prompt that is encoded already.

    Where a token would span the seam, the answer is encoded alone: the prompt's tokens stay.
    """
    prompt = str(tokenizer.decode(list(prompt_ids), clean_up_tokenization_spaces=False))
    ids, seam, spans = _encode_at_seam(tokenizer, prompt, answer, add_special_tokens=False)
    if not spans:
        return ids[seam:]
    return list(tokenizer(answer, add_special_tokens=False, verbose=False)["input_ids"])


def decode_answer(
    tokenizer: PreTrainedTokenizerBase,
    prompt_ids: Sequence[int],
    answer_ids: Sequence[int],
    *,
    opening: str = "",
) -> str:
    """Return the text of an answer as it stands behind its prompt.

    Prompt and answer are decoded as one text, without special tokens, and what stands behind the
    prompt's text is the answer. Where the answer changes how the prompt itself is decoded, such as
    by completing a character of several bytes, it begins at the first character that differs.

    Args:
        prompt_ids: what the model read.
        answer_ids: what it generated.
        opening: from `answer_opening`; it is the template's, not the answer's, and left out.
    """
    before = _decode(tokenizer, prompt_ids)
    whole = _decode(tokenizer, [*prompt_ids, *answer_ids])
    length = len(before) if whole.startswith(before) else count_shared(before, whole)
    return whole[length:].removeprefix(opening)


def answer_opening(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the white space that the chat template writes before an answer.

    "" for none. Llama 2's and Mistral's write a blank between `[/INST]` and the answer: a model
    generates it, and the template would write it a second time.
    """
    if tokenizer.chat_template is None:
        return ""

    turns = [{"role": "user", "content": "hello"}]
    asked = str(render_chat(tokenizer, turns, tokenize=False, add_generation_prompt=True))
    turns.append({"role": "assistant", "content": _MARKER})
    answered = str(render_chat(tokenizer, turns, tokenize=False))

    if not answered.startswith(asked):
        return ""
    between = answered[len(asked) :].partition(_MARKER)[0]
    return between if between.isspace() else ""


def opening_for(prompts: Sequence[Any], tokenizer: PreTrainedTokenizerBase) -> str:
    """Return `answer_opening` where the prompts are conversations; "" for texts."""
    chat = any(not isinstance(prompt, str) for prompt in prompts)
    return answer_opening(tokenizer) if chat else ""


def count_shared(first: Sequence[Any], second: Sequence[Any]) -> int:
    """Return how many elements two sequences have in common from the beginning."""
    for index, (one, other) in enumerate(zip(first, second, strict=False)):
        if one != other:
            return index
    return min(len(first), len(second))


def _encode_at_seam(
    tokenizer: PreTrainedTokenizerBase, prompt: str, answer: str, *, add_special_tokens: bool
) -> tuple[list[int], int, bool]:
    """Return ids of both, how many are the prompt's, and whether the next spans both."""
    text = prompt + answer
    encode = partial(tokenizer, add_special_tokens=add_special_tokens, verbose=False)
    if not tokenizer.is_fast:
        ids = _without_end(tokenizer, encode(text)["input_ids"])
        alone = _without_end(tokenizer, encode(prompt)["input_ids"])
        seam = count_shared(ids, alone)
        return ids, seam, seam < len(alone)

    encoded = encode(text, return_offsets_mapping=True)
    ids = _without_end(tokenizer, encoded["input_ids"])
    offsets = cast(list[tuple[int, int]], encoded["offset_mapping"])

    # Special tokens have the offsets (0, 0): in front they are the prompt's.
    seam = next((i for i in range(len(ids)) if offsets[i][1] > len(prompt)), len(ids))

    # Byte-level tokenizers with `trim_offsets` leave blanks out of a token's offsets.
    if seam and answer[:1] == " ":
        start, end = offsets[seam - 1]
        piece = str(tokenizer.decode([ids[seam - 1]], clean_up_tokenization_spaces=False))
        trimmed = 0 if text[start:end].endswith(" ") else len(piece) - len(piece.rstrip(" "))
        seam -= start < end and end + trimmed > len(prompt)

    spans = seam < len(ids) and offsets[seam][0] < len(prompt)
    return ids, seam, spans


def _decode(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int]) -> str:
    """Return the text of tokens; no blank is taken away that stands in it."""
    return str(
        tokenizer.decode(
            list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
    )


def _without_end(tokenizer: PreTrainedTokenizerBase, token_ids: Any) -> list[int]:
    """Return the tokens without an eos at the end, of the tokenizer or of the text."""
    ids = list(token_ids)
    while ids and ids[-1] == tokenizer.eos_token_id:
        ids.pop()
    return ids
