"""The option reference: what a page says, and that the pages in docs are those of the recipes."""

import inspect
import typing
from importlib.metadata import version
from pathlib import Path

import pytest
from transformers import TrainingArguments

from hfstack.cli import doctor, reference
from hfstack.cli import main as cli
from hfstack.cli.launch import trains_a_model
from hfstack.errors import ConfigError
from hfstack.recipe_settings import load_recipe
from hfstack.shipped import CONSTRAINTS

ROOT = Path(__file__).parent.parent.parent
RECIPES = sorted((ROOT / "recipes").glob("*.py"))
EXAMPLE = '''"""Do something.

    hfstack run example --size 3

reads   nothing
writes  nothing
"""

from dataclasses import dataclass, field
from typing import Literal


@dataclass
class ExampleArgs:
    size: int
    """How many, at most 100 % of them."""
    names: list[str] = field(default_factory=list)
    """What they are called."""
    mode: Literal["fast", "slow"] = "fast"
    """How."""
    shuffle: bool = True
    """Mix them."""
    note: str | None = None
    """A sentence for the record, so long that it does not fit in one line of the page and is
    wrapped somewhere."""


def main(args: ExampleArgs) -> dict[str, float]:
    return {}
'''
PAGE = """# example

<!-- Made by `python -m hfstack.cli.reference` from the recipe's type hints. Do not edit. -->

```text
Do something.

    hfstack run example --size 3

reads   nothing
writes  nothing

  --config PATH  (default example.yaml beside the recipe, with `hfstack run`)
      YAML file of option: value; the command line's own flags win

ExampleArgs (example.py)

  --size INT  (required; example.yaml: 8)
      How many, at most 100 % of them.

  --names TEXT ...  (default none given; example.yaml: a "b c")
      What they are called.

  --mode fast|slow  (default fast)
      How.

  --shuffle true|false  (default true)
      Mix them.

  --note TEXT  (default none)
      A sentence for the record, so long that it does not fit in one line of the page and is wrapped
      somewhere.
```
"""
STATUS = """<!-- translation of README.md at 000000000000 -->
# hfstack

<!-- translations: begin -->
old
<!-- translations: end -->
"""


@pytest.fixture
def example(tmp_path: Path) -> Path:
    path = tmp_path / "example.py"
    path.write_text(EXAMPLE)
    path.with_suffix(".yaml").write_text("size: 8\nnames: [a, b c]\n")
    return path


def test_a_page_holds_the_options_with_defaults_and_what_the_yaml_sets(example: Path):
    assert reference.make_page(example) == PAGE


def test_stale_missing_and_left_over_pages_are_named(example: Path, tmp_path: Path):
    pages = reference.make_pages(tmp_path)
    folder = tmp_path / "reference"
    folder.mkdir()
    assert reference.stale_pages(pages, folder) == ["example.md"]
    (folder / "example.md").write_text(PAGE)
    assert reference.stale_pages(pages, folder) == []
    (folder / "example.md").write_text(PAGE + "edited")
    (folder / "gone.md").touch()
    assert reference.stale_pages(pages, folder) == ["example.md", "gone.md"]


def test_the_tool_writes_and_checks(example: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "recipes").mkdir()
    for file in (example, example.with_suffix(".yaml")):
        file.rename(tmp_path / "recipes" / file.name)
    (tmp_path / "README.md").write_text("# hfstack\n")
    status = tmp_path / "docs" / "zh" / "README.md"
    status.parent.mkdir(parents=True)
    status.write_text(STATUS)
    source = tmp_path / "hfstack" / "data" / "sources.py"
    source.parent.mkdir(parents=True)
    source.write_text('"""Load `a | b`."""\n')
    monkeypatch.setattr(reference, "CHECKOUT", tmp_path)

    with pytest.raises(ConfigError) as caught:
        reference.write_reference(["--check"])
    assert str(caught.value) == (
        "out of date: docs/reference/example.md, docs/tree.md, docs/zh/README.md; "
        "run: python -m hfstack.cli.reference"
    )
    reference.write_reference([])
    assert (tmp_path / "docs" / "reference" / "example.md").read_text() == PAGE
    tree = (tmp_path / "docs" / "tree.md").read_text()
    assert "```\nhfstack/data/ sources\n```" in tree and "| `sources.py` | Load `a \\| b` |" in tree
    assert "其中 1 页" in status.read_text()
    assert "- [docs/zh/README.md](README.md)" in status.read_text()
    reference.write_reference(["--check"])

    source.with_name("splitting.py").write_text('"""Split."""\n')
    with pytest.raises(ConfigError, match="out of date: docs/tree.md; run"):
        reference.write_reference(["--check"])


def test_the_tree_and_the_list_of_translations_are_up_to_date():
    assert reference.stale_others(reference.other_pages(ROOT), ROOT) == []


def test_the_pages_in_docs_are_up_to_date():
    for name in ("transformers", "trl"):
        tested = doctor.tested_versions(CONSTRAINTS)[name]
        if version(name) != tested:
            pytest.skip(f"the pages are made with {name} {tested}, this is {version(name)}")
    assert (
        reference.stale_pages(reference.make_pages(ROOT / "recipes"), ROOT / "docs" / "reference")
        == []
    )


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_launcher_knows_training_recipes_and_shares_no_option_with_them(path: Path):
    """launch.trains_a_model reads the source; here the classes themselves are asked."""
    module = load_recipe(path)
    hints = typing.get_type_hints(module.main)
    classes = [hints[name] for name in inspect.signature(module.main).parameters]
    assert trains_a_model(path) is any(issubclass(cls, TrainingArguments) for cls in classes)
    taken = {name for cls in classes for name in typing.get_type_hints(cls)} & set(
        cli._LAUNCHER_OPTIONS
    )
    assert not taken, f"hfstack run would keep {taken} for itself"
