"""Score the completions of a rollout by the reward functions.

Legend: N completions, T tokens of the longest one, T_i of completion i.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hfstack.errors import DataError
from hfstack.tasks.rewards.prepare import Scores, reward_name, score_all
from hfstack.tasks.rl.ppo.experience import pad_right

TokenReward = Callable[..., Sequence[Sequence[float]]]


def score_texts(
    rewards: Sequence[Any],
    token_rewards: Sequence[TokenReward],
    columns: Mapping[str, Sequence[Any]],
    texts: Sequence[str],
    *,
    completion_ids: Sequence[Sequence[int]],
    weights: Sequence[float] | None,
    trainer_state: Any,
    device: torch.device,
) -> tuple[Scores, Tensor | None]:
    """Return the scores of the completions, and the token rewards (N, T) or None.

    Args:
        rewards: prepared reward functions.
        token_rewards: functions that return a number for each token of each completion.
        columns: of the dataset, `prompt` among them; the others reach the rewards by name.
        texts: the completions.
        completion_ids: their tokens, N times (T_i,).
        weights: of the rewards; None for 1 each.
        trainer_state: passed on to the rewards.
        device: of the token rewards.

    Raises:
        DataError: no reward applies to a completion, or a token reward is malformed.
    """
    prompts = columns["prompt"]
    completions = [
        text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
        for prompt, text in zip(prompts, texts, strict=True)
    ]

    # TRL's trainers pass these by name as well, so the same functions serve both.
    reserved = ("prompt", "prompts", "completions")
    given = {name: column for name, column in columns.items() if name not in reserved}
    given["completion_ids"] = completion_ids
    given["trainer_state"] = trainer_state

    scores = score_all(rewards, prompts, completions, weights=weights, columns=given)
    if not token_rewards and None in scores.totals:
        row = scores.totals.index(None)
        raise DataError(
            "no reward applies to a completion: every one returned None for prompt "
            f"{str(prompts[row])[:60]!r}, completion {texts[row][:60]!r}"
        )

    total: Tensor | None = None
    for reward in token_rewards:
        rows = reward(prompts, completions, **given)
        table = _token_table(reward_name(reward), rows, prompts, completion_ids, device)  # (N, T)
        scores.each[reward_name(reward)] = table.sum(dim=1).tolist()
        total = table if total is None else total + table

    return scores, total


def _token_table(
    name: str,
    rows: Sequence[Sequence[float]],
    prompts: Sequence[Any],
    completion_ids: Sequence[Sequence[int]],
    device: torch.device,
) -> Tensor:
    """Return the numbers of one token reward as (N, T), checked."""
    tensors = [torch.as_tensor(row).float() for row in rows]
    if [len(row) for row in tensors] != [len(completion) for completion in completion_ids]:
        raise DataError(
            f"token reward {name!r} must return one number for each token of each completion"
        )

    table = pad_right(tensors, device)
    if not table.isfinite().all():
        row = int((~table.isfinite()).any(dim=1).nonzero()[0])
        raise DataError(
            f"token reward {name!r} returned NaN or infinity for prompt {str(prompts[row])[:60]!r}"
        )

    return table
