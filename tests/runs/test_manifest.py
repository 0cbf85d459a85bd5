"""What a manifest may say, and what is done when it cannot be asked: nothing."""

import errno
import itertools
import json
import os
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hfstack.errors import CheckpointError
from hfstack.runs.checkpoint_files import (
    find_damage,
    list_checkpoints,
    newest_checkpoint,
    remove_unfinished,
    resumable_checkpoint,
    rotate,
)
from hfstack.runs.manifest import MANIFEST, read_manifest, write_manifest
from hfstack.runs.resume import choose_checkpoint, clear_full_disk
from tests.faults import CODES, NAMES, Faults
from tests.runs.test_resume import record

STEPS = (2, 4, 6, 8)
READ_FILES = (MANIFEST, "model.bin", "trainer_state.json", "optimizer.pt")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run's directory with whole checkpoints 2, 4, 6, 8, and what was set aside earlier."""
    folder = tmp_path / "out"
    for step in STEPS:
        path = folder / f"checkpoint-{step}"
        path.mkdir(parents=True)
        for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
            with zipfile.ZipFile(path / name, "w") as archive:
                archive.writestr("data.pkl", b"x" * 100)
        (path / "model.bin").write_bytes(bytes(100))
        (path / "trainer_state.json").write_text(json.dumps({"global_step": step}))
        write_manifest(path, step=step, settings={"learning_rate": 0.1})
    for word in ("broken", "abandoned"):
        (folder / f"{word}-1").mkdir()
    return folder


def files_of(run: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in run.rglob("*") if path.is_file()}


def folders_of(run: Path) -> list[str]:
    return sorted(path.name for path in run.iterdir())


@pytest.fixture
def faults() -> Iterator[Faults]:
    with Faults() as planted:
        yield planted


def read_with(faults: Faults, call: Callable[[], Any]) -> str:
    """Return the line of the error that a call ends with, and end the faults."""
    with pytest.raises(CheckpointError) as refusal:
        call()
    faults.end()
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


PLACES = [
    *itertools.product(READ_FILES, ("open", "read", "stat")),
    ("checkpoint-8", "stat"),
    ("checkpoint-8", "list"),
    ("out", "list"),
]


@pytest.mark.parametrize("code", CODES, ids=NAMES)
@pytest.mark.parametrize(("name", "at"), PLACES)
def test_what_could_not_be_read_loses_nothing(
    run: Path, faults: Faults, code: int, name: str, at: str
) -> None:
    """Four whole checkpoints survive whatever the system answers, and no run begins at step 0."""
    before, folders = files_of(run), folders_of(run)
    faults.plant(code, name, at=at)
    message = read_with(faults, lambda: choose_checkpoint(record(run), "last", ()))
    assert name in message and os.strerror(code) in message
    assert "could not be read in 4 tries" in message and "nothing was changed" in message
    assert files_of(run) == before and folders_of(run) == folders
    assert choose_checkpoint(record(run), "last", ()) == (run / "checkpoint-8", 8, {})


@pytest.mark.parametrize("code", CODES, ids=NAMES)
def test_neither_a_named_one_nor_a_new_run_takes_it_for_bad(
    run: Path, faults: Faults, code: int
) -> None:
    before, folders = files_of(run), folders_of(run)
    for asked in (str(run / "checkpoint-6"), None):
        faults.plant(code, MANIFEST)
        message = read_with(faults, lambda asked=asked: choose_checkpoint(record(run), asked, ()))
        assert "could not be read in 4 tries" in message
        assert files_of(run) == before and folders_of(run) == folders


@pytest.mark.parametrize("code", CODES, ids=NAMES)
@pytest.mark.parametrize("at", ["open", "read", "stat"])
def test_what_works_at_the_third_try_is_resumed(
    run: Path, faults: Faults, code: int, at: str
) -> None:
    faults.plant(code, "checkpoint-8/model.bin", at=at, times=2)
    assert choose_checkpoint(record(run), "last", ()) == (run / "checkpoint-8", 8, {})
    assert faults.struck >= 3


def test_a_torn_one_stays_while_the_one_before_is_out_of_reach(run: Path, faults: Faults) -> None:
    (run / "checkpoint-8" / "model.bin").write_bytes(b"torn")
    before, folders = files_of(run), folders_of(run)
    faults.plant(errno.EIO, "checkpoint-6/model.bin", at="read")
    read_with(faults, lambda: resumable_checkpoint(run, needs_manifest=True))
    assert files_of(run) == before and folders_of(run) == folders

    assert resumable_checkpoint(run, needs_manifest=True) == run / "checkpoint-6"
    expected = ["abandoned-1", "broken-8", *(f"checkpoint-{step}" for step in STEPS[:-1])]
    assert folders_of(run) == expected


@pytest.mark.parametrize("code", CODES, ids=NAMES)
@pytest.mark.parametrize("step", STEPS)
def test_nothing_is_rotated_or_cleared_while_one_is_out_of_reach(
    run: Path, faults: Faults, code: int, step: int
) -> None:
    before, folders = files_of(run), folders_of(run)
    faults.plant(code, f"checkpoint-{step}/{MANIFEST}", at="stat")
    assert rotate(run, keep=1) == []
    error = clear_full_disk(record(run), OSError(errno.ENOSPC, "No space left on device"))
    faults.end()
    assert "is full" in str(error) and "removed" not in str(error)
    assert files_of(run) == before and folders_of(run) == folders


def test_a_zip_whose_end_cannot_be_read_is_not_torn(run: Path, faults: Faults) -> None:
    """Without a manifest the archive judges itself, and it says so of both."""
    path = run / "checkpoint-8"
    (path / MANIFEST).unlink()
    faults.plant(errno.EIO, "optimizer.pt", at="read")
    assert "optimizer.pt could not be read" in read_with(faults, lambda: find_damage(path))
    (path / "optimizer.pt").write_bytes(b"half an archive")
    assert find_damage(path) == "optimizer.pt is torn"


def entry(**changes: Any) -> dict[str, Any]:
    """A manifest of checkpoint-8 that says something else."""
    files = {"trainer_state.json": [18, "0" * 32]}
    return {"schema": 1, "step": 8, "world_size": 1, "settings": {}, "files": files} | changes


WRONG = {
    "no mapping": [],
    "a number": 3,
    "null": None,
    "no files": {"schema": 1, "step": 8},
    "files as a list": entry(files=["model.bin"]),
    "a file as a number": entry(files={"model.bin": 3}),
    "a file of one": entry(files={"model.bin": [1]}),
    "a file of three": entry(files={"model.bin": [1, "0" * 32, 3]}),
    "a size as text": entry(files={"model.bin": ["100", "0" * 32]}),
    "a size below 0": entry(files={"model.bin": [-1, "0" * 32]}),
    "a digest as null": entry(files={"model.bin": [100, None]}),
    "a step as text": entry(step="8"),
    "a step as true": entry(step=True),
    "a step as 1e999": entry(step=float("inf")),
    "a schema as text": entry(schema="9"),
    "settings as a list": entry(settings=[1]),
    "a setting as text": entry(settings={"learning_rate": "high"}),
    "a path outside": entry(files={"../checkpoint-6/model.bin": [100, "0" * 32]}),
    "an absolute path": entry(files={"/etc/hostname": [100, "0" * 32]}),
    "a name with NUL": entry(files={"model\0.bin": [100, "0" * 32]}),
    "a name too long": entry(files={"m" * 5000: [100, "0" * 32]}),
    "an empty name": entry(files={"": [100, "0" * 32]}),
    "no state": entry(files={}),
}


@pytest.mark.parametrize("form", WRONG)
def test_a_manifest_of_the_wrong_form_never_stops_the_fallback(run: Path, form: str) -> None:
    (run / "checkpoint-8" / MANIFEST).write_text(json.dumps(WRONG[form]))
    assert choose_checkpoint(record(run), "last", ()) == (run / "checkpoint-6", 6, {})


@pytest.mark.parametrize("content", [b"\xff\xfe", b"[" * 100_000, b'{"step": 1e', b""])
def test_neither_does_one_that_is_no_json(run: Path, content: bytes) -> None:
    (run / "checkpoint-8" / MANIFEST).write_bytes(content)
    assert read_manifest(run / "checkpoint-8") is None
    assert choose_checkpoint(record(run), "last", ()) == (run / "checkpoint-6", 6, {})


def test_of_a_checkpoint_that_is_a_link_the_link_alone_is_deleted(
    run: Path, tmp_path: Path
) -> None:
    """Old ones that were moved to another disk, or are those of another run."""
    elsewhere = tmp_path / "other-disk"
    elsewhere.mkdir()
    for step in STEPS[:3]:
        (run / f"checkpoint-{step}").rename(elsewhere / f"checkpoint-{step}")
        (run / f"checkpoint-{step}").symlink_to(elsewhere / f"checkpoint-{step}")
    (elsewhere / "checkpoint-6" / MANIFEST).unlink()
    before = files_of(elsewhere)

    assert [path.name for path in remove_unfinished(run)] == ["checkpoint-6"]
    assert [path.name for path in rotate(run, keep=1)] == ["checkpoint-4", "checkpoint-2"]
    assert folders_of(run) == ["abandoned-1", "broken-1", "checkpoint-8"]
    assert files_of(elsewhere) == before


def test_a_missing_directory_has_no_checkpoints(tmp_path: Path) -> None:
    assert list_checkpoints(tmp_path / "new") == [] and newest_checkpoint(tmp_path / "new") is None
