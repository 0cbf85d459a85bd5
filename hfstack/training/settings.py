"""Check settings that upstream does not, before they train nonsense."""

import math
from collections.abc import Collection

import torch
from transformers import TrainingArguments

from hfstack.errors import ConfigError
from hfstack.models.counting import peak_flops_per_s


def check_settings(args: TrainingArguments, *, early_stopping_patience: int | None = None) -> None:
    """Refuse values out of range and settings that contradict each other.

    Raises:
        ConfigError: with the option, its value and what it must be.
    """
    # argparse judges types alone; a wrong value would come up after the data is read, or never.
    for name in (
        "per_device_train_batch_size",
        "per_device_eval_batch_size",
        "gradient_accumulation_steps",
    ):
        if getattr(args, name) < 1:
            raise ConfigError(f"--{name} must be at least 1, got {getattr(args, name)}")

    for name in (
        "learning_rate",
        "weight_decay",
        "max_grad_norm",
        "warmup_steps",
        "dataloader_num_workers",
    ):
        value = getattr(args, name)
        if not 0 <= value < math.inf:
            raise ConfigError(f"--{name} must be 0 or above, got {value}")

    for name in ("adam_beta1", "adam_beta2"):
        if not 0 <= getattr(args, name) < 1:
            raise ConfigError(f"--{name} must be in [0, 1), got {getattr(args, name)}")

    if args.max_steps == 0 or (args.max_steps < 0 and args.num_train_epochs <= 0):
        raise ConfigError(
            f"--max_steps {args.max_steps} with --num_train_epochs {args.num_train_epochs} trains "
            "nothing"
        )

    if early_stopping_patience is not None and not args.load_best_model_at_end:
        raise ConfigError(
            "--early_stopping_patience needs --load_best_model_at_end true, with --eval_strategy "
            "set"
        )


def check_best_metric(
    args: TrainingArguments, known: Collection[str], *, has_loss: bool = True
) -> None:
    """Refuse a best metric that the evaluation does not give, before the first epoch.

    Args:
        known: names of the metrics without `eval_`, of which more is better.
        has_loss: the evaluation gives a loss as well.

    Raises:
        ConfigError: it is none of them.
    """
    asked = args.metric_for_best_model
    names = [*known, "loss"] if has_loss else [*known]
    if asked is not None and asked.removeprefix("eval_") not in names:
        *first, last = names
        raise ConfigError(
            f"--metric_for_best_model {asked} does not fit this task: choose {', '.join(first)} or "
            f"{last}"
        )


def total_peak_flops_per_s(args: TrainingArguments) -> float:
    """Return what all devices reach together, in the training's number type."""
    number_type = torch.bfloat16 if args.bf16 else torch.float32
    return args.world_size * peak_flops_per_s(args.device, number_type)


def blocks_per_step(args: TrainingArguments, blocks: int) -> float:
    """Return the mean number of sequences of an optimizer step, over all processes.

    The last step of an epoch takes what is left, which matters when the data is small.
    """
    whole = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    return blocks / math.ceil(blocks / whole)
