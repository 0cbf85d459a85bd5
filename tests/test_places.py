"""`~` and `$HOME` mean in a YAML file what they mean in a shell."""

from pathlib import Path

import pytest

from hfstack.errors import ConfigError
from hfstack.places import expand_place, expand_places


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        ("~/runs", f"{Path.home()}/runs"),
        ("$HFSTACK_DATA/a.csv", "/data/a.csv"),
        ("${HFSTACK_DATA}/a.csv", "/data/a.csv"),
        ("runs/~/a", "runs/~/a"),
        ("It costs $5 / kg", "It costs $5 / kg"),
        ("$HFSTACK_DATA", "$HFSTACK_DATA"),
        ("a$HFSTACK_DATA/b", "a$HFSTACK_DATA/b"),
    ],
)
def test_the_beginning_of_a_path_is_expanded_and_no_other_text(
    monkeypatch: pytest.MonkeyPatch, text: str, expanded: str
) -> None:
    monkeypatch.setenv("HFSTACK_DATA", "/data")
    assert expand_place(text) == expanded
    values = {"one": text, "several": [text, 1], "number": 1}
    expand_places(values)
    assert values == {"one": expanded, "several": [expanded, 1], "number": 1}


def test_a_variable_that_is_not_set_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HFSTACK_DATA", raising=False)
    with pytest.raises(ConfigError, match=r"^\$HFSTACK_DATA/a: the environment variable HFSTACK_"):
        expand_place("$HFSTACK_DATA/a")
