"""Read a file of words, one a line with its tags, as sentences (CoNLL).

Which column holds the words and which the tags is read from the first lines: of CoNLL-2003 the
first and the last, but some data number their words, or write the tag first. A file `.conllu` has
the ten columns of Universal Dependencies, and its tags are the universal parts of speech.
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from hfstack.data.reading.bad_rows import BadRow, Note, NumberedRow, bad_line, too_large
from hfstack.data.reading.files import DataFile
from hfstack.data.reading.opening import open_bytes, read_head, read_lines
from hfstack.errors import DataError

_TAG = re.compile(r"O|[BIESLUMW]-\S+")
_DOCUMENT = "-DOCSTART-"

# https://universaldependencies.org/format.html; `tokens` and `tags` are FORM and UPOS
_UNIVERSAL = "id tokens lemmas tags xpos feats head deprel deps misc".split()
# what stands beside the words: 3-4 spans of two that are written as one, 5.1 one left unsaid
_NO_WORD = re.compile(r"\d+-\d+|\d+\.\d+")
_BLANKS = re.compile(r"[ \t]+")  # others, such as the wide blank of Chinese, are words


@dataclass(frozen=True)
class _LineColumns:
    """How many columns lines have, which hold words and tags, and the tags."""

    width: int
    words: int
    tags: int
    known: frozenset[str]
    names: tuple[str, ...] = ()

    def is_comment(self, text: str, cells: list[str]) -> bool:
        """Return whether a line before a sentence is none of its words: `# id 7`."""
        is_word = len(cells) == self.width and cells[self.tags] in self.known
        return text.startswith("#") and not is_word


def is_conll(head: list[str]) -> bool:
    """Return whether the first lines of a text are words with a tag each.

    All have as many columns, and one of these holds tags of entities, or O.
    """
    return _tag_columns(_lines_of_words(head)) != []


def read_conll(file: DataFile, note: Note) -> Iterator[NumberedRow]:
    """Yield sentences as rows of `tokens`, `tags` and a column for each other column.

    A blank line or a line -DOCSTART- ends a sentence, a line `# ...` before one is a comment.
    Columns are separated by tabs where a line has one, else by blanks; `column_2` is the second of
    the file. A sentence with a line of other columns, or with an empty word, is a bad row.
    """
    columns = _universal_columns() if file.format == "conllu" else _find_columns(read_head(file))
    note(
        f"one row is a sentence; its words are column {columns.words + 1}, its tags column "
        f"{columns.tags + 1} of {columns.width}"
    )
    if "*" in columns.known and all(
        "*" in tag or tag[0] + tag[-1] == "()" for tag in columns.known
    ):
        raise DataError(
            f"{file}: the tags are brackets, such as (ORG* ... *), as in CoNLL-2012: write them as "
            "B-ORG, I-ORG and O"
        )

    sentence: list[list[str]] = []
    begin, bad, size_bytes = 1, None, 0

    with open_bytes(file) as lines:
        for number, line in enumerate(read_lines(file, lines), 1):
            size_bytes += len(line)
            if size_bytes > file.max_row_bytes:
                bad = too_large(file.max_row_bytes)
                sentence.clear()
            try:
                text = line.decode()
            except UnicodeDecodeError as error:
                bad = bad or bad_line(error, lines, line)
                continue

            cells = _cells(text)
            if not text.strip() or cells[0].startswith(_DOCUMENT):
                if bad or sentence:
                    yield begin, bad or _row_of(sentence, columns), None
                sentence, bad, begin, size_bytes = [], None, number + 1, 0
            elif columns.names and (text.startswith("#") or _NO_WORD.fullmatch(cells[0])):
                continue
            elif sentence or bad or not columns.is_comment(text, cells):
                bad = bad or _problem(number, cells, columns)
                sentence.append(cells)

        if bad or sentence:
            yield begin, bad or _row_of(sentence, columns), None


def _cells(line: str) -> list[str]:
    text = line.rstrip(" \t\r\n")
    return text.split("\t") if "\t" in text else _BLANKS.split(text.lstrip(" "))


def _lines_of_words(head: list[str]) -> list[list[str]]:
    """Return the columns of the first lines that are words, without the comments."""
    lines = [line for line in head if line.strip() and not line.startswith(_DOCUMENT)]
    words = [_cells(line) for line in lines]
    words = words[: max(len(words) - 1, 2)]  # the last one may be cut

    # a word may be a #, as in tweets; comments have another number of columns, or no tag
    plain = [cells for cells in words if not cells[0].startswith("#")] or words
    columns = _columns_of(plain)
    return [cells for cells in words if not columns.is_comment(cells[0], cells)]


def _tag_columns(words: list[list[str]]) -> list[int]:
    """Return the columns that hold tags of entities."""
    width = len(words[0]) if words else 0
    if width < 2 or any(len(cells) != width for cells in words):
        return []

    tags = [{cells[column] for cells in words} for column in range(width)]
    return [
        column
        for column, found in enumerate(tags)
        if "O" in found and len(found) > 1 and all(map(_TAG.fullmatch, found))
    ]


def _universal_columns() -> _LineColumns:
    words, tags = _UNIVERSAL.index("tokens"), _UNIVERSAL.index("tags")
    return _LineColumns(len(_UNIVERSAL), words, tags, frozenset(), tuple(_UNIVERSAL))


def _find_columns(head: list[str]) -> _LineColumns:
    return _columns_of(_lines_of_words(head))


def _columns_of(words: list[list[str]]) -> _LineColumns:
    """Return which columns hold words and tags: as a rule the first and the last."""
    width = Counter(map(len, words)).most_common(1)[0][0] if words else 0
    words = [cells for cells in words if len(cells) == width]
    if width < 2:
        return _LineColumns(width, 0, 0, frozenset())

    found = _tag_columns(words)
    tags = width - 1 if not found or width - 1 in found else found[0]

    # numbers of the words in their sentence, or the tag, may stand before the word
    numbered = width > 2 and all(cells[0].isdigit() for cells in words)
    place = 1 if numbered and any(cells[0] == "1" for cells in words) else 0
    if place == tags:
        place = width - 1
    return _LineColumns(width, place, tags, frozenset(cells[tags] for cells in words))


def _problem(number: int, cells: list[str], columns: _LineColumns) -> BadRow | None:
    """Say what is wrong with the line of a word, or None."""
    if columns.width < 2:
        return BadRow("ragged row", f"line {number} has a word without a tag: {cells[0][:40]!r}")
    if len(cells) != columns.width:
        detail = f"line {number} has {len(cells)} columns where most have {columns.width}"
        return BadRow("ragged row", detail)
    if not cells[columns.words].strip(" "):
        return BadRow("empty word", f"line {number} has an empty word")
    return None


def _row_of(sentence: list[list[str]], columns: _LineColumns) -> dict[str, list[str]]:
    found = [list(column) for column in zip(*sentence, strict=True)]
    row = {"tokens": found[columns.words], "tags": found[columns.tags]}
    others = {
        columns.names[place - 1] if columns.names else f"column_{place}": column
        for place, column in enumerate(found, 1)
        if place - 1 not in (columns.words, columns.tags)
    }
    return row | others
