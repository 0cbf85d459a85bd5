"""Gradients of policy and critic before a step: clipped apart, and the policy's dropped."""

import math

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from hfstack.tasks.rl.ppo.gradients import clip_apart, drop_policy_gradients


def model(policy_norm: float, critic_norm: float) -> nn.Module:
    """A policy and a critic of one layer, with gradients of these norms."""
    made = nn.ModuleDict({"policy": nn.Linear(3, 2), "critic": nn.Linear(3, 1)})
    for name, norm in (("policy", policy_norm), ("critic", critic_norm)):
        weights = list(made[name].parameters())
        for weight in weights:
            weight.grad = torch.ones_like(weight)
        whole = norm_of(made[name])
        for weight in weights:
            weight.grad = torch.ones_like(weight) * norm / whole
    return made


def norm_of(module: nn.Module) -> float:
    grads = [weight.grad for weight in module.parameters() if weight.grad is not None]
    return float(torch.nn.utils.get_total_norm(grads)) if grads else 0.0


def test_a_critic_with_large_gradients_leaves_the_policys_alone():
    made = model(0.25, 100.0)
    found = clip_apart(made, Accelerator(cpu=True), 0.5)
    assert float(found) == pytest.approx(math.hypot(0.25, 100.0))
    assert norm_of(made["policy"]) == pytest.approx(0.25)
    assert norm_of(made["critic"]) == pytest.approx(0.5, rel=1e-4)


def test_without_gradients_there_is_nothing_to_clip():
    made = model(0.25, 2.0)
    drop_policy_gradients(made)
    assert norm_of(made["policy"]) == 0 and norm_of(made["critic"]) == pytest.approx(2)
    made.zero_grad(set_to_none=True)
    assert float(clip_apart(made, Accelerator(cpu=True), 0.5)) == 0
