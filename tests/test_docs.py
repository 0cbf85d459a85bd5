"""The docs say what is so: links lead somewhere, recipes have pages and rows, commands name options
that exist.
"""

import ast
import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md")])
RECIPES = sorted(path.stem for path in (ROOT / "recipes").glob("*.py"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if "://" in target or target.startswith("#"):
            continue
        path, _, anchor = target.partition("#")
        found = page.parent / path
        assert found.exists(), f"{page.name} links to {target}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", found.read_text(encoding="utf-8"), re.MULTILINE)
            anchors = {
                re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings
            }
            assert anchor in anchors, f"{page.name} links to {target}"


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_has_a_page_a_row_and_a_yaml(recipe: str) -> None:
    assert (ROOT / "docs" / "recipes" / f"{recipe}.md").is_file()
    assert (ROOT / "recipes" / f"{recipe}.yaml").is_file()
    assert f"docs/recipes/{recipe}.md" in (ROOT / "README.md").read_text(encoding="utf-8")


def commands() -> list[tuple[str, str, list[str]]]:
    """Every `hfstack run <recipe> ...` of the docs and the story, with its options."""
    found = []
    for page in [*PAGES, ROOT / "recipes" / "full_story.sh", *ROOT.glob("recipes/*.py")]:
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        for line in re.findall(r"^[ \t]*(?:\$ )?hfstack run ([^\n#|>&]+)", text, re.MULTILINE):
            words = shlex.split(line.split("`")[0], posix=True)
            names = [word for word in words if word in RECIPES]
            if names:
                options = [
                    word.split("=")[0][2:]
                    for word in words
                    if word.startswith("--") and " " not in word
                ]
                found.append((f"{page.name}: {line.strip()[:60]}", names[0], options))
    story = (ROOT / "recipes" / "full_story.sh").read_text(encoding="utf-8").replace("\\\n", " ")
    for line in re.findall(r"^stage ([^\n]+)", story, re.MULTILINE):
        words = shlex.split(line)
        options = [word[2:] for word in words if word.startswith("--") and " " not in word]
        found.append((f"full_story.sh: {words[1]}", words[2], options))
    return found


@pytest.mark.parametrize(("place", "recipe", "options"), commands(), ids=lambda value: None)
def test_commands_name_options_that_exist(place: str, recipe: str, options: list[str]) -> None:
    reference = next((ROOT / "docs" / "reference").glob(f"{recipe}.*")).read_text(encoding="utf-8")
    launcher = {
        "processes",
        "accelerate",
        "log_file",
        "help",
        "config",
        "nodes",
        "node_rank",
        "main_address",
        "retries",
        "allow_changed",
    }
    for option in options:
        assert option in launcher or f"--{option}" in reference, (
            f"{place}: {recipe} has no --{option}"
        )


@pytest.mark.parametrize("recipe", RECIPES)
def test_docstrings_follow_the_contract(recipe: str) -> None:
    text = (
        ast.get_docstring(
            ast.parse((ROOT / "recipes" / f"{recipe}.py").read_text(encoding="utf-8"))
        )
        or ""
    )
    lines = text.splitlines()
    assert lines[0].endswith(".") and lines[1] == ""
    assert f"hfstack run {recipe}" in text
    assert any(line.startswith("reads ") for line in lines) and any(
        line.startswith("writes ") for line in lines
    )


def test_every_metric_of_pretraining_is_documented() -> None:
    page = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    keys = [
        "train_loss",
        "eval_loss",
        "perplexity",
        "bits_per_byte",
        "tokens_per_s",
        "mfu",
        "parameters",
    ]
    for key in [
        *keys,
        "parameters_non_embedding",
        "tokens",
        "unique_tokens",
        "flops",
        "flops_6nd",
        "flops_kaplan",
    ]:
        assert f"`{key}`" in page
