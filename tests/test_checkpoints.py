"""Only a whole checkpoint is resumed, and none is begun that the disk cannot hold."""

import collections
import json
import zipfile
from pathlib import Path

import pytest

from hfstack.checkpoints import check_checkpoint, newest_checkpoint, refuse_full_disk
from hfstack.errors import CheckpointError


def checkpoint(folder: Path, step: int, *, state: str | None = None, optimizer: bool = True) -> Path:
    path = folder / f"checkpoint-{step}"
    path.mkdir()
    (path / "trainer_state.json").write_text(json.dumps({"global_step": step}) if state is None else state)
    if optimizer:
        for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
            with zipfile.ZipFile(path / name, "w") as archive:
                archive.writestr("data.pkl", b"x" * 100)
    return path


def test_the_newest_whole_one_is_found(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path) is None
    checkpoint(tmp_path, 9)
    whole = checkpoint(tmp_path, 10)
    checkpoint(tmp_path, 20, state='{"global_')  # torn while it was written
    (tmp_path / "checkpoint-30").mkdir()
    (tmp_path / "checkpoint-best").mkdir()
    assert newest_checkpoint(tmp_path) == whole
    assert check_checkpoint(whole) == 10


def test_a_checkpoint_without_its_optimizer_is_refused(tmp_path: Path) -> None:
    path = checkpoint(tmp_path, 5, optimizer=False)
    with pytest.raises(CheckpointError, match="has no optimizer and no scheduler state to continue from"):
        check_checkpoint(path)
    with pytest.raises(CheckpointError, match=r"checkpoint-99 is no whole checkpoint: there is no such folder"):
        check_checkpoint(tmp_path / "checkpoint-99")


def test_the_disk_must_hold_two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr("hfstack.checkpoints.shutil.disk_usage", lambda path: usage(0, 0, 24_000_000))
    refuse_full_disk(tmp_path, parameters=1_000_000)  # weights and two moments, fp32: 12 MB each
    with pytest.raises(CheckpointError, match=r"two checkpoints need 23 MiB but the disk of .* has 23 MiB free"):
        refuse_full_disk(tmp_path, parameters=1_000_001)
