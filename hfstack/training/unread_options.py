"""Refuse upstream's options that do nothing in a recipe.

Each entry says why: the end of the line that the user reads. An option that only takes part where
another one is set (`eval_steps`, say) is not listed.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from transformers import Seq2SeqTrainer, Trainer, TrainingArguments
from transformers.trainer_utils import IntervalStrategy

from hfstack.errors import ConfigError

_SCRIPTS = "a recipe always trains, and evaluates as --eval_strategy says"
_PUSHES = "each verified checkpoint is pushed, --hub_revision names the branch"
_NO_PREDICTIONS = "this recipe's metrics need no predictions of the evaluation loop"
_OWN_LOSS = "this recipe has a loss of its own"
_OWN_COUNT = "its batches have no input_ids to count"
_NO_LOADER = "prompts are read by their row number, without worker processes"
_OWN_MEAN = "the loss is a mean over all processes in any case"

# no recipe reads these
_UNREAD_BY_ALL = {
    "do_train": _SCRIPTS,
    "do_predict": _SCRIPTS,
    "hub_strategy": _PUSHES,
    "hub_always_push": _PUSHES,
    "enable_jit_checkpoint": "a recipe saves and ends at SIGTERM in any case",
}

# read only where an evaluation computes metrics from predictions
_OF_PREDICTIONS = dict.fromkeys(
    (
        "prediction_loss_only",
        "include_for_metrics",
        "batch_eval_metrics",
        "eval_do_concat_batches",
        "eval_accumulation_steps",
    ),
    _NO_PREDICTIONS,
)

_OF_PAIRS = {"label_smoothing_factor": _OWN_LOSS, "average_tokens_across_devices": _OWN_LOSS}
_OF_SENTENCE_TRANSFORMERS = ("SentenceTransformerTrainer", "CrossEncoderTrainer")
_OWN_BATCHES = "batches are drawn so that no text is twice in one"
_OF_TEXTS = _OF_PAIRS | {
    "include_num_input_tokens_seen": _OWN_COUNT,
    "train_sampling_strategy": _OWN_BATCHES,
    "length_column_name": _OWN_BATCHES,
    "data_seed": "--seed decides the order of the batches",
    "dataloader_multiprocessing_context": "sentence-transformers makes the loader",
    "dataloader_in_order": "sentence-transformers makes the loader",
    "neftune_noise_alpha": "texts are read by modules of sentence-transformers",
}
# the loss of two places in a row, which are no labels of tokens
_OF_SPANS = {"label_smoothing_factor": _OWN_LOSS, "average_tokens_across_devices": _OWN_LOSS}
# What TRL's trainers do with a model, a tokenizer or rows that a recipe has made itself: nothing,
# or half of it, such as to save another end than was trained.
_OF_MODEL = {
    "model_init_kwargs": "--model_name_or_path, --dtype and --attn_implementation load the model",
    "pad_token": "the tokenizer's own pad token is used, or one is chosen that ends nothing",
}
_IN_SFT = "sft gives a tokenizer its template and its end"
_BY_SETTINGS: dict[str, dict[str, str]] = {
    "SFTConfig": _OF_MODEL
    | {
        "padding_free": "rows are padded, or packed by --packing",
        "shuffle_dataset": "rows are shuffled by --data_seed in any case",
        "dataset_text_field": "--text_column names the column",
        "truncation_mode": "a row that is too long loses its end",
    },
    "DPOConfig": _OF_MODEL | {"padding_free": "TRL 1.16 has switched it off"},
    "KTOConfig": _OF_MODEL,
    "RewardConfig": _OF_MODEL | {"chat_template_path": _IN_SFT, "eos_token": _IN_SFT},
    "ORPOConfig": _OF_MODEL
    | {
        "max_completion_length": "it is read for encoder-decoders alone",
        "is_encoder_decoder": "the model says it",
        "generate_during_eval": "samples.jsonl has answers of each evaluation",
    },
}

# by the class that trains
_BY_TRAINER: dict[str, dict[str, str]] = {
    "DPOTrainer": _OF_PAIRS,
    "KTOTrainer": _OF_PAIRS | {"include_num_input_tokens_seen": _OWN_COUNT},
    "ORPOTrainer": _OF_PAIRS | {"include_num_input_tokens_seen": _OWN_COUNT},
    "RewardTrainer": _OF_PAIRS,
    "SpanTrainer": _OF_PAIRS,
    **dict.fromkeys(_OF_SENTENCE_TRANSFORMERS, _OF_TEXTS),
}

# The trainer of ppo, rloo and grpo has a loader, a training step and an evaluation of its own.
PPO_UNREAD = {
    **_UNREAD_BY_ALL,
    **_OF_PREDICTIONS,
    **_OF_PAIRS,
    "train_sampling_strategy": "prompts are shuffled by --data_seed",
    "auto_find_batch_size": "the rollouts of a smaller batch would be others",
    "neftune_noise_alpha": "noise would change the log-probabilities that updates compare",
    **dict.fromkeys(
        (
            "dataloader_drop_last",
            "dataloader_num_workers",
            "dataloader_pin_memory",
            "dataloader_persistent_workers",
            "dataloader_prefetch_factor",
            "dataloader_multiprocessing_context",
            "dataloader_in_order",
        ),
        _NO_LOADER,
    ),
    # its batches, optimizer and evaluation are its own
    "include_num_input_tokens_seen": _OWN_COUNT,
    "length_column_name": "batches are split by the lengths of prompts and completions",
    "average_tokens_across_devices": _OWN_MEAN,
    "remove_unused_columns": "the rewards read the other columns",
    "label_names": "there are no labels",
    "ignore_data_skip": "a resumed run begins with a rollout of its own",
    "optim_target_modules": "policy and critic have optimizer groups of their own",
    "torch_empty_cache_steps": "memory is bounded by --max_tokens_per_microbatch",
    "use_liger_kernel": "only completion tokens go through the output head, in chunks",
    "liger_kernel_config": "only completion tokens go through the output head, in chunks",
    "bf16_full_eval": "an evaluation computes as training does, set --bf16",
    "fp16_full_eval": "an evaluation computes as training does, set --bf16",
    "eval_use_gather_object": "evaluations sum their metrics over processes",
    "parallelism_config": "weights are sharded by FSDP2 only",
}


def refuse_unread_of(trainer: Trainer) -> None:
    """Refuse options that were set and that the given Trainer does not read.

    Raises:
        ConfigError: naming the first such option.
    """
    refuse_unread(trainer.args, unread_by(trainer))
    refuse_unread_settings(trainer.args)


def unread_by(trainer: Trainer) -> dict[str, str]:
    """Return the options that the given Trainer does not read, each with the reason."""
    unread = dict(_UNREAD_BY_ALL)
    if trainer.compute_metrics is None and not isinstance(trainer, Seq2SeqTrainer):
        unread |= _OF_PREDICTIONS
    for upstream in type(trainer).__mro__:
        unread |= _BY_TRAINER.get(upstream.__name__, {})
        # the settings of sentence-transformers set it themselves
        if upstream.__name__ in _OF_SENTENCE_TRANSFORMERS:
            unread.pop("prediction_loss_only", None)

    if "start_positions" in trainer.label_names:
        unread |= _OF_SPANS
    return unread


def refuse_unread_settings(args: TrainingArguments) -> None:
    """Refuse options of TRL's settings that recipes decide otherwise.

    Also before a trainer is made, where TRL would stop in its own words.

    Raises:
        ConfigError: naming the first such option.
    """
    for upstream in type(args).__mro__:
        refuse_unread(args, _BY_SETTINGS.get(upstream.__name__, {}))


def refuse_unread(args: TrainingArguments, unread: Mapping[str, str]) -> None:
    """Refuse options that are set and do nothing.

    Args:
        args: the settings, of any subclass; what differs from the class's default is set.
        unread: names of options, each with the reason.

    Raises:
        ConfigError: naming the first such option.
    """
    # upstream sets do_eval itself where there is a strategy
    if args.eval_strategy == IntervalStrategy.NO:
        unread = {**unread, "do_eval": _SCRIPTS}

    for field in dataclasses.fields(args):
        reason = unread.get(field.name)
        value: Any = getattr(args, field.name)
        if reason is not None and not _is_default(field, value):
            shown = str(value).lower() if isinstance(value, bool) else value
            raise ConfigError(f"--{field.name} {shown} does nothing here: {reason}; leave it out")


def _is_default(field: dataclasses.Field[Any], value: Any) -> bool:
    """Return whether a field has its default, which for "no" may be written as false."""
    if field.default_factory is not dataclasses.MISSING:
        return value == field.default_factory()
    return value == field.default or (field.default == "no" and value is False)
