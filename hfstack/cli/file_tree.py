"""Make the file trees of README.md and docs/tree.md from the files themselves.

README.md shows each package with the names of its files, docs/tree.md every file with the first
line of its docstring. Neither is written by hand, so neither can differ from the code."""

import ast
from pathlib import Path

BEGIN, END = "<!-- file tree: begin -->", "<!-- file tree: end -->"
_TREE_COLUMNS = 100  # columns
_NAMES_AT = 28  # column where the names of a package's files begin


def first_line(path: Path) -> str:
    """Return the first line of a file's docstring, without its full stop."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return docstring.partition("\n")[0].rstrip(".")


def packages(root: Path) -> dict[str, list[Path]]:
    """Return the files of each folder under hfstack/, the top folder first."""
    found: dict[str, list[Path]] = {}
    for path in sorted((root / "hfstack").rglob("*.py")):
        if not path.name.startswith("__") and "_shipped" not in path.parts:
            found.setdefault(str(path.parent.relative_to(root)), []).append(path)
    return dict(sorted(found.items()))


def short_tree(root: Path) -> str:
    """Return a line or two for each package: its path, then the names of its files."""
    lines = []
    for folder, paths in packages(root).items():
        line = f"{folder + '/':<{_NAMES_AT - 1}}"
        for path in paths:
            if len(line) + len(path.stem) + 1 > _TREE_COLUMNS:
                lines.append(line)
                line = " " * (_NAMES_AT - 1)
            line += f" {path.stem}"
        lines.append(line)

    return "\n".join(lines)


def long_tree(root: Path) -> str:
    """Return the page docs/tree.md: every file of hfstack/ with what it does."""
    lines = [
        "# Where the code is",
        "",
        "<!-- Made by `python -m hfstack.cli.reference` from the files' first lines. Do not edit. "
        "-->",
        "",
        "One line for each file, which is the first line of its docstring. To find a place by a",
        "question, see [the walk](walk.md).",
    ]

    for folder, paths in packages(root).items():
        lines += ["", f"## {folder}/", "", "| file | what it does |", "|---|---|"]
        lines += [f"| `{path.name}` | {first_line(path)} |" for path in paths]

    return "\n".join(lines) + "\n"


def with_tree(readme: str, tree: str) -> str:
    """Return a README with the block between its two marks replaced by a tree."""
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n```\n{tree}\n```\n{END}{after}"
