"""What is said of the processor, where the system says much and where it says little."""

import os
import platform
from pathlib import Path

import pytest

from hfstack.machine import count_cores, processor_name


def test_cores_are_those_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 3, 5}, raising=False)
    assert count_cores() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert count_cores() == 1


@pytest.mark.parametrize(
    ("content", "name"),
    [
        ("processor : 0\nmodel name\t: Xeon 9 @ 2 GHz \n\nmodel name\t: other\n", "Xeon 9 @ 2 GHz"),
        ("processor : 0\nFeatures : fp asimd\n", "aarch64"),
        (None, "arm"),
    ],
)
def test_the_processor_has_a_name(
    content: str | None, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(path: Path, **kwargs: str) -> str:
        if content is None:
            raise FileNotFoundError(path)
        return content

    monkeypatch.setattr(Path, "read_text", read)
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    monkeypatch.setattr(platform, "processor", lambda: "arm")
    assert processor_name() == name
