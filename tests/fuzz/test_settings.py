"""Hostile files of settings and flags, over all recipes: right values, or one line."""

import dataclasses
import enum
import functools
import json
import math
import random
import types
import typing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hfstack.config import build_parser, parse
from hfstack.errors import AlreadyFinished, ConfigError
from hfstack.recipe_settings import load_recipe, settings_classes
from tests.conftest import ROOT
from tests.fuzz.json_values import damaged
from tests.fuzz.limits import Tally, check_many, outcome, short

RECIPES = sorted((ROOT / "recipes").glob("*.py"))
SEEDS = st.integers(0, 2**32 - 1)

# Values as a file spells them. No spelling of a true or false, of null or of a number is left to
# chance: each of them has once been read as something else.
SPELLINGS = (
    *("1", "0", "-1", "3", "0.5", "1e-4", "1_000", "0x10", "0o17", "1e3", "-0.0", "007", "+5"),
    *("1e999", "-1e999", ".inf", "-.inf", ".nan", "nan", "inf", "9" * 400, "1" * 25, "1e-99"),
    *("true", "false", "True", "yes", "no", "on", "off", "null", "~", "", "None", "none", "all"),
    *('"1"', '"true"', '"null"', '""', '" "', "text", "a b", '"--seed"', "--seed", "-5", "'-x'"),
    *("[]", "[1]", "[1, 2]", "[null]", "[a, b]", "[[1]]", "[true]", "['--x']", "[.nan]", '[""]'),
    *("{}", "{a: 1}", "{a: null}", "{a: [1]}", "{1: 2}", "{path: x}", "{path: [1]}", "[{path: x}]"),
    *("[{path: 3}]", "[{}]", "[{path: a, weight: .nan}]", "[{path: a, weight: -1}]", "[{x: 1}]"),
    *("2024-01-01", "12:30:45", "2001-12-14t21:59:43.10-05:00", "!!python/name:os.system", "!x 1"),
    *("&a [*a]", "*b", "!!binary aGk=", "!!set {a}", "<<: {a: 1}", "=", "|\n    text", ">-\n    a"),
    *('"\\0"', '"\\ud800"', '"\\x1b[31m"', "é", "日本", '"a\\nb"', "../../x", "/dev/zero", "~/x"),
    *("'{\"a\": 1}'", "'{\"a\": NaN}'", "'[1]'", "'{bad'", "[1, 2", "a: b", "- x", "%YAML 9", "@x"),
)
FLAG_VALUES = (
    *("1", "0", "-1", "1.5", "1e999", "nan", "inf", "", " ", "true", "no", "null", "None", "text"),
    *("[]", "{}", "[1]", '{"a": 1}', '{"a": NaN}', "{", "9" * 400, "\ud800", "--seed", "-5"),
    *("é", "a\nb", "/dev/null", "1,2", "1 2", "steps", "epoch", "0x10", "1_000", "{}" * 200),
)


# What upstream makes another value of: by the hardware, or of a list of one.
RESOLVED = ("dataloader_pin_memory", "lora_target_modules")


@functools.cache
def recipe_of(path: Path) -> tuple[list[Any], dict[str, Any]]:
    """Return the settings classes of a recipe and the type of each option."""
    classes = settings_classes(load_recipe(path))
    return classes, build_parser(*classes)[1]


def make_file(choose: random.Random, recipe: Path, hints: dict[str, Any]) -> bytes:
    """Return a file of settings with one to five odd values, sometimes damaged as bytes."""
    names = sorted(hints)
    lines = {}
    if choose.random() < 0.3 and (shipped := recipe.with_suffix(".yaml")).is_file():
        lines = {str(number): line for number, line in enumerate(shipped.read_text().splitlines())}
    for _ in range(choose.choice((1, 1, 2, 3, 5))):
        name = choose.choice(names)
        if choose.random() < 0.05:
            name = choose.choice((name[:-1], name.upper(), name + "_", "", "? [a]", '"a\\0"'))
        lines[name] = f"{name}: {choose.choice(SPELLINGS)}"
    text = "\n".join(lines.values()) + "\n"
    content = text.encode(errors="replace")
    return damaged(content, choose.randrange(2**32)) if choose.random() < 0.15 else content


def make_flags(choose: random.Random, hints: dict[str, Any]) -> list[str]:
    """Return up to three flags, some of them misspelt."""
    flags = []
    for _ in range(choose.choice((0, 0, 0, 1, 1, 3))):
        name, value = choose.choice(sorted(hints)), choose.choice(FLAG_VALUES)
        name = f"--{name}" if choose.random() < 0.95 else choose.choice(("-x", "--", name, "---a"))
        flags += [f"{name}={value}"] if choose.random() < 0.6 else [name, value]
    return flags


def fits(value: Any, hint: Any) -> bool:
    """Return whether a value of the settings is what its type hint says, and finite."""
    origin = typing.get_origin(hint)
    # What a class makes of a setting, such as an AcceleratorConfig of a mapping, is its own.
    if hint is Any or not isinstance(value, bool | int | float | str | list | dict | None):
        return True
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, one) for one in typing.get_args(hint))
    if origin is typing.Literal:
        return value in typing.get_args(hint)
    if origin is list or hint is list:
        inside = (typing.get_args(hint) or (Any,))[0]
        return isinstance(value, list) and all(fits(one, inside) for one in value)
    if origin is dict or hint is dict:
        return isinstance(value, dict) and math.isfinite(_largest(value))
    if hint in (int, float):
        # Upstream makes whole numbers of steps.
        is_number = isinstance(value, int if hint is int else int | float)
        return is_number and not isinstance(value, bool) and math.isfinite(value)
    if hint is str:
        # what no file can hold
        return isinstance(value, str) and "\0" not in value and _is_utf8(value)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return isinstance(value, hint) or value in [one.value for one in hint]
    if dataclasses.is_dataclass(hint) and isinstance(value, hint):
        inner = typing.get_type_hints(hint)
        return all(
            fits(getattr(value, field.name), inner[field.name])
            for field in dataclasses.fields(hint)
        )
    return value is None if hint is type(None) else isinstance(value, hint)


def _is_utf8(text: str) -> bool:
    return text.encode(errors="replace").decode() == text


def _largest(value: Any) -> float:
    """Return the largest number inside a mapping, nan where one is none."""
    return max(map(float, json.dumps(value, default=str).count("NaN") * ["nan"]), default=0.0)


def says_the_same(spelling: str, value: Any, hint: Any) -> bool:
    """Return whether the value of a number or a switch is what the file says of it."""
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    kinds = set(typing.get_args(hint)) if is_union else {hint}
    text = spelling.partition(" #")[0].strip().strip("\"'")
    if kinds <= {int, float, type(None)}:
        return text in ("null", "~", "") if value is None else float(text) == value
    if kinds <= {bool, type(None)} and value is not None:
        return (text.lower() in ("true", "yes", "on", "1", "t", "y")) is value
    return True


def check_settings(folder: Path, number: int, tally: Tally) -> None:
    """Read odd settings; what is accepted has the type of its option and is what was written."""
    choose = random.Random(number)
    recipe = choose.choice(RECIPES)
    classes, hints = recipe_of(recipe)
    config = folder / "settings.yaml"
    content = make_file(choose, recipe, hints)
    config.write_bytes(content)
    flags = make_flags(choose, hints)
    lines = [line.partition(": ") for line in content.decode(errors="replace").splitlines()]
    written = {name: text for name, _, text in lines if f"--{name}" not in " ".join(flags)}
    argv = ["--config", str(config), *flags]
    if choose.random() < 0.8 and "output_dir" in hints:
        argv += ["--output_dir", str(folder / "out")]

    found = outcome(lambda: parse(*classes, argv=argv), tally)
    if isinstance(found, ConfigError | AlreadyFinished):
        return
    for settings in found:
        own = typing.get_type_hints(type(settings))
        for field in dataclasses.fields(settings):
            value = getattr(settings, field.name)
            place = (number, recipe.stem, field.name, value)
            if value is field.default or field.name in RESOLVED:
                continue
            assert fits(value, own[field.name]), place
            if field.name in written:
                assert says_the_same(written[field.name], value, own[field.name]), place


@short(40)
@given(number=SEEDS)
def test_settings(folder: Path, tally: Tally, number: int) -> None:
    check_settings(folder, number, tally)


@pytest.mark.slow
def test_many_settings(folder: Path, tally: Tally) -> None:
    check_many(
        4,
        tally,
        lambda choose: (choose.randrange(2**32),),
        lambda number: check_settings(folder, number, tally),
    )


def test_settings_that_had_a_message_of_two_lines(folder: Path, tally: Tally) -> None:
    check_settings(folder, 2717275399, tally)
