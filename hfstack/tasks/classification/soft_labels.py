"""Learn from a larger classifier: its probabilities beside the rows' own labels.

The teacher reads the train rows once, before training, with its own tokenizer: what is compared are
probabilities of classes, not tokens.

Legend: N rows, B rows of a batch, C classes.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from accelerate import PartialState
from torch.nn.functional import cross_entropy, kl_div
from trl import ModelConfig

from hfstack.errors import ConfigError
from hfstack.logs import get_logger
from hfstack.models.heads import padding_id
from hfstack.tasks.classification.data import Encoded, LabelledRows
from hfstack.tasks.classification.model import load_trained_classifier
from hfstack.tasks.classification.predict import classify_logits
from hfstack.tokens.text_rows import encode_texts

logger = get_logger(__name__)

_WEIGHT, _TEMPERATURE = 0.5, 2.0


@dataclass
class SoftLabelArgs:
    """A larger classifier that the new one learns from."""

    teacher_model: str | None = None
    """Classifier with the same labels, whose probabilities are learned too; any tokenizer."""
    soft_label_weight: float = _WEIGHT
    """Share of the teacher's probabilities in the loss, in (0, 1]; the rest is the rows' labels."""
    soft_label_temperature: float = _TEMPERATURE
    """Divide the logits of both by this: above 1, unlikely classes count more."""

    def __post_init__(self) -> None:
        if not 0 < self.soft_label_weight <= 1:
            raise ConfigError(
                f"--soft_label_weight must be in (0, 1], got {self.soft_label_weight}"
            )
        if not self.soft_label_temperature > 0:
            raise ConfigError(
                f"--soft_label_temperature must be above 0, got {self.soft_label_temperature}"
            )
        if self.teacher_model is None:
            for name, usual in (
                ("soft_label_weight", _WEIGHT),
                ("soft_label_temperature", _TEMPERATURE),
            ):
                if (value := getattr(self, name)) != usual:
                    raise ConfigError(
                        f"--{name} {value} is of a teacher, and there is none: name it with "
                        "--teacher_model"
                    )


def add_soft_labels(
    args: SoftLabelArgs, model_args: ModelConfig, labelled: LabelledRows, encoded: Encoded
) -> Encoded:
    """Return train rows whose `labels` are the class and C logits of the teacher.

    Without a teacher they are returned as they are.

    Raises:
        ConfigError: the rows have several labels or numbers, or the teacher has other classes.
        CheckpointError: there is no such classifier.
    """
    if args.teacher_model is None:
        return encoded
    labels = labelled.labels
    if labels.problem_type != "single_label_classification":
        raise ConfigError(
            "--teacher_model teaches one label of each row, and these rows are "
            f"{labels.problem_type}"
        )
    named = replace(model_args, model_name_or_path=args.teacher_model, model_revision="main")
    teacher, tokenizer, info = load_trained_classifier(named)
    if list(info.names) != list(labels.names):
        raise ConfigError(
            f"--teacher_model {args.teacher_model} has the labels {', '.join(info.names)}, and the "
            f"rows {', '.join(labels.names)}: they have to be the same, in this order"
        )

    first, second = labelled.columns
    kept = labelled.splits["train"].select(encoded.places)
    pairs = None if second is None else kept[second][:]
    ids = encode_texts(tokenizer, kept[first][:], pairs, max_length=info.max_length)
    teacher.to(PartialState().device)  # pyright: ignore[reportArgumentType] - a module of torch
    logits = classify_logits(teacher, ids, pad_token_id=padding_id(tokenizer))  # (N, C)

    right = (logits.argmax(axis=1) == encoded.targets).mean()
    logger.info("the teacher is right about %.1f %% of the train rows", 100 * right)
    targets = [
        [float(cast(int, target)), *row]
        for target, row in zip(encoded.targets, logits.tolist(), strict=True)
    ]
    rows = encoded.rows.remove_columns("labels").add_column("labels", targets)  # type: ignore[call-arg]  # the fingerprint is datasets' own
    return replace(encoded, rows=rows)


def soft_label_loss(
    hard: Callable[..., torch.Tensor], args: SoftLabelArgs
) -> Callable[..., torch.Tensor]:
    """Return a `compute_loss_func` for rows of `add_soft_labels`, and plain ones.

    The loss of a row is (1 - w) CE + w T^2 KL(teacher || student), both softened by T (Hinton et
    al. 2015, arXiv:1503.02531, section 2).

    Args:
        hard: the loss of plain labels, which evaluations have.
        args: the weight and the temperature.
    """

    def loss(
        outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        if labels.ndim == 1:
            return hard(outputs, labels, num_items_in_batch)
        logits = outputs["logits"].float()  # (B, C)
        temperature = args.soft_label_temperature
        taught = (labels[:, 1:] / temperature).log_softmax(dim=-1)  # (B, C)
        student = (logits / temperature).log_softmax(dim=-1)  # (B, C)
        soft = kl_div(student, taught, reduction="none", log_target=True).sum(dim=-1)  # (B,)
        own = cross_entropy(logits, labels[:, 0].long(), reduction="none")  # (B,)

        weight = args.soft_label_weight
        each = (1 - weight) * own + weight * temperature**2 * soft
        if num_items_in_batch is None:
            return each.mean()
        # the Trainer counts every number of the labels as an item
        return each.sum() * labels.shape[1] / num_items_in_batch

    return hard if args.teacher_model is None else loss
