"""Open a local file as plain UTF-8 bytes, whatever it is packed in."""

import bz2
import codecs
import gzip
import io
import lzma
import re
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, BinaryIO

import zstandard

from hfstack.data.reading.files import DataFile
from hfstack.errors import DataError

_MAGIC = {
    ".gz": rb"\x1f\x8b",
    ".zst": rb"\x28\xb5\x2f\xfd",
    ".xz": rb"\xfd7zXZ\x00",
    ".bz2": rb"BZh[1-9](1AY&SY|\x17\x72\x45\x38\x50\x90)",
    ".zip": rb"PK[\x03\x05][\x04\x06]",
}
_BYTE_ORDER_MARKS = {  # UTF-32 first: its little-endian mark begins with that of UTF-16
    b"\xff\xfe\x00\x00": "utf-32",
    b"\x00\x00\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}
_CHUNK = 1 << 16
_FED_BYTES = 1 << 8

# Text is packed to a fifth or a tenth, logs to a fiftieth; a zip bomb to a thousandth and less.
_UNPACKED_RATIO = 200
_UNPACKED_FREE_BYTES = 256 << 20


@contextmanager
def open_bytes(file: DataFile) -> Iterator[io.BufferedReader]:
    """Open a file for reading, decompressed and as UTF-8 without a byte order mark.

    Nothing is written to the disk, so that the names in an archive cannot lead anywhere. Raises
    DataError, naming the file, when it cannot be opened, is damaged, ends in the middle of
    compressed data, or unpacks to more than any text does.
    """
    try:
        with ExitStack() as stack:
            stored: Any = stack.enter_context(file.path.open("rb"))
            size_bytes = file.path.stat().st_size
            if file.member:
                archive = stack.enter_context(zipfile.ZipFile(stored))
                size_bytes = archive.getinfo(file.member).compress_size
                stored = stack.enter_context(_open_member(file, archive))

            stream = _decompress(file, stored, size_bytes)
            yield stream if file.is_binary else _as_utf8(file, stream)
    except (EOFError, gzip.BadGzipFile, zlib.error, zstandard.ZstdError, lzma.LZMAError) as error:
        raise DataError(
            f"{file}: truncated or damaged compressed file: {error}; download or create it again"
        ) from error
    except zipfile.BadZipFile as error:
        raise DataError(f"{file}: damaged archive: {error}; download or create it again") from error
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror or error}") from error


def refuse_bomb(file: object, unpacked_bytes: int, packed_bytes: int) -> None:
    """Raise DataError where a file says that it unpacks to more than any text does."""
    if unpacked_bytes > _most_unpacked(packed_bytes):
        raise _bomb(file)


def _most_unpacked(packed_bytes: int) -> int:
    return _UNPACKED_FREE_BYTES + _UNPACKED_RATIO * packed_bytes


def _bomb(file: object) -> DataError:
    return DataError(
        f"{file}: it unpacks to more than {_UNPACKED_RATIO} times its size, as no text does; "
        "unpack it yourself if you trust it"
    )


def read_head(file: DataFile) -> list[str]:
    """Return the lines of the first MiB of a text."""
    with open_bytes(file) as start:
        return start.read(1 << 20).decode(errors="replace").splitlines()


def read_lines(file: DataFile, stream: io.BufferedReader) -> Iterator[bytes]:
    """Yield the lines of an open file, of a too long one its beginning.

    Such a line has `file.max_row_bytes` + 1 bytes, and what follows in it is passed over.
    """
    most = file.max_row_bytes + 1
    while line := stream.readline(most):
        if len(line) == most and not line.endswith(b"\n"):
            while (rest := stream.readline(most)) and not rest.endswith(b"\n"):
                pass
        yield line


def _open_member(file: DataFile, archive: zipfile.ZipFile) -> Any:
    try:
        return archive.open(file.member)
    except (RuntimeError, NotImplementedError) as error:  # encrypted, or packed in a rare way
        raise DataError(f"{file}: cannot be unpacked: {error}; unpack it yourself") from error


def _decompress(file: DataFile, stored: BinaryIO, size_bytes: int) -> io.BufferedReader:
    """Return the plain bytes of a file.

    Raises DataError when its name and its content disagree.
    """
    head = stored.read(16)
    stored.seek(0)
    found = next((suffix for suffix, magic in _MAGIC.items() if re.match(magic, head)), "")
    named = file.compression

    if found and not named:
        raise DataError(f"{file}: this file is compressed; rename it to {file.path.name}{found}")

    if named != found:
        cause = f"is {found}, not {named}" if found else "is not compressed"
        if not head:
            cause = "is empty"
        raise DataError(
            f"{file}: the name ends in {named} but the file {cause}; rename it or download it again"
        )

    raw: Any = stored  # GzipFile has readinto, which is all that BufferedReader asks for
    match named:
        case ".gz":
            raw = gzip.GzipFile(fileobj=stored)
        case ".zst":
            raw = _FileOfPieces(_unpack_zstd(stored))
        case ".xz":
            raw = lzma.LZMAFile(stored)  # noqa: SIM115  closed with `stored`
        case ".bz2":
            raw = bz2.BZ2File(stored)

    if named or file.member:
        raw = _FileOfPieces(_read_bounded(file, raw, _most_unpacked(size_bytes)))
    return io.BufferedReader(raw, 1 << 20)


def _as_utf8(file: DataFile, stream: io.BufferedReader) -> io.BufferedReader:
    """Return the bytes of a text in UTF-8, without its byte order mark."""
    if _ends_lines_by_return(stream.peek(1)):
        stream = io.BufferedReader(_FileOfPieces(_returns_as_ends(stream)), 1 << 20)

    head = stream.peek(_CHUNK)[:_CHUNK]
    if head.startswith(codecs.BOM_UTF8):
        stream.read(len(codecs.BOM_UTF8))
        return stream

    encoding = next((name for mark, name in _BYTE_ORDER_MARKS.items() if head.startswith(mark)), "")

    # Latin text in UTF-16 is every second byte a zero, and would be read as text with zeros.
    if not encoding and head.count(0) * 8 > len(head):
        encoding = _unmarked_utf16(head)
        if not encoding:
            raise DataError(
                f"{file}: {head.count(0) / len(head):.0%} of the bytes are zero: this is no text, "
                "or in an encoding that it does not name; convert it to UTF-8"
            )

    if encoding:
        return io.BufferedReader(_FileOfPieces(_recode(file, stream, encoding)), 1 << 20)
    return stream


def _ends_lines_by_return(head: bytes) -> bool:
    """Return whether a carriage return alone ends a line, as it did on old Macs."""
    return b"\r" in head[:-1] and b"\n" not in head and 0 not in head


def _returns_as_ends(stream: io.BufferedReader) -> Iterator[bytes]:
    """Yield a text with line feeds in place of carriage returns."""
    while chunk := stream.read(_CHUNK):
        yield chunk.replace(b"\r", b"\n")


def _unmarked_utf16(head: bytes) -> str:
    """Return which UTF-16 a text is in, by where its zeros stand, or nothing."""
    # the high bytes of letters, digits and line ends are zero, the low ones never
    even, odd = head[0::2].count(0), head[1::2].count(0)
    if even and odd:
        return ""
    return "utf-16-le" if odd else "utf-16-be"


def _read_bounded(file: DataFile, raw: Any, limit_bytes: int) -> Iterator[bytes]:
    """Yield the plain bytes of a compressed file, which may not be more than a limit."""
    while chunk := raw.read(_CHUNK):
        limit_bytes -= len(chunk)
        if limit_bytes < 0:
            raise _bomb(file)
        yield chunk


class _FileOfPieces(io.RawIOBase):
    """The bytes that come in pieces of any size, as a file."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._piece = memoryview(b"")
        self._position = 0

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        while not self._piece:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._piece = memoryview(piece)

        # A view, so that what is left is not copied with each part that is taken.
        size = min(len(buffer), len(self._piece))
        buffer[:size] = self._piece[:size]
        self._piece = self._piece[size:]
        self._position += size
        return size


def _recode(file: DataFile, stream: io.BufferedReader, encoding: str) -> Iterator[bytes]:
    """Yield in UTF-8 a text that is in another encoding of Unicode."""
    decoder = codecs.getincrementaldecoder(encoding)()
    chunk = b" "
    while chunk:
        chunk = stream.read(_CHUNK)
        try:
            yield decoder.decode(chunk, final=not chunk).encode()
        except UnicodeDecodeError as error:
            offset = stream.tell() - len(error.object) + error.start
            name = encoding.upper()
            raise DataError(f"{file}: invalid {name} at byte {offset}") from error


def _unpack_zstd(stored: BinaryIO) -> Iterator[bytes]:
    """Yield the plain bytes of a .zst file of one or more frames.

    zstandard's own reader ends silently where a file is truncated, so the end of every frame is
    checked here. It is fed in small pieces: four bytes of a frame can stand for 128 KiB, and all
    that a piece stands for comes back at once.
    """
    frame: Any = None
    packed, at = memoryview(b""), 0
    while True:
        if at == len(packed):
            packed, at = memoryview(stored.read(_CHUNK)), 0
        fed = packed[at : at + _FED_BYTES]
        if not fed:
            break

        if frame is None:
            frame = zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj()
        yield frame.decompress(fed)
        at += len(fed)

        # What follows the end of a frame belongs to the next one.
        if frame.eof:
            at -= len(frame.unused_data)
            frame = None

    if frame is not None:
        raise EOFError("it ends in the middle of a zstd frame")
