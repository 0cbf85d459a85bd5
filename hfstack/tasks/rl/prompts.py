"""Load, check and encode the prompts of online reinforcement learning."""

import dataclasses
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

from datasets import Dataset, Features, Json
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hfstack.data.columns import require_columns
from hfstack.data.places import BadRows, rows_by_line
from hfstack.data.sources import DataArgs, load_splits
from hfstack.data.splitting import Splits
from hfstack.errors import ConfigError, DataError
from hfstack.logs import get_logger
from hfstack.models.context import context_length
from hfstack.progress import follow_calls
from hfstack.row_counts import RowCounts
from hfstack.runs.rendering import follow_rendering
from hfstack.tokens.chat import encode_for_generation
from hfstack.tokens.rendering import log_odd_turns
from hfstack.tokens.seams import decode_answer, opening_for
from hfstack.tokens.turns import (
    columns_beside,
    is_conversation,
    read_tools,
    read_turns,
    split_tools,
    with_system,
    with_tools,
)
from hfstack.training.checks import (
    every_turn_is_rendered,
    no_double_bos,
    train_and_eval_are_disjoint,
)
from hfstack.training.preflight import NO_SHARED_ROW, Problems

logger = get_logger(__name__)


def load_prompts(
    data_args: DataArgs,
    *,
    recipe: str,
    as_chat: bool,
    quarantine_file: Path,
    row_counts: RowCounts | None = None,
) -> Splits:
    """Return the splits with `prompt`: texts, or conversations that end with the user.

    Args:
        data_args: `text_column` may name the column of prompts where it is not `prompt`.
        recipe: named in messages.
        as_chat: make each plain prompt the user's turn of a conversation, so that the chat template
            is applied.
        quarantine_file: where malformed rows go.
        row_counts: gets the rows of each split, and which columns are read.

    Raises:
        DataError: no such column, or a prompt is empty or ends with an answer.
    """
    column = "prompt" if data_args.text_column == "text" else data_args.text_column
    named = dataclasses.replace(data_args, text_column=column)
    row_counts = RowCounts() if row_counts is None else row_counts
    splits = load_splits(named, quarantine_file=quarantine_file, row_counts=row_counts)

    sources = [*data_args.datasets, *data_args.eval_datasets]
    bad_rows = BadRows(data_args.on_bad_row, quarantine_file, row_counts)
    for split, rows in splits.items():
        require_columns(rows, {column}, recipe=recipe)
        as_read: Any = rows

        # The column that is named takes the place of one called `prompt`.
        if column != "prompt":
            if "prompt" in rows.column_names:
                rows = rows.remove_columns("prompt")
            rows = rows.rename_column(column, "prompt")

        # Streamed rows cannot be read twice.
        if not isinstance(rows, Dataset):
            splits[split] = rows.map(partial(_read_prompt, beside={})) if as_chat else rows
            continue

        chat = as_chat or _is_turns(rows[0]["prompt"])
        beside = _find_beside(rows, chat=chat)
        if split == "train":
            read = ["prompt", *beside.values()]
            row_counts.name_columns(rows.column_names, read, rest_for_rewards=True)
        problems = [
            (split, number, f"column {column!r}: {problem}")
            for number, row in enumerate(cast(Any, rows), 1)
            if (problem := _row_problem(row, beside=beside))
        ]
        with rows_by_line({split: as_read}, [column], (), sources):
            bad_rows.settle(split, rows, problems)
        if problems:
            left_out = {number - 1 for _, number, _ in problems}
            rows = rows.select([index for index in range(len(rows)) if index not in left_out])
            if not len(rows):
                raise DataError(f"{split}: no prompt is left of {len(problems)}")

        # JSON because Arrow would give every turn the keys of all turns, and templates read them
        if chat:
            features = Features({**rows.features, "prompt": Json()})
            read_prompt = follow_calls(
                partial(_read_prompt, beside=beside), f"reading prompts of {split}", total=len(rows)
            )
            rows = rows.map(read_prompt, features=features, load_from_cache_file=False)
        splits[split] = rows

    return splits


def prompt_problems(
    splits: dict[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel,
    *,
    max_completion_length: int | None,
    max_prompt_length: int | None = None,
) -> Problems:
    """Check prompts: too long, a doubled bos, held-out prompts that are trained on.

    Streamed rows are not checked, since they cannot be read beforehand.

    Args:
        splits: rows with a column `prompt`, by split.
        tokenizer: the policy's.
        model: whose context must hold a prompt and its completion.
        max_completion_length: tokens after which a completion is truncated.
        max_prompt_length: tokens that a prompt is truncated to; None keeps all.

    Returns:
        What `checked` refuses to train on.
    """
    prompts = {
        name: list(rows["prompt"]) for name, rows in splits.items() if isinstance(rows, Dataset)
    }
    if not prompts:
        return {}

    bos = cast(int | None, tokenizer.bos_token_id)
    whole = [tokenize_prompt(prompt, tokenizer) for side in prompts.values() for prompt in side]
    encoded = [truncate_prompt(token_ids, max_prompt_length, bos) for token_ids in whole]
    if long := sum(len(ids) < len(given) for ids, given in zip(encoded, whole, strict=True)):
        logger.warning(
            "%d of %d prompts are longer than --max_prompt_length %d and lose their beginning",
            *(long, len(whole), max_prompt_length),
        )

    # what the template makes of turns
    turned = (split_tools(p)[0] for p in prompts.get("train", []) if not isinstance(p, str))
    log_odd_turns(turned, tokenizer)
    rendered = {
        f"every {name} turn is rendered": every_turn_is_rendered(
            (split_tools(prompt) for prompt in side if not isinstance(prompt, str)), tokenizer
        )
        for name, side in prompts.items()
        if any(not isinstance(prompt, str) for prompt in side)
    }

    # and what both sides of the split share
    train, held_out = (
        [json.dumps(prompt) for prompt in prompts.get(name, [])] for name in ("train", "eval")
    )
    return rendered | {
        "no doubled bos": no_double_bos(encoded, bos),
        NO_SHARED_ROW: train_and_eval_are_disjoint(train, held_out),
        "prompts and completions fit the context": _context_problem(
            [len(token_ids) for token_ids in encoded],
            completion_tokens=max_completion_length or 1,
            limit=context_length(model.config),
        ),
    }


def tokenize_prompt(prompt: Any, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return a prompt's tokens up to its answer, turns rendered with their tools.

    Raises ConfigError for a conversation when the tokenizer has no chat template.
    """
    if isinstance(prompt, str):
        return encode_for_generation(tokenizer, prompt)

    if tokenizer.chat_template is None:
        raise ConfigError(
            "the prompts are conversations but the model's tokenizer has no chat template; for "
            "plain prompts set --as_chat false"
        )

    turns, tools = split_tools(prompt)
    return encode_for_generation(tokenizer, turns, tools)


def decode_completions(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Any],
    prompt_ids: Sequence[Sequence[int]],
    completion_ids: Sequence[Sequence[int]],
) -> list[str]:
    """Return the texts of completions as they stand behind their prompts.

    Args:
        prompts: texts or conversations; what a chat template writes before an answer is left out.
        prompt_ids: of `tokenize_prompt`.
        completion_ids: what was generated; an end token is left out of the text.
    """
    opening = opening_for(prompts, tokenizer)
    return [
        decode_answer(tokenizer, asked, answer, opening="" if isinstance(prompt, str) else opening)
        for prompt, asked, answer in zip(prompts, prompt_ids, completion_ids, strict=True)
    ]


def truncate_prompt(token_ids: list[int], longest: int | None, bos_token_id: Any) -> list[int]:
    """Return the last `longest` tokens of a prompt, its bos kept; None keeps all."""
    if longest is None or len(token_ids) <= longest:
        return token_ids

    bos = token_ids[:1] if bos_token_id is not None and token_ids[0] == bos_token_id else []
    return bos + token_ids[len(token_ids) - longest + len(bos) :]


def read_chat(names: Sequence[str | None], as_chat: bool | None) -> bool:
    """Return whether all models read plain prompts as turns: then tools have a place."""
    return all(follow_rendering(name, as_chat, flag="as_chat", usual=True) for name in names)


def as_the_model_reads(
    prompts: Sequence[Any], name: str | None, *, as_chat: bool | None
) -> list[Any]:
    """Return plain prompts as turns where the model has learned to read them so.

    Args:
        prompts: texts or conversations; conversations stay as they are.
        name: of the model.
        as_chat: decides instead; None for what its run.json says, else turns.

    Raises:
        ConfigError: the run.json says otherwise than `as_chat`.
    """
    if not follow_rendering(name, as_chat, flag="as_chat", usual=True):
        return list(prompts)
    return [
        [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        for prompt in prompts
    ]


def _find_beside(rows: Dataset, *, chat: bool) -> dict[str, str]:
    """Return the columns that go into the chat template, by their use; log the others."""
    beside = columns_beside(rows, [name for name in rows.column_names if name != "prompt"])
    if beside and not chat:
        logger.warning(
            "the columns %s are not read: only conversations have a place for them (--as_chat)",
            ", ".join(map(repr, beside.values())),
        )
        return {}
    return beside


def _read_prompt(row: dict[str, Any], *, beside: dict[str, str]) -> dict[str, Any]:
    """Return the prompt of a row as the turns that the chat template reads."""
    turns = read_turns(row["prompt"], "user")
    turns = with_system(turns, row[beside["system"]] if "system" in beside else None)
    tools = read_tools(row[beside["tools"]]) if "tools" in beside else []
    return {"prompt": with_tools(turns, tools)}


def _is_turns(prompt: Any) -> bool:
    return not isinstance(prompt, str) or is_conversation(prompt)


def _row_problem(row: dict[str, Any], *, beside: dict[str, str]) -> str | None:
    """Return what is wrong with the prompt of a row as it stands in the file, or None."""
    prompt = row["prompt"]
    if problem := _prompt_problem(prompt):
        return problem
    if not _is_turns(prompt):
        return None

    try:
        return _prompt_problem(_read_prompt(row, beside=beside)["prompt"])
    except DataError as error:
        return str(error)


def _prompt_problem(prompt: Any) -> str | None:
    """Return what is wrong with a prompt, or None."""
    if isinstance(prompt, str):
        return None if prompt.strip() else "the prompt is empty"

    is_list = isinstance(prompt, list) and len(prompt) > 0
    if not is_list or not all(isinstance(turn, dict) for turn in prompt):
        return f"a prompt is text or a list of messages {{role, content}}, got {str(prompt)[:40]!r}"

    if prompt[-1].get("role") == "assistant":
        return "the conversation ends with an answer; it must end with the user's turn"
    return None


def _context_problem(
    lengths: list[int], *, completion_tokens: int, limit: int | None
) -> str | None:
    """Return which prompts leave no room for a completion in the context, or None."""
    if limit is None:
        return None

    too_long = [
        number for number, length in enumerate(lengths, 1) if length + completion_tokens > limit
    ]
    if not too_long:
        return None

    first = too_long[0]
    return (
        f"{len(too_long)} of {len(lengths)} prompts, first row {first} with {lengths[first - 1]} "
        f"tokens, leave less than --max_completion_length {completion_tokens} of the context of "
        f"{limit} tokens; shorten the completions, or leave the long prompts out"
    )
