"""Make the file trees of README.md and docs/tree.md from the files themselves.

README.md shows each package with the names of its files, docs/tree.md every file with the first
line of its docstring. Neither is typed by hand, so neither can differ from the code.
"""

import ast
from pathlib import Path

from hfstack.errors import ConfigError

BEGIN, END = "<!-- file tree: begin -->", "<!-- file tree: end -->"
_TREE_COLUMNS = 100


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
    folders = packages(root)
    margin = max(map(len, folders), default=0) + len("/")
    lines = []

    for folder, paths in folders.items():
        line = f"{folder}/".ljust(margin)
        for path in paths:
            if len(line) + len(path.stem) + 1 > _TREE_COLUMNS:
                lines.append(line)
                line = " " * margin
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
        for path in paths:
            # A table takes a bare | for the end of a cell, even between backticks.
            line = first_line(path).replace("|", "\\|")
            lines.append(f"| `{path.name}` | {line} |")

    return "\n".join(lines) + "\n"


def with_tree(readme: str, tree: str) -> str:
    """Return a README with the block between its two marks replaced by a tree.

    Raises:
        ConfigError: when the README lacks a mark.
    """
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ConfigError(f"README.md needs the two lines {BEGIN} and {END} around its file tree")
    return f"{before}{BEGIN}\n```\n{tree}\n```\n{END}{after}"


def tree_pages(root: Path) -> dict[str, str]:
    """Return README.md and docs/tree.md as they should be, by their path."""
    readme = (root / "README.md").read_text(encoding="utf-8")
    return {"README.md": with_tree(readme, short_tree(root)), "docs/tree.md": long_tree(root)}
