"""The machine fails in the middle of a run: one line, nothing lost; a bug keeps its traceback."""

import errno
import os
import resource
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from hfstack import disk
from hfstack.cli.retry import _MISTAKES
from hfstack.config import command_line
from hfstack.errors import CheckpointError, MachineError
from hfstack.machine_failures import describe_failure
from hfstack.runs import resume
from hfstack.runs.manifest import MANIFEST
from hfstack.runs.record import read_run
from hfstack.runs.run import Run, RunArgs
from tests.training.test_checkpointing import At, names, same, trainer_of


def io_error(code: int, name: str | None = None) -> OSError:
    return OSError(code, os.strerror(code), name)


def few_descriptors(run: Path) -> None:
    """Let this process open nothing more, and try."""
    free = os.open(os.devnull, os.O_RDONLY)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, LIMIT[1]))
    (run / "samples.jsonl").open("w")


def no_memory(run: Path) -> None:
    torch.empty(1 << 55, dtype=torch.uint8)


def after_manifest(fail: Callable[[Path], None], run: Path) -> None:
    """Fail once checkpoint-4, which is verified beside training, is whole."""
    while not (run / "checkpoint-4" / MANIFEST).is_file():
        time.sleep(0.01)
    fail(run)


def raised(error: Exception) -> Callable[[Path], None]:
    def fail(run: Path) -> None:
        raise error

    return fail


LIMIT = resource.getrlimit(resource.RLIMIT_NOFILE)
THREADS = RuntimeError("can't start new thread")
WORKER = RuntimeError("DataLoader worker (pid 4242) is killed by signal: Killed.")
FAULTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "no descriptors": (few_descriptors, "Too many open files; raise the number of files"),
    "no memory of torch": (no_memory, "memory ran out; lower --per_device_train_batch_size"),
    "no memory of Python": (raised(MemoryError()), "memory ran out"),
    "data that cannot be read": (raised(io_error(errno.EIO, "rows.bin")), "rows.bin: Input/output"),
    "stale": (raised(io_error(errno.ESTALE, "a.arrow")), "mount the network file system again"),
    "no threads": (raised(THREADS), "the system starts no more threads"),
    "a worker that was killed": (raised(WORKER), "a process that loads data was killed"),
}


@pytest.fixture
def train(tmp_path: Path, tiny_llama: Path, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.argv", ["pretrain.py"])
    return trainer_of(tmp_path, tiny_llama, tiny_tokenizer)


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Any:
    return caplog


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "_PAUSES_S", (0, 0, 0))


def test_each_failure_in_the_middle_is_one_line_and_the_run_goes_on(
    train, tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    """All in one run, which is resumed after each, and ends as one that nothing happened to."""
    train("whole")
    run = tmp_path / "out"
    for at, (name, (fail, message)) in enumerate(FAULTS.items()):
        resumed = {"resume_from_checkpoint": "last"} if at else {}
        strike = At("on_step_begin", 4, lambda fail=fail, **_: after_manifest(fail, run))
        try:
            with pytest.raises(MachineError) as e:
                train("out", strike, **resumed)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, LIMIT)
        text = str(e.value)
        assert message in text and "\n" not in text, name
        assert "--resume_from_checkpoint last" in text, name
        assert {"checkpoint-2", "checkpoint-4"} <= set(names(run)), name
        if name != "no descriptors":
            assert "; checkpoint-4 is whole: then continue with" in text, name
            assert read_run(run).error_kind == "MachineError", name
            assert read_run(run).error == text, name
    assert not [record for record in log.records if record.exc_info]
    assert MachineError.__name__ not in _MISTAKES, "a launch with --retries tries it again"

    train("out", resume_from_checkpoint="last")
    same(tmp_path / "whole", run)


def test_checkpoints_that_cannot_be_looked_at_are_not_said_to_be_torn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise CheckpointError("checkpoint-4 could not be read in 4 tries")

    monkeypatch.setattr(resume, "newest_checkpoint", refuse)
    with (
        pytest.raises(MachineError, match="which cannot be looked at either, are as they were"),
        Run.start("clean.py", tmp_path, RunArgs()),
    ):
        monkeypatch.setattr("hfstack.runs.run.newest_checkpoint", refuse)
        raise io_error(errno.EIO, "rows.bin")


def test_an_output_dir_that_is_deleted_is_named(tmp_path: Path) -> None:
    """Whichever library stumbles over it; without that, a missing file is a bug."""

    def save(folder: Path) -> None:
        save_file({"a": torch.zeros(2)}, folder / "model.safetensors")

    def torch_save(folder: Path) -> None:
        torch.save({"a": 1}, folder / "optimizer.pt")

    def write(folder: Path) -> None:
        (folder / "samples.jsonl").write_text("")

    for number, act in enumerate((save, torch_save, write)):
        folder = tmp_path / str(number)
        with (
            pytest.raises(MachineError, match="was deleted or moved away while the run was going"),
            Run.start("clean.py", folder, RunArgs()),
        ):
            shutil.rmtree(folder)
            act(folder)

    with pytest.raises(FileNotFoundError), Run.start("clean.py", tmp_path / "3", RunArgs()):
        (tmp_path / "3" / "nowhere" / "samples.jsonl").write_text("")


def test_a_run_json_that_cannot_be_written_hides_no_other_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: pytest.LogCaptureFixture
) -> None:
    real = disk.os.fsync

    def read_only(descriptor: int) -> None:
        raise io_error(errno.EROFS, "run.json.partial")

    with pytest.raises(ZeroDivisionError), Run.start("clean.py", tmp_path / "a", RunArgs()):
        monkeypatch.setattr(disk.os, "fsync", read_only)
        _ = 1 / 0
    assert "run.json could not be written: Read-only file system; mount it so" in log.text
    assert not [record for record in log.records if record.exc_info]

    monkeypatch.setattr(disk.os, "fsync", real)
    with (
        pytest.raises(MachineError, match="run.json.partial: Read-only file system"),
        Run.start("clean.py", tmp_path / "b", RunArgs()),
    ):
        monkeypatch.setattr(disk.os, "fsync", read_only)
    assert read_run(tmp_path / "b").status == "running"


def test_what_fails_of_the_machine_outside_of_a_run_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    error: Exception = io_error(errno.EMFILE, "recipes/clean.yaml")

    def main(args: RunArgs) -> None:
        raise error

    main.__annotations__ = {"args": RunArgs}
    monkeypatch.setattr("sys.argv", ["clean.py"])
    with pytest.raises(SystemExit, match="1"):
        command_line(main)
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line == (
        "clean.py: recipes/clean.yaml: Too many open files; raise the number of files that may be "
        "open (ulimit -n)"
    )
    error = KeyError("our own")
    with pytest.raises(KeyError):
        command_line(main)


@pytest.mark.parametrize("number", range(6))
def test_a_bug_is_none_of_the_machines_failures(number: int) -> None:
    bugs = [
        *(FileNotFoundError(2, "No such file", "a.json"), KeyError("Errno 5"), ValueError("x")),
        *(RuntimeError("shapes (3, 4) and (5, 6)"), IndexError("out of memory")),
        ConnectionError(111, "refused"),
    ]
    assert describe_failure(bugs[number]) is None
    # also one that comes up while a failure of the machine is handled
    try:
        try:
            raise io_error(errno.EIO, "a.bin")
        except OSError:
            raise TypeError("our own") from None
    except TypeError as error:
        assert describe_failure(error) is None


def test_libraries_that_say_it_in_words_are_understood() -> None:
    said = {
        "Error while serializing: I/O error: Input/output error (os error 5)": "look at the disk",
        "Error while serializing: I/O error: Too many open files (os error 24)": "ulimit -n",
        "unable to open file </a> in read-only mode: Too many open files (24)": "ulimit -n",
        "CUDA out of memory. Tried to allocate 20.00 MiB.": "memory ran out",
        "received 0 items of ancdata": "ulimit -n",
        "basic_ios::clear: iostream error": "could not be written or read to its end",
    }
    for text, advice in said.items():
        assert advice in str(describe_failure(RuntimeError(text))), text
