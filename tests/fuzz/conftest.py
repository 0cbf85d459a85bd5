"""What the fuzz tests share: a folder to work in, and a count that is printed at the end."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fuzz.limits import Tally


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture
def tally(request: pytest.FixtureRequest) -> Iterator[Tally]:
    """Count the calls of a test; `pytest -s` shows the counts."""
    counted = Tally()
    yield counted
    print(f"\n{request.node.name}: {counted}")
