"""Save and load PPO's checkpoints.

The policy is saved as a plain model or adapter; the critic and PPO's own state are in files beside
it.
"""

import json
from pathlib import Path
from typing import Any, cast

from peft import set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from hfstack.disk import read_json_file
from hfstack.errors import CheckpointError
from hfstack.models.shards import CRITIC_FILE
from hfstack.tasks.rl.ppo.actor_critic import CRITIC_ADAPTER, ActorCritic

STATE_FILE = "ppo_state.json"
_ADAPTER_FILE = "adapter_model.safetensors"


def is_critic(name: str) -> bool:
    """Return whether a parameter of ActorCritic is the critic's, by its name."""
    return name.startswith(("critic.", "v_head.")) or f".{CRITIC_ADAPTER}." in name


def save_actor_critic(
    actor_critic: ActorCritic, folder: Path, state_dict: dict[str, Tensor] | None
) -> None:
    """Save the policy for `from_pretrained`, and a critic to critic.safetensors.

    Args:
        actor_critic: to save.
        folder: created when it does not exist.
        state_dict: all weights, gathered from all processes; None where this process has them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = actor_critic.state_dict() if state_dict is None else state_dict
    policy = {
        name.removeprefix("policy."): value
        for name, value in weights.items()
        if name.startswith("policy.")
    }

    if actor_critic.is_peft:
        cast(Any, actor_critic.policy).save_pretrained(
            str(folder), selected_adapters=[actor_critic.policy_adapter], state_dict=policy
        )
    else:
        actor_critic.policy.save_pretrained(str(folder), state_dict=policy)

    critic = {name: value.contiguous() for name, value in weights.items() if is_critic(name)}
    if critic:
        save_file(critic, folder / CRITIC_FILE)


def load_actor_critic(actor_critic: ActorCritic, folder: Path) -> None:
    """Load what `save_actor_critic` saved, bit by bit.

    Raises:
        CheckpointError: a file is missing, or the critic is of another kind.
    """
    saved_critic = (folder / CRITIC_FILE).is_file()
    if actor_critic.has_critic and not saved_critic:
        raise CheckpointError(
            f"{folder} has no {CRITIC_FILE}: it was saved by another --advantage, which needs no "
            "critic, or is no checkpoint of PPO; name another"
        )

    # policy
    if actor_critic.is_peft:
        if not (folder / _ADAPTER_FILE).is_file():
            raise CheckpointError(
                f"{folder} has no {_ADAPTER_FILE}: it was saved without --use_peft"
            )

        set_peft_model_state_dict(
            actor_critic.policy,
            load_file(folder / _ADAPTER_FILE),
            adapter_name=str(actor_critic.policy_adapter),
        )
    else:
        base = actor_critic.base
        saved = cast(
            PreTrainedModel,
            type(base).from_pretrained(folder, dtype=base.dtype, trust_remote_code=False),
        )
        base.load_state_dict(saved.state_dict())

    # critic
    weights = load_file(folder / CRITIC_FILE) if saved_critic else {}
    expected = {name for name in actor_critic.state_dict() if is_critic(name)}
    if expected != weights.keys():
        other = sorted(expected ^ weights.keys())[0]
        raise CheckpointError(
            f"{folder / CRITIC_FILE} is of another critic ({other} is in one only): keep --critic "
            "and --advantage"
        )

    actor_critic.load_state_dict(weights, strict=False)


def save_state(folder: Path, state: dict[str, Any]) -> None:
    """Save PPO's own numbers to ppo_state.json."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / STATE_FILE).write_text(json.dumps(state, indent=2), encoding="utf-8")


def load_state(folder: Path) -> dict[str, Any]:
    """Return PPO's own numbers.

    Raises CheckpointError when the file is missing or incomplete.
    """
    try:
        state = read_json_file(folder / STATE_FILE)
        # earlier checkpoints hold the moments of the scores alone
        state.setdefault("reward_history", {"scores": state.pop("reward_moments", {})})
        return state
    except (OSError, ValueError, TypeError, AttributeError):
        raise CheckpointError(
            f"{folder / STATE_FILE} is missing or incomplete: name another checkpoint"
        ) from None
