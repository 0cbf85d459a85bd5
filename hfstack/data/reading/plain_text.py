"""Read a file of plain text as documents."""

import itertools
from collections.abc import Callable, Iterator

from hfstack.data.reading.bad_rows import Note, NumberedRow, bad_line
from hfstack.data.reading.files import DataFile, open_bytes

_END_OF_TEXT = "<|endoftext|>"


def read_txt(file: DataFile, note: Note) -> Iterator[NumberedRow]:
    """Yield the documents of a text file.

    Separated by `<|endoftext|>` lines, else by blank lines, else one a line.
    """
    ends_document, unit = _document_end(file)
    note(f"one document is {unit}")

    with open_bytes(file) as lines:
        number, document = 1, []
        for current, line in enumerate(lines, 1):
            try:
                text = line.decode().rstrip()
            except UnicodeDecodeError as error:
                yield current, bad_line(error, lines, line), line.decode(errors="backslashreplace")
                continue

            if ends_document is None or not ends_document(text):
                number = number if document else current
                document += [text] if text or document else []

            if document and (ends_document is None or ends_document(text)):
                yield number, {"text": "\n".join(document).rstrip()}, None
                document = []

        if document:
            yield number, {"text": "\n".join(document).rstrip()}, None


def _document_end(file: DataFile) -> tuple[Callable[[str], bool] | None, str]:
    """Return which lines of a text file separate documents, and what a document is.

    None where every line is a document. It is decided from the first MiB, so that a novel keeps its
    paragraphs whole and a corpus of one document per line is not glued together.
    """
    with open_bytes(file) as start:
        head = start.read(1 << 20).decode(errors="replace").splitlines()

    if any(line.strip() == _END_OF_TEXT for line in head):
        return lambda line: line == _END_OF_TEXT, f"the text between lines {_END_OF_TEXT}"

    blank = sum(
        above.strip() != "" and not line.strip() for above, line in itertools.pairwise(head)
    )
    if blank * 64 > len(head):
        return lambda line: not line, "a paragraph, blank lines between"
    return None, "a line"
