"""Check prompts and best metric, and set PPO's training length in whole rollouts."""

import math
from collections.abc import Sequence
from typing import Any

from datasets import Dataset
from transformers.trainer_utils import SaveStrategy

from hfstack.errors import ConfigError, DataError
from hfstack.logs import get_logger
from hfstack.tasks.rewards.prepare import reward_name
from hfstack.tasks.rl.ppo.config import PPOConfig
from hfstack.tasks.rl.ppo.reward_scores import TokenReward
from hfstack.training.settings import check_best_metric

logger = get_logger(__name__)

# what an evaluation gives to choose the best checkpoint by
_BEST_BY = ("reward", "objective", "ended_share", "kl", "kl_per_completion", "entropy")


def check_prompt_rows(dataset: Any, *, needed: int) -> Dataset:
    """Return the rows, which must have a length and a column `prompt`.

    Raises:
        DataError: rows that are streamed, no rows at all, or no column `prompt`.
    """
    if not isinstance(dataset, Dataset):
        raise DataError(
            "PPO samples prompts by their row number, so rows cannot be streamed: drop --streaming"
        )

    if len(dataset) < needed:
        raise DataError(f"{len(dataset)} prompts, but at least {needed} are needed: give more")

    if "prompt" not in dataset.column_names:
        raise DataError(
            f"the rows need a column 'prompt'; found: {', '.join(dataset.column_names) or 'none'}"
        )

    return dataset


def check_best_checkpoint(
    args: PPOConfig, rewards: Sequence[Any], token_rewards: Sequence[TokenReward]
) -> None:
    """Refuse a best metric that no evaluation gives.

    Raises:
        ConfigError: it is none of the metrics that evaluations log.
    """
    names = [reward_name(reward) for reward in (*rewards, *token_rewards)]
    own = [f"rewards/{name}/mean" for name in names]
    check_best_metric(args, [*_BEST_BY, *own], has_loss=False)


def set_training_length(args: PPOConfig, prompts: int) -> None:
    """Set `max_steps`, and round intervals up to whole rollouts.

    Trainer reads both from its settings, which are changed here.
    """
    episodes = args.rollout_size * args.world_size
    if args.max_steps <= 0:
        passes = args.num_train_epochs * prompts * args.num_generations
        wanted = passes if args.total_episodes is None else args.total_episodes
        args.max_steps = math.ceil(wanted / episodes) * args.steps_per_rollout

    for name in ("save_steps", "eval_steps", "logging_steps"):
        steps = getattr(args, name)
        if steps:
            whole = args.whole_rollouts(steps * args.max_steps if steps < 1 else steps)
            if whole != steps and name != "logging_steps":
                logger.info(
                    "--%s %g becomes %d optimizer steps: whole rollouts", name, steps, whole
                )
            setattr(args, name, whole)

    by_steps = args.save_strategy == SaveStrategy.STEPS
    if args.load_best_model_at_end and by_steps and args.save_steps % (args.eval_steps or 1):
        raise ConfigError(
            f"--load_best_model_at_end needs checkpoints where evaluations are: --save_steps "
            f"{args.save_steps:g} is no multiple of --eval_steps {args.eval_steps:g} (both in "
            "whole rollouts)"
        )
