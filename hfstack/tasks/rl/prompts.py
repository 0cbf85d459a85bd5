"""Check what TRL's online trainers (RLOO, GRPO) assume of model and prompts.

The trainers pad prompts on the left and call the model without `position_ids`, take the reference
model from the policy's own path, and log the KL a token.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any, cast

import torch
from datasets import Dataset
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from trl import GRPOConfig, RLOOConfig

from hfstack.data.sources import DataArgs, load_splits, require_columns
from hfstack.errors import CheckpointError, ConfigError, DataError
from hfstack.logs import get_logger
from hfstack.models.context import context_length
from hfstack.tokens.chat import render_chat, stop_at_end_of_turn
from hfstack.training.checks import no_double_bos, preflight, train_and_eval_are_disjoint

logger = get_logger(__name__)

_SHIFT_TOKENS = 8
_TOLERANCE_NATS = 1e-3  # rounding in float32 is below 1e-4
_HALF_TOLERANCE_NATS = 0.1  # mean over the tokens, because 16-bit angles of rotary positions round
_RARELY = 0.05


def check_start(name: str | None) -> None:
    """Refuse what reinforcement learning cannot start from, before anything is loaded.

    Raises:
        CheckpointError: an architecture without weights, or an adapter whose base would silently
            become the reference.
    """
    if name is None or name.endswith(".json"):
        raise CheckpointError(
            f"--model_name_or_path {name} has no weights: reinforcement learning starts from a "
            "trained model, such as "
            "the output directory of the sft recipe"
        )

    if (Path(name) / "adapter_config.json").is_file():
        raise CheckpointError(
            f"--model_name_or_path {name} is an adapter: the KL would be measured to its base "
            "model instead of to it; "
            "merge it into its base first (sft does with --merge_adapter), and name the merged "
            "model"
        )


def check_policy(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str | None
) -> None:
    """Refuse a model that TRL would train wrongly, and set where generation stops.

    Raises:
        ConfigError: left padding changes the model's log-probabilities, or nothing ends its
            answers.
    """
    if not stop_at_end_of_turn(model, tokenizer):
        raise ConfigError(
            f"{name}: neither the tokenizer nor the model has an eos token, so no answer would "
            "ever end"
        )

    difference, tolerance = left_padding_difference(model)
    if difference > tolerance:
        raise ConfigError(
            f"{name}: padding on the left changes the log-probabilities by {difference:.3g} nats, "
            "as it does for "
            "absolute position embeddings (GPT-2): TRL pads on the left without position_ids, so "
            "training would be "
            "wrong; use a model with rotary positions (Llama, Qwen, ...)"
        )


def left_padding_difference(model: PreTrainedModel) -> tuple[float, float]:
    """Return how much left padding changes log-probabilities, and the tolerance.

    In nats.

    The same 16 tokens are read bare and after 8 masked tokens, as TRL's trainers call the model. In
    float32 the largest difference counts, in 16 bits the mean one.
    """
    rows = len(torch.as_tensor(model.get_input_embeddings().weight))
    generator = torch.Generator().manual_seed(0)
    token_ids = torch.randint(0, rows, (1, 16), generator=generator).to(model.device)  # (1, T)
    padding = torch.zeros((1, _SHIFT_TOKENS), dtype=torch.long, device=model.device)
    training = model.training

    model.eval()
    with torch.no_grad():
        bare = cast(Any, model)(
            input_ids=token_ids, attention_mask=torch.ones_like(token_ids)
        ).logits
        padded = cast(Any, model)(
            input_ids=torch.cat([padding, token_ids], dim=1),
            attention_mask=torch.cat([padding, torch.ones_like(token_ids)], dim=1),
        ).logits[:, _SHIFT_TOKENS:]

    model.train(training)
    targets = token_ids[:, 1:, None]

    # (1, T - 1, 1)
    changes = (
        bare[:, :-1].float().log_softmax(-1).gather(2, targets)
        - padded[:, :-1].float().log_softmax(-1).gather(2, targets)
    ).abs()

    if bare.dtype == torch.float32:
        return float(changes.max()), _TOLERANCE_NATS
    return float(changes.mean()), _HALF_TOLERANCE_NATS


def load_prompts(
    data_args: DataArgs, *, recipe: str, as_chat: bool, quarantine_file: Path
) -> dict[str, Any]:
    """Return the splits with `prompt`: texts, or conversations that end with the user.

    Args:
        data_args: `text_column` may name the column of prompts where it is not `prompt`.
        recipe: named in messages.
        as_chat: make each plain prompt the user's turn of a conversation, so that the chat template
            is applied.
        quarantine_file: where malformed rows go.

    Raises:
        DataError: no such column, or a prompt is empty or ends with an answer.
    """
    column = "prompt" if data_args.text_column == "text" else data_args.text_column

    splits = load_splits(
        dataclasses.replace(data_args, text_column=column), quarantine_file=quarantine_file
    )
    for split, rows in splits.items():
        require_columns(rows, {column}, recipe=recipe)
        if column != "prompt":
            rows = (
                rows.remove_columns("prompt") if "prompt" in rows.column_names else rows
            ).rename_column(column, "prompt")

        if isinstance(rows, Dataset):
            for number, prompt in enumerate(rows["prompt"], 1):
                if problem := _fault(prompt):
                    raise DataError(f"{recipe}: {split} row {number}, column {column!r}: {problem}")

        splits[split] = rows.map(_as_conversation) if as_chat else rows

    return splits


def check_prompts(
    splits: dict[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel,
    *,
    max_completion_length: int | None,
    max_prompt_length: int | None = None,
) -> None:
    """Check prompts: too long, a doubled bos, held-out prompts that are trained on.

    Rows that are streamed cannot be looked at beforehand and are not.

    Args:
        splits: rows with a column `prompt`, by split.
        tokenizer: the policy's.
        model: whose context must hold a prompt and its completion.
        max_completion_length: tokens that a completion may take.
        max_prompt_length: tokens that a prompt is truncated to; None keeps all.
    """
    prompts = {
        name: list(rows["prompt"]) for name, rows in splits.items() if isinstance(rows, Dataset)
    }
    if not prompts:
        return

    whole = [encode_prompt(prompt, tokenizer) for side in prompts.values() for prompt in side]
    encoded = [
        truncate_prompt(token_ids, max_prompt_length, tokenizer.bos_token_id) for token_ids in whole
    ]
    limit, answer_tokens = context_length(model.config), max_completion_length or 1

    sides = [[json.dumps(prompt) for prompt in prompts.get(name, [])] for name in ("train", "eval")]
    results = {
        "no doubled bos": no_double_bos(encoded, cast(int | None, tokenizer.bos_token_id)),
        "held-out prompts are not trained on": train_and_eval_are_disjoint(*sides),
    }

    if limit is not None:
        lengths = [len(token_ids) for token_ids in encoded]
        too_long = [
            number for number, length in enumerate(lengths, 1) if length + answer_tokens > limit
        ]
        results["prompts and completions fit the context"] = (
            f"{len(too_long)} of {len(lengths)} prompts, first row {too_long[0]} with "
            f"{lengths[too_long[0] - 1]} "
            f"tokens, leave less than --max_completion_length {answer_tokens} of the context of "
            f"{limit} "
            "tokens; shorten the completions, or leave the long prompts out"
            if too_long
            else None
        )

    preflight(results)


def check_groups(splits: dict[str, Any], training_args: RLOOConfig | GRPOConfig) -> None:
    """Refuse batches without whole groups of answers, and fewer rows than one batch.

    Raises:
        ConfigError: the evaluation batch is no multiple of the answers to a prompt.
        DataError: there are fewer prompts than one generation needs, so there would be no step at
            all.
    """
    group = training_args.num_generations or 1
    answers = training_args.num_generations_eval or group
    batch = training_args.per_device_eval_batch_size * training_args.world_size
    if "eval" in splits and batch % answers:
        raise ConfigError(
            f"--per_device_eval_batch_size {training_args.per_device_eval_batch_size} on "
            f"{training_args.world_size} "
            f"process(es) is no multiple of the {answers} answers to a prompt; choose one"
        )

    needed = (training_args.generation_batch_size or 1) // group
    rows = splits["train"]
    if isinstance(rows, Dataset) and len(rows) < needed:
        raise DataError(
            f"{len(rows)} prompts to train on, but one generation batch takes {needed} "
            "(generation_batch_size "
            f"{training_args.generation_batch_size} / num_generations {group}); give more "
            "prompts, or lower --per_device_train_batch_size"
        )


def encode_prompt(prompt: Any, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens of a prompt as TRL's online trainers read it.

    Raises ConfigError for a conversation when the tokenizer has no chat template.
    """
    if isinstance(prompt, str):
        return cast(list[int], tokenizer(prompt)["input_ids"])

    if tokenizer.chat_template is None:
        raise ConfigError(
            "the prompts are conversations but the model's tokenizer has no chat template; for "
            "plain prompts set "
            "--as_chat false"
        )

    rendered = render_chat(
        tokenizer, prompt, add_generation_prompt=True, tokenize=True, return_dict=True
    )
    return cast(list[int], rendered["input_ids"])


def truncate_prompt(token_ids: list[int], longest: int | None, bos_token_id: Any) -> list[int]:
    """Return the last `longest` tokens of a prompt, its bos kept; None keeps all."""
    if longest is None or len(token_ids) <= longest:
        return token_ids
    begins = token_ids[:1] if bos_token_id is not None and token_ids[0] == bos_token_id else []
    return begins + token_ids[len(token_ids) - longest + len(begins) :]


class CompletionMetrics(TrainerCallback):
    """Log `ended_share` and `kl_per_completion`, and warn when no completion ends.

    `kl_per_completion` is the KL to the reference in nats summed over a completion: TRL's KL a
    token times the mean length, which is exact for one batch.
    """

    def __init__(self) -> None:
        self._warned = False

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Derive both from what was just logged."""
        logs = kwargs["logs"]
        for prefix in ("", "eval_"):
            cut_share = logs.get(f"{prefix}completions/clipped_ratio")
            if cut_share is None:
                continue
            numbers = {f"{prefix}ended_share": round(1 - cut_share, 4)}

            if (kl := logs.get(f"{prefix}kl")) is not None:
                numbers[f"{prefix}kl_per_completion"] = (
                    kl * logs[f"{prefix}completions/mean_length"]
                )

            logs.update(numbers)
            state.log_history[-1].update(numbers)

            if 1 - cut_share < _RARELY and not self._warned:
                self._warned = True
                logger.warning(
                    "step %d: %.0f %% of the completions end by themselves; the others are cut at "
                    "--max_completion_length: allow longer ones, or train the model to stop first "
                    "(said once)",
                    state.global_step,
                    100 * (1 - cut_share),
                )


def summarize(history: list[dict[str, Any]]) -> dict[str, float]:
    """Return where the curves begin and end.

    `start_reward` and its like are of the evaluation before the first step (`--eval_on_start`),
    `reward` and its like of the last training log."""
    names = (
        "reward",
        "reward_std",
        "kl",
        "kl_per_completion",
        "ended_share",
        "completions/mean_length",
        "entropy",
    )

    start = next((row for row in history if "eval_reward" in row and row["step"] == 0), {})
    end = next((row for row in reversed(history) if "reward" in row), {})
    found = {f"start_{name.rpartition('/')[2]}": start.get(f"eval_{name}") for name in names}
    found |= {name: end.get(name) for name in names}

    return {name: value for name, value in found.items() if value is not None}


def last_evaluation(history: list[dict[str, Any]], step: int) -> dict[str, float] | None:
    """What an evaluation after this very step found, or None.

    Answers take long to write, so it is not made twice.
    """
    row = next((row for row in reversed(history) if "eval_reward" in row), {})
    return (
        {name: value for name, value in row.items() if name != "step"}
        if row.get("step") == step
        else None
    )


def _as_conversation(row: dict[str, Any]) -> dict[str, Any]:
    prompt = row["prompt"]
    return {"prompt": [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt}


def _fault(prompt: Any) -> str | None:
    """What is wrong with a prompt, or None."""
    if isinstance(prompt, str):
        return None if prompt.strip() else "the prompt is empty"

    if (
        not isinstance(prompt, list)
        or not prompt
        or not all(isinstance(turn, dict) for turn in prompt)
    ):
        return f"a prompt is text or a list of messages {{role, content}}, got {str(prompt)[:40]!r}"

    return (
        "the conversation ends with an answer; it must end with the user's turn"
        if (prompt[-1].get("role") == "assistant")
        else None
    )
