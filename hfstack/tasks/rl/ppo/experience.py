"""Compute rewards, advantages and returns from a scored rollout, with its metrics.

Legend: N episodes of this process, G groups of k answers to a prompt, T tokens of the longest
completion, T_i of completion i, b rows of a chunk, n scored tokens of a chunk, F fields.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from hfstack.tasks.rewards.prepare import Scores
from hfstack.tasks.rl.ppo import formulas, noise
from hfstack.tasks.rl.ppo.advantages import critic_free_advantages
from hfstack.tasks.rl.ppo.batching import Sequences, TokenBatch
from hfstack.tasks.rl.ppo.config import PPOConfig
from hfstack.tasks.rl.ppo.engines.interface import Rollout
from hfstack.tasks.rl.ppo.formulas import Reduce, RunningMoments


@dataclass
class RewardHistory:
    """Moments of all training so far; part of a checkpoint."""

    scores: RunningMoments = field(default_factory=RunningMoments)  # before normalisation
    gains: RunningMoments = field(default_factory=RunningMoments)  # what advantages are made of


@dataclass
class RolloutScores:
    """What rewards and models say about the completions of a rollout."""

    rewards: Scores  # of the reward functions
    token_rewards: Tensor | None  # (N, T), the sum of the rewards on single tokens
    old_log_probs: Tensor  # (N, T)
    values: Tensor | None  # (N, T); None without a critic
    reference_log_probs: Tensor | None  # (N, T); None without a KL
    sampler_log_probs: Tensor | None  # (N, T); None where the old ones are the sampler's


@dataclass
class Chunk:
    """Rows of one forward and backward pass."""

    batch: TokenBatch
    # (n,) each: old_log_probs, advantages, weight, row (of the chunk), and what is optional
    fields: dict[str, Tensor]

    def set_weights_to_zero(self) -> None:
        """Let no token count."""
        for name in ("weight", "loss_weight"):
            if name in self.fields:
                self.fields[name] = torch.zeros_like(self.fields[name])


@dataclass
class Experience:
    """A rollout that is ready to train on."""

    sequences: Sequences
    fields: dict[str, Tensor]  # (N, T) each
    token_counts: Tensor  # (N,) on the CPU: tokens that are trained on
    loss_counts: Tensor  # (N,) on the CPU: what the row adds to the policy's denominator
    rollout: int  # its index
    kl_coef: float  # weight of the KL for the whole of this rollout

    def __post_init__(self) -> None:
        """Stack the fields, so that a chunk is indexed once for all of them."""
        self._table = torch.stack(list(self.fields.values()))  # (F, N, T)

    def select(self, rows: Sequence[int]) -> Chunk:
        """Return the given rows as one chunk."""
        device = self._table.device
        indices = torch.tensor(rows)  # (b,)
        valid = self.sequences.valid[indices].to(device)  # (b, T)

        flat = self._table[:, indices.to(device)][:, valid]  # (F, n)
        fields = dict(zip(self.fields, flat, strict=True))
        fields["row"] = valid.nonzero()[:, 0]  # (n,)
        return Chunk(self.sequences.pack(rows, device), fields)


class WeightedMeans:
    """Weighted means over all processes, by name.

    The state is a sum and a weight for each name.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}

    def add(self, name: str, values: Tensor, weights: Tensor | None = None) -> None:
        """Add numbers, each with its weight (1 by default)."""
        used = torch.ones_like(values) if weights is None else weights.to(values.dtype)
        sum_and_weight = torch.stack([(values * used).sum(), used.sum()]).double()  # (2,)

        if name in self._sums:
            self._sums[name] = self._sums[name] + sum_and_weight
        else:
            self._sums[name] = sum_and_weight

    def compute(self, reduce: Reduce | None = None) -> dict[str, float]:
        """Return the means of all processes, which must have added the same names.

        NaN where nothing was added.
        """
        if not self._sums:
            return {}

        table = torch.stack(list(self._sums.values()))  # (names, 2)
        sums, weights = (reduce(table) if reduce else table).cpu().unbind(1)
        return dict(zip(self._sums, (sums / weights).tolist(), strict=True))


def pad_right(rows: Iterable[Tensor], device: torch.device) -> Tensor:
    """Return (N, T) in fp32 from N times (T_i,), 0 where there is no token."""
    return pad_sequence([row.float() for row in rows], batch_first=True).to(device)


def shape_experience(
    args: PPOConfig,
    sequences: Sequences,
    rollout: Rollout,
    scored: RolloutScores,
    *,
    kl_coef: float,
    history: RewardHistory,
    index: int,
    tis_cap: float | None = None,
    row_weights: Tensor | None = None,
    reduce: Reduce | None = None,
) -> tuple[Experience, dict[str, float]]:
    """Return rewards, advantages and returns of a rollout, and its metrics.

    The metrics are over all processes.

    Args:
        args: the settings.
        sequences: prompts with their completions.
        rollout: as the engine generated it.
        scored: what rewards and models say about it.
        kl_coef: current weight of the KL.
        history: of all rewards so far; those of training (no `row_weights`) are added.
        index: of the rollout.
        tis_cap: cap of the importance weights; None for none.
        row_weights: (N,) 1, or 0 for the rows that only fill up an evaluation; None in training.
        reduce: sums over processes.
    """
    device = scored.old_log_probs.device
    finished = rollout.finished.to(device)  # (N,)
    rows = torch.ones(len(finished), device=device)  # (N,)
    if row_weights is not None:
        rows = row_weights.to(device)
    mask = _policy_tokens(sequences, rollout, rows)  # (N, T)

    # rewards: the score of the whole completion, the KL penalty of each token
    totals = [float(total or 0.0) for total in scored.rewards.totals]
    raw_scores = torch.tensor(totals, device=device)  # (N,)
    scores = _final_scores(
        args, raw_scores, finished, rows, history.scores, learns=row_weights is None, reduce=reduce
    )  # (N,)
    kl, penalties = _kl_and_penalties(args, scored, mask, kl_coef=kl_coef)  # (N, T) each
    rewards = formulas.shape_rewards(scores, penalties, mask, token_rewards=scored.token_rewards)

    gained = _with_token_rewards(scores, scored, mask)  # (N,)
    if row_weights is None:
        _add_moments(history.gains, gained, rows, reduce)

    # advantages, and what a critic learns
    group_size = args.num_generations if row_weights is None else args.num_generations_eval
    weight = mask * finished[:, None] if args.mask_truncated_completions else mask  # (N, T)
    masks, spread = (mask, weight), history.gains.spread
    learned, critic_metrics = _advantages_and_returns(
        args, rewards, scored.values, masks, group_size=group_size, spread=spread, reduce=reduce
    )

    # what the updates train on; where nothing else moves the policy, no KL in the loss does
    counted = weight if args.entropy_coef else noise.without_noise(weight, spread)  # (N, T)
    loss_weight, loss_counts = _loss_weights(args, counted)  # (N, T), (N,)
    fields = _training_fields(args, scored, tis_cap=tis_cap) | learned | {"weight": weight}
    if loss_weight is not weight:
        fields["loss_weight"] = loss_weight

    # metrics
    means = WeightedMeans()
    means.add("reward", raw_scores, rows)
    means.add("objective", gained - kl_coef * kl.sum(1), rows)
    _add_completion_metrics(means, sequences, scored, finished=finished, mask=mask, rows=rows)
    _add_reward_metrics(means, scored.rewards, rows)
    if group_size > 1:
        _add_share_without_spread(means, raw_scores.view(-1, group_size), rows[::group_size])
    if "importance" in fields:
        means.add("sampler/importance", fields["importance"], weight)
    metrics = _with_standard_deviations(means.compute(reduce), raw_scores, rows, reduce)
    metrics |= {"kl_coef": kl_coef} | critic_metrics

    token_counts = weight.sum(1).long().cpu()  # (N,)
    return Experience(sequences, fields, token_counts, loss_counts.cpu(), index, kl_coef), metrics


def _with_token_rewards(scores: Tensor, scored: RolloutScores, mask: Tensor) -> Tensor:
    """Return scores (N,) plus the rewards of their tokens."""
    if scored.token_rewards is None:
        return scores
    return scores + (scored.token_rewards * mask).sum(1)


def _add_share_without_spread(means: WeightedMeans, groups: Tensor, weights: Tensor) -> None:
    """Add the share of groups (G, k) whose rewards are all equal: they teach nothing.

    Args:
        means: to add to.
        groups: the rewards.
        weights: (G,), 0 for groups that only fill up an evaluation.
    """
    means.add("frac_reward_zero_std", noise.equal_groups(groups).float(), weights)


def _training_fields(
    args: PPOConfig, scored: RolloutScores, *, tis_cap: float | None
) -> dict[str, Tensor]:
    """Return the log-probabilities that the loss compares the new policy's with.

    (N, T) each, beside them the importance weights.
    """
    fields = {"old_log_probs": scored.old_log_probs}
    if args.kl_in_loss:
        fields["reference_log_probs"] = _reference_log_probs_or_old(scored)

    if tis_cap is not None and scored.sampler_log_probs is not None:
        fields["importance"] = formulas.truncated_importance_weights(
            scored.old_log_probs, scored.sampler_log_probs, cap=tis_cap
        )
    return fields


def _policy_tokens(sequences: Sequences, rollout: Rollout, rows: Tensor) -> Tensor:
    """Return the row's weight where the policy generated the token, else 0: (N, T)."""
    mask = sequences.valid.to(rows.device) * rows[:, None]
    if rollout.generated_mask is not None:
        mask = mask * pad_right(rollout.generated_mask, rows.device)
    return mask


def _reference_log_probs_or_old(scored: RolloutScores) -> Tensor:
    """Return the reference's log-probabilities (N, T); without one the KL is 0."""
    if scored.reference_log_probs is None:
        return scored.old_log_probs
    return scored.reference_log_probs


def _kl_and_penalties(
    args: PPOConfig, scored: RolloutScores, mask: Tensor, *, kl_coef: float
) -> tuple[Tensor, Tensor]:
    """Return the KL of each token and its penalty in the reward, (N, T) each."""
    reference = _reference_log_probs_or_old(scored)
    kl = formulas.estimate_kl(scored.old_log_probs, reference, kind=args.kl_estimator) * mask
    if args.kl_in_loss:
        return kl, torch.zeros_like(kl)
    return kl, kl_coef * kl * noise.beyond_rounding(scored.old_log_probs, reference)


def _advantages_and_returns(
    args: PPOConfig,
    rewards: Tensor,
    values: Tensor | None,
    masks: tuple[Tensor, Tensor],
    *,
    group_size: int,
    spread: float,
    reduce: Reduce | None,
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Return the advantages (N, T) as a field, and the critic's fields and metrics.

    Args:
        args: the settings.
        rewards: (N, T), of each token.
        values: (N, T); None without a critic, which then has no fields and no metrics.
        masks: (N, T) each: the tokens that the policy generated, those of them that are trained on.
        group_size: completions of each prompt.
        spread: standard deviation of all scores so far.
        reduce: sums over processes.
    """
    mask, weight = masks
    smallest = noise.smallest_divisor(spread)
    if args.whiten_rewards:
        rewards = formulas.masked_whiten(
            rewards, mask, shift_mean=False, reduce=reduce, smallest=smallest
        )

    fields: dict[str, Tensor] = {}
    metrics: dict[str, float] = {}
    if values is None:
        advantages = critic_free_advantages(
            args.advantage, rewards, mask, group_size=group_size, gamma=args.gamma, reduce=reduce
        )
    else:
        advantages, returns = _gae(args, rewards, values, mask)
        metrics = _value_metrics(values, returns, weight, reduce)
        fields = {"values": values, "returns": returns}

    if args.whiten_advantages:
        advantages = formulas.masked_whiten(advantages, weight, reduce=reduce, smallest=smallest)

    return fields | {"advantages": noise.without_noise(advantages, spread)}, metrics


def _gae(args: PPOConfig, rewards: Tensor, values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return advantages by GAE and returns (N, T), each with its own lambda."""
    advantages, returns = formulas.estimate_advantages(
        rewards, values, mask, gamma=args.gamma, lam=args.lam
    )

    if args.lam_critic is not None:
        _, returns = formulas.estimate_advantages(
            rewards, values, mask, gamma=args.gamma, lam=args.lam_critic
        )

    return advantages, returns


def _loss_weights(args: PPOConfig, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return the weights of tokens (N, T) in the policy's loss, and of rows (N,).

    The loss is divided by the sum of the rows'. "token": a mean over tokens, as DAPO takes it (Yu
    et al. 2025, arXiv:2503.14476, section 3.3). "sequence": a mean over completions of the mean
    over their tokens, GRPO's (Shao et al. 2024, arXiv:2402.03300, equation 3). "constant": a mean
    over completions of the sum over their tokens divided by a constant, the longest length, as Dr.
    GRPO takes it (Liu et al. 2025, arXiv:2503.20783); up to that constant the gradient of REINFORCE
    and RLOO. Completions without a token that counts are in none.
    """
    counts = weight.sum(1)  # (N,)
    if args.loss_aggregation == "token":
        return weight, counts

    if args.loss_aggregation == "sequence":
        return weight / counts.clamp(min=1)[:, None], (counts > 0).to(counts.dtype)

    assert args.loss_aggregation == "constant", args.loss_aggregation
    return weight / args.max_completion_length, (counts > 0).to(counts.dtype)


def _final_scores(
    args: PPOConfig,
    raw_scores: Tensor,
    finished: Tensor,
    rows: Tensor,
    moments: RunningMoments,
    *,
    learns: bool,
    reduce: Reduce | None,
) -> Tensor:
    """Return scores (N,) after EOS penalty, normalisation and clipping, in this order."""
    scores = raw_scores
    if args.missing_eos_penalty is not None:
        scores = scores - args.missing_eos_penalty * (~finished).to(scores.dtype)

    if args.reward_normalize:
        if learns:
            _add_moments(moments, scores, rows, reduce)
        scores = scores / moments.std

    return scores if args.reward_clip is None else scores.clamp(-args.reward_clip, args.reward_clip)


def _add_moments(
    moments: RunningMoments, values: Tensor, rows: Tensor, reduce: Reduce | None
) -> None:
    """Add the numbers (N,) of all processes."""
    found = formulas.masked_moments(values.double(), rows, reduce=reduce)
    count, mean, variance = (part.item() for part in found)
    moments.update(count, mean, variance)


def _value_metrics(
    values: Tensor, returns: Tensor, weight: Tensor, reduce: Reduce | None
) -> dict[str, float]:
    """Return how well the critic predicts the returns before it is trained on them."""
    means = WeightedMeans()
    means.add("value/mean", values, weight)
    means.add("value/return_mean", returns, weight)
    explained = formulas.explained_variance(values, returns, weight, reduce=reduce)
    return means.compute(reduce) | {"value/explained_variance": explained}


def _add_completion_metrics(
    means: WeightedMeans,
    sequences: Sequences,
    scored: RolloutScores,
    *,
    finished: Tensor,
    mask: Tensor,
    rows: Tensor,
) -> None:
    """Add KL, entropy and lengths of the completions.

    The KL is the unbiased estimate (k1) whatever the loss uses, beside it k3, which varies less
    from sample to sample; the entropy is minus the log-probability of the sampled tokens.
    """
    if scored.reference_log_probs is not None:
        log_ratio = scored.old_log_probs - scored.reference_log_probs  # (N, T)
        k3 = formulas.estimate_kl(scored.old_log_probs, scored.reference_log_probs, kind="k3")
        means.add("kl", log_ratio, mask)
        means.add("kl_k3", k3, mask)
        means.add("kl_per_completion", (log_ratio * mask).sum(1), rows)

    if scored.sampler_log_probs is not None:
        gap = (scored.old_log_probs - scored.sampler_log_probs).abs()  # (N, T)
        means.add("sampler/gap", gap, mask)

    means.add("entropy", -scored.old_log_probs, mask)
    means.add("ended_share", finished.float(), rows)
    lengths = sequences.completion_lengths.to(rows.device).float()  # (N,)
    means.add("completions/mean_length", lengths, rows)


def _add_reward_metrics(means: WeightedMeans, rewards: Scores, rows: Tensor) -> None:
    """Add mean and mean square of each reward, where it applies."""
    for name, values in rewards.each.items():
        applies = torch.tensor([value is not None for value in values], device=rows.device)
        numbers = torch.tensor(
            [0.0 if value is None else value for value in values], device=rows.device
        )
        means.add(f"rewards/{name}/mean", numbers, rows * applies)
        means.add(f"rewards/{name}/std", numbers**2, rows * applies)


def _with_standard_deviations(
    metrics: dict[str, float], raw_scores: Tensor, rows: Tensor, reduce: Reduce | None
) -> dict[str, float]:
    """Return the metrics with standard deviations in place of mean squares.

    Those that are NaN, because nothing was added to them, are left out.
    """
    _, _, variance = formulas.masked_moments(raw_scores, rows, reduce=reduce)
    for name in metrics:
        if name.startswith("rewards/") and name.endswith("/std"):
            mean = metrics[f"{name.removesuffix('/std')}/mean"]
            metrics[name] = max(0.0, metrics[name] - mean**2) ** 0.5

    known = {name: value for name, value in metrics.items() if not math.isnan(value)}
    spread = float(variance) ** 0.5
    is_zero = float(noise.spread_or_zero(spread) == 0)
    return {"frac_reward_zero_std": is_zero} | known | {"reward_std": spread}
