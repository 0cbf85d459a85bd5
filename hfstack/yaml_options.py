"""Read the YAML file of a recipe, and judge it by the options' names alone."""

from collections.abc import Collection
from pathlib import Path

import yaml

from hfstack import bounded_yaml, data_settings
from hfstack.errors import ConfigError
from hfstack.hints import suggest


def read_options(path: Path, known: Collection[str] | None) -> yaml.MappingNode | None:
    """Return the mapping of a YAML file of options, each there once; None if empty.

    Args:
        path: of `--config`.
        known: the recipe's options; None where they are not known, so that any key will do.

    Raises:
        ConfigError: the file cannot be read, is not YAML or no mapping, or a key is unknown or
            there twice; with its line.
    """
    try:
        with path.open(encoding="utf-8") as file:
            root = bounded_yaml.compose(file.read(bounded_yaml.MOST_CHARACTERS + 1))
    except FileNotFoundError:
        raise ConfigError(f"--config {path}: no such file") from None
    except OSError as error:
        raise ConfigError(f"--config {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        problem = " ".join(str(getattr(error, "problem", None) or error).split())
        raise ConfigError(f"{path}{place}: not YAML of settings: {problem}") from None

    if root is None:
        return None
    if not isinstance(root, yaml.MappingNode):
        raise ConfigError(
            f"{path}:{root.start_mark.line + 1}: expected a mapping of option to value"
        )

    lines: dict[str, int] = {}
    for key_node, _ in root.value:
        key, line = str(key_node.value), key_node.start_mark.line + 1
        is_option = known is None or key in known or key == data_settings.KEY
        if known is not None and (not is_option or key == "config"):
            raise ConfigError(f"{path}:{line}: unknown key {suggest(key, known)}")
        if key in lines:
            raise ConfigError(f"{path}:{line}: {key} is already set in line {lines[key]}")
        lines[key] = line

    return root
