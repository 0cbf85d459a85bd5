"""Run a recipe as `python recipe.py FLAGS` does, with its imports at less cost.

    python -P -m hfstack.cli.start recipe.py FLAGS

`hfstack run` starts one process this way, and `hfstack warm` imports this way: a quarter of the CPU
seconds before the first step went into visiting again and again what modules had just made, into
reading the names of all installed packages several times, and into trackers that nobody asked for.
What a recipe sees is the same. Standard library only, until the recipe's own imports.
"""

import ast
import contextlib
import functools
import gc
import importlib
import importlib.abc
import importlib.machinery
import importlib.metadata
import importlib.util
import os
import runpy
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from hfstack.machine import choose_threads

# trl imports it at the top wherever it is installed, and only `report_to: wandb` needs it.
_WHEN_USED = ("wandb",)


def main() -> None:
    """Run the recipe that the command line names."""
    del sys.argv[0]
    recipe = Path(sys.argv[0])
    # as `python recipe.py` has it
    if not os.environ.get("PYTHONSAFEPATH"):
        sys.path.insert(0, str(recipe.resolve().parent))

    settle_threads()
    # What fails here fails again in the recipe itself, which says so in its own way.
    with contextlib.suppress(Exception), cheaper_imports():
        import_what_it_needs(recipe)
    runpy.run_path(sys.argv[0], run_name="__main__")


def settle_threads() -> None:
    """Choose threads for the libraries that are imported next; the run logs them."""
    os.environ.update(choose_threads(os.environ))


@contextlib.contextmanager
def cheaper_imports() -> Iterator[None]:
    """Import at less cost inside the block; what was made there is never collected."""
    list_packages = importlib.metadata.packages_distributions
    finder = _WhenUsed()
    gc.disable()
    sys.meta_path.insert(0, finder)
    # trl and transformers both list all packages, and what is installed does not change meanwhile
    importlib.metadata.packages_distributions = functools.cache(list_packages)
    try:
        yield
    finally:
        importlib.metadata.packages_distributions = list_packages
        sys.meta_path.remove(finder)
        gc.freeze()
        gc.enable()


def import_what_it_needs(recipe: Path) -> None:
    """Import the modules and names that a recipe imports, without running it."""
    for node in ast.parse(recipe.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            for alias in node.names:
                importlib.import_module(alias.name)
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            module = importlib.import_module(node.module)
            for alias in node.names:
                # Lazy packages import a part when its name is asked for.
                if not hasattr(module, alias.name):
                    importlib.import_module(f"{node.module}.{alias.name}")


class _WhenUsed:
    """Finds packages that are loaded when something of them is first used."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Return how such a package is loaded; None for any other module."""
        if name not in _WHEN_USED:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Later(spec.loader)
        return spec


class _Later(importlib.abc.Loader):
    """Loads a module when a name is asked for that it does not have yet."""

    def __init__(self, loader: importlib.abc.Loader) -> None:
        self.loader = loader

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        """Return an empty module."""
        return _NotLoaded(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Leave it empty."""


class _NotLoaded(ModuleType):
    # transformers takes a wandb without it for the rest of an uninstalled one
    run = None

    def __getattr__(self, name: str) -> Any:
        # the import system itself asks for some that are missing
        spec = self.__spec__
        if name.startswith("__") or spec is None or not isinstance(spec.loader, _Later):
            raise AttributeError(name)

        loader = spec.loader.loader
        self.__class__ = ModuleType  # type: ignore[assignment]
        self.__loader__ = spec.loader = loader
        loader.exec_module(self)
        return getattr(self, name)


if __name__ == "__main__":
    main()
