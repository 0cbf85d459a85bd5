"""The string under a field is its help, in a class and in those that inherit from it."""

import dataclasses
from dataclasses import dataclass, field

from hfstack.field_help import document_fields


@dataclass
class Base:
    size: int = 3
    """A number of things,
    over two lines.
    """
    share: float = 0.5
    """Of them, 100% at most."""


@dataclass
class Derived(Base):
    size: int = 4
    """A number that the subclass explains."""
    note: str = field(default="", metadata={"help": "Upstream's own help."})
    """Not this one."""
    bare: int = 0


def helps(cls: type) -> dict[str, str | None]:
    document_fields(cls)
    return {one.name: one.metadata.get("help") for one in dataclasses.fields(cls)}


def test_the_string_below_a_field_is_its_help() -> None:
    # argparse reads % as a format
    assert helps(Base) == {
        "size": "A number of things, over two lines.",
        "share": "Of them, 100%% at most.",
    }


def test_a_subclass_explains_what_it_changes_and_inherits_the_rest() -> None:
    assert helps(Derived) == {
        "size": "A number that the subclass explains.",
        "share": "Of them, 100%% at most.",
        "note": "Upstream's own help.",
        "bare": None,
    }


def test_a_class_without_a_file_has_no_help() -> None:
    typed = dataclasses.make_dataclass("Typed", [("size", int, 3)])
    assert helps(typed) == {"size": None}
