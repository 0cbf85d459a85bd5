"""Check preference recipes before the first step: settings, model and rows."""

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, cast

import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import ModelConfig

from hfstack.errors import ConfigError, DataError
from hfstack.logs import get_logger
from hfstack.models.adapters import check_adapter_settings
from hfstack.models.contents import check_kind
from hfstack.models.context import context_length
from hfstack.models.heads import require_equal_ends
from hfstack.models.loading import find_architecture, require_model_name
from hfstack.row_counts import RowCounts
from hfstack.tasks.preferences.rows import answer_text, tools_of
from hfstack.tokens.chat import encode_for_generation
from hfstack.tokens.rendering import log_odd_turns
from hfstack.tokens.special_tokens import end_token_ids
from hfstack.training import checks
from hfstack.training.preflight import NO_SHARED_ROW, Problems

logger = get_logger(__name__)

_SIDES = ("chosen", "rejected", "completion")
OVERLONG_PROMPT = "whose prompt fills --max_length"


def check_starting_policy(args: ModelConfig, *, sharded: bool) -> None:
    """Refuse a model that answers nothing yet, before data is read.

    Raises:
        ConfigError: the model is an architecture, or the adapter settings contradict each other.
        CheckpointError: there is no causal language model at that place.
    """
    check_adapter_settings(args, sharded=sharded)
    name = require_model_name(args)
    if find_architecture(name) is not None:
        raise ConfigError(
            f"--model_name_or_path {name} is an architecture: preferences refine a model that "
            "answers already, such as the output of the sft recipe"
        )
    check_kind(name, ("causal language model", "model without a head"), args.model_revision)


def preference_problems(
    rows: dict[str, Dataset],
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel,
    *,
    max_length: int | None,
    on_bad_row: str,
) -> Problems:
    """Check the prompts of pairs or labels for what trains silently wrong.

    With `on_bad_row` "skip" the trainer leaves out prompts that do not fit.

    Returns:
        What `checked` refuses to train on.

    Raises:
        ConfigError: `max_length` is more than the model reads, or conversations meet a tokenizer
            without a template.
    """
    longest = context_length(model.config)
    if longest is not None and (max_length is None or max_length > longest):
        raise ConfigError(
            f"--max_length {max_length} is longer than the model's context: use --max_length "
            f"{longest}"
        )

    if not isinstance(rows["train"][0]["prompt"], str) and tokenizer.chat_template is None:
        raise ConfigError(
            "the prompts are conversations, but the tokenizer has no chat template: use rows with "
            "plain prompts, or a model with a chat template"
        )

    problems: Problems = {
        "pad is not eos": checks.pad_is_not_eos(tokenizer, end_token_ids(model, tokenizer)),
    }

    for name, split in rows.items():
        lengths = (len(ids) for ids in _encoded_prompts(split, tokenizer))

        # Of a prompt that fills max_length nothing is left to learn: the answer is truncated away.
        if max_length is not None and on_bad_row == "fail":
            problems[f"{name} prompts fit"] = checks.prompts_fit_context(lengths, max_length)

        tokens = (ids[:2] for ids in _encoded_prompts(split, tokenizer))
        problems[f"{name} has no double bos"] = checks.no_double_bos(
            tokens, cast(int | None, tokenizer.bos_token_id)
        )

    return problems | rendering_problems(rows, tokenizer) | _shared_prompts(rows)


def rendering_problems(rows: dict[str, Dataset], tokenizer: PreTrainedTokenizerBase) -> Problems:
    """Check that the chat template renders every turn of prompts and answers."""
    if isinstance(rows["train"][0]["prompt"], str):
        return {}

    each_once = (
        chain(row["prompt"], *(row[side] for side in _SIDES if side in row))
        for row in cast(Any, rows["train"])
    )
    log_odd_turns(each_once, tokenizer)
    return {
        f"every {name} turn is rendered": checks.every_turn_is_rendered(
            _conversations(split), tokenizer
        )
        for name, split in rows.items()
    }


def pair_problems(rows: dict[str, Dataset]) -> Problems:
    """Check that the two answers of each pair differ."""
    problems: Problems = {}
    for name, split in rows.items():
        answers: Any = (map(answer_text, split[side][:]) for side in ("chosen", "rejected"))
        problems[f"{name} answers differ"] = checks.chosen_differs_from_rejected(*answers)

    return problems


def good_share(rows: Dataset) -> float:
    """Return the share of rows with a thumb up.

    Raises DataError when all are the same.
    """
    share = sum(rows["label"]) / len(rows)
    if not 0 < share < 1:
        raise DataError(
            "all train labels are the same: KTO needs answers with a thumb up and with a thumb down"
        )
    return share


def fitting_prompts(
    rows: dict[str, Dataset],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    row_counts: RowCounts,
) -> dict[str, Dataset]:
    """Return the splits without rows whose prompt fills `max_length`, and count them.

    Raises DataError when nothing is left of a split.
    """
    kept: dict[str, Dataset] = {}
    for name, split in rows.items():
        fits = [
            row
            for row, ids in enumerate(_encoded_prompts(split, tokenizer))
            if len(ids) < max_length
        ]
        if not fits:
            raise DataError(
                f"all {len(split)} {name} prompts have {max_length} tokens or more: lengthen "
                "--max_length"
            )

        if len(fits) < len(split):
            logger.info(
                "%d of %d %s prompts fill --max_length and are left out",
                len(split) - len(fits),
                len(split),
                name,
            )
            row_counts.leave_out(name, OVERLONG_PROMPT, len(split) - len(fits))

        kept[name] = split.select(fits)

    return kept


def reward_problems(
    rows: dict[str, Dataset],
    encoded: dict[str, Dataset],
    tokenizer: PreTrainedTokenizerBase,
    *,
    model: torch.nn.Module,
    new_modules: Sequence[str],
) -> Problems:
    """Check the pairs and the head of a reward model, as the trainer has set it up.

    Args:
        rows: the pairs of each split, as text.
        encoded: chosen_ids and rejected_ids of each split.
        model: with its adapter, if it has one.
        new_modules: the modules that the checkpoint did not hold, the head among them; none when it
            was a reward model.

    Returns:
        What `checked` refuses to train on.

    Raises:
        ConfigError: the head of an encoder-decoder cannot read rows like these.
    """
    bos = cast(int | None, tokenizer.bos_token_id)
    problems: Problems = {}

    for name, split in encoded.items():
        chosen, rejected = split["chosen_ids"][:], split["rejected_ids"][:]
        require_equal_ends(cast(Any, model).config, [*chosen, *rejected])
        problems[f"{name} has no double bos"] = checks.no_double_bos([*chosen, *rejected], bos)
        problems[f"{name} answers differ"] = checks.chosen_differs_from_rejected(chosen, rejected)

    problems |= rendering_problems(rows, tokenizer) | _shared_prompts(rows)
    if new_modules:
        trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        heads = {module.rpartition(".")[2] for module in new_modules}
        problems["the head is trained and saved"] = checks.head_is_saved(trained, heads)

    return problems


def prompts_to_show(
    own: list[str],
    rows: dict[str, Dataset],
    tokenizer: PreTrainedTokenizerBase,
    *,
    longest: int | None,
) -> list[list[int]]:
    """Return the prompts to answer while training: the user's, else three held out.

    The user's become a user's turn where the rows are conversations.
    """
    split = rows.get("eval", rows["train"])
    chat = not isinstance(split[0]["prompt"], str)

    asked = [
        encode_for_generation(tokenizer, [{"role": "user", "content": text}] if chat else text)
        for text in own
    ]
    if asked:
        return asked

    first = split.select(range(min(len(split), 50)))
    found = list(_encoded_prompts(_one_of_each_prompt(first), tokenizer))
    return [ids for ids in found if ids and (longest is None or len(ids) <= longest)][:3]


def _one_of_each_prompt(rows: Dataset) -> Dataset:
    """Return the rows without those whose prompt stands in an earlier one."""
    number = {answer_text(prompt): row for row, prompt in reversed(list(enumerate(rows["prompt"])))}
    return rows.select(sorted(number.values()))


def _encoded_prompts(rows: Dataset, tokenizer: PreTrainedTokenizerBase) -> Iterator[list[int]]:
    """Yield the tokens of each prompt up to its answer."""
    columns = [name for name in ("prompt", "tools") if name in rows.column_names]
    for row in cast(Any, rows.select_columns(columns)):
        yield encode_for_generation(tokenizer, row["prompt"], tools_of(row))


def _conversations(rows: Dataset) -> Iterator[tuple[list[Any], list[Any] | None]]:
    """Yield the turns of each prompt with each of its answers, and the tools."""
    for row in cast(Any, rows):
        for side in _SIDES:
            if side in row:
                yield [*row["prompt"], *row[side]], tools_of(row)


def _shared_prompts(rows: dict[str, Dataset]) -> Problems:
    """Check that no held-out prompt is trained on."""
    if "eval" not in rows:
        return {}
    texts: Any = (map(answer_text, rows[name]["prompt"][:]) for name in ("train", "eval"))
    return {NO_SHARED_ROW: checks.train_and_eval_are_disjoint(*texts)}
