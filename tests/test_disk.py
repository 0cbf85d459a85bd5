"""Files are written all or nothing, and recognised by size and digest."""

import hashlib
from pathlib import Path

import pytest

from hfstack.disk import atomic_write, describe_file, hash_file, hash_text, is_as_described


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
