"""Suggest what a wrong name may have meant: a close name, or one of another tool.

Standard library only.
"""

import difflib
from collections.abc import Iterable

# What people type from other tools, and the options here that mean it; the first known one counts.
_ALIASES = {
    "lr": ("learning_rate",),
    # how long, and by how much
    "epochs": ("num_train_epochs",),
    "num_epochs": ("num_train_epochs",),
    "batch_size": ("per_device_train_batch_size",),
    "train_batch_size": ("per_device_train_batch_size",),
    "eval_batch_size": ("per_device_eval_batch_size",),
    "grad_accum": ("gradient_accumulation_steps",),
    "accumulation_steps": ("gradient_accumulation_steps",),
    "steps": ("max_steps",),
    "warmup": ("warmup_steps",),
    "scheduler": ("lr_scheduler_type",),
    "optimizer": ("optim",),
    "clip": ("max_grad_norm",),
    "resume": ("resume_from_checkpoint",),
    # models and data
    "model": ("model_name_or_path", "run"),
    "model_name": ("model_name_or_path",),
    "model_path": ("model_name_or_path",),
    "base_model": ("model_name_or_path",),
    "tokenizer": ("tokenizer_name_or_path",),
    "data": ("datasets",),
    "dataset": ("datasets",),
    "dataset_name": ("datasets",),
    "train_file": ("datasets",),
    "validation_file": ("eval_datasets",),
    "val_split": ("eval_fraction",),
    "prompt": ("prompts",),
    "output": ("output_dir",),
    "out_dir": ("output_dir",),
    # lengths
    "context_length": ("block_size", "max_length"),
    "max_seq_length": ("max_length", "block_size"),
    "seq_len": ("max_length", "block_size"),
    "max_tokens": ("max_new_tokens", "max_completion_length"),
    # adapters
    "lora": ("use_peft",),
    "peft": ("use_peft",),
    "qlora": ("load_in_4bit",),
    "rank": ("lora_r",),
    "lora_rank": ("lora_r",),
    "num_gpus": ("processes",),
    # of TRL's RLOO and GRPO
    "beta": ("kl_coef",),
    "num_iterations": ("num_ppo_epochs",),
    "steps_per_generation": ("num_mini_batches",),
    "generation_batch_size": ("per_device_train_batch_size",),
    "epsilon": ("cliprange",),
    "epsilon_high": ("cliprange_high",),
    "delta": ("dual_clip",),
    "loss_type": ("loss_aggregation",),
    "scale_rewards": ("advantage",),
    "normalize_advantages": ("whiten_advantages",),
    "reward_clip_range": ("reward_clip",),
    "use_vllm": ("rollout_engine",),
    "vllm_importance_sampling_correction": ("tis_cap",),
    "vllm_importance_sampling_cap": ("tis_cap",),
    "vllm_importance_sampling_clip_max": ("tis_cap",),
    "vllm_server_host": ("vllm_server_base_url",),
    "vllm_server_port": ("vllm_server_base_url",),
}


def closest(name: str, known: Iterable[str], *, cutoff: float = 0.6) -> list[str]:
    """Return the closest known name in a list, whatever the case of its letters."""
    by_case = {other.casefold(): other for other in known}
    close = difflib.get_close_matches(name.casefold(), by_case, n=1, cutoff=cutoff)
    return [by_case[found] for found in close]


def suggest(name: str, known: Iterable[str]) -> str:
    """Return a wrong name, quoted, and the known name that it most likely means."""
    names = list(known)
    dashes = "--" if name.startswith("--") else ""
    meant = _ALIASES.get(name.removeprefix("--").replace("-", "_"), ())
    aliases = [f"{dashes}{alias}" for alias in meant if f"{dashes}{alias}" in names]
    close = aliases or closest(name, names)
    return f"{name!r}; did you mean {close[0]!r}?" if close else f"{name!r}"


def describe_too_few_classes(column: str, classes: Iterable[str]) -> str:
    """Return what is wrong with a column of labels that holds one class, or none."""
    found = list(classes)
    only = f" ({found[0]!r})" if len(found) == 1 else ""
    return (
        f"column {column!r} has {len(found)} class only{only}: a classifier needs at least two; is "
        "it the right column, and is the file sorted by label while --max_rows cuts it?"
    )
