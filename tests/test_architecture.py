"""The house rules that a machine can check: floors, sizes, names, and the contract of a recipe."""

import ast
import importlib.util
import re
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "hfstack"
# lowest first: an import points to a lower floor, or stays on its own without making a circle
FLOORS = [
    {
        *("errors", "logs", "redaction", "secret_rules", "secret_shapes", "shipped"),
        *("disk", "machine"),
        *("config", "field_help", "recipe_settings", "data_settings", "intervals"),
        *("hints", "option_reading", "bounded_yaml", "yaml_options", "upstream_defaults", "ranges"),
        *("row_counts", "json_forms", "machine_failures", "progress", "places", "packages"),
        "sandbox",
    },
    {"drawing", "tokens", "scaling", "models", "demo"},
    {"data", "runs"},
    {"training", "reporting"},
    {"tasks"},
    {"diagnosis", "evidence", "feedback", "planning", "publishing"},
]
LEVEL = {name: level for level, names in enumerate(FLOORS) for name in names}
# what hfstack/cli may import
COMMAND_LINE = {
    *("errors", "logs", "redaction", "shipped", "machine", "places"),
    *("runs.checkpoint_files", "runs.model_folder"),
}
LIGHT = [  # started before, or without, anything heavy: standard library only
    *("errors", "logs", "redaction", "secret_rules", "secret_shapes", "shipped"),
    *("disk", "machine"),
    *("hints", "option_reading", "machine_failures", "places"),
    *("sandbox/calls", "sandbox/child", "sandbox/run"),
    *("runs/checkpoint_files", "runs/manifest", "runs/model_folder"),
    *(f"cli/{name}" for name in ("__main__", "main", "launch", "supervise", "retry", "doctor")),
    *("cli/chat", "cli/overview"),
]
UPSTREAM = {
    "torch",
    "transformers",
    "trl",
    "datasets",
    "evaluate",
    "accelerate",
    "peft",
    "huggingface_hub",
    "numpy",
}

LIBRARY = sorted(PACKAGE.rglob("*.py"))
RECIPES = sorted((ROOT / "recipes").glob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
BENCHMARKS = sorted((ROOT / "benchmarks").rglob("*.py"))


def label(path: Path) -> str:
    return str(path.relative_to(ROOT))


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(node: ast.AST) -> Iterator[str]:
    """The dotted names that are imported anywhere under a node, such as
    `hfstack.data.packing.blocks` and `torch`.
    """
    for child in ast.walk(node):
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, f"relative import in line {child.lineno}"
            yield from (f"{child.module}.{alias.name}" for alias in child.names)


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    yield from (
        node
        for node in ast.walk(tree(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )


def module_name(path: Path) -> str:
    """The dotted name of a file under hfstack, without `hfstack.`."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


MODULES = {module_name(path): path for path in LIBRARY if path.name != "__init__.py"}


def own_imports(path: Path) -> set[str]:
    """The files of hfstack that a file imports, such as `data.sources`."""
    found = set()
    for name in imports(tree(path)):
        target = name.removeprefix("hfstack.") if name.startswith("hfstack.") else ""
        while target and target not in MODULES:
            target = target.rpartition(".")[0]
        found.add(target)
    return found - {"", module_name(path)}


@pytest.mark.parametrize("module", [name for name in MODULES if not name.startswith("cli.")])
def test_imports_never_point_to_a_higher_floor(module: str):
    floor = module.split(".")[0]
    assert floor in LEVEL, f"{floor} has no floor: give it one in FLOORS"
    for used in own_imports(MODULES[module]):
        other = used.split(".")[0]
        assert other in LEVEL and LEVEL[other] <= LEVEL[floor], f"{module} must not import {used}"


@pytest.mark.parametrize("depth", [99, 1, 2], ids=["files", "packages", "tasks"])
def test_imports_make_no_circle(depth: int):
    """Neither files import each other in a circle, nor packages, nor the packages of the tasks."""
    graph: dict[str, set[str]] = {}
    for name, path in MODULES.items():
        if depth == 2 and not name.startswith("tasks."):
            continue
        unit = ".".join(name.split(".")[:depth])
        used = {".".join(other.split(".")[:depth]) for other in own_imports(path)}
        graph.setdefault(unit, set()).update(used - {unit})

    # TopologicalSorter raises CycleError, which names the circle.
    order = list(TopologicalSorter(graph).static_order())
    assert set(order) >= set(graph)


@pytest.mark.parametrize("name", sorted(name for name in MODULES if name.startswith("cli.")))
def test_the_command_line_imports_little(name: str):
    used = {other for other in own_imports(MODULES[name]) if not other.startswith("cli.")}
    # a developer's tool, which reads every recipe; what talks to a model that is loaded; and what
    # reads YAML, data files' names and runs, for which a test says that nothing heavy is imported
    if name not in ("cli.reference", "cli.chat_session", "cli.precheck", "cli.sweep"):
        # whether a model is on the Hub is asked late, by a package without torch: test_precheck
        assert used - {"runs.model_names"} <= COMMAND_LINE


@pytest.mark.parametrize("name", LIGHT)
def test_light_files_import_only_the_standard_library(name: str):
    path = PACKAGE / f"{name}.py"
    own = {"hfstack", "calls"}  # sandbox/child finds sandbox/calls beside it
    foreign = {name.split(".")[0] for name in imports(tree(path))} - sys.stdlib_module_names - own
    assert not foreign


def test_packages_are_empty_and_the_version_stands_alone():
    for path in PACKAGE.rglob("__init__.py"):
        text = path.read_text(encoding="utf-8")
        if path.parent == PACKAGE:
            assert re.fullmatch(r'__version__ = "[\w.]+"\n', text)
        else:
            assert text == "", f"{label(path)}: import from the file that defines"


@pytest.mark.parametrize("path", [*LIBRARY, *RECIPES, *BENCHMARKS], ids=label)
def test_sizes(path: Path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 500
    assert path.stem not in ("utils", "common", "base", "helpers", "misc")
    for function in functions(path):
        name = f"{function.name} (line {function.lineno})"
        # it reads in one order, and its file is short
        if not (path in RECIPES and function.name == "main"):
            assert (function.end_lineno or 0) - function.lineno + 1 <= 80, (
                f"{name} is longer than 80 lines"
            )


@pytest.mark.parametrize("path", [*LIBRARY, *RECIPES, *BENCHMARKS], ids=label)
def test_code_reads_in_paragraphs(path: Path):
    """No more than 20 lines of a function in a row without a blank line or a comment of its own."""
    lines = path.read_text(encoding="utf-8").splitlines()
    for function in functions(path):
        block = 0
        first = (
            function.body[1]
            if ast.get_docstring(function) and function.body[1:]
            else function.body[0]
        )
        for number in range(first.lineno, (function.end_lineno or 0) + 1):
            line = lines[number - 1].strip()
            block = 0 if not line or line.startswith("#") else block + 1
            assert block <= 20, (
                f"{function.name}: line {number} is the 21st in a row: where is the paragraph?"
            )


def test_the_code_reads_as_docs_decisions_says():
    """The bounds of the table there; `python benchmarks/readability.py .` prints the figures."""
    spec = importlib.util.spec_from_file_location("readability", ROOT / "benchmarks/readability.py")
    assert spec is not None and spec.loader is not None
    readability = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(readability)

    figures = readability.measure(ROOT)
    assert figures["blank or comment, % of bodies of 25+ lines"] >= 12
    assert figures["longest unbroken block, median lines"] <= 14
    assert figures["lines over 100 columns, %"] < 1
    assert figures["names defined in several files"] < 30
    share, pair = figures["nearest recipes, % equal"].split(" ", 1)
    assert float(share) <= 50, f"{pair} are too much alike: share it through the task's package"


@pytest.mark.parametrize("path", [*LIBRARY, *RECIPES, *BENCHMARKS, *TESTS], ids=label)
def test_no_line_is_over_100_columns(path: Path):
    """Links alone are longer; `fmt: skip` would hide a line from the formatter."""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        line = re.sub(r"  # (noqa|pyright|type: ignore).*", "", line)  # has to stand where it is
        assert len(line) <= 100 or "://" in line, f"line {number} has {len(line)} columns"
        assert "# fmt" + ": skip" not in line, f"line {number} hides from the formatter"


@pytest.mark.parametrize("path", [*LIBRARY, *RECIPES], ids=label)
def test_docstrings_open_with_a_verb_in_a_short_line(path: Path):
    module = tree(path)
    for node in ast.walk(module):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = (ast.get_docstring(node) or "").partition("\n")[0]
            name = getattr(node, "name", "the file")
            assert len(first) <= 80, f"{name}: its docstring opens with {len(first)} characters"

            # ruff's D401 knows verbs in a wrong mood; these words begin with none at all
            word = first.split(" ")[0] if first and not isinstance(node, ast.ClassDef) else "Do"
            no_verb = {"A", "An", "The", "What", "Where", "When", "Which", "Whether", "How", "One"}
            assert word[0].isupper() and word not in no_verb, (
                f"{name}: its docstring opens with {word!r}: say first what it does"
            )


@pytest.mark.parametrize("path", [*LIBRARY, *RECIPES], ids=label)
def test_at_most_five_positional_parameters(path: Path):
    # A hook of an upstream class has the signature that upstream gives it: forward, backward,
    # on_step_end ...
    hooks = {
        child
        for node in ast.walk(tree(path))
        if isinstance(node, ast.ClassDef) and node.bases
        for child in (item.name for item in node.body if isinstance(item, ast.FunctionDef))
        if child.startswith("on_") or child in ("forward", "backward")
    }
    for function in functions(path):
        arguments = [*function.args.posonlyargs, *function.args.args]
        names = [argument.arg for argument in arguments if argument.arg not in ("self", "cls")]
        if function.name not in hooks:
            assert len(names) <= 5, (
                f"{function.name} (line {function.lineno}): make what follows the fifth "
                "keyword-only"
            )


@pytest.mark.parametrize("path", RECIPES, ids=label)
def test_the_contract_of_a_recipe(path: Path):
    text, module = path.read_text(encoding="utf-8"), tree(path)
    assert len(text.splitlines()) <= 180, "a recipe is read in one go"
    docstring = ast.get_docstring(module) or ""
    assert docstring.partition("\n")[0].endswith("."), "the first line says what it does"
    assert all(word in docstring for word in (f"hfstack run {path.stem}", "\nreads ", "\nwrites "))

    for name in imports(module):
        package = name.split(".")[0]
        assert package in sys.stdlib_module_names | UPSTREAM | {"hfstack"}, (
            f"{package} belongs into the library"
        )
    main = next(
        node for node in module.body if isinstance(node, ast.FunctionDef) and node.name == "main"
    )
    assert all(argument.annotation for argument in main.args.args), (
        "the type hints of main are the settings"
    )
    assert main.returns is not None and ast.unparse(main.returns) == "dict[str, float]"
    assert text.endswith('\n\nif __name__ == "__main__":\n    command_line(main)\n')

    own = [node for node in module.body if isinstance(node, ast.ClassDef) and node.decorator_list]
    for settings in own:
        assert sum(isinstance(line, ast.AnnAssign) for line in settings.body) <= 8, (
            f"{settings.name}: at most 8 fields"
        )
    assert path.with_suffix(".yaml").is_file(), "a recipe runs as it is, from the YAML beside it"
    assert (ROOT / "tests" / "recipes" / f"test_{path.stem}.py").is_file()


@pytest.mark.parametrize("path", RECIPES, ids=label)
def test_no_recipe_hides_an_importable_module(path: Path):
    """Python puts a script's folder first on the path: recipes/evaluate.py would be what `import
    evaluate` finds.
    """
    found = importlib.util.find_spec(path.stem)
    assert found is None or found.origin == str(path)


def test_nothing_imports_a_recipe():
    names = {path.stem for path in RECIPES}
    for path in [*LIBRARY, *RECIPES, *BENCHMARKS]:
        for name in imports(tree(path)):
            assert name.split(".")[0] not in names | {"recipes"}, f"{label(path)} imports {name}"


def test_nothing_names_a_place_on_somebodys_machine():
    places = re.compile("|".join(("/" + "work/", "/" + "home/", "/" + "root/", "/" + "Users/")))
    suffixes = {
        ".py",
        ".md",
        ".yaml",
        ".yml",
        ".toml",
        ".json",
        ".sh",
        ".txt",
        ".css",
        ".js",
        ".cfg",
        "",
    }
    ignored = {"venv", ".venv", "__pycache__", ".git", "dist", "build"}
    ignored |= {".pytest_cache", ".ruff_cache", ".benchmarks", ".hypothesis", "wandb"}
    for path in ROOT.rglob("*"):
        if (
            path.is_relative_to(ROOT / "runs")
            or ignored & set(path.relative_to(ROOT).parts)
            or path.suffix not in suffixes
            or not path.is_file()
        ):
            continue
        found = places.search(path.read_text(encoding="utf-8", errors="ignore"))
        assert not found, f"{label(path)} names {found[0]}"


@pytest.mark.parametrize("path", TESTS, ids=label)
def test_every_test_can_fail(path: Path):
    """A test asserts, or expects an error, itself or through a helper of its file."""
    defined = {function.name: function for function in functions(path)}

    def checks(function: ast.AST, seen: frozenset[str]) -> bool:
        for node in ast.walk(function):
            if isinstance(node, ast.Assert):
                return True
            called = node.func if isinstance(node, ast.Call) else None
            name = (
                called.attr
                if isinstance(called, ast.Attribute)
                else called.id
                if isinstance(called, ast.Name)
                else ""
            )
            if name in ("raises", "warns") or name.startswith("assert_"):
                return True
            if name in defined and name not in seen and checks(defined[name], seen | {name}):
                return True
        return False

    for name, function in defined.items():
        if name.startswith("test_"):
            assert checks(function, frozenset({name})), f"{name} asserts nothing"
