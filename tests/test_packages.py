"""A package that a setting needs is missed in one line, before anything is loaded."""

import pytest

from hfstack import packages
from hfstack.errors import ConfigError
from hfstack.packages import refuse_missing_packages


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"report_to": ["none", "wandb"]}, "--report_to wandb: wandb is not installed"),
        (
            {"report_to": "mlflow"},
            "--report_to mlflow: mlflow is not installed; pip install mlflow",
        ),
        (
            {"attn_implementation": "flash_attention_2"},
            "--attn_implementation flash_attention_2: flash_attn is not installed; pip install "
            "flash-attn",
        ),
    ],
)
def test_what_is_missing_is_named(
    monkeypatch: pytest.MonkeyPatch, values: dict[str, object], line: str
) -> None:
    monkeypatch.setattr(packages, "find_spec", lambda name: None)
    with pytest.raises(ConfigError) as error:
        refuse_missing_packages(values)
    assert str(error.value).startswith(line) and "\n" not in str(error.value)

    monkeypatch.setattr(packages, "find_spec", lambda name: object())
    assert refuse_missing_packages(values) is None


def test_what_needs_no_package_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "find_spec", lambda name: None)
    for values in ({}, {"report_to": None}, {"report_to": "none", "attn_implementation": "sdpa"}):
        assert refuse_missing_packages(values) is None
