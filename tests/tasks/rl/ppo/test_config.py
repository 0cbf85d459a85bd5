"""PPOConfig: how long a rollout is, and what contradicts itself."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainingArguments

from hfstack.config import build_parser
from hfstack.errors import ConfigError
from hfstack.tasks.rl.ppo import config_checks
from hfstack.tasks.rl.ppo.config import PPOConfig
from hfstack.tasks.rl.ppo.group_config import GRPOConfig, RLOOConfig
from hfstack.tasks.rl.ppo.length import set_training_length
from hfstack.training.unread_options import PPO_UNREAD, refuse_unread


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
    ("advantage", "level", "expected"),
    [
        ("gae", "token", (True, False, "token")),
        ("rloo", "token", (False, False, "constant")),
        ("grpo", "token", (False, True, "sequence")),
        ("dr_grpo", "token", (False, True, "constant")),
        ("reinforce", "token", (False, False, "constant")),
        ("reinforce_pp", "token", (True, False, "token")),
        ("rloo", "completion", (False, False, "sequence")),
    ],
)
def test_what_is_left_open_is_what_the_estimator_has(
    tmp_path: Path, advantage: str, level: str, expected: tuple[bool, bool, str]
):
    args = config(tmp_path, advantage=advantage, num_generations=4, importance_sampling_level=level)
    assert (args.whiten_advantages, args.kl_in_loss, args.loss_aggregation) == expected
    without = config(tmp_path, advantage=advantage, num_generations=4, kl_coef=0.0)
    assert without.kl_in_loss is False


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"total_episodes": 32}, 16),
        ({"num_train_epochs": 1.0}, 28),  # 50 prompts are 7 rollouts of 8
        ({"num_train_epochs": 0.5}, 16),
        ({"max_steps": 12}, 12),
        ({"num_generations": 4}, 300),  # 3 epochs of 50 prompts, 2 of them a rollout
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
        ({"critic": "half"}, "--critic must be one of shared, separate, adapter, none"),
        ({"critic": "none"}, "--critic none: --advantage gae is made of a critic's values"),
        ({"advantage": "a2c"}, "--advantage must be one of gae, rloo, grpo, dr_grpo, reinforce"),
        ({"advantage": "rloo"}, "--advantage rloo compares .* set --num_generations, 8"),
        ({"advantage": "reinforce", "critic": "shared"}, "--critic shared does nothing with"),
        ({"advantage": "reinforce", "lam": 1.0}, "--lam 1.0 does nothing with --advantage reinf"),
        (
            {"advantage": "grpo", "num_generations": 2, "gamma": 0.9},
            "--gamma 0.9 does nothing with --advantage grpo",
        ),
        (
            {"advantage": "reinforce_pp", "whiten_advantages": False},
            "--whiten_advantages false: --advantage reinforce_pp is made by whitening",
        ),
        ({"num_generations": 3}, "--num_generations 3 does not divide the 8 episodes of a rollout"),
        ({"loss_aggregation": "mean"}, "--loss_aggregation must be one of token, sequence"),
        ({"importance_sampling_level": "row"}, "--importance_sampling_level must be one of"),
        ({"kl_target": 6.0, "kl_coef": 0.0}, "--kl_target needs a KL, but --kl_coef 0"),
        ({"kl_in_loss": True, "kl_coef": 0.0}, "--kl_in_loss needs a KL"),
        (
            {"kl_in_loss": True, "kl_estimator": "k2", "use_bias_correction_kl": True},
            "--use_bias_correction_kl corrects a KL by k3 in the loss, and there is none",
        ),
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
            {"vllm_tensor_parallel_size": 2},
            "--vllm_tensor_parallel_size 2 does nothing with --rollout_engine native",
        ),
        (
            {"rollout_engine": "vllm", "vllm_mode": "server", "vllm_enable_sleep_mode": True},
            "--vllm_enable_sleep_mode True does nothing with --vllm_mode server",
        ),
        (
            {"rollout_engine": "vllm", "vllm_server_base_url": "http://host:8000"},
            "--vllm_server_base_url http://host:8000 does nothing with --vllm_mode colocate",
        ),
        (
            {"rollout_engine": "generate", "rollout_cuda_graphs": False},
            "--rollout_cuda_graphs False does nothing with --rollout_engine generate",
        ),
        (
            {"rollout_engine": "vllm", "rollout_cuda_graphs": False},
            "--rollout_cuda_graphs False does nothing with --vllm_mode colocate",
        ),
        ({"rollouts_ahead": 2}, "--rollouts_ahead must be 0 or 1, got 2"),
        (
            {"rollouts_ahead": 1, "rollout_engine": "generate"},
            "--rollouts_ahead 1 needs --rollout_engine native, not generate",
        ),
        (
            {"rollouts_ahead": 1, "old_logprobs": "rollout"},
            "--old_logprobs rollout: with --rollouts_ahead 1",
        ),
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


# Upstream's options that PPO reads: by Trainer's loop, its optimizer, its logs, hfstack's
# checkpoints and pushes, or PPO itself. A new option of upstream has to be put here or refused.
READ = """
    output_dir per_device_train_batch_size per_device_eval_batch_size gradient_accumulation_steps
    num_train_epochs max_steps learning_rate lr_scheduler_type lr_scheduler_kwargs warmup_steps
    optim optim_args weight_decay adam_beta1 adam_beta2 adam_epsilon max_grad_norm
    bf16 fp16 tf32 use_cpu activation_checkpointing activation_checkpointing_kwargs
    gradient_checkpointing gradient_checkpointing_kwargs torch_compile torch_compile_backend
    torch_compile_mode use_cache full_determinism seed data_seed debug skip_memory_metrics
    logging_strategy logging_steps logging_first_step log_on_each_node logging_nan_inf_filter
    log_level log_level_replica disable_tqdm report_to run_name project trackio_space_id
    trackio_bucket_id trackio_static_space_id
    eval_strategy eval_steps eval_delay eval_on_start do_eval
    save_only_model save_strategy save_steps save_on_each_node save_total_limit
    load_best_model_at_end metric_for_best_model greater_is_better
    resume_from_checkpoint restore_callback_states_from_checkpoint
    push_to_hub hub_token hub_private_repo hub_model_id hub_revision
    accelerator_config ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers
    ddp_static_graph ddp_backend ddp_timeout fsdp fsdp_config deepspeed local_rank
"""


def test_every_option_of_upstream_is_read_or_refused():
    upstream = {field.name for field in dataclasses.fields(TrainingArguments)}
    assert set(READ.split()) | PPO_UNREAD.keys() == upstream
    assert not set(READ.split()) & PPO_UNREAD.keys()


@pytest.mark.parametrize("name", PPO_UNREAD)
def test_an_option_that_does_nothing_is_refused(name: str, tmp_path: Path):
    examples: dict[str, Any] = {
        "optim_target_modules": "all-linear",
        "liger_kernel_config": {"rms_norm": True},
        "dataloader_multiprocessing_context": "spawn",
        "hub_strategy": "end",
        "include_for_metrics": ["loss"],
        "label_names": ["labels"],
        "parallelism_config": object(),
        "length_column_name": "tokens",
        "train_sampling_strategy": "sequential",
        "include_num_input_tokens_seen": "all",
        "label_smoothing_factor": 0.1,
    }
    args = config(tmp_path)
    args.dataloader_pin_memory = True  # upstream turns it off on a CPU

    # set afterwards, since upstream has checks of its own for some of them
    default = getattr(args, name)
    setattr(args, name, examples.get(name, (not default) if isinstance(default, bool) else 2))
    with pytest.raises(ConfigError, match=f"^--{name} .* does nothing here: .*; leave it out$"):
        refuse_unread(args, PPO_UNREAD)


@pytest.mark.parametrize("kind", [RLOOConfig, GRPOConfig])
def test_options_that_would_do_nothing_for_groups_are_no_options(kind: type[PPOConfig]):
    """A new option of the critic has to be hidden there, or it would be refused by name alone."""
    of_critic = {*config_checks._FOR_A_CRITIC, *config_checks._FOR_TOKEN_REWARDS, "critic"}
    fixed = {"advantage"} if kind is RLOOConfig else set()
    hidden = {field.name for field in dataclasses.fields(kind) if not field.init}
    inherited = {field.name for field in dataclasses.fields(PPOConfig) if not field.init}
    assert hidden - inherited == of_critic | fixed
    assert "critic_model" not in build_parser(kind)[1]


def test_what_does_nothing_is_refused_at_once(tmp_path: Path):
    with pytest.raises(ConfigError, match="--label_smoothing_factor 0.1 does nothing here"):
        config(tmp_path, label_smoothing_factor=0.1)
    with pytest.raises(ConfigError, match="--do_eval true does nothing here"):
        config(tmp_path, do_eval=True)
    assert config(tmp_path, do_eval=True, eval_strategy="steps", eval_steps=4).do_eval


def test_an_evaluation_is_of_as_many_answers_as_a_rollout(tmp_path: Path):
    small = {"per_device_train_batch_size": 4, "num_mini_batches": 2}
    assert config(tmp_path, **small).per_device_eval_batch_size == 8
    assert config(tmp_path, rollout_batch_size=3, **small).per_device_eval_batch_size == 3
    assert config(tmp_path, per_device_eval_batch_size=5).per_device_eval_batch_size == 5


def test_the_best_checkpoint_has_to_be_one_of_those_evaluated(tmp_path: Path):
    best = {"load_best_model_at_end": True, "eval_strategy": "steps", "num_ppo_epochs": 4}
    args = config(tmp_path, eval_steps=5, save_steps=10, **best)
    assert args.metric_for_best_model == "reward" and args.greater_is_better
    with pytest.raises(ConfigError, match="--save_steps 12 is no multiple of --eval_steps 8"):
        set_training_length(args, prompts=50)
