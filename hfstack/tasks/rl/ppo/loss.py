"""The loss of PPO on a few tokens, and what is told of it.

Legend: n scored tokens of a chunk.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from hfstack.tasks.rl.ppo import formulas
from hfstack.tasks.rl.ppo.actor_critic import TokenScores
from hfstack.tasks.rl.ppo.config import PPOConfig

UPDATE_METRICS = (
    "loss/policy",
    "loss/value",
    "policy/clip_share_low",
    "policy/clip_share_high",
    "policy/approx_kl",
    "policy/ratio",
    "value/clip_share",
)


def ppo_loss(
    args: PPOConfig,
    outputs: TokenScores,
    fields: Mapping[str, Tensor],
    *,
    tokens: float,
    kl_coef: float,
    critic_only: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return the loss over the minibatch's tokens, and the sums of UPDATE_METRICS.

    Each token counts the same, whatever chunk, accumulation step or process it falls into.

    Args:
        args: the settings.
        outputs: of the forward pass, (n,) each.
        fields: (n,) each: old_log_probs, values, advantages, returns, weight; importance and
            reference_log_probs where they are used.
        tokens: that are learnt from in the minibatch, over all processes.
        kl_coef: weight of the KL in the loss, with `kl_in_loss`.
        critic_only: leave the policy's loss out, but the policy in the graph, which DDP needs.
    """
    assert outputs.log_probs is not None and outputs.values is not None
    share = fields["weight"] / tokens  # (n,)
    policy = formulas.clipped_policy_loss(
        outputs.log_probs,
        fields["old_log_probs"],
        fields["advantages"],
        cliprange=args.cliprange,
        cliprange_high=args.cliprange_high,
        dual_clip=args.dual_clip,
    )

    policy_loss = policy.loss @ (share * fields["importance"] if "importance" in fields else share)
    value_losses, value_clipped = formulas.clipped_value_loss(
        outputs.values, fields["values"], fields["returns"], cliprange=args.cliprange_value
    )
    value_loss = value_losses @ share

    actor_loss = policy_loss
    if args.kl_in_loss:
        kind = "k2" if args.kl_estimator == "k1" else args.kl_estimator
        kl = formulas.estimate_kl(outputs.log_probs, fields["reference_log_probs"], kind=kind)
        actor_loss = actor_loss + kl_coef * (kl @ share)

    if args.entropy_coef:
        assert outputs.entropies is not None
        actor_loss = actor_loss - args.entropy_coef * (outputs.entropies @ share)

    loss = (0.0 if critic_only else 1.0) * actor_loss + args.vf_coef * value_loss
    with torch.no_grad():
        told = torch.stack(
            [policy.clipped_low, policy.clipped_high, policy.approx_kl, policy.ratio, value_clipped]
        )
        sums = torch.cat([torch.stack([policy_loss, value_loss]), told @ share])

    return loss, sums
