"""The docs say what is so: links lead somewhere, recipes have pages and rows, commands name options
that exist, and so do the files, functions and tests that a page names.
"""

import ast
import json
import re
import shlex
from functools import cache
from pathlib import Path

import pytest

from hfstack.cli.translations import FOLDER, Translation, read_translations
from hfstack.data.sources import DataArgs
from hfstack.recipe_settings import load_recipe
from hfstack.runs.run import RunArgs

ROOT = Path(__file__).parent.parent
TOP_PAGES = [ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "CHANGELOG", "SECURITY")]
PAGES = sorted([*TOP_PAGES, *ROOT.glob("docs/**/*.md")])
RECIPES = sorted(path.stem for path in (ROOT / "recipes").glob("*.py"))


def page_id(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=page_id)
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


# The others are generated, or are Chinese: a line break between its characters shows as a blank.
WRITTEN = [
    page
    for page in PAGES
    if "reference" not in page.parts and not page.is_relative_to(ROOT / FOLDER)
]


@pytest.mark.parametrize("page", WRITTEN, ids=page_id)
def test_prose_has_100_columns(page: Path) -> None:
    """Tables, code and links may be longer."""
    fenced = False
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        fenced ^= line.startswith("```")
        free = fenced or line.startswith(("|", "    ", "```")) or "](" in line or "://" in line
        assert free or len(line) <= 100, f"line {number} has {len(line)} columns"


FOLDERS = "hfstack|tests|recipes|benchmarks|accelerate_configs"
# files of other projects, and names that are only forbidden
FOREIGN_FILES = {"ppo_left_padding.py", "zero_to_fp32.py", "utils.py", "common.py", "base.py"}


@cache
def names_in(file: Path) -> set[str]:
    """Return what a file defines or imports at its top level, and what its classes define."""
    names: set[str] = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
        elif isinstance(node, ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
    return names


def holds_files(path: Path) -> bool:
    """Whether a path is a file, or a folder with a file in it (not only what Python cached)."""
    files = (file for file in path.rglob("*") if file.is_file())
    return path.is_file() or any("__pycache__" not in file.parts for file in files)


def is_there(dotted: str) -> bool:
    """Whether a dotted name such as `hfstack.data.sources.load_splits` is a module or in one."""
    parts = dotted.split(".")
    for count in range(len(parts), 0, -1):
        path = ROOT.joinpath(*parts[:count])
        if path.with_suffix(".py").is_file():
            rest = parts[count:]
            return not rest or rest[0] in names_in(path.with_suffix(".py"))
        if path.is_dir():
            return count == len(parts)
    return False


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_files_and_names_that_a_page_names_are_there(page: Path) -> None:
    text = re.sub(r"\]\([^)\s]+\)", "]", page.read_text(encoding="utf-8"))  # links are tested above

    paths = re.findall(rf"(?<![\w/.$}}-])((?:{FOLDERS})/[\w./-]*\w)(?:::(\w+))?", text)
    for path, function in paths:
        assert holds_files(ROOT / path), f"{page.name} names {path}"
        if function:
            assert function in names_in(ROOT / path), f"{page.name} names {path}::{function}"

    dotted = re.findall(r"(?<![\w/.$@-])hfstack(?:\.\w+)+", text)
    for module, imported in re.findall(r"from (hfstack[\w.]+) import (\([^)]+|.+)", text):
        dotted += [f"{module}.{name}" for name in re.findall(r"\w+", imported)]
    for name in dotted:
        assert is_there(name), f"{page.name} names {name}"

    files = {path.name for folder in FOLDERS.split("|") for path in (ROOT / folder).rglob("*.*")}
    for name in re.findall(r"`(\w+\.(?:py|sh))`", text):
        assert name in files | FOREIGN_FILES, f"{page.name} names {name}"


def test_each_question_of_the_walk_is_answered_by_a_file_of_the_package_to_guess() -> None:
    page = (ROOT / "docs" / "walk.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (Where .+\?) \| `(.+)` \| `(.+)` \| (?:`(\w+)` )?\|$", page, re.M)
    assert len(rows) == 10
    for question, package, file, name in rows:
        answer = ROOT / package / file
        assert answer.is_file(), question
        assert not name or name in names_in(answer), f"{question} {name}"


def test_the_example_recipe_runs(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "extend.md").read_text(encoding="utf-8")
    recipe = tmp_path / "count_words.py"
    recipe.write_text(page.partition("```python\n")[2].partition("```")[0], encoding="utf-8")
    rows = tmp_path / "stories.jsonl"
    rows.write_text(json.dumps({"text": "a fox"}) + "\n" + json.dumps({"text": "the end ."}) + "\n")

    data_args = DataArgs(datasets=[str(rows)])  # pyright: ignore[reportArgumentType]
    run_args = RunArgs(output_dir=str(tmp_path / "run"))
    assert load_recipe(recipe).main(data_args, run_args) == {"words": 5}

    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["status"] == "finished"
    assert record["data"][0]["path"] == str(rows)


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
        text = re.sub(r"'<[^'\n]*>'", "token", text)  # a token's < | > are no shell's
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
        "sweep",
        "allow_changed",
    }
    for option in options:
        assert option in launcher or f"--{option}" in reference, (
            f"{place}: {recipe} has no --{option}"
        )


def skeleton(page: Path) -> tuple[list[str], set[str], int, int]:
    """What a translation keeps: code without its comments, options, headings and rows of tables."""
    text = page.read_text(encoding="utf-8")
    fenced = re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    rest = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    code = [*"".join(fenced).splitlines(), *re.findall(r"^    (.*)", rest, re.MULTILINE)]

    options = set(re.findall(r"--[a-z]\w+", text))
    headings = len(re.findall(r"^#+ ", rest, re.MULTILINE))
    rows = len(re.findall(r"^\|", rest, re.MULTILINE))
    return [re.sub(r"(^|\s+)# .*", "", line) for line in code], options, headings, rows


@pytest.mark.parametrize(
    "translation",
    [one for one in read_translations(ROOT) if not one.behind],
    ids=lambda one: str(one.page),
)
def test_a_translation_has_the_commands_of_its_page(translation: Translation) -> None:
    """So what runs of the English page runs of the other; those that are behind are listed."""
    english, chinese = (skeleton(ROOT / path) for path in (translation.source, translation.page))
    assert chinese == english


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
