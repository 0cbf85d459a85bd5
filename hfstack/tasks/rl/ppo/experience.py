"""Turn scored completions into what PPO learns from, and the rollout's metrics.

Legend: N episodes of this process, T tokens of the longest completion, F fields, n scored tokens of
a chunk.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from hfstack.tasks.rewards.prepare import Scores
from hfstack.tasks.rl.ppo import formulas
from hfstack.tasks.rl.ppo.batching import Sequences, TokenBatch
from hfstack.tasks.rl.ppo.config import PPOConfig
from hfstack.tasks.rl.ppo.engines.interface import Rollout
from hfstack.tasks.rl.ppo.formulas import Reduce, RunningMoments


@dataclass
class Judged:
    """What rewards and models say about a rollout."""

    scores: Scores  # of the reward functions
    token_rewards: Tensor | None  # (N, T), the weighted sum of rewards on single tokens
    old_log_probs: Tensor  # (N, T)
    values: Tensor  # (N, T)
    reference_log_probs: Tensor | None  # (N, T); None without a KL
    sampler_log_probs: Tensor | None  # (N, T); None where the old ones are the sampler's


@dataclass
class Chunk:
    """Rows of one forward and backward pass."""

    batch: TokenBatch
    # (n,) each: old_log_probs, values, advantages, returns, weight, and what is optional
    fields: dict[str, Tensor]


@dataclass
class Experience:
    """A rollout, ready to learn from."""

    sequences: Sequences
    fields: dict[str, Tensor]  # (N, T) each
    token_counts: Tensor  # (N,) on the CPU: tokens that are learnt from
    rollout: int  # its index

    def __post_init__(self) -> None:
        """Pack the fields into one table, so that a chunk is sliced out of all at once."""
        self._table = torch.stack(list(self.fields.values()))  # (F, N, T)

    def cut(self, rows: Sequence[int]) -> Chunk:
        """Return the given rows as one chunk."""
        device = self._table.device
        chosen = torch.tensor(rows)
        valid = self.sequences.valid[chosen].to(device)  # (b, T)
        flat = self._table[:, chosen.to(device)][:, valid]  # (F, n)
        return Chunk(self.sequences.pack(rows, device), dict(zip(self.fields, flat, strict=True)))


class Tally:
    """Weighted means over all processes; the state is a sum and a weight by name."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}

    def add(self, name: str, values: Tensor, weights: Tensor | None = None) -> None:
        """Count numbers in, each with its weight (1 by default)."""
        counted = torch.ones_like(values) if weights is None else weights.to(values.dtype)
        both = torch.stack([(values * counted).sum(), counted.sum()]).double()
        self._sums[name] = self._sums[name] + both if name in self._sums else both

    def means(self, reduce: Reduce | None = None) -> dict[str, float]:
        """Return the means of all processes, which must have counted the same names.

        NaN where nothing was counted.
        """
        if not self._sums:
            return {}
        table = torch.stack(list(self._sums.values()))
        sums, weights = (reduce(table) if reduce else table).cpu().unbind(1)
        return dict(zip(self._sums, (sums / weights).tolist(), strict=True))


def pad_rows(rows: Iterable[Tensor], device: torch.device) -> Tensor:
    """(N, T) in fp32 from N times (T_i,), 0 where there is no token."""
    return pad_sequence([row.float() for row in rows], batch_first=True).to(device)


def shape_experience(
    args: PPOConfig,
    sequences: Sequences,
    rollout: Rollout,
    judged: Judged,
    *,
    kl_coef: float,
    moments: RunningMoments,
    index: int,
    tis_cap: float | None = None,
    row_weights: Tensor | None = None,
    reduce: Reduce | None = None,
) -> tuple[Experience, dict[str, float]]:
    """Return rewards, advantages and returns of a rollout, and its metrics.

    The metrics are over all processes.

    Args:
        kl_coef: weight of the KL now.
        moments: of all scores so far; scores of training (no `row_weights`) are added.
        index: of the rollout.
        tis_cap: cap of the importance weights; None for none.
        row_weights: (N,) 1 or 0, for an evaluation whose last rows only fill up; None in training.
        reduce: sums over processes.
    """
    device = judged.values.device
    valid = sequences.valid.to(device)  # (N, T)

    # (N,)
    rows = torch.ones(len(valid), device=device) if row_weights is None else row_weights.to(device)
    mask = valid * rows[:, None]

    if rollout.written is not None:
        mask = mask * pad_rows(rollout.written, device)
    finished = rollout.finished.to(device)

    # (N,)
    raw = torch.tensor([float(total or 0.0) for total in judged.scores.totals], device=device)
    scores = _final_scores(
        args, raw, finished, rows, moments, learns=row_weights is None, reduce=reduce
    )

    reference = (
        judged.old_log_probs if judged.reference_log_probs is None else judged.reference_log_probs
    )

    # (N, T)
    kl = formulas.estimate_kl(judged.old_log_probs, reference, kind=args.kl_estimator) * mask
    penalties = torch.zeros_like(kl) if args.kl_in_loss else kl_coef * kl
    rewards = formulas.shape_rewards(scores, penalties, mask, token_rewards=judged.token_rewards)
    advantages, returns = _advantages(args, rewards, judged.values, mask, reduce=reduce)
    weight = mask * finished[:, None] if args.mask_truncated_completions else mask
    critic_metrics = _value_metrics(judged.values, returns, weight, reduce)

    if args.whiten_advantages:
        advantages = formulas.masked_whiten(advantages, weight, reduce=reduce)
    fields = {"old_log_probs": judged.old_log_probs, "values": judged.values, "returns": returns}
    fields |= {"advantages": advantages, "weight": weight}

    if args.kl_in_loss:
        fields["reference_log_probs"] = reference

    if tis_cap is not None and judged.sampler_log_probs is not None:
        fields["importance"] = formulas.truncated_importance_weights(
            judged.old_log_probs, judged.sampler_log_probs, cap=tis_cap
        )

    gained = (
        scores if judged.token_rewards is None else scores + (judged.token_rewards * mask).sum(1)
    )
    tally = Tally()
    tally.add("reward", raw, rows)

    tally.add("objective", gained - kl_coef * kl.sum(1), rows)
    _count_completions(
        tally, sequences, judged, reference=reference, finished=finished, mask=mask, rows=rows
    )
    _count_rewards(tally, judged.scores, rows)

    if "importance" in fields:
        tally.add("sampler/importance", fields["importance"], weight)

    metrics = (
        _with_spreads(tally.means(reduce), raw, rows, reduce)
        | {"kl_coef": kl_coef}
        | critic_metrics
    )

    return Experience(sequences, fields, weight.sum(1).long().cpu(), index), metrics


def _advantages(
    args: PPOConfig, rewards: Tensor, values: Tensor, mask: Tensor, *, reduce: Reduce | None
) -> tuple[Tensor, Tensor]:
    """Advantages and returns (N, T), each with its own lambda.

    The advantages are not whitened yet.
    """
    if args.whiten_rewards:
        rewards = formulas.masked_whiten(rewards, mask, shift_mean=False, reduce=reduce)

    advantages, returns = formulas.estimate_advantages(
        rewards, values, mask, gamma=args.gamma, lam=args.lam
    )

    if args.lam_critic is not None:
        _, returns = formulas.estimate_advantages(
            rewards, values, mask, gamma=args.gamma, lam=args.lam_critic
        )

    return advantages, returns


def _final_scores(
    args: PPOConfig,
    raw: Tensor,
    finished: Tensor,
    rows: Tensor,
    moments: RunningMoments,
    *,
    learns: bool,
    reduce: Reduce | None,
) -> Tensor:
    """Return scores (N,) after the missing-eos penalty, normalisation and clipping.

    In this order.
    """
    scores = raw
    if args.missing_eos_penalty is not None:
        scores = scores - args.missing_eos_penalty * (~finished).to(scores.dtype)

    if args.reward_normalize:
        if learns:
            moments.update(
                *(
                    part.item()
                    for part in formulas.masked_moments(scores.double(), rows, reduce=reduce)
                )
            )
        scores = scores / moments.std

    return scores if args.reward_clip is None else scores.clamp(-args.reward_clip, args.reward_clip)


def _value_metrics(
    values: Tensor, returns: Tensor, weight: Tensor, reduce: Reduce | None
) -> dict[str, float]:
    """How well the critic knew the returns before it learns from them."""
    tally = Tally()
    tally.add("value/mean", values, weight)
    tally.add("value/return_mean", returns, weight)
    explained = formulas.explained_variance(values, returns, weight, reduce=reduce)
    return tally.means(reduce) | {"value/explained_variance": explained}


def _count_completions(
    tally: Tally,
    sequences: Sequences,
    judged: Judged,
    *,
    reference: Tensor,
    finished: Tensor,
    mask: Tensor,
    rows: Tensor,
) -> None:
    """Return KL and entropy of the completions.

    KL by its unbiased estimator whatever the loss uses, entropy by the sampled log-probability.
    """
    difference = judged.old_log_probs - reference
    if judged.reference_log_probs is not None:
        tally.add("kl", difference, mask)
        tally.add("kl_per_completion", (difference * mask).sum(1), rows)

    if judged.sampler_log_probs is not None:
        tally.add("sampler/gap", (judged.old_log_probs - judged.sampler_log_probs).abs(), mask)
    tally.add("entropy", -judged.old_log_probs, mask)
    tally.add("ended_share", finished.float(), rows)
    tally.add("completions/mean_length", sequences.completion_lengths.to(rows.device).float(), rows)


def _count_rewards(tally: Tally, scores: Scores, rows: Tensor) -> None:
    """Each reward on the completions that it applies to."""
    for name, values in scores.each.items():
        applies = torch.tensor([value is not None for value in values], device=rows.device)
        numbers = torch.tensor(
            [0.0 if value is None else value for value in values], device=rows.device
        )
        tally.add(f"rewards/{name}/mean", numbers, rows * applies)
        tally.add(f"rewards/{name}/std", numbers**2, rows * applies)


def _with_spreads(
    found: dict[str, float], raw: Tensor, rows: Tensor, reduce: Reduce | None
) -> dict[str, float]:
    """Add the spread of the reward, and turn mean squares of each reward into spreads."""
    _, _, variance = formulas.masked_moments(raw, rows, reduce=reduce)
    for name in found:
        if name.startswith("rewards/") and name.endswith("/std"):
            mean = found[f"{name.removesuffix('/std')}/mean"]
            found[name] = max(0.0, found[name] - mean**2) ** 0.5
    return {name: value for name, value in found.items() if value == value} | {
        "reward_std": float(variance) ** 0.5
    }
