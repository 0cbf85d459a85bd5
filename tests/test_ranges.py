"""Every numeric option has a range, and a number outside of it is refused before anything runs."""

import math
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hfstack.config import build_parser, parse
from hfstack.data.reading.files import looks_local
from hfstack.errors import ConfigError
from hfstack.ranges import RANGES, describe_range
from hfstack.recipe_settings import load_recipe, settings_classes

CHECKOUT = Path(__file__).parent.parent
RECIPES = sorted((CHECKOUT / "recipes").glob("*.py"))


def numeric_options() -> Iterator[tuple[str, str, Any]]:
    """Recipe, name and default of each option that takes numbers."""
    for recipe in RECIPES:
        parser, hints = build_parser(*settings_classes(load_recipe(recipe)))
        for action in parser._actions:
            hint = hints.get(action.dest)
            members = typing.get_args(hint) or (hint,)
            flat = {part for member in members for part in (member, *typing.get_args(member))}
            if flat & {int, float}:
                yield recipe.stem, action.dest, action.default


def test_every_numeric_option_is_in_the_table_and_its_default_in_its_range() -> None:
    options = list(numeric_options())
    names = {name for _, name, _ in options}
    assert len(names) > 100
    assert not names - set(RANGES), "give each a range in hfstack/ranges.py"
    assert not set(RANGES) - names, "no recipe has these any more"
    for recipe, name, default in options:
        for value in default if isinstance(default, list) else [default]:
            if isinstance(value, int | float) and not isinstance(value, bool):
                assert RANGES[name].holds(value), f"{recipe} {name} {value}"


@pytest.fixture(scope="module")
def sft() -> list[Any]:
    return settings_classes(load_recipe(CHECKOUT / "recipes" / "sft.py"))


NONSENSE = [
    ("weight_decay", "-5"),
    ("label_smoothing_factor", "7"),
    ("lora_dropout", "nan"),
    ("lora_dropout", "1"),
    ("lora_r", "0"),
    ("gradient_accumulation_steps", "-2"),
    ("gradient_accumulation_steps", "0"),
    ("per_device_train_batch_size", "0"),
    ("per_device_eval_batch_size", "-1"),
    ("learning_rate", "-1e-5"),
    ("learning_rate", "inf"),
    ("num_train_epochs", "0"),
    ("num_train_epochs", "-1"),
    ("max_steps", "-2"),
    ("max_steps", "0"),
    ("warmup_steps", "-1"),
    ("adam_beta1", "1"),
    ("adam_beta2", "1.5"),
    ("adam_epsilon", "0"),
    ("max_grad_norm", "nan"),
    ("save_steps", "0"),
    ("logging_steps", "-5"),
    ("eval_fraction", "1"),
    ("seed", "-1"),
    ("seed", "4294967296"),
    ("ddp_timeout", "0"),
    ("dataloader_num_workers", "-1"),
    ("save_total_limit", "-1"),
    ("max_length", "0"),
    ("neftune_noise_alpha", "-1"),
]


@pytest.mark.parametrize(("name", "value"), NONSENSE)
def test_a_number_without_sense_is_refused_in_one_line_with_its_place(
    sft: list[Any], tmp_path: Path, name: str, value: str
) -> None:
    with pytest.raises(ConfigError, match=rf"^--{name} must be ") as refusal:
        parse(*sft, argv=[f"--{name}={value}"])
    assert "\n" not in str(refusal.value) and RANGES[name].words in str(refusal.value)
    assert str(refusal.value).endswith(f", got {float(value):g}")

    config = tmp_path / "mine.yaml"
    spelled = {"nan": ".nan", "inf": ".inf"}.get(value, value)
    config.write_text(f"# a comment\n{name}: {spelled}\n")
    with pytest.raises(ConfigError, match=rf"mine\.yaml:2: .*{name}"):
        parse(*sft, argv=["--config", str(config)])


def test_a_flag_over_a_bad_line_of_the_file_is_taken(sft: list[Any], tmp_path: Path) -> None:
    config = tmp_path / "mine.yaml"
    config.write_text("weight_decay: -5\n")
    out = ["--output_dir", str(tmp_path)]
    settings = parse(*sft, argv=["--config", str(config), "--weight_decay", "0.1", *out])
    assert any(getattr(one, "weight_decay", None) == 0.1 for one in settings)


def test_ranges_are_read_as_mathematics_writes_them() -> None:
    steps, share = RANGES["max_steps"], RANGES["lora_dropout"]
    assert [steps.holds(n) for n in (-2, -1, 0, 1, 10**9)] == [False, True, False, True, True]
    assert [share.holds(n) for n in (-0.1, 0, 0.99, 1)] == [False, True, True, False]
    assert not share.holds(math.nan) and not RANGES["rating_threshold"].holds(math.inf)
    words = {"lora_dropout": "in [0, 1)", "rating_threshold": "", "lora_r": "at least 1"}
    words |= {"adam_epsilon": "above 0", "weight_decay": "0 or above", "draws": "0 or above"}
    words |= {"max_steps": "-1 or [1, inf)"}
    assert {name: describe_range(name) for name in words} == words


def test_what_a_fuzzer_has_found_is_one_line(sft: list[Any]) -> None:
    with pytest.raises(ConfigError, match=r"--max_length must be below 2\*\*63, got 400 digits"):
        parse(*sft, argv=["--output_dir", "x", "--max_length", "9" * 400])
    with pytest.raises(ConfigError, match="SFTConfig: .*No such file or directory: 'nowhere.json'"):
        parse(*sft, argv=["--output_dir", "x", "--accelerator_config", "nowhere.json"])
    with pytest.raises(ConfigError, match="SFTConfig: .*unexpected keyword argument 'a'"):
        parse(*sft, argv=["--output_dir", "x", "--accelerator_config", '{"a": 1}'])
    with pytest.raises(ConfigError, match=r"--run_name=.udc80' is no text in UTF-8"):
        parse(*sft, argv=["--output_dir", "x", "--run_name=\udc80"])
    assert not looks_local("9" * 400)
