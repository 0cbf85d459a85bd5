"""Read a file of plain text as documents."""

import itertools
from collections.abc import Callable, Iterator

from hfstack.data.reading.bad_rows import Note, NumberedRow, bad_line, too_large
from hfstack.data.reading.conll import is_conll, read_conll
from hfstack.data.reading.files import DataFile
from hfstack.data.reading.opening import open_bytes, read_head, read_lines

_END_OF_TEXT = "<|endoftext|>"
_LINE, _FILE = "a line", "a file"


def read_txt(file: DataFile, note: Note) -> Iterator[NumberedRow]:
    """Yield the documents of a text file as rows of `text`, and its label if any.

    A document is what `file.document` says; by itself the text between `<|endoftext|>` lines, else
    a paragraph between blank lines, else a line.
    """
    if file.document == "auto" and is_conll(read_head(file)):
        yield from read_conll(file, note)
        return

    ends_document, unit = _document_end(file)
    label = {} if file.label is None else {"label": file.label or None}
    note(f"one document is {unit}" + ("; its label is the name of its folder" if label else ""))

    # a whole file is kept as it is; of lines and paragraphs the white space at their ends is none
    ends = "\r\n" if unit == _FILE else None

    with open_bytes(file) as lines:
        number, document, size_bytes = 1, [], 0
        too_long = damaged = False
        for current, line in enumerate(read_lines(file, lines), 1):
            size_bytes += len(line)
            if size_bytes > file.max_row_bytes:
                # It is one bad row, whatever number of lines it goes on for.
                if not too_long:
                    yield number if document else current, too_large(file.max_row_bytes), None
                document, too_long = [], True
                if unit == _LINE or ends_document(line.decode(errors="replace").rstrip(ends)):
                    size_bytes, too_long, damaged = 0, False, False
                continue

            try:
                text = line.decode().rstrip(ends)
            except UnicodeDecodeError as error:
                yield current, bad_line(error, lines, line), line.decode(errors="backslashreplace")
                if unit == _FILE:
                    return
                # What is left of its document would be another text than anybody wrote.
                damaged = unit != _LINE
                continue

            if damaged:
                document = []
                if ends_document(text):
                    damaged, size_bytes = False, 0
                continue

            if not ends_document(text) or unit == _LINE:
                number = number if document else current
                document += [text] if text or document else []

            if ends_document(text):
                if document:
                    yield number, {"text": "\n".join(document).rstrip()} | label, None
                document, size_bytes = [], 0

        if document and not damaged:
            yield number, {"text": "\n".join(document).rstrip()} | label, None


def _document_end(file: DataFile) -> tuple[Callable[[str], bool], str]:
    """Return which lines of a text file end a document, and what a document is.

    It is decided from the first MiB, so that a novel keeps its paragraphs whole and a corpus of one
    document per line is not glued together. Lines `<|endoftext|>` are separators whatever was
    asked.
    """
    head = read_head(file)

    if any(line.strip() == _END_OF_TEXT for line in head):
        return lambda line: line == _END_OF_TEXT, f"the text between lines {_END_OF_TEXT}"

    unit = file.document
    if unit == "auto":
        blank = sum(
            above.strip() != "" and not line.strip() for above, line in itertools.pairwise(head)
        )
        unit = "paragraph" if blank * 64 > len(head) else "line"

    if unit == "file":
        return lambda line: False, _FILE
    if unit == "paragraph":
        return lambda line: not line, "a paragraph, blank lines between"
    return lambda line: True, _LINE
