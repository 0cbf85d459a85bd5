"""The loss of PPO on the tokens of a chunk, and its metrics.

Legend: n scored tokens of a chunk, M metrics in UPDATE_METRICS.
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
    """Return the loss of a chunk and the sums of UPDATE_METRICS, (M,).

    The loss is a sum over tokens divided by the tokens of the whole minibatch. Each token therefore
    weighs the same, whatever chunk, accumulation step or process it is in.

    Args:
        args: the settings.
        outputs: of the forward pass, (n,) each.
        fields: (n,) each: old_log_probs, values, advantages, returns, weight; importance and
            reference_log_probs where they are used.
        tokens: that the minibatch trains on, over all processes.
        kl_coef: weight of the KL in the loss, with `kl_in_loss`.
        critic_only: leave the policy's loss out, but keep the policy in the graph, which DDP needs.
    """
    assert outputs.log_probs is not None and outputs.values is not None
    share = fields["weight"] / tokens  # (n,)

    # the policy's clipped objective
    policy = formulas.clipped_policy_loss(
        outputs.log_probs,
        fields["old_log_probs"],
        fields["advantages"],
        cliprange=args.cliprange,
        cliprange_high=args.cliprange_high,
        dual_clip=args.dual_clip,
    )

    policy_share = share * fields["importance"] if "importance" in fields else share  # (n,)
    policy_loss = policy.loss @ policy_share

    # the critic's squared error
    value_losses, value_clipped = formulas.clipped_value_loss(
        outputs.values, fields["values"], fields["returns"], cliprange=args.cliprange_value
    )
    value_loss = value_losses @ share

    # what may be added to the policy's loss: KL and entropy bonus
    actor_loss = policy_loss
    if args.kl_in_loss:
        # The gradient of k1 in a loss is not that of the KL; k2's is.
        kind = "k2" if args.kl_estimator == "k1" else args.kl_estimator
        kl = formulas.estimate_kl(outputs.log_probs, fields["reference_log_probs"], kind=kind)
        actor_loss = actor_loss + kl_coef * (kl @ share)

    if args.entropy_coef:
        assert outputs.entropies is not None
        actor_loss = actor_loss - args.entropy_coef * (outputs.entropies @ share)

    loss = (0.0 if critic_only else 1.0) * actor_loss + args.vf_coef * value_loss
    with torch.no_grad():
        losses = torch.stack([policy_loss, value_loss])  # (2,)
        per_token = torch.stack(
            [policy.clipped_low, policy.clipped_high, policy.approx_kl, policy.ratio, value_clipped]
        )  # (M - 2, n)
        sums = torch.cat([losses, per_token @ share])  # (M,)

    return loss, sums
