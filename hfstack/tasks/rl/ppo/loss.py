"""Compute the loss of PPO on the tokens of a chunk, and its metrics.

Legend: n scored tokens of a chunk, M metrics of `update_metric_names`.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from hfstack.tasks.rl.ppo import formulas
from hfstack.tasks.rl.ppo.actor_critic import TokenScores
from hfstack.tasks.rl.ppo.config import PPOConfig

POLICY_METRICS = (
    "loss/policy",
    "policy/clip_share_low",
    "policy/clip_share_high",
    "policy/approx_kl",
    "policy/ratio",
)
VALUE_METRICS = ("loss/value", "value/clip_share")  # with a critic only


def update_metric_names(*, has_critic: bool) -> tuple[str, ...]:
    """Return the names of the sums that `ppo_loss` returns."""
    return POLICY_METRICS + VALUE_METRICS if has_critic else POLICY_METRICS


def ppo_loss(
    args: PPOConfig,
    outputs: TokenScores,
    fields: Mapping[str, Tensor],
    *,
    tokens: float,
    denominator: float | None = None,
    kl_coef: float,
    critic_only: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return the loss of a chunk and the sums of its metrics, (M,).

    The loss is a sum over tokens divided by a number of the whole minibatch. Each token therefore
    weighs the same, whatever chunk, accumulation step or process it is in. Metrics are means over
    tokens, whatever the policy's loss is a mean over.

    Args:
        args: the settings.
        outputs: of the forward pass, (n,) each.
        fields: (n,) each: old_log_probs, advantages, weight, row; values and returns with a critic;
            loss_weight, importance and reference_log_probs where they are used.
        tokens: that the minibatch trains on, over all processes.
        denominator: of the policy's loss; None for `tokens`.
        kl_coef: weight of the KL in the loss, with `kl_in_loss`.
        critic_only: leave the policy's loss out, but keep the policy in the graph, which DDP needs.
    """
    assert outputs.log_probs is not None
    share = fields["weight"] / tokens  # (n,)
    loss_weight = fields.get("loss_weight", fields["weight"])  # (n,)
    policy_share = loss_weight / (tokens if denominator is None else denominator)  # (n,)

    # the policy's clipped objective
    policy = formulas.clipped_policy_loss(
        outputs.log_probs,
        fields["old_log_probs"],
        fields["advantages"],
        cliprange=args.cliprange,
        cliprange_high=args.cliprange_high,
        dual_clip=args.dual_clip,
        level=args.importance_sampling_level,
        rows=fields.get("row"),
        weight=fields["weight"],
    )

    importance = fields.get("importance")
    policy_loss = policy.loss @ (policy_share if importance is None else policy_share * importance)

    # what may be added to the policy's loss: KL and entropy bonus
    actor_loss = policy_loss
    if args.kl_in_loss:
        # The gradient of k1 in a loss is not that of the KL; k2's is.
        kind = "k2" if args.kl_estimator == "k1" else args.kl_estimator
        kl = formulas.kl_beyond_rounding(outputs.log_probs, fields["reference_log_probs"], kind)
        if args.use_bias_correction_kl:
            kl = formulas.corrected_kl(kl, outputs.log_probs, fields["old_log_probs"])
        actor_loss = actor_loss + kl_coef * (kl @ policy_share)

    if args.entropy_coef:
        assert outputs.entropies is not None
        actor_loss = actor_loss - args.entropy_coef * (outputs.entropies @ share)

    with torch.no_grad():
        per_token = torch.stack(
            [policy.clipped_low, policy.clipped_high, policy.approx_kl, policy.ratio]
        )  # (4, n)
        sums = torch.cat([policy_loss[None], per_token @ share])  # (5,)

    if "values" not in fields:
        return actor_loss, sums

    # the critic's squared error
    assert outputs.values is not None
    value_losses, value_clipped = formulas.clipped_value_loss(
        outputs.values, fields["values"], fields["returns"], cliprange=args.cliprange_value
    )
    value_loss = value_losses @ share

    loss = (0.0 if critic_only else 1.0) * actor_loss + args.vf_coef * value_loss
    value_sums = torch.stack([value_loss.detach(), value_clipped.to(share.dtype) @ share])  # (2,)
    return loss, torch.cat([sums, value_sums])
