"""Tokenize a prompt with its answer as one sequence, and make it fit the context."""

from collections.abc import Iterable, Sequence
from typing import Any, cast

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from hfstack.errors import ConfigError, DataError
from hfstack.logs import get_logger
from hfstack.progress import follow
from hfstack.tasks.preferences.rows import Text, answer_text, tools_of
from hfstack.tokens.chat import end_of_turn_id, render_chat
from hfstack.tokens.seams import count_shared, encode_joined
from hfstack.tokens.special_tokens import IGNORED_LABEL
from hfstack.tokens.text_rows import Overlong

logger = get_logger(__name__)

# the tokens of answers in the rows of TRL's trainers
_ANSWER_IDS = ("chosen_ids", "rejected_ids", "completion_ids", "KL_completion_ids")


def encode_answer(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Text,
    answer: Text,
    tools: list[dict[str, Any]] | None = None,
) -> tuple[list[int], int, int]:
    """Return the tokens of prompt and answer, and where the prompt's begin and end.

    A conversation goes through the chat template, with the schemas of its tools. Plain text ends
    with the eos token, from which a causal model reads the reward. A tokenizer of an encoder such
    as BERT has no eos: prompt and answer become its two segments, as in `[CLS] prompt [SEP] answer
    [SEP]`.

    Raises:
        ConfigError: conversations without a chat template, or a tokenizer that can end no text.
    """
    if isinstance(prompt, list):
        if tokenizer.chat_template is None:
            raise ConfigError(
                "the prompts are conversations, but the tokenizer has no chat template: use rows "
                "with plain prompts, or a model with a chat template"
            )
        assert isinstance(answer, list)
        token_ids = _chat_ids(tokenizer, [*prompt, *answer], tools, ask=False)
        end = count_shared(token_ids, _chat_ids(tokenizer, prompt, tools, ask=True))

    # the two segments of an encoder
    elif tokenizer.cls_token_id is not None and tokenizer.sep_token_id is not None:
        encoded = tokenizer(prompt, answer_text(answer))
        segments = encoded.sequence_ids(0)
        inside = [index for index, segment in enumerate(segments) if segment == 0]
        begin = inside[0] if inside else 1
        return list(encoded["input_ids"]), begin, begin + len(inside)

    # plain text
    elif tokenizer.eos_token_id is not None:
        token_ids, end = encode_joined(tokenizer, prompt, answer_text(answer))
        token_ids.append(cast(int, tokenizer.eos_token_id))
    else:
        raise ConfigError(
            f"the tokenizer {tokenizer.name_or_path or ''} has neither an eos token nor cls and "
            "sep tokens, so no text ever ends: use the model's own tokenizer"
        )

    begin = int(tokenizer.bos_token_id is not None and token_ids[:1] == [tokenizer.bos_token_id])
    return token_ids, begin, max(begin, end)


def leave_open(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int], end: int) -> list[int]:
    """Return the tokens of an answer that was truncated, without what ends it.

    What the chat template or `encode_answer` closes an answer with would say that it is finished.

    Args:
        tokenizer: that the tokens are of.
        token_ids: of prompt and answer, as `encode_answer` returns them.
        end: where the prompt ends.
    """
    if tokenizer.sep_token_id is not None and tokenizer.cls_token_id is not None:
        return list(token_ids)  # the segments of an encoder are closed in any case

    closing: tuple[Any, ...] = (tokenizer.eos_token_id, end_of_turn_id(tokenizer))
    places = [place for place in range(end, len(token_ids)) if token_ids[place] in closing]
    return list(token_ids[: places[-1]] if places and places[-1] > 0 else token_ids)


def encode_pairs(
    rows: Iterable[Any],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    overlong: Overlong = "fail",
    name: str = "train",
) -> tuple[Dataset, list[int]]:
    """Return a Dataset of chosen_ids and rejected_ids, and the rows that they are of.

    Args:
        max_length: most tokens of a prompt with its answer.
        overlong: what to do with a pair that is longer: "fail"; "truncate" the prompt at its
            beginning, then the answer before its last token; or "drop" it. What was done is logged.
        name: what messages call the rows.

    Raises:
        DataError: a pair is too long and `overlong` is "fail", or no pair is left.
    """
    pairs: list[dict[str, list[int]]] = []
    kept: list[int] = []
    total = too_long = longest = longest_prompt = truncated_answers = equal = 0

    for number, row in enumerate(follow(rows, f"encoding pairs of {name}")):
        total += 1
        encoded = [
            encode_answer(tokenizer, row["prompt"], row[side], tools_of(row))
            for side in ("chosen", "rejected")
        ]

        length = max(len(token_ids) for token_ids, _, _ in encoded)
        if length > max_length:
            too_long += 1
            longest = max(longest, length)
            longest_prompt = max(longest_prompt, *(end - begin for _, begin, end in encoded))
            truncated_answers += any(
                len(token_ids) - (end - begin) > max_length for token_ids, begin, end in encoded
            )

        if length <= max_length or overlong == "truncate":
            chosen, rejected = (truncate_pair(*each, max_length=max_length) for each in encoded)
            # they differed only in what was truncated, or in what is one token to the tokenizer
            if chosen == rejected:
                equal += 1
                continue
            pairs.append({"chosen_ids": chosen, "rejected_ids": rejected})
            kept.append(number)

    if equal:
        logger.warning("%s: left out %d pairs whose two sides are the same tokens", name, equal)

    if too_long:
        what = f"{name}: {too_long} of {total} pairs are longer than {max_length} tokens"
        if overlong == "fail" or (too_long == total and overlong == "drop"):
            raise DataError(
                f"{what} (the longest has {longest}, the longest prompt {longest_prompt}): raise "
                "--max_length if the model's context allows it, or set --overlong truncate "
                "(prompts lose their beginning) or --overlong drop"
            )

        done = (
            f"truncated at the beginning of the prompt, {truncated_answers} of them in the answer "
            "too"
        )
        logger.warning("%s: %s", what, done if overlong == "truncate" else "left out")

    if not kept:
        raise DataError(
            f"{name}: no pair is left; the two sides of each are the same tokens to this tokenizer"
        )

    return Dataset.from_list(pairs), kept


def encode_sides(
    rows: dict[str, Dataset], tokenizer: PreTrainedTokenizerBase
) -> dict[str, Dataset]:
    """Return pairs with the tokens of both sides, for a trainer with `TokensAsGiven`.

    Columns: `chosen_tokens` and `rejected_tokens`, whole, and `prompt_tokens`, how many of them are
    the prompt's. What TRL reads as text is empty.
    """

    def encode(row: dict[str, Any]) -> dict[str, Any]:
        sides = [
            encode_answer(tokenizer, row["prompt"], row[side], tools_of(row))
            for side in ("chosen", "rejected")
        ]
        (chosen, _, first), (rejected, _, second) = sides
        texts = dict.fromkeys(("prompt", "chosen", "rejected"), "")
        return texts | {
            "chosen_tokens": chosen,
            "rejected_tokens": rejected,
            "prompt_tokens": min(first, second),
        }

    return {
        name: Dataset.from_list(
            [
                encode(row)
                for row in follow(cast(Any, split), f"encoding pairs of {name}", total=len(split))
            ]
        )
        for name, split in rows.items()
    }


class TokensAsGiven:
    """What TRL's ORPO trainer is combined with, to train on tokens of `encode_sides`.

    Its own encoding puts the bos in front and the eos behind, whatever the tokenizer and the chat
    template do, so that it would train other texts than sft, dpo and reward.
    """

    max_length: int  # tokens of a prompt with its answer; TRL sets it

    def tokenize_row(self, feature: dict[str, Any], model: Any = None) -> dict[str, list[int]]:
        """Return the columns that ORPO's loss reads of a pair."""
        begin = feature["prompt_tokens"]
        row: dict[str, list[int]] = {}
        for side in ("chosen", "rejected"):
            ids = feature[f"{side}_tokens"][: self.max_length]
            row[f"{side}_input_ids"] = ids
            row[f"{side}_attention_mask"] = [1] * len(ids)
            row[f"{side}_labels"] = [IGNORED_LABEL] * len(ids[:begin]) + ids[begin:]

        prompt = feature["chosen_tokens"][:begin]
        return row | {"prompt_input_ids": prompt, "prompt_attention_mask": [1] * len(prompt)}


class OneEnd:
    """What TRL's DPO or KTO trainer is combined with, so that an answer ends once.

    TRL writes the eos behind a plain answer, and some tokenizers add theirs behind every text.
    """

    def _prepare_dataset(
        self, dataset: Any, processing_class: Any, args: Any, dataset_name: str
    ) -> Any:
        """Encode a split as TRL does, and take a second end away."""
        upstream: Any = super()
        rows = upstream._prepare_dataset(dataset, processing_class, args, dataset_name)
        end = processing_class.eos_token_id
        columns = [name for name in rows.column_names if name in _ANSWER_IDS]

        def take_away(row: dict[str, Any]) -> dict[str, Any]:
            ids = {name: row[name] for name in columns}
            return {n: a[:-1] if a[-2:] == [end, end] else a for n, a in ids.items()}

        return rows.map(take_away) if columns else rows


def truncate_pair(token_ids: Sequence[int], begin: int, end: int, *, max_length: int) -> list[int]:
    """Truncate the prompt [begin, end) from its start, then the answer's end but one."""
    excess = len(token_ids) - max_length
    if excess <= 0:
        return list(token_ids)
    kept = [*token_ids[:begin], *token_ids[begin + min(excess, end - begin) :]]
    return kept if len(kept) <= max_length else [*kept[: max_length - 1], kept[-1]]


def _chat_ids(
    tokenizer: PreTrainedTokenizerBase,
    messages: list[dict[str, Any]],
    tools: list[dict[str, Any]] | None,
    *,
    ask: bool,
) -> list[int]:
    encoded = render_chat(
        tokenizer, messages, tools=tools, add_generation_prompt=ask, return_dict=True
    )
    return list(encoded["input_ids"])
