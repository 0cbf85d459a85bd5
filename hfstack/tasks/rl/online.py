"""What PPO, RLOO and GRPO share: settings, recorded prompts, policy and rewards."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import GRPOConfig, ModelConfig, RLOOConfig

from hfstack.data.sources import DataArgs
from hfstack.errors import ConfigError
from hfstack.models.loading import load_causal_lm, load_tokenizer
from hfstack.runs.rendering import follow_rendering, record_rendering
from hfstack.runs.run import Run
from hfstack.tasks.rewards.prepare import Reward, prepare_rewards, reward_name
from hfstack.tasks.rl.policy import check_reference, check_starting_model, prepare_policy
from hfstack.tasks.rl.prompts import (
    check_groups,
    decode_completions,
    encode_prompt,
    load_prompts,
    prompt_problems,
)
from hfstack.training.preflight import Problems

_REWARD_DTYPES = ("float32", "bfloat16", "float16", "auto")


@dataclass
class OnlineArgs:
    """The reward, and the form of the prompts."""

    reward_model: str | None = None
    """Reward model in place of REWARDS: a folder or Hub id, or the http(s) URL of an endpoint; ""
    for REWARDS.
    """
    reward_as_text: bool | None = None
    """Give the reward model prompt and answer as plain text; by default where it was trained on
    plain pairs, as its run.json says.
    """
    reward_dtype: str = "float32"
    """Number type of the reward model's weights: float32, bfloat16 (half the memory, scores with 3
    digits), float16 or auto (as it was saved).
    """
    as_chat: bool | None = None
    """Make each plain prompt the user's turn of a conversation; off, prompts are read as they are.
    By default as the model has learned, by its run.json, else on.
    """


def load_recorded_prompts(
    run: Run,
    model_args: ModelConfig,
    data_args: DataArgs,
    online_args: OnlineArgs,
    *,
    critic_model: str | None = None,
) -> dict[str, Any]:
    """Load the splits of prompts, and record in run.json what the run starts from.

    Args:
        run: of the recipe.
        model_args: name the policy.
        data_args: name the prompts.
        online_args: the form of the prompts, and the reward model.
        critic_model: where a separate critic starts.

    Raises:
        CheckpointError: the policy has no weights, or is no causal language model.
        DataError: a row holds no prompt, or a resumed run would read other data.
    """
    check_starting_model(model_args.model_name_or_path)
    as_chat = follow_rendering(
        model_args.model_name_or_path, online_args.as_chat, flag="as_chat", usual=True
    )
    splits = load_prompts(
        data_args,
        recipe=run.record.recipe,
        as_chat=as_chat,
        quarantine_file=run.output_dir / "quarantine.jsonl",
    )

    run.record_inputs(
        model_args.model_name_or_path,
        online_args.reward_model,
        critic_model,
        **splits.inputs,
    )
    return splits


def load_recorded_tokenizer(
    run: Run, splits: dict[str, Any], model_args: ModelConfig
) -> PreTrainedTokenizerBase:
    """Return the policy's tokenizer, and record how it renders the prompts.

    Raises:
        ConfigError: the policy learned on the other form of rows.
        CheckpointError: there is no tokenizer, or it has changed since.
    """
    tokenizer = load_tokenizer(model_args)
    chat = not isinstance(next(iter(splits["train"]))["prompt"], str)
    record_rendering(run.record, model_args.model_name_or_path, tokenizer, chat=chat)
    return tokenizer


def load_policy_and_rewards(
    run: Run,
    splits: dict[str, Any],
    model_args: ModelConfig,
    online_args: OnlineArgs,
    rewards: Sequence[Reward],
    *,
    training_args: RLOOConfig | GRPOConfig,
) -> tuple[PreTrainedTokenizerBase, PreTrainedModel, list[Any], Problems]:
    """Load tokenizer, policy and rewards for TRL's online trainers, and check them.

    Args:
        run: of the recipe.
        splits: prompts that the policy is trained on and evaluated with.
        model_args: name the policy.
        online_args: name the reward model.
        rewards: the recipe's own.
        training_args: for batches, lengths, the device, and the weights of the rewards.

    Returns:
        Tokenizer, policy, rewards (which read completions as `read_behind_prompts` says), and what
        `checked` refuses to train on.

    Raises:
        ConfigError: TRL would train the policy wrongly, batches do not hold whole groups of
            answers, a reward cannot be called, or the weights are more or fewer.
        CheckpointError: a path is not a model.
        DataError: there are fewer prompts than one batch takes.
    """
    check_groups(splits, training_args)
    check_reference(model_args, beta=training_args.beta)
    tokenizer = load_recorded_tokenizer(run, splits, model_args)
    model = load_causal_lm(model_args, tokenizer)
    prepare_policy(model, tokenizer, model_args.model_name_or_path)

    longest = training_args.max_completion_length
    problems = prompt_problems(splits, tokenizer, model, max_completion_length=longest)
    prepared = load_rewards(
        online_args,
        rewards,
        tokenizer,
        device=training_args.device,
        weights=training_args.reward_weights,
    )
    whole = [read_behind_prompts(reward, tokenizer) for reward in prepared]
    return tokenizer, model, whole, problems


def load_rewards(
    online_args: OnlineArgs,
    rewards: Sequence[Reward],
    tokenizer: PreTrainedTokenizerBase,
    *,
    device: torch.device,
    weights: Sequence[float] | None,
) -> list[Any]:
    """Return the reward model that was asked for, or else the recipe's own rewards.

    Args:
        online_args: name the reward model.
        rewards: the recipe's.
        tokenizer: the policy's.
        device: where a reward model is put.
        weights: as many as rewards, or None.

    Raises:
        ConfigError: a reward cannot be called, the weights are more or fewer, or the number type
            is none.
        CheckpointError: the path is not a reward model.
    """
    if online_args.reward_dtype not in _REWARD_DTYPES:
        raise ConfigError(
            f"--reward_dtype must be one of {', '.join(_REWARD_DTYPES)}, got "
            f"{online_args.reward_dtype!r}"
        )

    chosen = [online_args.reward_model] if online_args.reward_model else rewards
    return prepare_rewards(
        chosen,
        device=device,
        policy_tokenizer=tokenizer,
        weights=weights,
        as_text=online_args.reward_as_text,
        dtype=online_args.reward_dtype,
    )


def read_behind_prompts(
    reward: Callable[..., Any], tokenizer: PreTrainedTokenizerBase
) -> Callable[..., Any]:
    """Return a reward that reads completions as they stand behind their prompts.

    TRL's online trainers decode a completion alone, so that tokenizers of the Llama 2 family leave
    out the blank that it begins with: "a little" and " girl" would be scored as "a littlegirl". The
    text comes from `completion_ids`, which TRL passes beside it; turns that a tool wrote stay as
    they are.

    Args:
        reward: prepared.
        tokenizer: the policy's.
    """

    def score(
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]],
        **columns: Any,
    ) -> Any:
        asked = [encode_prompt(prompt, tokenizer) for prompt in prompts]
        texts = decode_completions(tokenizer, prompts, asked, completion_ids)
        alone = tokenizer.batch_decode(
            [list(ids) for ids in completion_ids], skip_special_tokens=True
        )

        whole = [
            _with_text(completion, trl_text, text)
            for completion, trl_text, text in zip(completions, alone, texts, strict=True)
        ]
        return reward(prompts=prompts, completions=whole, completion_ids=completion_ids, **columns)

    score.__name__ = score.__qualname__ = reward_name(reward)
    return score


def _with_text(completion: Any, alone: str, text: str) -> Any:
    """Return a completion with its text behind the prompt in place of the text alone."""
    if isinstance(completion, str):
        return text
    if len(completion) == 1 and completion[0].get("content") == alone:
        return [completion[0] | {"content": text}]
    return completion
