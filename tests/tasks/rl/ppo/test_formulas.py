"""The formulas of PPO: hand-worked numbers, definitions written out in float64, and TRL's
formulas.
"""

import math

import pytest
import torch
from torch import Tensor

from hfstack.tasks.rl.ppo import formulas


def brute_force_advantages(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float, bootstrap: Tensor
) -> tuple[Tensor, Tensor]:
    """The definition: A_i = sum over later tokens k of (gamma lambda)^k delta_{i+k}, over the
    tokens that count.
    """
    advantages, returns = torch.zeros_like(values), torch.zeros_like(values)
    for row in range(len(rewards)):
        places = mask[row].nonzero()[:, 0].tolist()
        for start, place in enumerate(places):
            total = 0.0
            for power, here in enumerate(places[start:]):
                after = start + power + 1
                next_value = values[row, places[after]] if after < len(places) else bootstrap[row]
                delta = rewards[row, here] + gamma * next_value - values[row, here]
                total += (gamma * lam) ** power * float(delta)
            advantages[row, place] = total
            returns[row, place] = total + values[row, place]
    return advantages, returns


@pytest.mark.parametrize("seed", range(12))
def test_advantages_are_their_definition(seed: int):
    generator = torch.Generator().manual_seed(seed)
    rows, width = 5, 13
    rewards, values = (
        torch.randn(rows, width, generator=generator, dtype=torch.float64) for _ in range(2)
    )
    lengths = torch.randint(0, width + 1, (rows,), generator=generator)
    mask = (torch.arange(width)[None] < lengths[:, None]).double()
    if seed % 2:  # holes, where a tool generated
        mask = mask * (torch.rand(rows, width, generator=generator) > 0.3)
    bootstrap = torch.randn(rows, generator=generator, dtype=torch.float64) * (seed % 3 == 0)
    found = formulas.estimate_advantages(
        rewards, values, mask, gamma=0.97, lam=0.9, bootstrap=bootstrap
    )
    expected = brute_force_advantages(rewards, values, mask, 0.97, 0.9, bootstrap)
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-12, rtol=0)


def test_advantages_by_hand():
    rewards, values = torch.tensor([[0.0, 1.0]]), torch.tensor([[0.5, 0.25]])
    advantages, returns = formulas.estimate_advantages(
        rewards, values, torch.ones(1, 2), gamma=1.0, lam=0.5
    )
    # delta_1 = 1 - 0.25 = 0.75; delta_0 = 0 + 0.25 - 0.5 = -0.25; A_0 = -0.25 + 0.5 * 0.75 = 0.125
    assert torch.allclose(advantages, torch.tensor([[0.125, 0.75]]))
    assert torch.allclose(returns, torch.tensor([[0.625, 1.0]]))


def test_with_lambda_one_returns_are_what_is_still_to_come():
    generator = torch.Generator().manual_seed(0)
    rewards, values = (
        torch.randn(4, 7, generator=generator, dtype=torch.float64) for _ in range(2)
    )
    mask = (torch.arange(7)[None] < torch.tensor([7, 3, 1, 0])[:, None]).double()
    _, returns = formulas.estimate_advantages(rewards, values, mask, gamma=1.0, lam=1.0)
    assert torch.allclose(returns, (rewards * mask).flip(1).cumsum(1).flip(1) * mask, atol=1e-12)


def test_scores_are_at_the_last_token_that_counts():
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0], [1, 0, 1, 0]])
    scores = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    rewards = formulas.shape_rewards(scores, torch.zeros(5, 4), mask)
    assert rewards.tolist() == [
        [0, 0, 1, 0],
        [0, 0, 0, 2],
        [3, 0, 0, 0],
        [0, 0, 0, 0],
        [0, 0, 5, 0],
    ]
    penalties, dense = torch.full((5, 4), 0.5), torch.ones(5, 4)
    both = formulas.shape_rewards(scores, penalties, mask, token_rewards=dense)
    assert both[0].tolist() == [0.5, 0.5, 1.5, 0.0] and both[3].tolist() == [0, 0, 0, 0]


def test_masked_moments_and_whitening():
    values, mask = torch.tensor([[1.0, 3.0, 99.0]], dtype=torch.float64), torch.tensor([[1, 1, 0]])
    count, mean, variance = formulas.masked_moments(values, mask)
    assert (count, mean, variance) == (2, 2, 1)
    assert formulas.masked_moments(values, mask * 0) == (0, 0, 0)
    assert formulas.masked_whiten(values, mask).tolist() == [
        [pytest.approx(-1), pytest.approx(1), 0]
    ]
    kept = formulas.masked_whiten(values, mask, shift_mean=False)
    assert kept.tolist() == [[pytest.approx(1), pytest.approx(3), 0]]
    generator = torch.Generator().manual_seed(0)
    many = torch.randn(6, 9, generator=generator, dtype=torch.float64) * 4 + 1e6
    chosen = torch.rand(6, 9, generator=generator) > 0.4
    _, mean, variance = formulas.masked_moments(many, chosen)
    assert mean == pytest.approx(float(many[chosen].mean()), rel=1e-12)
    assert variance == pytest.approx(float(many[chosen].var(correction=0)), rel=1e-9)


def test_moments_over_processes_are_those_of_all_tokens_together():
    generator = torch.Generator().manual_seed(1)
    halves = [
        torch.randn(3, 5, generator=generator, dtype=torch.float64) + shift for shift in (0, 7)
    ]
    masks = [torch.rand(3, 5, generator=generator) > 0.5 for _ in halves]
    together, mask = torch.cat(halves), torch.cat(masks)
    expected = formulas.masked_whiten(together, mask)
    # What each process would send: first its count and sum, then its squares around the common
    # mean.
    weights = [one.double() for one in masks]
    sent = sum(
        torch.stack([weight.sum(), (values * weight).sum()])
        for weight, values in zip(weights, halves, strict=True)
    )
    mean = sent[1] / sent[0]
    squares = sum(
        ((values - mean) ** 2 * weight).sum()
        for weight, values in zip(weights, halves, strict=True)
    )
    answers = iter([sent, squares])
    found = formulas.masked_whiten(halves[0], masks[0], reduce=lambda tensor: next(answers))
    assert torch.allclose(found, expected[:3], atol=1e-12)


def test_kl_estimators():
    log_probs, reference = torch.tensor([-1.0, -2.0]), torch.tensor([-1.5, -1.0])
    assert formulas.estimate_kl(log_probs, reference).tolist() == [0.5, -1.0]
    assert formulas.estimate_kl(log_probs, reference, kind="k2").tolist() == [0.125, 0.5]
    assert formulas.estimate_kl(log_probs, reference, kind="abs").tolist() == [0.5, 1.0]
    k3 = formulas.estimate_kl(log_probs, reference, kind="k3")
    assert k3.tolist() == pytest.approx([math.exp(-0.5) - 1 + 0.5, math.e - 1 - 1])
    assert formulas.estimate_kl(torch.tensor([0.0]), torch.tensor([-1e9])).tolist() == [20.0]
    with pytest.raises(AssertionError, match="none of"):
        formulas.estimate_kl(log_probs, reference, kind="k4")


def test_kl_estimators_have_the_means_and_the_gradient_they_promise():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, generator=generator, dtype=torch.float64).requires_grad_()
    reference = torch.randn(6, generator=generator, dtype=torch.float64).log_softmax(0)
    log_probs = logits.log_softmax(0)
    probabilities = log_probs.exp().detach()
    exact = (log_probs.exp() * (log_probs - reference)).sum()
    for kind in ("k1", "k3"):
        mean = (probabilities * formulas.estimate_kl(log_probs, reference, kind=kind)).sum()
        assert mean.item() == pytest.approx(exact.item(), abs=1e-12)
    (expected,) = torch.autograd.grad(exact, logits, retain_graph=True)
    k2 = (probabilities * formulas.estimate_kl(log_probs, reference, kind="k2")).sum()
    assert torch.allclose(
        torch.autograd.grad(k2, logits, retain_graph=True)[0], expected, atol=1e-12
    )
    k1 = (probabilities * formulas.estimate_kl(log_probs, reference)).sum()
    assert torch.autograd.grad(k1, logits)[0].abs().max() < 1e-12, (
        "k1 in the loss would not pull at all"
    )


def test_a_corrected_kl_has_the_gradient_of_the_kl_on_tokens_of_an_older_policy():
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(3, 6, generator=generator, dtype=torch.float64)
    logits = rows[0].clone().requires_grad_()
    old, reference = rows[1].log_softmax(0), rows[2].log_softmax(0)
    log_probs = logits.log_softmax(0)
    exact = (log_probs.exp() * (log_probs - reference)).sum()
    k3 = formulas.estimate_kl(log_probs, reference, kind="k3")
    corrected = (old.exp() * formulas.corrected_kl(k3, log_probs, old)).sum()
    assert corrected.item() == pytest.approx(exact.item(), abs=1e-12)

    (expected,) = torch.autograd.grad(exact, logits, retain_graph=True)
    (found,) = torch.autograd.grad(corrected, logits, retain_graph=True)
    assert torch.allclose(found, expected, atol=1e-12)
    (plain,) = torch.autograd.grad((old.exp() * k3).sum(), logits)
    assert not torch.allclose(plain, expected, atol=0.1)


def test_losses_are_those_of_trl():
    """The formulas of trl.experimental.ppo 1.12, ppo_trainer.py."""
    generator = torch.Generator().manual_seed(0)
    new, old, advantages, values, old_values, returns = (
        torch.randn(4, 6, generator=generator, dtype=torch.float64) * 0.3 for _ in range(6)
    )
    ratio = (new - old).exp()
    expected = torch.max(-advantages * ratio, -advantages * ratio.clamp(0.8, 1.2))
    assert torch.allclose(
        formulas.clipped_policy_loss(new, old, advantages).loss, expected, atol=1e-14
    )
    held = torch.clamp(values, old_values - 0.2, old_values + 0.2)
    theirs = 0.5 * torch.max((values - returns) ** 2, (held - returns) ** 2)
    ours, clipped = formulas.clipped_value_loss(values, old_values, returns)
    assert torch.allclose(ours, theirs, atol=1e-14)
    worse = (held - returns) ** 2 > (values - returns) ** 2 + 1e-12
    assert torch.equal(clipped, worse) and 0 < clipped.sum() < clipped.numel()
    plain, never = formulas.clipped_value_loss(values, old_values, returns, cliprange=None)
    assert torch.allclose(plain, 0.5 * (values - returns) ** 2) and not never.any()


def test_policy_loss_by_hand_with_clip_higher_and_dual_clip():
    old = torch.zeros(6, dtype=torch.float64)
    ratios = torch.tensor([1.5, 1.5, 0.5, 0.5, 1.25, 9.0], dtype=torch.float64)
    advantages = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0, -1.0], dtype=torch.float64)
    found = formulas.clipped_policy_loss(
        ratios.log(), old, advantages, cliprange=0.2, cliprange_high=0.3, dual_clip=3.0
    )
    assert found.loss.tolist() == pytest.approx([-1.3, 1.5, -0.5, 0.8, -1.25, 3.0])
    assert found.clipped_high.tolist() == [True, False, False, False, False, False]
    assert found.clipped_low.tolist() == [False, False, False, True, False, False]
    assert found.ratio.tolist() == pytest.approx(ratios.tolist())
    assert found.approx_kl.tolist() == pytest.approx((ratios - 1 - ratios.log()).tolist())


def test_the_ratio_of_a_whole_completion_by_hand():
    log_ratio = torch.tensor([0.2, 0.4, 9.0, -0.3], dtype=torch.float64, requires_grad=True)
    rows, weight = torch.tensor([0, 0, 0, 1]), torch.tensor([1.0, 1.0, 0.0, 1.0])
    given = {"rows": rows, "weight": weight}  # a tool generated the third token
    mean = formulas.completion_log_ratios(log_ratio, **given, is_mean=True)
    assert mean.tolist() == pytest.approx([0.3, 0.3, 0.3, -0.3])
    total = formulas.completion_log_ratios(log_ratio, **given, is_mean=False)
    assert total.tolist() == pytest.approx([0.6, 0.6, 0.6, -0.3])

    advantages = torch.tensor([1.0, 1.0, 1.0, -1.0], dtype=torch.float64)
    old = torch.zeros(4, dtype=torch.float64)
    found = formulas.clipped_policy_loss(
        log_ratio, old, advantages, cliprange=0.5, level="sequence", **given
    )
    ratios = [math.exp(0.3)] * 3 + [math.exp(-0.3)]
    assert found.ratio.tolist() == pytest.approx(ratios)
    assert found.loss.tolist() == pytest.approx([-ratios[0]] * 3 + [ratios[3]])
    # The loss of the first token pulls both of its completion's tokens, by half of its ratio each.
    (pull,) = torch.autograd.grad(found.loss[0], log_ratio)
    assert pull.tolist() == pytest.approx([-ratios[0] / 2, -ratios[0] / 2, 0, 0])
    clipped = formulas.clipped_policy_loss(log_ratio, old, advantages, level="completion", **given)
    assert clipped.loss.tolist() == pytest.approx([-1.2, -1.2, -1.2, 0.8])
    assert clipped.approx_kl.tolist() == pytest.approx(
        [math.expm1(value) - value for value in (0.2, 0.4, 9.0, -0.3)]
    )


def test_a_clipped_token_has_no_gradient():
    old, advantages = torch.zeros(3), torch.tensor([1.0, -1.0, 1.0])
    new = torch.tensor([0.5, -0.5, 0.0], requires_grad=True)
    formulas.clipped_policy_loss(new, old, advantages).loss.sum().backward()
    assert new.grad is not None and new.grad.tolist() == [0, 0, -1]


def test_importance_weights_are_cut_at_the_cap():
    old, sampler = torch.tensor([0.0, 0.0, 0.0]), torch.tensor([0.0, -math.log(1.5), -5.0])
    assert formulas.truncated_importance_weights(old, sampler, cap=2.0).tolist() == pytest.approx(
        [1, 1.5, 2]
    )


def test_the_kl_coefficient_moves_towards_its_target():
    move = formulas.next_kl_coefficient
    assert move(0.1, 99.0, target=None, horizon=10, episodes=5) == 0.1
    assert move(0.1, 6.6, target=6.0, horizon=100, episodes=50) == pytest.approx(
        0.1 * (1 + 0.1 * 0.5)
    )
    assert move(0.1, 99.0, target=6.0, horizon=100, episodes=50) == pytest.approx(
        0.1 * (1 + 0.2 * 0.5)
    )
    assert move(0.1, 0.0, target=6.0, horizon=100, episodes=50) == pytest.approx(
        0.1 * (1 - 0.2 * 0.5)
    )


def test_running_moments_are_those_of_all_numbers():
    generator = torch.Generator().manual_seed(0)
    moments, parts = formulas.RunningMoments(), []
    assert moments.std == 1.0
    for size in (3, 1, 8):
        numbers = torch.randn(size, generator=generator, dtype=torch.float64) * 3 + 1
        moments.update(size, float(numbers.mean()), float(numbers.var(correction=0)))
        parts.append(numbers)
    moments.update(0, math.nan, math.nan)
    whole = torch.cat(parts)
    assert moments.count == 12 and moments.mean == pytest.approx(float(whole.mean()))
    assert moments.std == pytest.approx(float(whole.std(correction=0)))


def test_explained_variance():
    returns, mask = torch.tensor([[1.0, 2.0, 3.0, 50.0]]), torch.tensor([[1, 1, 1, 0]])
    assert formulas.explained_variance(returns + 5, returns, mask) == pytest.approx(1, abs=1e-5)
    assert formulas.explained_variance(torch.zeros(1, 4), returns, mask) == pytest.approx(
        0, abs=1e-6
    )
    assert formulas.explained_variance(-returns, returns, mask) == pytest.approx(-3, abs=1e-5)
    assert formulas.explained_variance(returns, torch.ones(1, 4), mask) == 0


def test_whitening_divides_by_no_less_than_asked():
    values, mask = torch.tensor([1.0, 3.0, 9.0]), torch.tensor([1, 1, 0])
    assert formulas.masked_whiten(values, mask, smallest=0.5).tolist() == pytest.approx([-1, 1, 0])
    assert formulas.masked_whiten(values, mask, smallest=4.0).tolist() == [-0.25, 0.25, 0]


def test_rounding_is_no_kl_and_has_no_gradient():
    log_probs = torch.tensor([-1.0, -1.0], requires_grad=True)
    found = formulas.kl_beyond_rounding(log_probs, torch.tensor([-1.00001, -1.5]), "k2")
    assert found.tolist() == [0.0, 0.125]
    found.sum().backward()
    assert log_probs.grad is not None and log_probs.grad.tolist() == [0.0, 0.5]
