"""A recipe's options are known for as long as the files that define them are the same."""

import os
from dataclasses import dataclass
from pathlib import Path

import pytest
from transformers import TrainingArguments

from hfstack.config import build_parser
from hfstack.option_cache import recall_options, remember_options


@dataclass
class Settings:
    """What a recipe of this test takes."""

    size: int = 1
    """Its size."""
    rate: float | None = None
    """Its rate."""
    name: str = "a"
    """Its name."""
    shuffle: bool = True
    """Whether it is shuffled."""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file = tmp_path / "recipe.py"
    file.touch()
    return file


def remember(recipe: Path, *classes: type) -> None:
    remember_options(recipe, classes, lambda: build_parser(*classes)[0])


def test_names_and_kinds_are_those_of_the_parser(recipe: Path) -> None:
    assert recall_options(recipe) is None
    remember(recipe, Settings, TrainingArguments)
    options = recall_options(recipe)
    assert options is not None
    wanted = {"size": "int", "rate": "float", "name": "", "shuffle": "", "learning_rate": "float"}
    assert wanted.items() <= options.kinds.items()
    assert "config" in options.kinds and "allow_changed" in options.kinds
    assert "shuffle" in options.switches and "name" not in options.switches


def test_an_edit_of_the_recipe_makes_them_unknown(recipe: Path) -> None:
    remember(recipe, Settings)
    os.utime(recipe, ns=(1, 1))
    assert recall_options(recipe) is None
    remember(recipe, Settings)
    assert recall_options(recipe) is not None
    recipe.unlink()
    assert recall_options(recipe) is None


def test_they_are_made_once(recipe: Path) -> None:
    remember(recipe, Settings)

    def fail() -> None:
        raise AssertionError("the parser is made again")

    remember_options(recipe, [Settings], fail)  # type: ignore[arg-type]
    assert recall_options(recipe) is not None


def test_a_cache_that_cannot_be_written_or_read_is_no_error(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(recipe))  # a file
    remember(recipe, Settings)
    assert recall_options(recipe) is None

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    remember(recipe, Settings)
    for file in (tmp_path / "cache").rglob("*.json"):
        file.write_text('{"files": [')
    assert recall_options(recipe) is None
