"""Make `docs/reference/<recipe>.md` from the type hints of each recipe's `main`.

    python -m hfstack.cli.reference            # write the pages
    python -m hfstack.cli.reference --check    # exit 1 when a page is not what it should be

The tree of docs/tree.md and the list of translations that are behind, in docs/zh/README.md, are
made in the same go. `hfstack run X --help` prints these pages, so that it need not import torch. A
tool beside the floors: it loads recipes by their path, and nothing imports it.
"""

import argparse
import dataclasses
import enum
import inspect
import logging
import sys
import textwrap
import types
import typing
from argparse import Action
from pathlib import Path
from typing import Any

import yaml

from hfstack.cli.file_tree import long_tree
from hfstack.cli.translations import STATUS_PAGE, status_page
from hfstack.config import build_parser
from hfstack.errors import ConfigError, HfstackError
from hfstack.logs import get_logger, setup_logging
from hfstack.ranges import describe_range
from hfstack.recipe_settings import load_recipe, settings_classes

CHECKOUT = Path(__file__).parent.parent.parent
_WIDTH = 100  # columns
_REFUSED = {"help", "hub_token"}  # parse() refuses a token on the command line
_GENERATED = (
    "<!-- Made by `python -m hfstack.cli.reference` from the recipe's type hints. Do not edit. -->"
)

logger = get_logger(__name__)


def make_page(recipe: Path) -> str:
    """Return the Markdown page of one recipe.

    A heading and one block of plain text, which the command line prints.
    """
    module = load_recipe(recipe)
    classes = settings_classes(module)
    settings = recipe.with_suffix(".yaml")
    changed = {}
    if settings.is_file():
        changed = yaml.safe_load(settings.read_text(encoding="utf-8")) or {}

    # argparse also lists each switch with its opposite, --no_x, which is no option of its own.
    parser, types_ = build_parser(*classes)
    actions = {
        action.dest: action
        for action in parser._actions
        if action.option_strings[0] == f"--{action.dest}"
    }

    lines = [*(inspect.getdoc(module) or "").splitlines(), ""]
    lines += _entry(
        actions["config"], "PATH", f"default {settings.name} beside the recipe, with `hfstack run`"
    )

    for cls in classes:
        # Of another library its name is enough: its files move from release to release.
        place = cls.__module__
        if place == module.__name__:
            place = recipe.name
        elif not place.startswith("hfstack."):
            place = place.split(".")[0]
        lines += ["", f"{cls.__name__} ({place})"]

        for field in dataclasses.fields(cls):
            if field.init and field.name not in _REFUSED:
                action = actions[field.name]
                default = "required" if action.required else f"default {_spell(action.default)}"
                if field.name in changed:
                    default += f"; {settings.name}: {_spell(changed[field.name])}"
                lines += ["", *_entry(action, _metavar(action, types_[field.name]), default)]

    text = "\n".join(line.rstrip() for line in lines)
    return f"# {recipe.stem}\n\n{_GENERATED}\n\n```text\n{text}\n```\n"


def make_pages(recipes: Path) -> dict[str, str]:
    """Return the page of each recipe in a folder, by file name."""
    return {f"{path.stem}.md": make_page(path) for path in sorted(recipes.glob("*.py"))}


def stale_pages(pages: dict[str, str], folder: Path) -> list[str]:
    """Return the names of pages that are missing, out of date, or of no recipe."""
    written = {path.name: path.read_text(encoding="utf-8") for path in folder.glob("*.md")}
    return sorted(
        name for name in pages.keys() | written.keys() if pages.get(name) != written.get(name)
    )


def other_pages(root: Path) -> dict[str, str]:
    """Return the other pages that are made, by their path."""
    return {"docs/tree.md": long_tree(root), STATUS_PAGE.as_posix(): status_page(root)}


def stale_others(pages: dict[str, str], root: Path) -> list[str]:
    """Return the paths of these pages that are missing or out of date."""
    return [
        name
        for name, text in pages.items()
        if not (root / name).is_file() or (root / name).read_text(encoding="utf-8") != text
    ]


def write_reference(argv: list[str] | None = None) -> None:
    """Write the pages, or check them with `--check`."""
    parser = argparse.ArgumentParser(
        prog="python -m hfstack.cli.reference", description=__doc__, allow_abbrev=False
    )
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit 1 when a page is out of date"
    )

    check = parser.parse_args(argv).check
    setup_logging(logging.INFO)

    if not (CHECKOUT / "recipes").is_dir():
        raise ConfigError(
            "the option reference is made in a checkout of hfstack; an installed package carries "
            "it ready"
        )

    folder = CHECKOUT / "docs" / "reference"
    pages = make_pages(CHECKOUT / "recipes")
    stale = stale_pages(pages, folder)
    others = other_pages(CHECKOUT)
    stale_names = stale_others(others, CHECKOUT)

    if check and (stale or stale_names):
        names = [*(f"docs/reference/{name}" for name in stale), *stale_names]
        raise ConfigError(f"out of date: {', '.join(names)}; run: python -m hfstack.cli.reference")

    folder.mkdir(parents=True, exist_ok=True)
    for name in stale_names:
        (CHECKOUT / name).write_text(others[name], encoding="utf-8")

    for name in stale:
        # The page of a recipe that is gone goes with it.
        if name in pages:
            (folder / name).write_text(pages[name], encoding="utf-8")
        else:
            (folder / name).unlink()

    rewritten = ", ".join([*stale, *stale_names])
    result = f"rewritten: {rewritten}" if rewritten else "up to date"
    logger.info("docs: %d recipes, %s", len(pages), result)


def _entry(action: Action, metavar: str, default: str) -> list[str]:
    """Return the lines of one option: flag, value, default, and its help below."""
    text = " ".join((action.help or "").split()).replace("%%", "%")
    if metavar == "CHOICE":
        text += f" One of: {', '.join(map(str, action.choices or ()))}."
    if allowed := describe_range(action.dest):
        text = f"{text} Must be {allowed}.".strip()

    head = f"  --{action.dest} {metavar}"
    heads = [f"{head}  ({default})"]
    if len(heads[0]) > _WIDTH:
        heads = [head, f"      ({default})"]
    return heads + textwrap.wrap(
        text, _WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6, break_on_hyphens=False
    )


def _metavar(action: Action, hint: Any) -> str:
    """Return what an option takes, in one word."""
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    members = typing.get_args(hint) if is_union else (hint,)
    if action.choices:
        words = "|".join(map(str, action.choices))
        return words if len(words) <= 60 else "CHOICE"
    if bool in members:
        return "true|false"

    if any(member is dict or typing.get_origin(member) is dict for member in members):
        return "JSON"

    name = getattr(action.type, "__name__", "str")
    word = {"str": "TEXT", "int": "INT", "float": "FLOAT"}.get(name, name.upper())
    return f"{word} ..." if action.nargs == "+" else word


def _spell(value: Any) -> str:
    """Return a default as one would type it."""
    if isinstance(value, enum.Enum):
        return str(value.value)
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    if isinstance(value, list | tuple):
        return " ".join(map(_spell, value)) or "none given"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_spell(entry)}" for key, entry in value.items()) + "}"

    return f'"{value}"' if value == "" or " " in str(value) else str(value)


if __name__ == "__main__":
    try:
        write_reference()
    except HfstackError as error:
        sys.exit(str(error))
