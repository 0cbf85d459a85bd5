"""Rounding and equal rewards are separated from a signal, by hand."""

import torch

from hfstack.tasks.rl.ppo import noise


def test_a_difference_of_rounding_is_none():
    log_probs = torch.tensor([-1.0, -1.0, -1.0])
    others = torch.tensor([-1.0, -1.00001, -1.0001])
    assert noise.beyond_rounding(log_probs, others).tolist() == [False, False, True]
    assert noise.spread_or_zero(1e-7) == 0 and noise.spread_or_zero(0.5) == 0.5


def test_groups_whose_rewards_are_equal():
    rewards = torch.tensor([[1.0, 1.0, 1.0], [0.0, 0.0, 1e-3], [-1.0, -1.0 + 1e-8, -1.0]])
    assert noise.equal_groups(rewards).tolist() == [True, False, True]


def test_advantages_are_kept_as_soon_as_scores_have_differed():
    advantages = torch.tensor([[0.5, -0.5]])
    assert torch.equal(noise.without_noise(advantages, 0.0), torch.zeros(1, 2))
    assert torch.equal(noise.without_noise(advantages, 1e-3), advantages)
    assert noise.smallest_divisor(2.0) == 0.2
