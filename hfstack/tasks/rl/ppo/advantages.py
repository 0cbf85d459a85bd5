"""Estimate advantages without a critic: from groups of answers, or from the batch.

GAE, which needs a critic, is `estimate_advantages` in formulas.py. Every function works in the
dtype that it is given, so the tests run in float64.

Legend: N completions, T tokens of the longest one, k answers to each prompt (neighbours), G groups
of k. A mask is 1 where a token counts, else 0.
"""

import torch
from torch import Tensor

from hfstack.tasks.rl.ppo.formulas import Reduce, estimate_advantages, masked_moments

ADVANTAGES = ("gae", "rloo", "grpo", "dr_grpo", "reinforce", "reinforce_pp")
GROUP_ADVANTAGES = ("rloo", "grpo", "dr_grpo")  # give a whole completion one number


def leave_one_out_advantages(totals: Tensor, group_size: int) -> Tensor:
    """Return the reward of each completion minus the mean of its group's others, (N,).

    A_i = R_i - sum over j != i of R_j / (k - 1), which is (R_i - mean R) k / (k - 1): RLOO
    (Ahmadian et al. 2024, arXiv:2402.14740, section 3.3; Kool et al. 2019). The baseline does not
    depend on the completion itself, so the gradient stays unbiased.

    Args:
        totals: (N,), R, the score with all that is added to it.
        group_size: k, 2 or more.
    """
    return centred_advantages(totals, group_size) * (group_size / (group_size - 1))


def group_normalised_advantages(
    totals: Tensor, group_size: int, *, epsilon: float = 1e-4
) -> Tensor:
    """Return (R - mean) / (standard deviation + epsilon) within each group, (N,).

    GRPO (Shao et al. 2024, arXiv:2402.03300, section 4.1.2). The standard deviation is that of a
    sample (k - 1), as in TRL and verl; a group of equal rewards has advantages of 0.

    Args:
        totals: (N,).
        group_size: k, 2 or more.
        epsilon: added to the standard deviation, TRL's.
    """
    groups = centred_advantages(totals, group_size).view(-1, group_size)  # (G, k)
    deviation = ((groups**2).sum(dim=1, keepdim=True) / (group_size - 1)).sqrt()  # (G, 1)
    return (groups / (deviation + epsilon)).flatten()


def centred_advantages(totals: Tensor, group_size: int) -> Tensor:
    """Return R minus the mean of its group, (N,).

    Dr. GRPO (Liu et al. 2025, arXiv:2503.20783, section 3): without the standard deviation, which
    gives prompts that are nearly always or nearly never solved a larger weight.

    Args:
        totals: (N,).
        group_size: k.
    """
    groups = totals.view(-1, group_size)  # (G, k)
    # The differences of equal numbers are exactly 0, which the rounding of their mean would not be.
    differences = groups - groups[:, :1]  # (G, k)
    return (differences - differences.mean(dim=1, keepdim=True)).flatten()


def returns_to_go(rewards: Tensor, mask: Tensor, *, gamma: float = 1.0) -> Tensor:
    """Return the discounted reward from each token on, (N, T).

    What REINFORCE weighs the token by: G_t = r_t + gamma G_{t+1} over the tokens that count
    (Williams 1992, "Simple statistical gradient-following algorithms for connectionist
    reinforcement learning"). It is GAE with values of 0 and lambda 1.

    Args:
        rewards: (N, T).
        mask: (N, T).
        gamma: discount of a token.
    """
    nothing = torch.zeros_like(rewards)
    return estimate_advantages(rewards, nothing, mask, gamma=gamma, lam=1.0)[0]


def critic_free_advantages(
    kind: str,
    rewards: Tensor,
    mask: Tensor,
    *,
    group_size: int = 1,
    gamma: float = 1.0,
    reduce: Reduce | None = None,
) -> Tensor:
    """Return the advantage of each token, (N, T), 0 where the mask is 0.

    rloo, grpo and dr_grpo give all tokens of a completion the same. reinforce is the return from
    the token on minus the mean reward of the batch's completions (the reinforcement baseline of
    Williams 1992, section 3). reinforce_pp, REINFORCE++ (Hu 2025, arXiv:2501.03262), is that return
    alone, or with several answers to a prompt minus the mean of their rewards (its variant with a
    baseline); the caller normalises it over the batch by `masked_whiten`.

    Args:
        kind: one of ADVANTAGES but gae.
        rewards: (N, T), of each token, with its KL penalty and the score on the last one.
        mask: (N, T).
        group_size: k; with 1 there is nothing to compare, so rloo, grpo and dr_grpo are 0.
        gamma: discount of a token; reinforce and reinforce_pp only.
        reduce: sums over processes, for the mean of the batch.
    """
    weight = mask.to(rewards.dtype)  # (N, T)
    totals = (rewards * weight).sum(dim=1)  # (N,)

    if kind in GROUP_ADVANTAGES:
        if group_size == 1:
            return torch.zeros_like(rewards)
        estimators = {
            "rloo": leave_one_out_advantages,
            "grpo": group_normalised_advantages,
            "dr_grpo": centred_advantages,
        }
        return estimators[kind](totals, group_size)[:, None] * weight

    returns = returns_to_go(rewards, mask, gamma=gamma)  # (N, T)
    if kind == "reinforce":
        counted = weight.amax(dim=1)  # (N,)
        _, baseline, _ = masked_moments(totals.double(), counted, reduce=reduce)
        return (returns - baseline.to(returns.dtype)) * weight

    assert kind == "reinforce_pp", f"{kind} is none of {ADVANTAGES}"
    means = totals - centred_advantages(totals, group_size)  # (N,)
    return (returns - (means[:, None] if group_size > 1 else 0.0)) * weight
