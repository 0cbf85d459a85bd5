"""Where a run happens."""

import pytest

from hfstack.runs import environment
from hfstack.runs.environment import outside_their_range


def test_libraries_outside_their_range_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ["torch>=2.8", "transformers<5.25,>=5.23", "trl>=1.16", "pytest>=8; extra == 'dev'"]
    monkeypatch.setattr(environment, "requires", lambda name: asked)
    installed = {"torch": "2.8.0a0+34c6371d24.nv25.8", "transformers": "5.25.1", "trl": "1.16.0"}
    monkeypatch.setattr(environment, "version", installed.__getitem__)
    assert outside_their_range() == ["transformers 5.25.1 (<5.25,>=5.23)"]
