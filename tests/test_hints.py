"""A wrong name is answered with the one that it means, by its letters or from another tool."""

import pytest

from hfstack import hints
from hfstack.hints import closest, suggest
from hfstack.shipped import REFERENCE

SFT = ["--learning_rate", "--lr_scheduler_type", "--per_device_train_batch_size", "--max_length"]


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("--lr", "'--lr'; did you mean '--learning_rate'?"),
        ("--batch_size", "'--batch_size'; did you mean '--per_device_train_batch_size'?"),
        ("--max-seq-length", "'--max-seq-length'; did you mean '--max_length'?"),
        ("--learning_rat", "'--learning_rat'; did you mean '--learning_rate'?"),
        ("--epochs", "'--epochs'"),  # not among these
        ("--xyz", "'--xyz'"),
    ],
)
def test_flags(name: str, meant: str) -> None:
    assert suggest(name, SFT) == meant


def test_keys_of_yaml() -> None:
    assert suggest("lr", ["learning_rate"]) == "'lr'; did you mean 'learning_rate'?"


def test_every_alias_means_an_option_of_some_recipe_and_is_none() -> None:
    pages = "".join(page.read_text(encoding="utf-8") for page in REFERENCE.glob("*.md"))
    for alias, options in hints._ALIASES.items():
        for option in options:
            assert f"  --{option} " in pages or option == "processes", (alias, option)


def test_case_makes_no_difference() -> None:
    assert closest("label", ["TEXT", "LABEL"]) == ["LABEL"]
    assert closest("label", ["TEXT"]) == []
