"""Read a file of words, one a line with its tags, as sentences (CoNLL)."""

import re
from collections.abc import Iterator

from hfstack.data.reading.bad_rows import BadRow, Note, NumberedRow, bad_line, too_large
from hfstack.data.reading.files import DataFile
from hfstack.data.reading.opening import open_bytes, read_lines

_TAG = re.compile(r"O|[BIESLUM]-\S+")
_DOCUMENT = "-DOCSTART-"


def is_conll(head: list[str]) -> bool:
    """Return whether the first lines of a text are words with a tag each.

    All have as many columns, and the last one is an entity's tag, or O.
    """
    words = [line.split() for line in head if line.strip() and not line.startswith(_DOCUMENT)]
    words = words[: max(len(words) - 1, 2)]  # the last one may be cut
    tags = {cells[-1] for cells in words}
    same = len({len(cells) for cells in words}) == 1 and len(words[0]) > 1
    return same and "O" in tags and len(tags) > 1 and all(map(_TAG.fullmatch, tags))


def read_conll(file: DataFile, note: Note) -> Iterator[NumberedRow]:
    """Yield sentences as rows of `tokens`, `tags` and a column for each other column.

    A blank line or a line -DOCSTART- ends a sentence. The first column holds the words, the last
    one the tags; `column_2` and so on those between. Columns are separated by tabs where a line has
    one, else by blanks. A sentence with a line of other columns is a bad row.
    """
    note("one row is a sentence; its tags are the last column")
    width = 0
    sentence: list[list[str]] = []
    begin, bad, size_bytes = 1, None, 0

    with open_bytes(file) as lines:
        for number, line in enumerate(read_lines(file, lines), 1):
            size_bytes += len(line)
            if size_bytes > file.max_row_bytes:
                bad = too_large(file.max_row_bytes)
                sentence.clear()
            try:
                text = line.decode().rstrip("\r\n")
            except UnicodeDecodeError as error:
                bad = bad or bad_line(error, lines, line)
                continue

            cells = text.split("\t") if "\t" in text else text.split()
            if not text.strip() or cells[0] == _DOCUMENT:
                if bad or sentence:
                    yield begin, bad or _row_of(sentence), None
                sentence, bad, begin, size_bytes = [], None, number + 1, 0
                continue

            width = width or len(cells)
            if len(cells) != width or width < 2:
                detail = f"line {number} has {len(cells)} columns where the first has {width}"
                if width < 2:
                    detail = f"line {number} has a word without a tag: {text[:40]!r}"
                bad = bad or BadRow("ragged row", detail)
            sentence.append(cells)

        if bad or sentence:
            yield begin, bad or _row_of(sentence), None


def _row_of(sentence: list[list[str]]) -> dict[str, list[str]]:
    words, *others, tags = (list(column) for column in zip(*sentence, strict=True))
    between = {f"column_{number}": column for number, column in enumerate(others, 2)}
    return {"tokens": words, "tags": tags} | between
