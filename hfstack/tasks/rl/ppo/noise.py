"""Tell what rewards say from rounding and the errors of a new critic.

Adam makes whole steps of a gradient of any size, so that where rewards are equal the policy would
follow what is left. Three things may be left, each with its guard:

- rounding between two passes over the same weights, the sampler's and the reference's: a KL within
  it is neither penalised in the reward nor part of the loss (`beyond_rounding`);
- rounding, in bf16 far above that, and the errors of a critic, while all scores so far are equal:
  there are no advantages, and no KL in the loss (`without_noise`);
- the same where only this rollout's scores are equal: whitening divides by a share of the spread
  of all scores so far at least (`smallest_divisor`).

Legend: G groups of k answers.
"""

import torch
from torch import Tensor

# Nats by which two fp32 passes over the same weights differ.
ROUNDING = 2e-5

# Below this standard deviation, or difference, numbers are equal but for rounding.
SMALLEST_SPREAD = 1e-6

# Of the spread of all scores so far. With a critic that has learned, advantages have some 0.3 of
# it; far below they are mostly its errors. Ours.
SMALLEST_SPREAD_SHARE = 0.1


def beyond_rounding(log_probs: Tensor, others: Tensor) -> Tensor:
    """Return where two log-probabilities of a token differ by more than rounding."""
    return (log_probs - others).abs() > ROUNDING


def spread_or_zero(deviation: float) -> float:
    """Return a standard deviation, 0 where it is rounding."""
    return deviation if deviation > SMALLEST_SPREAD else 0.0


def equal_groups(rewards: Tensor) -> Tensor:
    """Return whether the rewards of a group are equal: (G,) bool from (G, k)."""
    return rewards.amax(1) - rewards.amin(1) < SMALLEST_SPREAD


def smallest_divisor(spread: float) -> float:
    """Return what whitening divides by at least, from the spread of all scores."""
    return SMALLEST_SPREAD_SHARE * spread


def without_noise(values: Tensor, spread: float) -> Tensor:
    """Return advantages or weights, zeros while the spread of all scores so far is 0."""
    return values if spread > 0 else torch.zeros_like(values)
