"""Files are written all or nothing, and recognised by size and digest."""

import errno
import hashlib
from pathlib import Path

import pytest

from hfstack.disk import (
    atomic_folder,
    atomic_write,
    describe_file,
    describe_os_error,
    file_names,
    hash_file,
    hash_text,
    is_as_described,
    retry_reading,
    size_of_file,
)
from hfstack.errors import CheckpointError
from tests.faults import CODES, NAMES, Faults


def test_a_digest_is_blake2b_of_16_bytes(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes("naïve".encode() * 200_000)
    expected = hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
    assert hash_file(path) == hash_text("naïve" * 200_000) == expected


def test_a_file_is_recognised_by_its_description(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("{}\n")
    described = describe_file(path)
    assert described == {"path": str(path), "bytes": 3, "blake2b": hash_text("{}\n")}
    assert describe_file(path, path.name) == described | {"path": "rows.jsonl"}

    assert is_as_described(path, described)
    path.write_text("[]\n")
    assert not is_as_described(path, described)
    path.write_text("{}\n{}\n")
    assert not is_as_described(path, described)


@pytest.mark.parametrize("durable", [True, False])
def test_a_reader_sees_the_old_file_or_the_new_one(tmp_path: Path, durable: bool) -> None:
    path = tmp_path / "run.json"
    path.write_text("old")
    with atomic_write(path, durable=durable) as file:
        file.write("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"

    with pytest.raises(ZeroDivisionError), atomic_write(path, durable=durable) as file:
        file.write("half")
        _ = 1 / 0
    assert path.read_text() == "new"
    assert [left.name for left in tmp_path.iterdir()] == ["run.json"]


@pytest.mark.parametrize("code", CODES, ids=NAMES)
def test_what_cannot_be_looked_at_is_not_missing(tmp_path: Path, code: int) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "file").write_text("text")
    assert size_of_file(tmp_path / "inner" / "file") == 4
    assert size_of_file(tmp_path / "inner") is None and size_of_file(tmp_path / "none") is None
    assert file_names(tmp_path) == ["inner/file"]
    with Faults() as faults:
        faults.plant(code, "file", at="stat")
        with pytest.raises(OSError, match="file"):
            size_of_file(tmp_path / "inner" / "file")
    with Faults() as faults:
        faults.plant(code, "inner", at="list")
        with pytest.raises(OSError, match="inner"):
            file_names(tmp_path)


def test_reading_is_tried_four_times_and_each_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr("hfstack.disk.time.sleep", waits.append)
    calls: list[int] = []

    def read() -> None:
        calls.append(1)
        raise OSError(errno.ESTALE, "Stale file handle")

    with pytest.raises(
        CheckpointError,
        match=r"^/x could not be read in 4 tries: Stale file handle; mount the network file "
        "system again; kept$",
    ):
        retry_reading(read, "/x", raises=CheckpointError, remark="; kept")
    assert waits == [0.5, 1.0, 2.0] and len(calls) == 4
    assert "/x could not be read (Stale file handle): next try in 0.5 s" in caplog.text

    # That there is no such file is an answer.
    with pytest.raises(FileNotFoundError):
        retry_reading((tmp_path / "none").read_bytes, tmp_path, raises=CheckpointError)
    assert waits == [0.5, 1.0, 2.0]


def test_what_to_do_about_an_error_of_the_system() -> None:
    assert "ulimit -n" in describe_os_error(OSError(errno.EMFILE, "Too many open files"))
    assert describe_os_error(OSError(errno.ENOTDIR, "Not a directory")) == "Not a directory"
    assert describe_os_error(OSError("a text")) == "a text"


def test_a_folder_gets_its_name_when_it_is_whole(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    for content in ("first", "second"):
        with atomic_folder(folder) as partial:
            (partial / "file").write_text(content)
        assert [path.name for path in tmp_path.iterdir()] == ["data"]
        assert (folder / "file").read_text() == content

    with pytest.raises(KeyboardInterrupt), atomic_folder(folder) as partial:
        (partial / "file").write_text("torn")
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    assert (folder / "file").read_text() == "second"

    # killed between the two renames: what was there comes back, and the next one replaces it
    folder.rename(tmp_path / ".data.old")
    with pytest.raises(OSError, match="full"), atomic_folder(folder):
        raise OSError("full")
    assert (folder / "file").read_text() == "second"
