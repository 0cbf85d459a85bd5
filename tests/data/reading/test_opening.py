"""Opening files that are compressed, archived or in another encoding of Unicode."""

import bz2
import gzip
import lzma
import tracemalloc
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import zstandard

from hfstack.data.reading import opening
from hfstack.data.reading.files import data_file
from hfstack.data.reading.formats import read_file
from hfstack.data.reading.opening import open_bytes
from hfstack.errors import DataError

PLAIN = b"".join(b'{"text": "line %d"}\n' % number for number in range(20_000))


@pytest.mark.parametrize(
    ("suffix", "compress"),
    [
        (".gz", gzip.compress),
        (".zst", zstandard.ZstdCompressor().compress),
        (".xz", lzma.compress),
        (".bz2", bz2.compress),
    ],
)
def test_compressed_bytes_in_two_parts_and_a_cut_tail(
    tmp_path: Path, suffix: str, compress: Callable[[bytes], bytes]
) -> None:
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


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-32", "utf-32-be"])
def test_other_unicode_is_read_by_its_byte_order_mark(tmp_path: Path, encoding: str) -> None:
    text = "".join(f'{{"text": "Zeile {number} 中 😀 ü"}}\r\n' for number in range(9000))
    mark = "" if encoding in ("utf-16", "utf-32") else "\ufeff"
    path = tmp_path / "a.jsonl"
    path.write_bytes((mark + text).encode(encoding))
    with open_bytes(data_file(path)) as stream:
        assert stream.read().decode() == text
    assert len(list(read_file(data_file(path)))) == 9000

    path.write_bytes((mark + text).encode(encoding)[:-1])
    with pytest.raises(DataError, match=r"a\.jsonl: invalid UTF-(16|32) at byte \d+"):
        list(read_file(data_file(path)))


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf_16_without_a_mark_is_known_by_its_zeros(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes("text,label\r\nschön 中文,1\r\n".encode(encoding))
    rows = [row for _, row, _ in read_file(data_file(path))]
    assert rows == [{"text": "schön 中文", "label": "1"}]


@pytest.mark.parametrize("content", ["hello".encode("utf-32-le"), bytes(range(7)) * 9 + bytes(99)])
def test_bytes_with_zeros_in_all_places_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    with (
        pytest.raises(DataError, match=r"a\.txt: \d+% of the bytes are zero: this is no text"),
        open_bytes(data_file(path)),
    ):
        pass


@pytest.mark.parametrize(("suffix", "compress"), [(".gz", gzip.compress), (".xz", lzma.compress)])
def test_a_bomb_is_not_unpacked(
    tmp_path: Path,
    suffix: str,
    compress: Callable[[bytes], bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(opening, "_UNPACKED_FREE_BYTES", 1 << 20)
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(compress(bytes(64 << 20)))
    with (
        pytest.raises(DataError, match=r"it unpacks to more than 200 times its size"),
        open_bytes(replace(data_file(path), format="parquet")) as stream,
    ):
        while stream.read(1 << 20):
            pass


def test_zst_is_read_in_constant_memory_and_small_frames_in_linear_time(tmp_path: Path) -> None:
    # 64 MiB in 6 kB, and 20,000 frames of a line each.
    line = b"a" * 1023 + b"\n"
    (tmp_path / "large.txt.zst").write_bytes(zstandard.compress(line * (64 << 10)))
    small = zstandard.compress(b"one line\n")
    (tmp_path / "small.txt.zst").write_bytes(small * 20_000)

    tracemalloc.start()
    with open_bytes(data_file(tmp_path / "large.txt.zst")) as stream:
        assert sum(map(len, stream)) == 64 << 20
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 << 20  # with the whole of it, or of one feed of 64 KiB, 64 MiB and more

    with open_bytes(data_file(tmp_path / "small.txt.zst")) as stream:
        assert sum(1 for _ in stream) == 20_000


def test_a_locked_archive_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "secret")
    # the bit that says that a member is encrypted, in its header and in the directory
    content = bytearray(path.read_bytes())
    content[6] |= 1
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)
    with (
        pytest.raises(DataError, match=r"a\.zip/a\.txt: cannot be unpacked: .*encrypted"),
        open_bytes(data_file(path, member="a.txt")),
    ):
        pass
