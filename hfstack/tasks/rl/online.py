"""Share what PPO, RLOO and GRPO have in common: prompts, tokenizer and rewards."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from peft import PeftConfig
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerState,
)
from trl import ModelConfig

from hfstack.data.sources import DataArgs
from hfstack.errors import CheckpointError, ConfigError
from hfstack.models.adapters import new_adapter
from hfstack.models.contents import check_kind
from hfstack.models.loading import load_causal_lm, load_tokenizer
from hfstack.runs.rendering import follow_rendering, record_rendering
from hfstack.runs.run import Run
from hfstack.sandbox.run import open_sandbox
from hfstack.tasks.causal_lm.generate import Completion
from hfstack.tasks.rewards.code_tests import CodeTests
from hfstack.tasks.rewards.prepare import Reward, prepare_rewards, reward_folders, score_all
from hfstack.tasks.rl.metrics import StopWithoutSpread, evaluate_policy
from hfstack.tasks.rl.ppo.config import PPOConfig
from hfstack.tasks.rl.ppo.group_config import GroupConfig
from hfstack.tasks.rl.ppo.trainer import PPOTrainer
from hfstack.tasks.rl.prompts import load_prompts, prompt_problems
from hfstack.tasks.shared.probe_settings import ProbeArgs
from hfstack.training.callbacks import SampleTable
from hfstack.training.checkpointing import protect
from hfstack.training.preflight import Problems, checked
from hfstack.training.saving import save_trained

_REWARD_DTYPES = ("float32", "bfloat16", "float16", "auto")
_SHOWN_PROMPTS = 8  # whose answers are kept at each evaluation


@dataclass
class OnlineArgs(ProbeArgs):
    """The reward, the form of the prompts, and what is measured before and after."""

    reward_model: str | None = None
    """Reward model in place of REWARDS: a folder or Hub id, or the http(s) URL of an endpoint; ""
    for REWARDS.
    """
    reward_function: Literal["own", "code_tests"] = "own"
    """Reward by function where there is no reward model: own (the recipe's REWARDS), or code_tests
    (1 for programs that pass the tests of their row, run in a sandbox).
    """
    allow_root: bool = False
    """Let code_tests run programs of the policy as root."""
    allow_weak_sandbox: bool = False
    """Let code_tests run where the system gives no namespaces, with limits alone."""
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


@dataclass(frozen=True)
class OnlineParts:
    """What PPO, RLOO and GRPO train with, beside their settings."""

    checkpoint: str | None  # where training goes on
    splits: dict[str, Any]
    tokenizer: PreTrainedTokenizerBase
    model: PreTrainedModel
    adapter: PeftConfig | None  # to be added to the model
    rewards: list[Any]
    problems: Problems  # what `checked` refuses to train on
    judge: Callable[[list[dict[str, Any]], list[Completion]], list[float | None]]

    @property
    def held_out(self) -> Any:
        """Return the rows that are not trained on, or those that are where there are none."""
        return self.splits.get("eval", self.splits["train"])


def load_parts(
    run: Run,
    model_args: ModelConfig,
    data_args: DataArgs,
    online_args: OnlineArgs,
    training_args: PPOConfig,
    *,
    rewards: Sequence[Reward],
) -> OnlineParts:
    """Load prompts, policy and rewards, and record in run.json what was read.

    Args:
        run: of the recipe.
        model_args: name the policy.
        data_args: name the prompts.
        online_args: the form of the prompts, and the reward model.
        training_args: for lengths, the device, and the weights of the rewards.
        rewards: the recipe's own.

    Raises:
        CheckpointError: the policy has no weights, or a path is no model of its kind.
        ConfigError: the policy learned on the other form of rows, or a reward cannot be called.
        DataError: a row holds no prompt, or a resumed run would read other data.
    """
    checkpoint = run.resume_point()
    splits = load_recorded_prompts(
        run, model_args, data_args, online_args, critic_model=training_args.critic_model
    )
    tokenizer = load_recorded_tokenizer(run, splits, model_args)
    model = load_causal_lm(model_args, tokenizer)
    problems = prompt_problems(
        splits,
        tokenizer,
        model,
        max_completion_length=training_args.max_completion_length,
        max_prompt_length=training_args.max_prompt_length,
    )

    run.record_inputs(*reward_folders(rewards))
    prepared = load_rewards(
        online_args,
        rewards,
        tokenizer,
        device=training_args.device,
        weights=training_args.reward_weights,
    )
    adapter = new_adapter(model_args, model)
    judge = reward_answers(prepared, training_args.reward_weights)
    return OnlineParts(checkpoint, splits, tokenizer, model, adapter, prepared, problems, judge)


def group_trainer(
    run: Run, parts: OnlineParts, args: GroupConfig, push: Sequence[Callable[[Path], None]]
) -> PPOTrainer:
    """Return the trainer of RLOO and GRPO: no critic, the start as the reference.

    Args:
        run: of the recipe.
        parts: what is trained, and on what.
        args: RLOOConfig or GRPOConfig, which say what an answer is compared with.
        push: called with each verified checkpoint's folder.
    """
    trainer = PPOTrainer(
        model=parts.model,
        args=args,
        reward_funcs=parts.rewards,
        train_dataset=parts.splits["train"],
        eval_dataset=parts.splits.get("eval"),
        processing_class=parts.tokenizer,
        callbacks=[
            *policy_callbacks(run, lambda count: trainer.samples(count)),
            *protect(run, push),
        ],
        peft_config=parts.adapter,
    )
    return trainer


def train_and_evaluate(run: Run, trainer: PPOTrainer, parts: OnlineParts) -> dict[str, float]:
    """Train from where the run stopped, save the policy, and return its metrics.

    Raises:
        ConfigError: what `checked` found would train silently wrong.
    """
    checked(trainer, parts.tokenizer, parts.problems).train(resume_from_checkpoint=parts.checkpoint)
    save_trained(run, trainer, partial(load_causal_lm, tokenizer=parts.tokenizer))
    return evaluate_policy(trainer)


def policy_callbacks(
    run: Run, sample: Callable[[int], list[tuple[str, str]]]
) -> list[TrainerCallback]:
    """Return callbacks that save answers, and stop where all are worth the same.

    Args:
        run: of the recipe; its samples.jsonl gets the answers.
        sample: returns (prompt, answer) of the first held-out prompts, as many as are asked.
    """
    run.add_artifact("samples", "samples.jsonl")
    samples = SampleTable(run.output_dir / "samples.jsonl", lambda model: sample(_SHOWN_PROMPTS))
    return [samples, StopWithoutSpread()]


def reward_answers(
    rewards: Sequence[Any], weights: Sequence[float] | None
) -> Callable[[list[dict[str, Any]], list[Completion]], list[float | None]]:
    """Return what gives answers to the prompts of rows the reward of training.

    Args:
        rewards: prepared.
        weights: as many, or None.
    """

    def score(rows: list[dict[str, Any]], answers: list[Completion]) -> list[float | None]:
        prompts = [row["prompt"] for row in rows]
        completions = [
            one.completion
            if isinstance(prompt, str)
            else [{"role": "assistant", "content": one.completion}]
            for prompt, one in zip(prompts, answers, strict=True)
        ]
        reserved = ("prompt", "prompts", "completions")
        others: dict[str, Any] = {
            name: [row[name] for row in rows] for name in rows[0] if name not in reserved
        }
        others.setdefault("finished", [one.finished for one in answers])

        # What the trainer adds. A reward that changes with the steps is that of step 0 on both
        # sides of the comparison, or its own change would be taken for the model's.
        others["completion_ids"] = [list(one.token_ids) for one in answers]
        others["trainer_state"] = TrainerState()
        return score_all(rewards, prompts, completions, weights=weights, columns=others).totals

    return score


def check_starting_model(name: str | None) -> None:
    """Refuse what reinforcement learning cannot start from, before anything is loaded.

    Raises:
        CheckpointError: an architecture without weights, or no causal language model.
    """
    if name is None or name.endswith(".json"):
        raise CheckpointError(
            f"--model_name_or_path {name} has no weights: reinforcement learning starts from a "
            "trained model, such as the output directory of the sft recipe"
        )
    check_kind(name, ("causal language model", "model without a head"))


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
        row_counts=run.record.rows,
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
    if online_args.reward_function == "code_tests":
        if online_args.reward_model:
            raise ConfigError(
                f"--reward_model {online_args.reward_model} and --reward_function code_tests are "
                'two rewards: name one, or switch the model off with --reward_model ""'
            )
        sandbox = open_sandbox(
            allow_root=online_args.allow_root, allow_weak=online_args.allow_weak_sandbox
        )
        chosen = [CodeTests(sandbox)]
    return prepare_rewards(
        chosen,
        device=device,
        policy_tokenizer=tokenizer,
        weights=weights,
        as_text=online_args.reward_as_text,
        dtype=online_args.reward_dtype,
    )
