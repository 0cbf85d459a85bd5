"""Soft labels of a larger classifier: the loss by hand, and what is refused."""

import math

import pytest
import torch

from hfstack.errors import ConfigError
from hfstack.tasks.classification.loss import classification_loss
from hfstack.tasks.classification.soft_labels import SoftLabelArgs, soft_label_loss

HARD = classification_loss("single_label_classification")


def batch(*logits: list[float]) -> dict[str, torch.Tensor]:
    return {"logits": torch.tensor(logits)}


def test_the_loss_of_a_hand_worked_row() -> None:
    # teacher (3/4, 1/4), student (1/2, 1/2), label 0
    labels = torch.tensor([[0.0, math.log(3), 0.0]])
    args = SoftLabelArgs("teacher", soft_label_weight=0.25, soft_label_temperature=1.0)
    found = soft_label_loss(HARD, args)(batch([0.0, 0.0]), labels)
    kl = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert found.item() == pytest.approx(0.75 * math.log(2) + 0.25 * kl)

    # at temperature 2 the teacher is sqrt 3 to 1, and the divergence counts four times
    args = SoftLabelArgs("teacher", soft_label_weight=1.0, soft_label_temperature=2.0)
    found = soft_label_loss(HARD, args)(batch([0.0, 0.0]), labels)
    first = math.sqrt(3) / (1 + math.sqrt(3))
    kl = first * math.log(2 * first) + (1 - first) * math.log(2 * (1 - first))
    assert found.item() == pytest.approx(4 * kl, rel=1e-5)


def test_parts_of_a_batch_add_up_as_the_trainer_counts_them() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(6, 3), torch.cat([torch.zeros(6, 1), torch.randn(6, 3)], dim=1)
    loss = soft_label_loss(HARD, SoftLabelArgs("teacher"))
    whole = loss({"logits": logits}, labels)
    items = labels.numel()  # what the Trainer counts: numbers that are not -100
    parts = [loss({"logits": logits[at]}, labels[at], items) for at in (slice(2), slice(2, 6))]
    assert sum(parts).item() == pytest.approx(whole.item(), rel=1e-5)  # type: ignore[union-attr]


def test_plain_labels_and_no_teacher_have_the_plain_loss() -> None:
    logits, labels = batch([1.0, 2.0], [0.0, 3.0]), torch.tensor([0, 1])
    expected = HARD(logits, labels)
    assert soft_label_loss(HARD, SoftLabelArgs("teacher"))(logits, labels) == expected
    assert soft_label_loss(HARD, SoftLabelArgs()) is HARD


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"soft_label_weight": 0.2}, "--soft_label_weight 0.2 is of a teacher, and there is none"),
        ({"teacher_model": "a", "soft_label_weight": 0.0}, "--soft_label_weight must be in"),
        ({"teacher_model": "a", "soft_label_temperature": 0.0}, "must be above 0"),
    ],
)
def test_settings_that_do_nothing_are_refused(settings: dict, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        SoftLabelArgs(**settings)
