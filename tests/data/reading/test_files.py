"""Finding, opening and fingerprinting local files."""

import gzip
import hashlib
from pathlib import Path

import pytest
import zstandard

from hfstack.data.reading.files import (
    DataFile,
    data_file,
    expand_files,
    fingerprint,
    looks_local,
    open_bytes,
)
from hfstack.errors import DataError

PLAIN = b"".join(b'{"text": "line %d"}\n' % number for number in range(20_000))


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")


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


def test_missing_file_is_one_line_with_the_closest_name(tmp_path: Path) -> None:
    touch(tmp_path, "stories.jsonl")
    with pytest.raises(
        DataError, match=r"storeis\.jsonl: no such file; did you mean .*stories\.jsonl\?"
    ) as caught:
        expand_files(str(tmp_path / "storeis.jsonl"))
    assert "\n" not in str(caught.value)


def test_glob_is_sorted_and_must_match(tmp_path: Path) -> None:
    touch(tmp_path, "b.jsonl", "a.jsonl", "deep/c.jsonl")
    assert [file.path.name for file in expand_files(f"{tmp_path}/*.jsonl")] == [
        "a.jsonl",
        "b.jsonl",
    ]
    assert [file.path.name for file in expand_files(f"{tmp_path}/**/*.jsonl")] == [
        "a.jsonl",
        "b.jsonl",
        "c.jsonl",
    ]
    with pytest.raises(DataError, match="no file matches this pattern"):
        expand_files(f"{tmp_path}/*.csv")


def test_folder_is_read_with_its_subfolders_without_hidden_files(tmp_path: Path) -> None:
    touch(tmp_path, "b/part.jsonl", "a.jsonl", ".cache/x.jsonl", "notes.md")
    assert [file.path.name for file in expand_files(str(tmp_path))] == ["a.jsonl", "part.jsonl"]


def test_folder_with_split_names_never_mixes_test_into_train(tmp_path: Path) -> None:
    touch(tmp_path, "train.jsonl", "test.jsonl", "dev-0001.jsonl", "run.json")
    assert [file.path.name for file in expand_files(str(tmp_path))] == ["train.jsonl"]
    assert [file.path.name for file in expand_files(str(tmp_path), "test")] == ["test.jsonl"]
    assert [file.path.name for file in expand_files(str(tmp_path), "validation")] == [
        "dev-0001.jsonl"
    ]
    (tmp_path / "train.jsonl").unlink()
    with pytest.raises(
        DataError,
        match=r"no file for the split 'train'; the names give test, validation; name the files",
    ):
        expand_files(str(tmp_path))


def test_folder_of_one_split_is_taken_as_it_is(tmp_path: Path) -> None:
    touch(tmp_path, "test-1.jsonl", "test-2.jsonl")
    assert len(expand_files(str(tmp_path))) == 2
    with pytest.raises(DataError, match="no file for the split 'validation'"):
        expand_files(str(tmp_path), "validation")


def test_folder_of_two_formats_or_of_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no data file"):
        expand_files(str(tmp_path))
    touch(tmp_path, "a.jsonl", "README.txt")
    with pytest.raises(
        DataError, match=r"mixes jsonl and txt files; choose by a glob, e\.g\. '.*\*\.jsonl'"
    ):
        expand_files(str(tmp_path))


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


@pytest.mark.parametrize(
    "compress", [gzip.compress, zstandard.ZstdCompressor().compress], ids=["gz", "zst"]
)
def test_compressed_bytes_in_two_parts_and_a_cut_tail(tmp_path: Path, compress) -> None:
    suffix = ".gz" if compress is gzip.compress else ".zst"
    file = tmp_path / f"a.jsonl{suffix}"
    packed = compress(PLAIN[:100_000]) + compress(PLAIN[100_000:])
    file.write_bytes(packed)
    with open_bytes(data_file(file)) as stream:
        assert stream.read() == PLAIN
    for cut in (len(packed) - 3, len(packed) // 3, 12):
        file.write_bytes(packed[:cut])
        with (
            pytest.raises(DataError, match=rf"a\.jsonl\{suffix}: truncated or damaged"),
            open_bytes(data_file(file)) as stream,
        ):
            stream.read()


def test_name_and_compression_must_agree(tmp_path: Path) -> None:
    for name, content, message in [
        ("a.jsonl", gzip.compress(PLAIN), r"this file is compressed; rename it to a\.jsonl\.gz"),
        ("b.jsonl.gz", PLAIN, r"the name ends in \.gz but the file is not compressed"),
        ("c.jsonl.zst", gzip.compress(PLAIN), r"the name ends in \.zst but the file is \.gz"),
        ("d.jsonl.gz", b"", r"the name ends in \.gz but the file is empty"),
    ]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=message), open_bytes(data_file(tmp_path / name)):
            pass


def test_byte_order_marks(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfhello")
    with open_bytes(data_file(tmp_path / "a.txt")) as stream:
        assert stream.read() == b"hello"
    (tmp_path / "b.txt").write_bytes("hello".encode("utf-16"))
    with (
        pytest.raises(DataError, match="UTF-16; convert it to UTF-8"),
        open_bytes(data_file(tmp_path / "b.txt")),
    ):
        pass
