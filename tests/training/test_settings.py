"""Settings out of range are refused before anything is loaded."""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
from transformers import TrainingArguments

from hfstack.errors import ConfigError
from hfstack.training.settings import blocks_per_step, check_settings


def arguments(tmp_path: Path, **changes: object) -> TrainingArguments:
    args = TrainingArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True)
    for name, value in changes.items():
        setattr(args, name, value)
    return args


def test_defaults_are_fine(tmp_path: Path) -> None:
    assert check_settings(arguments(tmp_path)) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"per_device_train_batch_size": 0},
            "--per_device_train_batch_size must be at least 1, got 0",
        ),
        ({"gradient_accumulation_steps": -1}, "--gradient_accumulation_steps must be at least 1"),
        ({"learning_rate": -1.0}, "--learning_rate must be 0 or above"),
        ({"learning_rate": math.nan}, "--learning_rate must be 0 or above, got nan"),
        ({"adam_beta2": 7.0}, r"--adam_beta2 must be in \[0, 1\)"),
        ({"max_steps": 0}, "trains nothing"),
        ({"num_train_epochs": 0}, "trains nothing"),
    ],
)
def test_values_out_of_range(tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_settings(arguments(tmp_path, **changes))


def test_early_stopping_needs_the_best_model(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needs --load_best_model_at_end true"):
        check_settings(arguments(tmp_path), early_stopping_patience=2)


def test_the_last_step_of_an_epoch_is_counted_as_it_is() -> None:
    args = SimpleNamespace(train_batch_size=8, gradient_accumulation_steps=1, world_size=2)
    assert blocks_per_step(args, 32) == 16  # pyright: ignore[reportArgumentType]
    assert blocks_per_step(args, 40) == pytest.approx(40 / 3)  # pyright: ignore[reportArgumentType]
    assert blocks_per_step(args, 5) == 5  # pyright: ignore[reportArgumentType]
