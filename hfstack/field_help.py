"""Use the string under each field of a dataclass as the field's help.

`--help` and the reference pages both read it, so that an option has one text.
"""

import ast
import dataclasses
import inspect
import itertools
import textwrap
import types
import typing
from typing import Any


def document_fields(cls: Any) -> None:
    """Use the string under each dataclass field as its help, unless it has one."""
    undocumented = {f.name: f for f in dataclasses.fields(cls) if "help" not in f.metadata}
    if not undocumented:
        return

    owners: list[Any] = [base for base in cls.__mro__ if dataclasses.is_dataclass(base)]
    for owner in owners:
        for name, text in _field_docstrings(owner).items():
            field = undocumented.pop(name, None)
            if field is not None:
                # argparse reads % as a format
                text = " ".join(text.split()).replace("%", "%%")
                field.metadata = types.MappingProxyType({**field.metadata, "help": text})


def _field_docstrings(cls: type) -> dict[str, str]:
    """Return the string under each field of a class, by the field's name."""
    # A class that was typed into a notebook or a shell has no file, so no help.
    try:
        source = inspect.getsource(cls)
    except OSError:
        return {}

    found = {}
    body = typing.cast(ast.ClassDef, ast.parse(textwrap.dedent(source)).body[0]).body
    for line, below in itertools.pairwise(body):
        match line, below:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(
                value=ast.Constant(value=str(text))
            ):
                found[name] = text

    return found
