"""Compute the formulas of PPO: tensors in, tensors out, no model or trainer.

Log-probabilities of tokens are computed from hidden states in log_probs.py. Every function works in
the dtype that it is given, so the tests run in float64.

Legend: B completions, T tokens of the longest one, n scored tokens of a flat batch. A mask is 1 (or
True) where a token counts, and 0 at padding and at tokens that the policy did not generate (a
tool's answer). Log-probabilities and KL are in nats.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from hfstack.tasks.rl.ppo.noise import beyond_rounding, spread_or_zero

KL_ESTIMATORS = ("k1", "k2", "k3", "abs")
RATIO_LEVELS = ("token", "sequence", "completion")

# exp(20) = 5e8 is far beyond any clip range, and its square still fits into fp32.
_LARGEST_LOG_RATIO = 20.0

Reduce = Callable[[Tensor], Tensor]  # the sum of a tensor over all processes


class PolicyLoss(NamedTuple):
    """The policy loss of each token, and where it was clipped.

    All have the shape of the log-probabilities; all but the loss are detached.
    """

    loss: Tensor  # the clipped objective, negated
    ratio: Tensor  # pi_new / pi_old, of the token or of its whole completion
    clipped_low: Tensor  # bool: ratio < 1 - cliprange where the advantage is negative
    clipped_high: Tensor  # bool: ratio > 1 + cliprange_high where the advantage is positive
    approx_kl: Tensor  # k3 of KL(pi_old || pi_new), of each token at every level


@dataclass
class RunningMoments:
    """Mean and variance of all numbers so far; part of a checkpoint.

    Updated in parallel as in Chan et al. (1979).
    """

    count: float = 0.0
    mean: float = 0.0
    squares: float = 0.0  # sum of squared distances from the mean

    def update(self, count: float, mean: float, variance: float) -> None:
        """Add `count` numbers, given by their mean and population variance."""
        if count <= 0:
            return

        total = self.count + count
        distance = mean - self.mean
        self.mean += distance * count / total
        self.squares += variance * count + distance**2 * self.count * count / total
        self.count = total

    @property
    def spread(self) -> float:
        """Return the population's standard deviation; 0 while all numbers are equal."""
        return spread_or_zero((self.squares / self.count) ** 0.5 if self.count > 1 else 0.0)

    @property
    def std(self) -> float:
        """Return the standard deviation to divide by; 1 while all numbers are equal."""
        return self.spread or 1.0


def masked_moments(
    values: Tensor, mask: Tensor, *, reduce: Reduce | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return count, mean and population variance under a mask, over all processes.

    Two passes, (x - mean)^2 after the mean is known, so that large means lose no digits.

    Args:
        values: any shape.
        mask: the same shape.
        reduce: sums a tensor over all processes; None for one process.

    Returns:
        Three scalars of the values' dtype, all 0 where no token counts.
    """
    sum_over_all: Reduce = reduce or (lambda tensor: tensor)

    weight = mask.to(values.dtype)
    count, total = sum_over_all(torch.stack([weight.sum(), (values * weight).sum()])).unbind()
    mean = total / count.clamp(min=1)

    squares = sum_over_all(((values - mean) ** 2 * weight).sum())
    return count, mean, squares / count.clamp(min=1)


def masked_whiten(
    values: Tensor,
    mask: Tensor,
    *,
    shift_mean: bool = True,
    reduce: Reduce | None = None,
    epsilon: float = 1e-8,
    smallest: float = 0.0,
) -> Tensor:
    """Return (x - mean) / sqrt(variance + epsilon) under a mask, 0 elsewhere.

    As in the N+ implementation details (Huang et al. 2024, arXiv:2403.17031), where rewards keep
    their mean and advantages lose it.

    Args:
        values: any shape.
        mask: the same shape.
        shift_mean: False adds the mean again, so that only the spread becomes 1.
        reduce: sums over processes, so that all ranks share one mean and variance.
        epsilon: added to the variance.
        smallest: what is divided by at least, so that noise does not become a signal.
    """
    _, mean, variance = masked_moments(values, mask, reduce=reduce)
    whitened = (values - mean) * torch.rsqrt((variance + epsilon).clamp(min=smallest**2))

    if not shift_mean:
        whitened = whitened + mean
    return whitened * mask.to(values.dtype)


def estimate_kl(log_probs: Tensor, reference: Tensor, *, kind: str = "k1") -> Tensor:
    """Return an estimate per token of KL(pi || reference) on tokens sampled from pi.

    With d = log pi - log reference (Schulman 2020, joschu.net/blog/kl-approx.html): k1 = d is
    unbiased; k2 = d^2 / 2 is biased with little variance, and its gradient is that of the true KL;
    k3 = exp(-d) - 1 + d is unbiased and never negative; abs = |d|. d is clamped to 20 nats.

    Args:
        log_probs: of the sampled tokens under pi, any shape.
        reference: of the same tokens under the reference.
        kind: one of KL_ESTIMATORS.
    """
    difference = (log_probs - reference).clamp(-_LARGEST_LOG_RATIO, _LARGEST_LOG_RATIO)

    if kind == "k1":
        return difference
    if kind == "k2":
        return 0.5 * difference**2
    if kind == "k3":
        return torch.expm1(-difference) + difference

    assert kind == "abs", f"{kind} is none of {KL_ESTIMATORS}"
    return difference.abs()


def kl_beyond_rounding(log_probs: Tensor, reference_log_probs: Tensor, kind: str) -> Tensor:
    """Return the KL of each token as `estimate_kl`, 0 where rounding alone differs."""
    kl = estimate_kl(log_probs, reference_log_probs, kind=kind)
    return kl * beyond_rounding(log_probs, reference_log_probs)


def corrected_kl(kl: Tensor, log_probs: Tensor, old_log_probs: Tensor) -> Tensor:
    """Return the KL of each token by k3 times pi_new / pi_old of the token.

    Tokens of the old policy that are weighed so are as the new policy's, and the gradient of their
    mean is that of the KL (DeepSeek-AI 2025, arXiv:2512.02556, section 3.1): of one token it is
    ratio * log(pi / reference), that of k3 alone only 1 - reference / pi, at most 1.

    Args:
        kl: by `estimate_kl` with k3, any shape.
        log_probs: of the same tokens now; gradients flow through it.
        old_log_probs: when they were sampled.
    """
    log_ratio = (log_probs - old_log_probs).clamp(-_LARGEST_LOG_RATIO, _LARGEST_LOG_RATIO)
    return kl * log_ratio.exp()


def shape_rewards(
    scores: Tensor, penalties: Tensor, mask: Tensor, *, token_rewards: Tensor | None = None
) -> Tensor:
    """Return the reward of each token: KL penalty, final score, token reward.

    r_t = -penalty_t + [t is the last token] score + token_reward_t: the penalised reward of Ziegler
    et al. (2019, arXiv:1909.08593, equation 2), token by token. The score is given at the last
    token that the policy generated: its EOS, or the last one of a truncated completion. TRL's PPO
    gave it one token later.

    Args:
        scores: (B,), one for each completion.
        penalties: (B, T), KL coefficient times KL.
        mask: (B, T).
        token_rewards: (B, T) rewards on single tokens, or None.

    Returns:
        (B, T), 0 where the mask is 0; a row without tokens has no reward.
    """
    weight = mask.to(penalties.dtype)  # (B, T)
    positions = torch.arange(mask.shape[1], device=mask.device)  # (T,)
    last = (positions * mask.to(positions.dtype)).argmax(dim=1, keepdim=True)  # (B, 1)

    rewards = -penalties  # (B, T)
    if token_rewards is not None:
        rewards = rewards + token_rewards

    return rewards.scatter_add(1, last, scores[:, None].to(rewards.dtype)) * weight


def estimate_advantages(
    rewards: Tensor,
    values: Tensor,
    mask: Tensor,
    *,
    gamma: float = 1.0,
    lam: float = 0.95,
    bootstrap: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return generalised advantages (GAE) and the returns that the critic learns.

    delta_t = r_t + gamma V_{t+1} - V_t and A_t = delta_t + gamma lambda A_{t+1} (Schulman et al.
    2016, arXiv:1506.02438, equation 16), where t + 1 is the next token that counts: masked tokens
    pass on what follows them. The return is A_t + V_t.

    Args:
        rewards: (B, T).
        values: (B, T), V of the state before token t.
        mask: (B, T), 0 also where a tool generated the token.
        gamma: discount of a token.
        lam: 1 gives Monte-Carlo returns, 0 one-step ones.
        bootstrap: (B,), the value after the last token; None for 0, since a completion ends its
            episode.

    Returns:
        Advantages and returns, (B, T) each, 0 where the mask is 0.
    """
    weight = mask.to(values.dtype)  # (B, T)
    next_value = torch.zeros_like(values[:, 0])  # (B,)
    advantage = torch.zeros_like(next_value)  # (B,)
    if bootstrap is not None:
        next_value = bootstrap.to(values.dtype)

    # From the last token to the first; all of delta_t but the next value is known beforehand.
    deltas = rewards - values  # (B, T)
    columns: list[Tensor] = []  # T times (B,)
    backwards = zip(
        reversed(weight.unbind(1)),
        reversed(values.unbind(1)),
        reversed(deltas.unbind(1)),
        strict=True,
    )

    for counts, value, delta in backwards:
        new_advantage = delta + gamma * next_value + (gamma * lam) * advantage
        # Where the mask is 0, lerp keeps the advantage and the value of the token after it.
        advantage = torch.lerp(advantage, new_advantage, counts)
        next_value = torch.lerp(next_value, value, counts)
        columns.append(advantage)

    advantages = torch.stack(columns[::-1], dim=1) * weight  # (B, T)
    return advantages, (advantages + values) * weight


def completion_log_ratios(
    log_ratio: Tensor, rows: Tensor, weight: Tensor, *, is_mean: bool
) -> Tensor:
    """Return the log-ratio of each token's whole completion, (n,).

    The mean over its tokens is the sequence-level ratio of GSPO (Zheng et al. 2025,
    arXiv:2507.18071, equation 7), the sum the ratio of a completion that is one action, as RLOO
    takes it (Ahmadian et al. 2024, arXiv:2402.14740).

    Args:
        log_ratio: (n,), log pi_new - log pi_old of each token; gradients flow through it.
        rows: (n,), the completion of each token, from 0.
        weight: (n,), 0 where the policy did not generate the token.
        is_mean: the mean, else the sum.
    """
    counted = (weight > 0).to(log_ratio.dtype)  # (n,)
    completions = int(rows.max()) + 1
    sums = log_ratio.new_zeros(completions).index_add(0, rows, log_ratio * counted)
    if is_mean:
        counts = torch.zeros_like(sums).index_add(0, rows, counted)
        sums = sums / counts.clamp(min=1)
    return sums[rows]


def clipped_policy_loss(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    *,
    cliprange: float = 0.2,
    cliprange_high: float | None = None,
    dual_clip: float | None = None,
    level: str = "token",
    rows: Tensor | None = None,
    weight: Tensor | None = None,
) -> PolicyLoss:
    """Return the clipped policy loss per token.

    -min(r A, clip(r, 1 - low, 1 + high) A) with r = pi_new / pi_old, from Schulman et al. (2017,
    arXiv:1707.06347, equation 7). A wider upper bound is the clip-higher of DAPO (Yu et al. 2025,
    arXiv:2503.14476). With a dual clip c the objective of a token with a negative advantage is at
    least c A, so that a diverging ratio does not raise its gradient any further (Ye et al. 2020,
    arXiv:1912.09729).

    Args:
        log_probs: of the sampled tokens now, any shape; gradients flow through it.
        old_log_probs: of the same tokens when they were sampled.
        advantages: the same shape.
        cliprange: the lower bound is 1 minus it.
        cliprange_high: the upper bound is 1 plus it; None for `cliprange`.
        dual_clip: c, above 1; None for none.
        level: of r, one of RATIO_LEVELS; all but "token" need `rows` and `weight` of
            `completion_log_ratios`.
        rows: (n,).
        weight: (n,).
    """
    high = cliprange if cliprange_high is None else cliprange_high
    log_ratio = log_probs - old_log_probs
    token_log_ratio = log_ratio.clamp(-_LARGEST_LOG_RATIO, _LARGEST_LOG_RATIO)
    if level == "token":
        ratio = token_log_ratio.exp()
    else:
        assert rows is not None and weight is not None, f"level {level} needs rows and weight"
        whole = completion_log_ratios(log_ratio, rows, weight, is_mean=level == "sequence")
        ratio = whole.clamp(-_LARGEST_LOG_RATIO, _LARGEST_LOG_RATIO).exp()

    clipped_ratio = ratio.clamp(1 - cliprange, 1 + high)
    objective = torch.minimum(ratio * advantages, clipped_ratio * advantages)
    if dual_clip is not None:
        objective = torch.where(
            advantages < 0, torch.maximum(objective, dual_clip * advantages), objective
        )

    with torch.no_grad():
        clipped_low = (ratio < 1 - cliprange) & (advantages < 0)
        clipped_high = (ratio > 1 + high) & (advantages > 0)
        approx_kl = torch.expm1(token_log_ratio) - token_log_ratio

    return PolicyLoss(-objective, ratio.detach(), clipped_low, clipped_high, approx_kl)


def clipped_value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, *, cliprange: float | None = 0.2
) -> tuple[Tensor, Tensor]:
    """Return the clipped value loss per token, and where the clipped term won.

    max((V - R)^2, (clip(V, V_old - c, V_old + c) - R)^2) / 2, from OpenAI's first PPO code
    (baselines, ppo2), and so in the N+ implementation details.

    Args:
        values: predicted now, any shape; gradients flow through it.
        old_values: predicted when the tokens were sampled.
        returns: the targets.
        cliprange: c; None for the plain squared error.
    """
    plain = (values - returns) ** 2
    if cliprange is None:
        return 0.5 * plain, torch.zeros_like(plain, dtype=torch.bool)

    change = values - old_values
    clipped_values = old_values + change.clamp(-cliprange, cliprange)
    clipped = (clipped_values - returns) ** 2

    with torch.no_grad():
        # Within the range the two terms differ by rounding alone.
        clipped_won = (change.abs() > cliprange) & (clipped > plain)

    return 0.5 * torch.maximum(plain, clipped), clipped_won


def truncated_importance_weights(
    old_log_probs: Tensor, sampler_log_probs: Tensor, *, cap: float
) -> Tensor:
    """Return min(pi_old / pi_sampler, cap) per token.

    The weight corrects for an engine that samples from a slightly different policy. Truncated
    importance sampling: Yao et al. (2025), "Your efficient RL framework secretly brings you
    off-policy RL training".

    Args:
        old_log_probs: by the trainer's own forward pass, any shape.
        sampler_log_probs: by the engine that sampled.
        cap: above 0; 2 is common.
    """
    log_ratio = (old_log_probs - sampler_log_probs).clamp(-_LARGEST_LOG_RATIO, _LARGEST_LOG_RATIO)
    return log_ratio.exp().clamp(max=cap)


def next_kl_coefficient(
    coefficient: float, kl: float, *, target: float | None, horizon: int, episodes: int
) -> float:
    """Return the KL coefficient of the next rollout.

    With a target, beta (1 + clip(KL / target - 1, -0.2, 0.2) episodes / horizon), as in Ziegler et
    al. (2019), section 2.2.

    Args:
        coefficient: beta of this rollout.
        kl: measured, in nats per completion.
        target: wanted, in nats per completion; None keeps the coefficient fixed.
        horizon: episodes over which an error of 20 % moves the coefficient by 20 %.
        episodes: of this rollout, over all processes.
    """
    if target is None:
        return coefficient

    error = max(-0.2, min(0.2, kl / target - 1))
    return coefficient * (1 + error * episodes / horizon)


def explained_variance(
    values: Tensor, returns: Tensor, mask: Tensor, *, reduce: Reduce | None = None
) -> float:
    """Return 1 - Var(R - V) / Var(R) under a mask, over all processes.

    1 is a perfect critic, 0 one that is no better than a constant, below 0 one that is worse; 0
    also where the returns do not vary.

    Args:
        values: (B, T), predicted by the critic.
        returns: (B, T).
        mask: (B, T).
        reduce: sums over processes.
    """
    _, _, variance = masked_moments(returns, mask, reduce=reduce)
    _, _, unexplained = masked_moments(returns - values, mask, reduce=reduce)
    return float(1 - unexplained / variance) if variance > 1e-12 else 0.0
