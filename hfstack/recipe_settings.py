"""Load a recipe by its path and read its settings as its own command line would."""

import importlib.util
import inspect
import sys
import types
import typing
from pathlib import Path
from typing import Any

from hfstack.config import parse


def load_recipe(recipe: Path) -> types.ModuleType:
    """Import one recipe by its path, under a name that shadows nothing."""
    spec = importlib.util.spec_from_file_location(f"recipe_{recipe.stem}", recipe)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up by name.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def settings_classes(module: types.ModuleType) -> list[Any]:
    """Return the dataclasses of a recipe's `main`, in their order."""
    hints = typing.get_type_hints(module.main)
    return [hints[name] for name in inspect.signature(module.main).parameters]


def read_recipe_settings(recipe: Path, argv: list[str]) -> tuple[Any, ...]:
    """Return the settings that a recipe would run with.

    Args:
        recipe: its file; the YAML beside it is read first, unless `argv` names another with
            `--config`.
        argv: its flags.

    Raises:
        ConfigError: a setting is unknown or refused.
    """
    beside = recipe.with_suffix(".yaml")
    names_another = any(flag == "--config" or flag.startswith("--config=") for flag in argv)
    config = []
    if beside.is_file() and not names_another:
        config = ["--config", str(beside)]
    return parse(*settings_classes(load_recipe(recipe)), argv=[*config, *argv])
