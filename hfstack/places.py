"""Expand `~` and `$HOME` at the beginning of a path, as a shell would.

A YAML file has no shell, and `--output_dir=~/runs` is left alone by most. Standard library only.
"""

import os
import re
from pathlib import Path
from typing import Any

from hfstack.errors import ConfigError

_EXPANDED = re.compile(r"^(?:~(?=/)|\$(?P<plain>\w+)(?=/)|\$\{(?P<braced>\w+)\}(?=/))")


def expand_place(text: str) -> str:
    """Return a path with its beginning expanded; any other text as it is.

    Raises:
        ConfigError: a variable is not set.
    """
    found = _EXPANDED.match(text)
    if found is None:
        return text
    name = found["plain"] or found["braced"]
    if name is None:
        return f"{Path.home()}{text[1:]}"
    if name not in os.environ:
        raise ConfigError(f"{text}: the environment variable {name} is not set")
    return f"{os.environ[name]}{text[found.end() :]}"


def expand_places(values: dict[str, Any]) -> None:
    """Expand the texts among settings, and those in their lists, in place."""
    for name, value in values.items():
        if isinstance(value, str):
            values[name] = expand_place(value)
        elif isinstance(value, list):
            values[name] = [expand_place(one) if isinstance(one, str) else one for one in value]
