"""Score the completions of a rollout by the reward functions.

Legend: N completions, T tokens of the longest one, T_i of completion i.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from typing import Any

import torch
from torch import Tensor

from hfstack.errors import DataError
from hfstack.tasks.rewards.prepare import Scores, is_remote, reward_name, score_all
from hfstack.tasks.rl.ppo.experience import pad_right

TokenReward = Callable[..., Sequence[Sequence[float]]]


def start_scoring(
    rewards: Sequence[Any],
    token_rewards: Sequence[TokenReward],
    columns: Mapping[str, Sequence[Any]],
    texts: Sequence[str],
    *,
    completion_ids: Sequence[Sequence[int]],
    finished: Sequence[bool],
    weights: Sequence[float] | None,
    trainer_state: Any,
    device: torch.device,
    pool: Executor,
) -> Callable[[], tuple[Scores, Tensor | None]]:
    """Ask endpoints for their rewards; return what computes the others and gives all.

    Functions run in the thread that calls what is returned: sandboxes that stop a program by
    `signal.alarm`, math_verify's among them, work in the main thread alone.

    Args:
        rewards: prepared reward functions.
        token_rewards: functions that return a number for each token of each completion.
        columns: of the dataset, `prompt` among them; the others reach the rewards by name.
        texts: the completions.
        completion_ids: their tokens, N times (T_i,).
        finished: False where a completion was truncated; passed on, unless the rows have a column
            of that name.
        weights: of the rewards; None for 1 each.
        trainer_state: passed on to the rewards.
        device: of the token rewards.
        pool: waits for the endpoints.

    Returns:
        A function without arguments that returns the scores of the completions, and the token
        rewards (N, T) or None. It raises DataError when no reward applies to a completion, or a
        token reward is malformed.
    """
    prompts = columns["prompt"]
    completions = [
        text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
        for prompt, text in zip(prompts, texts, strict=True)
    ]

    # TRL's trainers pass these by name as well, so the same functions serve both.
    reserved = ("prompt", "prompts", "completions")
    given = {name: column for name, column in columns.items() if name not in reserved}
    given.setdefault("finished", finished)
    given["completion_ids"] = completion_ids
    given["trainer_state"] = trainer_state

    asked = {
        reward_name(reward): pool.submit(reward, prompts=prompts, completions=completions, **given)
        for reward in rewards
        if is_remote(reward)
    }

    def finish() -> tuple[Scores, Tensor | None]:
        scores = score_all(
            rewards, prompts, completions, weights=weights, columns=given, asked=asked
        )
        if not token_rewards and None in scores.totals:
            row = scores.totals.index(None)
            raise DataError(
                "no reward applies to a completion: every one returned None for prompt "
                f"{str(prompts[row])[:60]!r}, completion {texts[row][:60]!r}"
            )

        total: Tensor | None = None
        for reward in token_rewards:
            name, rows = reward_name(reward), reward(prompts, completions, **given)
            table = _token_table(name, rows, prompts, completion_ids, device)  # (N, T)
            scores.each[name] = table.sum(dim=1).tolist()
            total = table if total is None else total + table

        return scores, total

    return finish


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
