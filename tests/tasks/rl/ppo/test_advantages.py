"""Advantages without a critic: numbers worked out by hand, and what each estimator promises."""

import pytest
import torch
from torch import Tensor

from hfstack.tasks.rl.ppo import advantages
from hfstack.tasks.rl.ppo.formulas import masked_whiten


def by_token(
    kind: str, scores: list[float], *, group_size: int = 1, penalty: float = 0.0, gamma: float = 1.0
) -> Tensor:
    """Of completions of 2 tokens; the score on the last one, the penalty on both."""
    rewards = torch.full((len(scores), 2), -penalty, dtype=torch.float64)
    rewards[:, 1] += torch.tensor(scores, dtype=torch.float64)
    return advantages.critic_free_advantages(
        kind, rewards, torch.ones(len(scores), 2), group_size=group_size, gamma=gamma
    )


def test_each_answer_against_the_mean_of_the_others():
    totals = torch.tensor([1.0, 2.0, 6.0, 0.0, 0.0, 3.0])
    # 1 - (2 + 6) / 2 = -3; 2 - 7 / 2 = -1.5; 6 - 3 / 2 = 4.5; 0 - 1.5, 0 - 1.5, 3 - 0
    expected = [-3.0, -1.5, 4.5, -1.5, -1.5, 3.0]
    assert advantages.leave_one_out_advantages(totals, 3).tolist() == pytest.approx(expected)
    assert by_token("rloo", [1.0, 2.0, 6.0], group_size=3, penalty=0.5).tolist() == [
        [pytest.approx(value)] * 2 for value in expected[:3]
    ], "a penalty that all share cancels, and every token has the completion's"


def test_each_answer_by_the_spread_of_its_group():
    totals = torch.tensor([1.0, 3.0, 5.0, 2.0, 2.0, 2.0], dtype=torch.float64)
    # mean 3, standard deviation sqrt((4 + 0 + 4) / 2) = 2
    found = advantages.group_normalised_advantages(totals, 3, epsilon=0.0)
    assert found[:3].tolist() == pytest.approx([-1.0, 0.0, 1.0])
    assert advantages.group_normalised_advantages(totals, 3)[3:].tolist() == [0.0, 0.0, 0.0]
    assert advantages.centred_advantages(totals, 3).tolist() == pytest.approx([-2, 0, 2, 0, 0, 0])


def test_the_return_still_to_come_against_the_mean_of_the_batch():
    # Totals 0 and 3, whose mean is 1.5; penalties of 0.5 a token.
    found = by_token("reinforce", [1.0, 4.0], penalty=0.5)
    assert found.tolist() == [[0.0 - 1.5, 0.5 - 1.5], [3.0 - 1.5, 3.5 - 1.5]]
    discounted = by_token("reinforce", [1.0, 4.0], gamma=0.5)
    assert discounted.tolist() == [[0.5 - 2.5, 1.0 - 2.5], [2.0 - 2.5, 4.0 - 2.5]]


def test_reinforce_pp_is_the_return_normalised_over_the_batch():
    found = by_token("reinforce_pp", [1.0, 3.0], penalty=0.5)
    assert found.tolist() == [[0.0, 0.5], [2.0, 2.5]]
    # mean 1.25, variance (1.5625 + 0.5625 + 0.5625 + 1.5625) / 4 = 1.0625
    whitened = masked_whiten(found, torch.ones(2, 2))
    assert whitened[0, 0] == pytest.approx(-1.25 / 1.0625**0.5)
    # In groups of 2, whose means are 2 and 10, each is compared with its own.
    grouped = by_token("reinforce_pp", [1.0, 3.0, 10.0, 10.0], group_size=2)
    assert grouped.tolist() == [[-1.0, -1.0], [1.0, 1.0], [0.0, 0.0], [0.0, 0.0]]


@pytest.mark.parametrize("kind", [kind for kind in advantages.ADVANTAGES if kind != "gae"])
@pytest.mark.parametrize("reward", [0.0, 1.0, -1.0, 0.1])
def test_equal_rewards_are_no_signal(kind: str, reward: float):
    rewards = torch.zeros(6, 4)
    rewards[:, 2] = reward
    mask = torch.tensor([1, 1, 1, 0]).expand(6, 4)
    found = advantages.critic_free_advantages(kind, rewards, mask, group_size=3)
    assert not found.any()


@pytest.mark.parametrize("kind", ["rloo", "grpo", "dr_grpo"])
def test_alone_an_answer_has_no_advantage_and_padding_never(kind: str):
    rewards = torch.tensor([[0.0, 1.0, 0.0], [2.0, 0.0, 0.0]])
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    assert not advantages.critic_free_advantages(kind, rewards, mask).any()
    found = advantages.critic_free_advantages(kind, rewards, mask, group_size=2)
    assert torch.equal(found != 0, mask.bool())


def test_a_leave_one_out_baseline_leaves_the_gradient_unbiased():
    """Over every pair of answers, the mean of A grad log pi is the gradient of the mean reward."""
    logits = torch.tensor([0.3, -0.7, 0.2], dtype=torch.float64, requires_grad=True)
    rewards = torch.tensor([1.0, 0.0, 4.0], dtype=torch.float64)
    log_probs = logits.log_softmax(0)
    (expected,) = torch.autograd.grad((log_probs.exp() * rewards).sum(), logits, retain_graph=True)
    objective = torch.zeros((), dtype=torch.float64)
    for first in range(3):
        for second in range(3):
            pair = torch.tensor([first, second])
            found = advantages.leave_one_out_advantages(rewards[pair], 2)
            chance = log_probs[pair].sum().exp().detach()
            objective = objective + chance * (found * log_probs[pair]).mean()
    (gradient,) = torch.autograd.grad(objective, logits)
    assert torch.allclose(gradient, expected, atol=1e-14)
