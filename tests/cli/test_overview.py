"""Recipes by job, and a recipe's help on one screen."""

import pytest

from hfstack.cli import main as cli
from hfstack.cli import overview
from hfstack.cli.overview import list_recipes, shorten_reference
from hfstack.shipped import RECIPES, REFERENCE

NAMES = sorted(path.stem for path in RECIPES.glob("*.py"))
PAGE = """\
Do something.

    hfstack run mine --size 3

  --config PATH  (default mine.yaml beside the recipe, with `hfstack run`)
      YAML file.

ModelConfig (trl)

  --dtype TEXT  (default float32)
      Of the weights.

  --model_name_or_path TEXT  (default none)
      The model.

Mine (mine.py)

  --size INT
      (default 1)
      Its size."""


def test_every_recipe_has_one_job() -> None:
    grouped = [name for names in overview._JOBS.values() for name in names]
    assert sorted(grouped) == NAMES
    lines = list_recipes(RECIPES).splitlines()
    assert "Teach a language model to answer (start here: sft)" in lines
    assert sorted(line.split()[0] for line in lines if line.startswith("  ")) == NAMES


def test_what_matters_is_shown_with_the_way_to_the_rest() -> None:
    assert shorten_reference(PAGE, "mine") == (
        "Do something.\n\n    hfstack run mine --size 3\n\n"
        "  --model_name_or_path TEXT  (default none)\n      The model.\n\n"
        "  --size INT\n      (default 1)\n      Its size.\n\n"
        "All 3 options: hfstack run mine --help all"
    )


@pytest.mark.parametrize("name", NAMES)
def test_the_help_of_each_recipe_fits_a_screen(name: str) -> None:
    page = (REFERENCE / f"{name}.md").read_text(encoding="utf-8")
    text = shorten_reference(page.split("```text\n", 1)[1].rsplit("\n```", 1)[0], name)
    options = [line for line in text.splitlines() if line.startswith("  --")]
    assert 1 <= len(options) <= 10 and f"hfstack run {name}" in text
    assert len(text.splitlines()) <= 70


def test_help_and_help_all(capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "sft", "--help"]) == 0
    short = capfd.readouterr().out
    assert "--learning_rate" in short and "--adam_beta2" not in short
    assert cli.main(["run", "sft", "--help", "all"]) == 0
    assert "--adam_beta2" in capfd.readouterr().out
