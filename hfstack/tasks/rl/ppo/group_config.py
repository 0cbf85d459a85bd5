"""Define RLOOConfig and GRPOConfig: the settings of the recipes rloo and grpo.

Both compare the answers to one prompt, and are PPOConfig with the defaults of their papers. The
options of a critic, which neither has, are no options here: a field with `init=False` is not on the
command line.
"""

from dataclasses import dataclass, field
from typing import Any

from hfstack.errors import ConfigError
from hfstack.tasks.rl.ppo.config import PPOConfig

_GRPO_ADVANTAGES = ("grpo", "dr_grpo")


def _fixed(value: Any) -> Any:
    """Return a field that is not on the command line."""
    return field(default=value, init=False)


@dataclass
class GroupConfig(PPOConfig):
    """What both share: several answers to a prompt, one update of each, no critic."""

    num_generations: int = 8
    """Completions of each prompt in a rollout, 2 or more."""
    num_ppo_epochs: int = 1
    """Passes over each rollout; with one, and one mini-batch, nothing is clipped."""
    max_completion_length: int = 512
    """Tokens after which a completion is truncated."""
    max_grad_norm: float = 1.0
    """Norm that the gradient is clipped to; 0: no clipping."""

    # of a critic
    critic: str | None = _fixed(None)
    critic_model: str | None = _fixed(None)
    critic_learning_rate: float | None = _fixed(None)
    critic_warmup_rollouts: int = _fixed(0)
    value_head_init_std: float = _fixed(0.0)
    detach_value: bool = _fixed(False)
    cliprange_value: float | None = _fixed(0.2)
    vf_coef: float = _fixed(0.1)
    lam: float = _fixed(0.95)
    lam_critic: float | None = _fixed(None)

    # of rewards that single tokens get
    gamma: float = _fixed(1.0)
    whiten_rewards: bool = _fixed(False)


@dataclass
class RLOOConfig(GroupConfig):
    """Settings of the recipe rloo."""

    advantage: str = _fixed("rloo")
    num_generations: int = 4
    """Completions of each prompt in a rollout, 2 or more."""
    importance_sampling_level: str = "completion"
    """What the ratio of new to old probability is of: a completion (the product of its tokens',
    RLOO's), a sequence (their geometric mean, GSPO's) or a token.
    """


@dataclass
class GRPOConfig(GroupConfig):
    """Settings of the recipe grpo."""

    advantage: str = "grpo"
    """grpo (divided by the standard deviation of the group) or dr_grpo (not divided)."""
    kl_estimator: str = "k3"
    """Estimator of the KL of a token: k1, k2, k3 or abs."""

    def __post_init__(self) -> None:
        """Refuse the advantages of other recipes, and the rest as PPOConfig."""
        if self.advantage not in _GRPO_ADVANTAGES:
            raise ConfigError(
                f"--advantage must be one of {', '.join(_GRPO_ADVANTAGES)} here, got "
                f"{self.advantage!r}: for others use the recipes rloo and ppo"
            )
        super().__post_init__()
