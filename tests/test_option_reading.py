"""A recipe's options are read from sources as its parser has them."""

import inspect
import typing
from pathlib import Path

import pytest

from hfstack.config import build_parser
from hfstack.option_reading import read_recipe_options
from hfstack.recipe_settings import load_recipe
from hfstack.shipped import RECIPES

PLAIN = """
from dataclasses import dataclass, field
from typing import ClassVar, Optional

def fixed(value):
    return field(default=value, init=False)

@dataclass
class Base:
    size: Optional[int] = None
    rate: "float | None" = None
    gone: int = 1

@dataclass
class Own(Base):
    kept: ClassVar[int] = 1
    gone: int = fixed(2)
    names: list[int] = field(default_factory=list)
    shuffle: bool = field(default=True, metadata={})
    quiet: bool = False

def main(own: Own): ...
"""


@pytest.mark.parametrize("recipe", sorted(path.stem for path in RECIPES.glob("*.py")))
def test_the_options_of_each_recipe_are_those_of_its_parser(recipe: str) -> None:
    main = load_recipe(RECIPES / f"{recipe}.py").main
    hints = typing.get_type_hints(main)
    parser, _ = build_parser(*(hints[name] for name in inspect.signature(main).parameters))
    actions = [action for action in parser._actions if action.option_strings]
    kinds = {int: "int", float: "float"}
    wanted = {
        action.dest: kinds.get(action.type, "") if action.nargs is None else ""  # type: ignore[call-overload]
        for action in actions
        if action.option_strings[0] == f"--{action.dest}"
    }

    options = read_recipe_options(RECIPES / f"{recipe}.py")
    assert options is not None and options.kinds == wanted
    negated = {f"--no_{name}" for name in options.switches}
    names = {name for action in actions for name in action.option_strings}
    assert negated == {name for name in names if name[:5] == "--no_" and name[2:] not in wanted}


def test_bases_functions_and_class_variables_are_followed(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.py"
    recipe.write_text(PLAIN)
    options = read_recipe_options(recipe)
    assert options is not None
    of_every_recipe = {"config": "", "allow_changed": "", "show": "int"}
    own = {"size": "int", "rate": "float", "names": "", "shuffle": "", "quiet": ""}
    assert options.kinds == own | of_every_recipe
    assert options.switches == ["shuffle"]


def test_a_class_beside_the_recipe_is_found(tmp_path: Path) -> None:
    (tmp_path / "settings.py").write_text(PLAIN)
    recipe = tmp_path / "mine.py"
    recipe.write_text("import settings\nfrom settings import Own as O\ndef main(own: O): ...\n")
    options = read_recipe_options(recipe)
    assert options is not None and "size" in options.kinds


@pytest.mark.parametrize(
    "source",
    [
        "",
        "def main(): ...",
        "def main(a: Unknown): ...",
        "from nowhere_at_all import A\ndef main(a: A): ...",
        "def main(a: make()): ...",
        "def main(:",
    ],
    ids=["empty", "no_settings", "unknown", "not_installed", "made", "no_python"],
)
def test_what_cannot_be_read_is_left_to_the_recipe(tmp_path: Path, source: str) -> None:
    recipe = tmp_path / "mine.py"
    recipe.write_text(source)
    assert read_recipe_options(recipe) is None
    assert read_recipe_options(tmp_path / "none.py") is None
