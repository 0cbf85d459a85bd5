"""PPOConfig: how long a rollout is, and what contradicts itself."""

from pathlib import Path
from typing import Any

import pytest

from hfstack.errors import ConfigError
from hfstack.tasks.rl.ppo.config import PPOConfig
from hfstack.tasks.rl.ppo.setup import set_training_length


def config(folder: Path, **settings: Any) -> PPOConfig:
    return PPOConfig(output_dir=str(folder), use_cpu=True, **settings)


def test_accumulation_multiplies_the_episodes_and_not_the_steps(tmp_path: Path):
    args = config(
        tmp_path,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        num_mini_batches=3,
        num_ppo_epochs=5,
    )
    assert args.rollout_size == 24 and args.steps_per_rollout == 15
    assert [args.whole_rollouts(steps) for steps in (1, 15, 16)] == [15, 15, 30]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"total_episodes": 32}, 16),
        ({"num_train_epochs": 1.0}, 28),  # 50 prompts are 7 rollouts of 8
        ({"num_train_epochs": 0.5}, 16),
        ({"max_steps": 12}, 12),
    ],
)
def test_lengths_are_whole_rollouts(tmp_path: Path, settings: dict[str, Any], expected: int):
    args = config(
        tmp_path, per_device_train_batch_size=4, num_mini_batches=2, num_ppo_epochs=2, **settings
    )
    args.save_steps, args.eval_steps = 5, 0.5
    set_training_length(args, prompts=50)
    assert args.max_steps == expected
    assert (args.save_steps, args.logging_steps) == (8, 4)
    assert args.eval_steps == args.whole_rollouts(expected / 2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_completion_length": 0}, "--max_completion_length must be at least 1, got 0"),
        ({"num_mini_batches": 0}, "--num_mini_batches must be at least 1"),
        ({"temperature": 0.0}, "--temperature must be above 0"),
        ({"kl_coef": -0.1}, "--kl_coef must be 0 or above"),
        ({"lam": 1.1}, "--lam must be between 0 and 1"),
        ({"cliprange": 1.0}, "--cliprange must be below 1"),
        ({"dual_clip": 1.0}, "--dual_clip must be above 1"),
        ({"top_p": 0.0}, "--top_p must be above 0"),
        ({"kl_estimator": "k4"}, "--kl_estimator must be one of k1, k2, k3, abs, got 'k4'"),
        ({"rollout_engine": "sglang"}, "--rollout_engine must be one of native, generate, vllm"),
        ({"old_logprobs": "no"}, "--old_logprobs must be one of"),
        ({"vllm_mode": "far"}, "--vllm_mode must be one of"),
        ({"critic": "none"}, "--critic must be one of shared, separate, adapter"),
        ({"kl_target": 6.0, "kl_coef": 0.0}, "--kl_target needs a KL, but --kl_coef 0"),
        ({"kl_in_loss": True, "kl_coef": 0.0}, "--kl_in_loss needs a KL"),
        ({"detach_value": True, "critic": "separate"}, "--detach_value is for --critic shared"),
        (
            {"critic_model": "runs/reward", "critic": "shared"},
            "--critic_model is for --critic separate",
        ),
        (
            {"rollout_engine": "generate", "tis_cap": 2.0},
            "--tis_cap: --rollout_engine generate returns no",
        ),
        ({"fp16": True}, "--fp16: PPO trains in fp32 or bf16"),
        (
            {"max_steps": 7},
            "--max_steps 7 is no multiple of the 4 optimizer steps of a rollout .*: use 8",
        ),
        (
            {"total_episodes": 12},
            "--total_episodes 12 is not divisible by the 8 episodes of a rollout .*: use 16",
        ),
        ({"total_episodes": 16, "max_steps": 8}, "both say how long to train"),
    ],
)
def test_what_contradicts_itself_is_refused_in_one_line(
    tmp_path: Path, settings: dict[str, Any], message: str
):
    with pytest.raises(ConfigError, match=message) as caught:
        config(tmp_path, **settings)
    assert "\n" not in str(caught.value)
