"""What a local file is by its name, and its fingerprint."""

import hashlib
from pathlib import Path

import pytest

from hfstack.data.reading.files import DataFile, data_file, fingerprint, looks_local
from hfstack.errors import DataError

PLAIN = b"".join(b'{"text": "line %d"}\n' % number for number in range(20_000))


@pytest.mark.parametrize(
    ("name", "known", "compression"),
    [
        ("a.jsonl", "jsonl", ""),
        ("a.ndjson.gz", "jsonl", ".gz"),
        ("b.CSV.ZST", "csv", ".zst"),
        ("c.parquet", "parquet", ""),
        ("d.v1.txt", "txt", ""),
    ],
)
def test_format_and_compression_come_from_the_name(name: str, known: str, compression: str) -> None:
    assert data_file(Path(name)) == DataFile(Path(name), known, compression)


def test_unknown_format_names_those_that_are_known() -> None:
    with pytest.raises(DataError, match=r"rows\.xlsx: unknown kind of file.*\.jsonl.*\.parquet"):
        data_file(Path("rows.xlsx"))


@pytest.mark.parametrize(
    "path", ["a.jsonl", "data/*", "./folder", "/no/such", "~/x", "part-[0-9]", "x.txt.gz"]
)
def test_local_looking_paths(path: str) -> None:
    assert looks_local(path)


@pytest.mark.parametrize("path", ["user/dataset", "squad", "trl-lib/Capybara"])
def test_hub_ids_do_not_look_local(path: str) -> None:
    assert not looks_local(path)


def test_fingerprint_is_blake2b_and_follows_the_content(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(PLAIN)
    first = fingerprint(file)
    assert first == {
        "path": str(file),
        "bytes": len(PLAIN),
        "blake2b": hashlib.blake2b(PLAIN, digest_size=16).hexdigest(),
    }
    file.write_bytes(PLAIN[::-1])
    assert fingerprint(file)["blake2b"] != first["blake2b"]


@pytest.mark.parametrize("name", ["rows.tar", "rows.tar.gz", "rows.TGZ", "a/rows.tar.zst"])
def test_tar_archives_are_refused_with_the_way_out(name: str) -> None:
    assert looks_local(name)
    with pytest.raises(DataError, match=f"^{name}: tar archives are not read, .* as .zip$"):
        data_file(Path(name))
