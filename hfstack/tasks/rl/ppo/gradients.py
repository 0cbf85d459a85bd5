"""Finish the gradients of a step of PPO, before the optimizer takes them."""

from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from hfstack.tasks.rl.ppo.checkpoint import is_critic


def drop_policy_gradients(model: nn.Module) -> None:
    """Leave the gradients of the critic alone.

    Without a gradient not even weight decay moves the policy.
    """
    for name, parameter in model.named_parameters():
        if not is_critic(name):
            parameter.grad = None


def clip_apart(model: nn.Module, accelerator: Accelerator, max_norm: float) -> Tensor:
    """Clip the gradients of policy and critic apart; return the norm of both, ().

    Together the larger one, mostly a new critic's, would shrink the other. What a shared critic
    adds to the policy's trunk is clipped with the policy.

    Args:
        model: the ActorCritic, sharded or not.
        accelerator: the trainer's.
        max_norm: that each is clipped to.
    """
    policy: list[nn.Parameter] = []
    critic: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            (critic if is_critic(name) else policy).append(parameter)

    norms = [torch.zeros((), device=accelerator.device)]  # of a step that is not taken
    for parameters in filter(None, (policy, critic)):
        norm: Any = accelerator.clip_grad_norm_(parameters, max_norm)
        norms.append(norm.full_tensor() if isinstance(norm, DTensor) else norm)
    return torch.stack(norms).norm()
