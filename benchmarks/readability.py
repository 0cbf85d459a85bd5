"""Measure how readable the code is: paragraphs, line lengths, repeated names, recipes alike.

    python benchmarks/readability.py [CHECKOUT ...]

Prints one row for each checkout; docs/decisions.md holds the rows before and after the layout by
task."""

import ast
import difflib
import itertools
import re
import sys
from collections import Counter
from pathlib import Path
from statistics import median

LONG_BODY = 25  # lines; shorter functions need no paragraphs
COLUMNS = 100
DEFINITIONS = ast.FunctionDef | ast.AsyncFunctionDef


def body_lines(function: ast.AST, lines: list[str]) -> list[str]:
    """Return the lines of a function below its signature and docstring."""
    assert isinstance(function, DEFINITIONS) and function.end_lineno
    first = function.body[0]
    has_docstring = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    start = (first.end_lineno or first.lineno) if has_docstring else first.lineno - 1
    return lines[start : function.end_lineno]


def is_open(line: str) -> bool:
    """Whether a line lets a reader breathe: blank, or a comment of its own."""
    return not line.strip() or line.strip().startswith("#")


def longest_block(lines: list[str]) -> int:
    """Return the most lines in a row that are neither blank nor a comment."""
    runs = [len(list(run)) for opened, run in itertools.groupby(lines, is_open) if not opened]
    return max(runs, default=0)


def long_bodies(files: list[Path]) -> list[list[str]]:
    """Return the bodies of all functions of 25 lines or more."""
    found = []
    for path in files:
        text = path.read_text(encoding="utf-8")
        lines = text.splitlines()
        functions = (node for node in ast.walk(ast.parse(text)) if isinstance(node, DEFINITIONS))
        bodies = (body_lines(function, lines) for function in functions)
        found += [body for body in bodies if len(body) >= LONG_BODY]
    return found


def repeated_names(files: list[Path]) -> int:
    """Return how many top-level names are defined in more than one file."""
    counts: Counter[str] = Counter()
    for path in files:
        names = set()
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, DEFINITIONS | ast.ClassDef):
                names.add(node.name)
            elif isinstance(node, ast.Assign):
                names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                names.add(node.target.id)

        counts.update(names - {"logger"})  # each file has a logger of its own, by convention

    return sum(count > 1 for count in counts.values())


def prose_lines(root: Path) -> list[str]:
    """Return the lines of the docs that are prose: no table, code block, link list or generated
    page.
    """
    found = []
    for path in [*root.glob("*.md"), *(root / "docs").rglob("*.md")]:
        if "reference" in path.parts:
            continue
        fenced = False
        for line in path.read_text(encoding="utf-8").splitlines():
            fenced ^= line.startswith("```")
            if not fenced and not line.startswith(("|", "    ", "```")):
                found.append(line)

    return found


def packages_of(recipe: Path) -> set[str]:
    """Return the packages of hfstack that a recipe imports from, tasks by their own name."""
    names = re.findall(r"^from hfstack\.([\w.]+) import", recipe.read_text(encoding="utf-8"), re.M)
    return {".".join(name.split(".")[: 2 if name.startswith("tasks.") else 1]) for name in names}


def nearest_recipes(recipes: list[Path]) -> tuple[float, str]:
    """Return the largest share of equal lines of two recipes, and their names."""
    texts = {path.stem: path.read_text(encoding="utf-8").splitlines() for path in recipes}
    pairs = itertools.combinations(texts, 2)
    ratios = (
        (difflib.SequenceMatcher(None, texts[a], texts[b], autojunk=False).ratio(), f"{a} ~ {b}")
        for a, b in pairs
    )
    return max(ratios)


def measure(root: Path) -> dict[str, object]:
    """Return every figure of one checkout."""
    library = sorted((root / "hfstack").rglob("*.py"))
    recipes = sorted(root.glob("recipes/*.py"))
    bodies = long_bodies([*library, *recipes])
    code = [line for path in [*library, *recipes] for line in path.read_text().splitlines()]
    lines = [*code, *prose_lines(root)]
    ratio, pair = nearest_recipes(recipes)

    return {
        # paragraphs
        "blank or comment, % of bodies of 25+ lines": round(
            100 * sum(map(is_open, itertools.chain(*bodies))) / sum(map(len, bodies)), 1
        ),
        "longest unbroken block, median lines": median(map(longest_block, bodies)),
        "longest unbroken block, most lines": max(map(longest_block, bodies)),
        # lines and names
        "lines over 100 columns, %": round(
            100 * sum(len(line) > COLUMNS for line in lines) / len(lines), 2
        ),
        "names defined in several files": repeated_names(library),
        "packages behind classify.py": len(packages_of(root / "recipes" / "classify.py")),
        # how much there is
        "lines of hfstack/": sum(len(path.read_text().splitlines()) for path in library),
        "code lines of hfstack/": sum(
            not is_open(line) for path in library for line in path.read_text().splitlines()
        ),
        "statements of hfstack/": sum(
            isinstance(node, ast.stmt)
            for path in library
            for node in ast.walk(ast.parse(path.read_text()))
        ),
        "nearest recipes, % equal": f"{100 * ratio:.1f} ({pair})",
    }


def main() -> None:
    """Print a Markdown table with a column for each checkout."""
    roots = [Path(name) for name in sys.argv[1:]] or [Path(__file__).parent.parent]
    columns = [measure(root) for root in roots]
    print("| figure |", " | ".join(root.resolve().name for root in roots), "|")
    print("|---|" + "---|" * len(roots))
    for name in columns[0]:
        print(f"| {name} |", " | ".join(str(column[name]) for column in columns), "|")


if __name__ == "__main__":
    main()
