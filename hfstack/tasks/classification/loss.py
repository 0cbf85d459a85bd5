"""Prepare classification for the Trainer: loss, batches and settings.

Legend: B rows of a batch, T tokens of the longest, C outputs.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from transformers import TrainingArguments

from hfstack.errors import ConfigError
from hfstack.tasks.classification.glue import GlueTask

# What evaluation.classification measures of each kind, so that a best model can be chosen by it.
METRICS = {
    "single_label_classification": ("accuracy", "f1_macro", "f1_micro", "matthews", "f1"),
    "multi_label_classification": ("accuracy", "f1_macro", "f1_micro", "label_accuracy"),
    "regression": ("pearson", "spearman", "mean_squared_error", "mean_absolute_error"),
}
_SMALLER_IS_BETTER = ("loss", "mean_squared_error", "mean_absolute_error")


def classification_loss(
    problem_type: str, weights: Sequence[float] | None = None
) -> Callable[..., torch.Tensor]:
    """Return the `compute_loss_func` of a Trainer for a problem type.

    Cross-entropy, binary cross-entropy of each label, or squared error.

    Args:
        weights: of the classes, or of a yes of each label; None for all 1. The mean is still over
            rows, so that losses of batches add up to that of all.
    """

    def loss(
        outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        logits = outputs["logits"].float()  # (B, C)
        scale = None if weights is None else torch.tensor(weights, device=logits.device)  # (C,)

        if problem_type == "single_label_classification":
            each = cross_entropy(logits, labels, reduction="none")  # (B,)
            each = each if scale is None else each * scale[labels]
        elif problem_type == "multi_label_classification":
            each = binary_cross_entropy_with_logits(
                logits, labels.float(), pos_weight=scale, reduction="none"
            )
        else:
            each = (logits[:, 0] - labels.float()) ** 2

        return each.mean() if num_items_in_batch is None else each.sum() / num_items_in_batch

    return loss


def classifier_settings(
    training_args: TrainingArguments, problem_type: str, classes: int, task: GlueTask | None = None
) -> TrainingArguments:
    """Return the settings for a Trainer with encoded rows, its best metric checked.

    With a task of GLUE the best model is chosen by the benchmark's own metric unless another than
    the loss is named.

    Raises:
        ConfigError: the metric does not fit what is predicted, or labels are to be smoothed that
            are no classes.
    """
    settings = copy.copy(training_args)
    # Checkpoints are pushed by what the recipe hands to `protect`.
    settings.push_to_hub = False
    # The sampler reads `length`; the collator takes what the model wants.
    settings.remove_unused_columns = False

    if settings.label_smoothing_factor:
        raise ConfigError(
            "--label_smoothing_factor is not used by this recipe's loss: leave it out"
        )

    metric = settings.metric_for_best_model
    unnamed = metric in (None, "loss", "eval_loss")
    if task is not None and settings.load_best_model_at_end and unnamed:
        metric = task.metrics[0]

    if metric is not None:
        settings.metric_for_best_model = check_metric(metric, problem_type, classes)
        settings.greater_is_better = greater_is_better(metric)

    return settings


def check_encoder_settings(*, use_peft: bool, freeze_encoder: bool, architecture: bool) -> None:
    """Refuse ways of training that contradict each other.

    Raises:
        ConfigError: a frozen encoder with an adapter, or one of random weights.
    """
    if use_peft and freeze_encoder:
        raise ConfigError(
            "--freeze_encoder trains the head alone, --use_peft also an adapter: choose one"
        )
    if freeze_encoder and architecture:
        raise ConfigError(
            "--freeze_encoder needs trained weights, but an architecture has random ones"
        )


def check_metric(name: str, problem_type: str, classes: int) -> str:
    """Return the name that the Trainer knows a metric by, `eval_...`.

    Raises:
        ConfigError: the metric does not fit the task.
    """
    plain = name.removeprefix("eval_")
    known = [each for each in METRICS[problem_type] if each != "f1" or classes == 2]
    if plain not in (*known, "loss"):
        raise ConfigError(
            f"--metric_for_best_model {name} does not fit a {problem_type.replace('_', ' ')} of "
            f"{classes} output{'s' if classes > 1 else ''}: choose {', '.join(known)} or loss"
        )

    return f"eval_{plain}"


def greater_is_better(metric: str) -> bool:
    """Return whether more of a metric is better."""
    return not metric.removeprefix("eval_").endswith(_SMALLER_IS_BETTER)
