"""Losses against torch's own, weights, and the settings that do not fit."""

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, mse_loss
from transformers import TrainingArguments

from hfstack.errors import ConfigError
from hfstack.tasks.classification.glue import glue_task
from hfstack.tasks.classification.loss import (
    METRICS,
    check_encoder_settings,
    classification_loss,
    classifier_settings,
    greater_is_better,
)
from hfstack.tasks.classification.metrics import NUMBER, SEVERAL, SINGLE, scores
from hfstack.tokens.text_rows import pad_rows


def test_losses_are_torchs():
    torch.manual_seed(0)
    logits, classes = torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 2])
    output = {"logits": logits}
    assert classification_loss(SINGLE)(output, classes).item() == pytest.approx(
        cross_entropy(logits, classes).item()
    )
    yes = torch.rand(6, 3).round()
    expected = binary_cross_entropy_with_logits(logits, yes)
    assert classification_loss(SEVERAL)(output, yes).item() == pytest.approx(expected.item())
    numbers = torch.randn(6)
    expected = mse_loss(logits[:, 0], numbers)
    assert classification_loss(NUMBER)(output, numbers).item() == pytest.approx(expected.item())


def test_weights_and_batches_that_add_up():
    torch.manual_seed(1)
    logits, classes, weights = (
        torch.randn(8, 2),
        torch.tensor([0, 0, 0, 0, 0, 0, 1, 1]),
        [8 / 12, 8 / 4],
    )
    loss = classification_loss(SINGLE, weights)
    whole = loss({"logits": logits}, classes)
    assert whole.item() == pytest.approx(
        cross_entropy(logits, classes, weight=torch.tensor(weights)).item()
    )
    parts = [
        loss({"logits": logits[part]}, classes[part], 8) for part in (slice(0, 3), slice(3, 8))
    ]
    assert sum(part.item() for part in parts) == pytest.approx(whole.item())
    several = classification_loss(SEVERAL, [3.0, 0.5])
    yes = torch.tensor([[1.0, 0.0]] * 8)
    expected = binary_cross_entropy_with_logits(logits, yes, pos_weight=torch.tensor([3.0, 0.5]))
    assert several({"logits": logits}, yes).item() == pytest.approx(expected.item())


def test_rows_are_padded_to_the_longest():
    rows = [
        {"input_ids": [5, 6, 7], "token_type_ids": [0, 0, 1], "labels": 1, "length": 3},
        {"input_ids": [8], "token_type_ids": [1], "labels": 0, "length": 1},
    ]
    batch = pad_rows(rows, pad_token_id=9)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 9, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["token_type_ids"].tolist() == [[0, 0, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [1, 0] and "length" not in batch


def test_the_metrics_that_can_be_chosen_are_measured():
    labels = torch.tensor([0, 1, 1]).numpy()
    assert set(METRICS[SINGLE]) == set(scores(labels, labels, SINGLE, 2))
    yes = torch.eye(3).numpy()
    assert set(METRICS[SEVERAL]) == set(scores(yes, yes, SEVERAL, 3))
    assert set(METRICS[NUMBER]) == set(scores(labels, labels, NUMBER, 1))


def test_the_best_model_is_chosen_by_a_metric_that_fits(tmp_path):
    base = {"output_dir": str(tmp_path), "use_cpu": True, "report_to": "none"}
    best = {"load_best_model_at_end": True, "eval_strategy": "steps", "save_strategy": "steps"}
    cola = classifier_settings(TrainingArguments(**base, **best), SINGLE, 2, glue_task("cola"))
    assert (cola.metric_for_best_model, cola.greater_is_better) == ("eval_matthews", True)
    error = TrainingArguments(**base, **best, metric_for_best_model="mean_squared_error")
    assert classifier_settings(error, NUMBER, 1).greater_is_better is False
    plain = TrainingArguments(**base)
    assert (
        classifier_settings(plain, SINGLE, 2).remove_unused_columns is False
        and plain.remove_unused_columns
    )
    with pytest.raises(
        ConfigError, match=r"f1 does not fit a single label classification of 3 outputs"
    ):
        classifier_settings(TrainingArguments(**base, metric_for_best_model="f1"), SINGLE, 3)
    with pytest.raises(
        ConfigError, match=r"accuracy does not fit a regression of 1 output: choose pearson"
    ):
        classifier_settings(
            TrainingArguments(**base, metric_for_best_model="eval_accuracy"), NUMBER, 1
        )
    with pytest.raises(ConfigError, match="--label_smoothing_factor"):
        classifier_settings(TrainingArguments(**base, label_smoothing_factor=0.1), SINGLE, 2)
    assert greater_is_better("eval_f1_macro") and not greater_is_better("eval_loss")


def test_ways_of_training_that_contradict_each_other():
    check_encoder_settings(use_peft=True, freeze_encoder=False, architecture=False)
    with pytest.raises(ConfigError, match="choose one"):
        check_encoder_settings(use_peft=True, freeze_encoder=True, architecture=False)
    with pytest.raises(ConfigError, match="random ones"):
        check_encoder_settings(use_peft=False, freeze_encoder=True, architecture=True)
