"""Make docs/tree.md, the tree of hfstack/, from the files themselves.

It shows each package with the names of its files, then every file with the first line of its
docstring. Nothing of it is typed by hand, so it cannot differ from the code.
"""

import ast
from pathlib import Path

_TREE_COLUMNS = 100
_BESIDE = """\
Beside it:

```
recipes/             one .py and one .yaml each; architectures/, chat_templates/; full_story.sh
accelerate_configs/  cpu, single, multi_gpu, fsdp2, zero2, zero3, multi_node, slurm/
tests/               mirrors hfstack/ and recipes/; golden/ holds recorded losses
benchmarks/          ours against what you would use instead
docs/                index.md is the way in; tasks/, recipes/, reference/ (generated), zh/
```"""


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
        "A package for each task, over shared floors. Below the overview each file has a line,",
        "the first of its docstring. To find a place by a question, see [the walk](walk.md).",
        "",
        "```",
        short_tree(root),
        "```",
        "",
        _BESIDE,
    ]

    for folder, paths in packages(root).items():
        lines += ["", f"## {folder}/", "", "| file | what it does |", "|---|---|"]
        for path in paths:
            # A table takes a bare | for the end of a cell, even between backticks.
            line = first_line(path).replace("|", "\\|")
            lines.append(f"| `{path.name}` | {line} |")

    return "\n".join(lines) + "\n"
