"""Refuse settings of PPOConfig that contradict each other, or do nothing."""

import math
from collections.abc import Iterable
from typing import Any

from hfstack.errors import ConfigError
from hfstack.tasks.rl.ppo.advantages import GROUP_ADVANTAGES

# Settings that do nothing without a critic, and without a reward at each token.
_FOR_A_CRITIC = (
    "critic_model",
    "critic_learning_rate",
    "critic_warmup_rollouts",
    "value_head_init_std",
    "detach_value",
    "cliprange_value",
    "vf_coef",
    "lam",
    "lam_critic",
)
_FOR_TOKEN_REWARDS = ("gamma", "whiten_rewards")

# Settings of vLLM, and those of them that one of its two modes reads alone.
_OF_COLOCATED_VLLM = (
    "vllm_gpu_memory_utilization",
    "vllm_tensor_parallel_size",
    "vllm_max_model_length",
    "vllm_enable_sleep_mode",
)
_OF_VLLM = ("vllm_mode", "vllm_server_base_url", *_OF_COLOCATED_VLLM)


def refuse_contradictions(args: Any) -> None:
    """Refuse settings that are valid alone and contradict each other."""
    for name in ("kl_target", "kl_in_loss"):
        if getattr(args, name) and args.kl_coef == 0:
            raise ConfigError(
                f"--{name} needs a KL, but --kl_coef 0 turns it and the reference off: set "
                "--kl_coef"
            )

    if args.detach_value and args.critic not in (None, "shared"):
        raise ConfigError(
            f"--detach_value is for --critic shared; --critic {args.critic} leaves the policy alone"
        )

    if args.critic_model is not None and args.critic not in (None, "separate"):
        raise ConfigError(
            f"--critic_model is for --critic separate, not --critic {args.critic}: drop one of them"
        )

    if args.rollout_engine == "generate" and (
        args.tis_cap is not None or args.old_logprobs == "rollout"
    ):
        name = "tis_cap" if args.tis_cap is not None else "old_logprobs rollout"
        raise ConfigError(
            f"--{name}: --rollout_engine generate returns no log-probabilities, use native or "
            "drop it"
        )

    if args.fp16:
        raise ConfigError(
            "--fp16: PPO trains in fp32 or bf16, whose range needs no loss scaling: set --bf16"
        )


def refuse_what_the_advantage_leaves_out(args: Any) -> None:
    """Refuse settings that do not go with `advantage`, or would do nothing."""
    name = args.advantage
    if args.uses_critic and args.critic == "none":
        raise ConfigError(
            "--critic none: --advantage gae is made of a critic's values; drop it, or choose "
            "--advantage rloo"
        )
    if not args.uses_critic and args.critic not in (None, "none"):
        raise ConfigError(
            f"--critic {args.critic} does nothing with --advantage {name}, which needs no "
            "critic: drop it"
        )

    if name in GROUP_ADVANTAGES and args.num_generations == 1:
        raise ConfigError(
            f"--advantage {name} compares the answers to one prompt, so one is too few: set "
            "--num_generations, 8 for example"
        )
    if name == "reinforce_pp" and args.whiten_advantages is False:
        raise ConfigError(
            "--whiten_advantages false: --advantage reinforce_pp is made by whitening; drop "
            "it, or choose --advantage reinforce"
        )

    unused = () if args.uses_critic else _FOR_A_CRITIC
    if name in GROUP_ADVANTAGES:
        unused += _FOR_TOKEN_REWARDS
    setting = _first_changed(args, unused)
    if setting is not None:
        raise ConfigError(
            f"--{setting} {getattr(args, setting)} does nothing with --advantage {name}: drop it, "
            "also from the YAML file"
        )


def refuse_partial_rollouts(args: Any) -> None:
    """Refuse a length of training, or a rollout, that is not made of whole parts."""
    if args.rollout_size % args.num_generations:
        raise ConfigError(
            f"--num_generations {args.num_generations} does not divide the {args.rollout_size} "
            "episodes of a rollout on a process (per_device_train_batch_size * "
            "gradient_accumulation_steps * num_mini_batches): choose another"
        )

    if args.max_steps > 0 and args.max_steps % args.steps_per_rollout:
        raise ConfigError(
            f"--max_steps {args.max_steps} is no multiple of the {args.steps_per_rollout} "
            "optimizer steps of a rollout (num_ppo_epochs * num_mini_batches): use "
            f"{args.whole_rollouts(args.max_steps)}"
        )

    episodes = args.rollout_size * args.world_size
    if args.total_episodes is not None and args.total_episodes % episodes:
        whole = math.ceil(args.total_episodes / episodes) * episodes
        raise ConfigError(
            f"--total_episodes {args.total_episodes} is not divisible by the {episodes} "
            "episodes of a rollout (per_device_train_batch_size * gradient_accumulation_steps "
            f"* num_mini_batches * processes): use {whole}"
        )

    if args.total_episodes is not None and args.max_steps > 0:
        raise ConfigError(
            "--total_episodes and --max_steps both say how long to train: give one of them"
        )


def refuse_what_the_engine_leaves_out(args: Any) -> None:
    """Refuse settings of a vLLM that is not used, or of its other mode.

    Raises:
        ConfigError: naming the first of them, or a rollout ahead that the engine cannot generate.
    """
    if args.rollouts_ahead > 1:
        raise ConfigError(f"--rollouts_ahead must be 0 or 1, got {args.rollouts_ahead}")
    if args.rollouts_ahead and args.rollout_engine != "native":
        raise ConfigError(
            f"--rollouts_ahead 1 needs --rollout_engine native, not {args.rollout_engine}: drop one"
        )
    if args.rollouts_ahead and args.old_logprobs == "rollout":
        raise ConfigError(
            "--old_logprobs rollout: with --rollouts_ahead 1 the sampler's log-probabilities are "
            "of an older policy; drop one"
        )

    graphs = [] if args.rollout_engine == "native" else ["rollout_cuda_graphs"]
    if args.rollout_engine != "vllm":
        found = _first_changed(args, [*_OF_VLLM, *graphs])
        where = f"--rollout_engine {args.rollout_engine}"
    elif args.vllm_mode == "server":
        found, where = _first_changed(args, [*_OF_COLOCATED_VLLM, *graphs]), "--vllm_mode server"
    else:
        found, where = (
            _first_changed(args, ["vllm_server_base_url", *graphs]),
            "--vllm_mode colocate",
        )

    if found is not None:
        raise ConfigError(
            f"--{found} {getattr(args, found)} does nothing with {where}: drop it, also from the "
            "YAML file"
        )


def _first_changed(args: Any, names: Iterable[str]) -> str | None:
    """Return the first of some settings that is not its default, or None."""
    defaults = type(args).__dataclass_fields__
    return next((name for name in names if getattr(args, name) != defaults[name].default), None)
