"""Read a recipe's options from source files, to find a typo without torch.

Upstream's classes of settings cannot be imported without torch, which takes seconds; to read their
files takes a twentieth of one. What cannot be read this way is left to the recipe itself. Standard
library only.
"""

import ast
import dataclasses
import functools
import importlib.util
from pathlib import Path

# What command_line adds to the options of every recipe.
_OF_EVERY_RECIPE = {"config": "", "allow_changed": "", "show": "int"}
_NUMBERS = ("int", "float")


@dataclasses.dataclass(frozen=True)
class Options:
    """The options of a recipe by name, each with what its value must be."""

    kinds: dict[str, str]
    """`int`, `float`, or "" for what only the recipe can judge."""
    switches: list[str]
    """Those that also have an opposite, `--no_...`."""


def read_recipe_options(recipe: Path) -> Options | None:
    """Return the options of a recipe, or None where its source does not say them."""
    recipe = recipe.absolute()
    _parse.cache_clear()  # a file may have changed since
    try:
        fields: _Fields = {}
        for annotation in _parameters_of_main(recipe):
            own = _fields(*_find_class(recipe, annotation))
            if not own:
                raise _UnreadableError(f"{ast.unparse(annotation)} is no class of settings")
            fields.update(own)
    except (_UnreadableError, OSError, SyntaxError, UnicodeDecodeError, RecursionError):
        return None

    kinds = {name: _kind_of_option(annotation) for name, (annotation, _) in fields.items()}
    switches = [name for name, (note, value) in fields.items() if _is_boolean(note, value)]
    return Options({**kinds, **_OF_EVERY_RECIPE}, switches)


class _UnreadableError(Exception):
    """A class or a module is made in a way that is not followed here."""


# A field: its annotation, and the expression of its default.
_Fields = dict[str, tuple[str, ast.expr | None]]


@functools.cache
def _parse(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def _parameters_of_main(recipe: Path) -> list[ast.expr]:
    """Return the annotation of each parameter of `main`."""
    for node in _parse(recipe).body:
        if isinstance(node, ast.FunctionDef) and node.name == "main":
            annotations = [argument.annotation for argument in node.args.args]
            if annotations and None not in annotations:
                return [annotation for annotation in annotations if annotation is not None]
    # Without annotated parameters it reads its command line in a way of its own.
    raise _UnreadableError(recipe)


def _find_class(file: Path, expression: ast.expr) -> tuple[Path, ast.ClassDef]:
    """Return the file that defines what an expression in a file means, and the class.

    Raises:
        _UnreadableError: it is not found by following imports.
    """
    if isinstance(expression, ast.Attribute) and isinstance(expression.value, ast.Name):
        module = _follow_import(file, expression.value.id)
        return _find_class(_file_of(*module), ast.Name(expression.attr))
    if not isinstance(expression, ast.Name):
        raise _UnreadableError(ast.unparse(expression))

    for node in _parse(file).body:
        if isinstance(node, ast.ClassDef) and node.name == expression.id:
            return file, node
    folder, parts = _follow_import(file, expression.id)
    return _find_class(_file_of(folder, parts[:-1]), ast.Name(parts[-1]))


def _follow_import(file: Path, name: str) -> tuple[Path, list[str]]:
    """Return where an imported name comes from: a folder, and the path below it.

    Lazy packages import for type checkers what they load later, so that all imports count.
    """
    for node in ast.walk(_parse(file)):
        if not isinstance(node, ast.ImportFrom):
            continue
        for alias in node.names:
            if (alias.asname or alias.name) == name:
                parts = [*(node.module.split(".") if node.module else []), alias.name]
                if node.level:
                    return file.parents[node.level - 1], parts
                return _folder_of_package(file, parts[0]), parts
    raise _UnreadableError(f"{file}: {name}")


def _folder_of_package(file: Path, package: str) -> Path:
    """Return the folder that holds a package, or a module beside the file."""
    if (file.parent / f"{package}.py").is_file():
        return file.parent
    # A package at the top is found without importing it.
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise _UnreadableError(package)
    return Path(found.submodule_search_locations[0]).parent


def _file_of(folder: Path, parts: list[str]) -> Path:
    """Return the file of a module."""
    path = folder.joinpath(*parts)
    module = path.with_name(f"{path.name}.py")
    return module if module.is_file() else path / "__init__.py"


def _fields(file: Path, node: ast.ClassDef) -> _Fields:
    """Return the fields that a dataclass takes, those of its bases first."""
    fields: _Fields = {}
    for base in reversed(node.bases):
        fields.update(_fields(*_find_class(file, base)))
    if not any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list):
        return fields

    for item in node.body:
        if not isinstance(item, ast.AnnAssign) or not isinstance(item.target, ast.Name):
            continue
        note = item.annotation
        text = note.value if isinstance(note, ast.Constant) else ast.unparse(note)
        if "ClassVar" in str(text):
            continue
        if _is_kept_from_init(file, item.value):
            fields.pop(item.target.id, None)
        else:
            fields[item.target.id] = (str(text), item.value)
    return fields


def _is_kept_from_init(file: Path, default: ast.expr | None) -> bool:
    """Return whether a default is `field(init=False)`, or a function that returns one."""
    if not isinstance(default, ast.Call) or not isinstance(default.func, ast.Name):
        return False
    if any(word.arg == "init" and _is_constant(word.value, False) for word in default.keywords):
        return True
    for node in _parse(file).body:
        if isinstance(node, ast.FunctionDef) and node.name == default.func.id:
            return "init=False" in ast.unparse(node)
    return False


def _kind_of_option(annotation: str) -> str:
    """Return `int` or `float` for what must be such a number, and "" for the rest."""
    text = annotation.replace(" ", "")
    if text.startswith("Optional[") and text.endswith("]"):
        text = text[len("Optional[") : -1]
    members = [member for member in text.split("|") if member != "None"]
    return members[0] if len(members) == 1 and members[0] in _NUMBERS else ""


def _is_boolean(annotation: str, default: ast.expr | None) -> bool:
    """Return whether a field is true by default, so that it has an opposite."""
    if annotation.replace(" ", "") not in ("bool", "bool|None", "Optional[bool]"):
        return False
    if isinstance(default, ast.Call):
        given = [word.value for word in default.keywords if word.arg == "default"]
        default = given[0] if given else None
    return default is not None and _is_constant(default, True)


def _is_constant(node: ast.expr, value: bool) -> bool:
    return isinstance(node, ast.Constant) and node.value is value
