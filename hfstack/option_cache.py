"""Keep the names of a recipe's options, to find a typo without importing torch.

Upstream's classes of settings cannot be imported without torch, which takes seconds. Each recipe
that starts leaves its options in the user's cache; they hold for as long as no file that defines
them has changed, so neither an upgrade nor an edit makes them wrong. Standard library only.
"""

import contextlib
import dataclasses
import hashlib
import inspect
import json
import os
from argparse import ArgumentParser
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hfstack.disk import atomic_write

_NUMBER_NAMES = {int: "int", float: "float"}


@dataclasses.dataclass(frozen=True)
class Options:
    """The options of a recipe by name, each with what its value must be."""

    kinds: dict[str, str]
    """`int`, `float`, or "" for what only the recipe can judge."""
    switches: list[str]
    """Those that also have an opposite, `--no_...`."""


def remember_options(
    recipe: Path, classes: Sequence[Any], make_parser: Callable[[], ArgumentParser]
) -> None:
    """Write the options of a recipe to the cache, unless they are there.

    A cache that cannot be written is left: it only saves time.

    Args:
        recipe: its file.
        classes: its dataclasses of settings.
        make_parser: makes the parser of these.
    """
    if recall_options(recipe) is not None:
        return

    actions = [action for action in make_parser()._actions if action.option_strings]
    own = [action for action in actions if action.option_strings[0] == f"--{action.dest}"]
    negated = [name for action in actions for name in action.option_strings if name[:5] == "--no_"]
    content: dict[str, Any] = {
        "kinds": {action.dest: _NUMBER_NAMES.get(action.type, "") for action in own},  # type: ignore[call-overload]
        "switches": [name.removeprefix("--no_") for name in negated],
    }

    target = _cache_file(recipe)
    with contextlib.suppress(OSError):
        files = _defining_files(recipe, classes)
        content["files"] = [[str(path), _stamp(path)] for path in files]
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(target, durable=False) as file:
            json.dump(content, file)


def recall_options(recipe: Path) -> Options | None:
    """Return the options of a recipe as they are now, or None where that is not known."""
    try:
        content = json.loads(_cache_file(recipe).read_text(encoding="utf-8"))
        files = [(Path(path), stamp) for path, stamp in content["files"]]
        if any(_stamp(path) != stamp for path, stamp in files):
            return None
        return Options(content["kinds"], content["switches"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _cache_file(recipe: Path) -> Path:
    """Return where the options of a recipe are kept, by the path of its file."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    name = hashlib.blake2b(str(recipe.resolve()).encode(), digest_size=8).hexdigest()
    return cache / "hfstack" / "options" / f"{recipe.stem}-{name}.json"


def _defining_files(recipe: Path, classes: Sequence[Any]) -> list[Path]:
    """Return the recipe's file, this one, and those of the classes and of their bases."""
    bases = {base for cls in classes for base in inspect.getmro(cls) if base is not object}
    return sorted({recipe.resolve(), Path(__file__), *(Path(inspect.getfile(b)) for b in bases)})


def _stamp(path: Path) -> list[int]:
    """Return what changes when a file is written again: its size and time, in ns."""
    found = path.stat()
    return [found.st_size, found.st_mtime_ns]
