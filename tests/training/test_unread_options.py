"""Options that a Trainer does not read are refused, in one line, for each kind of trainer."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trl
from transformers import TrainingArguments
from trl.experimental.orpo import ORPOConfig

from hfstack.errors import ConfigError
from hfstack.tasks.distillation.setup import UNREAD_BY_DISTILL
from hfstack.tasks.sft.setup import REPLACED
from hfstack.training.unread_options import _BY_SETTINGS, refuse_unread_of, unread_by


def made(folder: Path, name: str, config: Any = TrainingArguments, **settings: Any) -> Any:
    """Return what looks like a trainer of a class of this name, without metrics."""
    args = config(output_dir=str(folder), use_cpu=True, bf16=False, report_to="none")
    for setting, value in settings.items():
        setattr(args, setting, value)
    return type(name, (SimpleNamespace,), {})(args=args, compute_metrics=None, label_names=[])


# What upstream's Trainer reads for every recipe. A new option has to be put here or refused.
READ = """
    output_dir per_device_train_batch_size per_device_eval_batch_size gradient_accumulation_steps
    num_train_epochs max_steps learning_rate lr_scheduler_type lr_scheduler_kwargs warmup_steps
    optim optim_args optim_target_modules weight_decay adam_beta1 adam_beta2 adam_epsilon
    max_grad_norm bf16 fp16 bf16_full_eval fp16_full_eval tf32 use_cpu torch_empty_cache_steps
    activation_checkpointing activation_checkpointing_kwargs gradient_checkpointing
    gradient_checkpointing_kwargs torch_compile torch_compile_backend torch_compile_mode
    use_liger_kernel liger_kernel_config use_cache full_determinism seed debug
    skip_memory_metrics auto_find_batch_size ignore_data_skip remove_unused_columns label_names
    logging_strategy logging_steps logging_first_step log_on_each_node logging_nan_inf_filter
    log_level log_level_replica disable_tqdm report_to run_name project trackio_space_id
    trackio_bucket_id trackio_static_space_id eval_strategy eval_steps eval_delay eval_on_start
    do_eval eval_use_gather_object save_only_model save_strategy save_steps save_on_each_node
    save_total_limit load_best_model_at_end metric_for_best_model greater_is_better
    resume_from_checkpoint restore_callback_states_from_checkpoint
    push_to_hub hub_token hub_private_repo hub_model_id hub_revision
    accelerator_config parallelism_config ddp_find_unused_parameters ddp_bucket_cap_mb
    ddp_broadcast_buffers ddp_static_graph ddp_backend ddp_timeout fsdp fsdp_config deepspeed
    local_rank dataloader_drop_last dataloader_num_workers dataloader_pin_memory
    dataloader_persistent_workers dataloader_prefetch_factor
"""
# and what one kind of trainer reads and another does not
LOADER = "dataloader_multiprocessing_context dataloader_in_order data_seed neftune_noise_alpha"
SHUFFLE = "train_sampling_strategy length_column_name"
PREDICTIONS = """
    include_for_metrics batch_eval_metrics eval_do_concat_batches eval_accumulation_steps
    prediction_loss_only
"""
LOSS = "label_smoothing_factor average_tokens_across_devices"
COUNT = "include_num_input_tokens_seen"


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("Trainer", [LOADER, SHUFFLE, LOSS, COUNT]),
        ("SFTTrainer", [LOADER, SHUFFLE, LOSS, COUNT]),
        ("DPOTrainer", [LOADER, SHUFFLE, COUNT]),
        ("KTOTrainer", [LOADER, SHUFFLE]),
        ("ORPOTrainer", [LOADER, SHUFFLE]),
        ("RewardTrainer", [LOADER, SHUFFLE, COUNT]),
        ("SentenceTransformerTrainer", ["prediction_loss_only"]),
        ("CrossEncoderTrainer", ["prediction_loss_only"]),
    ],
)
def test_every_option_of_upstream_is_read_or_refused(name: str, read: list[str], tmp_path: Path):
    trainer = made(tmp_path, name)
    upstream = {field.name for field in dataclasses.fields(TrainingArguments)}
    known = {option for part in [READ, *read] for option in part.split()}
    refused = unread_by(trainer).keys()
    assert known | refused == upstream and not known & refused

    trainer.compute_metrics = len  # predictions are read where metrics are computed of them
    assert not unread_by(trainer).keys() & set(PREDICTIONS.split())


# TRL's own options that a recipe or its trainer reads, beside those of TrainingArguments.
OF_PAIRS = """
    router_aux_loss_coef disable_dropout dataset_num_proc max_length pad_to_multiple_of
    activation_offloading
"""
OF_REFERENCE = """
    precompute_ref_log_probs precompute_ref_batch_size sync_ref_model ref_model_mixup_alpha
    ref_model_sync_steps
"""
OF_TEXTS = """
    chat_template_path dataset_num_proc eos_token max_length packing packing_strategy
    pad_to_multiple_of eval_packing completion_only_loss assistant_only_loss
"""
OF_SFT_LOSS = "router_aux_loss_coef loss_type activation_offloading"
OF_DPO = """
    truncation_mode loss_type loss_weights ld_alpha f_divergence_type f_alpha_divergence_coef
    label_smoothing beta use_weighting discopop_tau
"""


@pytest.mark.parametrize(
    ("config", "also_refused", "read"),
    [
        pytest.param(trl.SFTConfig, REPLACED, [OF_TEXTS, OF_SFT_LOSS], id="sft"),
        pytest.param(trl.SFTConfig, {**REPLACED, **UNREAD_BY_DISTILL}, [OF_TEXTS], id="distill"),
        pytest.param(trl.DPOConfig, {}, [OF_PAIRS, OF_REFERENCE, OF_DPO], id="dpo"),
        pytest.param(
            trl.KTOConfig,
            {},
            [OF_PAIRS, OF_REFERENCE, "loss_type beta desirable_weight undesirable_weight"],
            id="kto",
        ),
        pytest.param(
            trl.RewardConfig,
            {},
            [OF_PAIRS, "center_rewards_coefficient"],
            id="reward",
        ),
        pytest.param(
            ORPOConfig,
            {},
            ["max_length beta disable_dropout padding_value dataset_num_proc"],
            id="orpo",
        ),
    ],
)
def test_every_option_of_trl_is_read_or_refused(
    config: Any, also_refused: dict[str, str], read: list[str]
):
    """A release of TRL with another option fails here, until somebody decides about it."""
    shared = {field.name for field in dataclasses.fields(TrainingArguments)}
    own = {field.name for field in dataclasses.fields(config)} - shared
    known = {option for part in read for option in part.split()} & own
    refused = (_BY_SETTINGS[config.__name__].keys() | also_refused.keys()) & own
    assert known | refused | {"trust_remote_code"} == own and not known & refused


def test_a_loss_of_two_places_smooths_no_labels(tmp_path: Path):
    trainer = made(tmp_path, "Trainer", label_smoothing_factor=0.1)
    refuse_unread_of(trainer)
    trainer.label_names = ["start_positions", "end_positions"]
    with pytest.raises(ConfigError, match="^--label_smoothing_factor 0.1 does nothing here"):
        refuse_unread_of(trainer)


@pytest.mark.parametrize(
    ("name", "config", "settings"),
    [
        ("SentenceTransformerTrainer", TrainingArguments, {"data_seed": 3}),
        ("SentenceTransformerTrainer", TrainingArguments, {"neftune_noise_alpha": 5.0}),
        ("Trainer", TrainingArguments, {"do_train": True}),
        ("Trainer", TrainingArguments, {"do_eval": True}),
        ("Trainer", TrainingArguments, {"hub_strategy": "end"}),
        ("Trainer", TrainingArguments, {"eval_accumulation_steps": 2}),
        ("DPOTrainer", trl.DPOConfig, {"label_smoothing_factor": 0.1}),
        ("KTOTrainer", trl.KTOConfig, {"include_num_input_tokens_seen": "all"}),
        ("RewardTrainer", trl.RewardConfig, {"average_tokens_across_devices": False}),
        ("SpanTrainer", TrainingArguments, {"label_smoothing_factor": 0.1}),
        # rows are encoded, and the tokenizer is recorded, before TRL would change it
        ("RewardTrainer", trl.RewardConfig, {"chat_template_path": "other.jinja"}),
        ("RewardTrainer", trl.RewardConfig, {"eos_token": "<|other|>"}),
        ("DPOTrainer", trl.DPOConfig, {"pad_token": "<|other|>"}),
        ("KTOTrainer", trl.KTOConfig, {"model_init_kwargs": {"dtype": "bfloat16"}}),
        ("SFTTrainer", trl.SFTConfig, {"dataset_text_field": "body"}),
        ("SFTTrainer", trl.SFTConfig, {"truncation_mode": "keep_end"}),
        ("ORPOTrainer", ORPOConfig, {"generate_during_eval": True}),
    ],
)
def test_refused(name: str, config: Any, settings: dict[str, Any], tmp_path: Path):
    refuse_unread_of(made(tmp_path, name, config))
    with pytest.raises(ConfigError, match=f"^--{next(iter(settings))} .*; leave it out$"):
        refuse_unread_of(made(tmp_path, name, config, **settings))


def test_what_is_read_is_accepted(tmp_path: Path):
    settings = {"label_smoothing_factor": 0.1, "eval_accumulation_steps": 2, "data_seed": 1}
    trainer = made(tmp_path, "Trainer", **settings)
    with pytest.raises(ConfigError, match="--eval_accumulation_steps 2 does nothing here"):
        refuse_unread_of(trainer)

    trainer.compute_metrics = len
    refuse_unread_of(trainer)
