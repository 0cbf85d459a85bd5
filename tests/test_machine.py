"""What is said of the processor, where the system says much and where it says little."""

import os
import platform
import sys
from pathlib import Path

import pytest

from hfstack.machine import (
    choose_threads,
    core_quota,
    count_cores,
    describe_threads,
    free_cores,
    processor_name,
)


def test_cores_are_those_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hfstack.machine.core_quota", lambda: None)
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


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4.0),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({}, None),
    ],
)
def test_the_quota_of_a_container_is_read(
    tmp_path: Path, files: dict[str, str], quota: float | None
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert core_quota(tmp_path) == quota


@pytest.mark.parametrize(
    ("quota", "free", "environment", "chosen"),
    [
        (None, 8.0, {}, {}),  # an idle machine is left as it is
        (None, 7.6, {}, {}),
        (None, 6.9, {}, {"GOMP_SPINCOUNT": "1000", "KMP_BLOCKTIME": "0"}),
        (None, None, {}, {}),
        (2.5, 8.0, {}, {"OMP_NUM_THREADS": "2"}),
        (0.5, 8.0, {}, {"OMP_NUM_THREADS": "1"}),
        (16.0, 8.0, {}, {}),
        # what the user has set stays
        (2.5, 0.0, {"OMP_NUM_THREADS": "6", "OMP_WAIT_POLICY": "ACTIVE"}, {}),
        (None, 0.0, {"OMP_NUM_THREADS": "1"}, {}),
        (None, 0.0, {"KMP_BLOCKTIME": "200"}, {}),
    ],
)
def test_threads_are_chosen_by_quota_and_load(
    monkeypatch: pytest.MonkeyPatch,
    quota: float | None,
    free: float | None,
    environment: dict[str, str],
    chosen: dict[str, str],
) -> None:
    monkeypatch.setattr("hfstack.machine.visible_cores", lambda: 8)
    monkeypatch.setattr("hfstack.machine.core_quota", lambda: quota)
    monkeypatch.setattr("hfstack.machine.free_cores", lambda: free)
    assert choose_threads(environment) == chosen
    if "GOMP_SPINCOUNT" in chosen:
        said = "8 threads; how they wait for each other: GOMP_SPINCOUNT=1000, KMP_BLOCKTIME=0"
        assert describe_threads(environment | chosen) == said


@pytest.mark.skipif(sys.platform != "linux", reason="read from /proc/stat")
def test_free_cores_are_measured() -> None:
    found = free_cores(0.05)
    assert found is not None and 0 <= found <= (os.cpu_count() or 1)
