"""Write texts of others into Markdown, where they stay texts.

    escape("a <b> | [c](d)")  # a \\<b\\> \\| \\[c\\](d)

Every value that a card's template prints goes through `escape` unless it is `Markdown` already, so
that the name of a column, a file or a label cannot become a link, a heading or HTML by being
forgotten.
"""

import json
import re
from collections.abc import Iterable
from typing import Any

from jinja2 import Undefined

# Each may begin markup. Of a web address it is the colon, of `www.` the
# dot; within a word, an underscore is one.
_SPECIAL = re.compile(
    r"[\\`*\[\]<>#|~&@$]|:(?=//)|(?<=www)\.|(?<![^\W_])_|_(?![^\W_])", re.IGNORECASE
)
# At the beginning, a mark of a list or of a line below a heading.
_BEGIN = re.compile(r" ?(?:[-+](?=\s|$)|[-=\s]+$|\d+[.)](?=\s|$))")


class Markdown(str):
    """Text that is Markdown: `escape` leaves it as it is."""

    __slots__ = ()


def escape(value: Any) -> Any:
    """Return a value as Markdown that shows it, in one line."""
    if isinstance(value, Markdown | Undefined):
        return value
    text = re.sub(r"\s+", " ", str(value))
    begin = _BEGIN.match(text)
    escaped = _SPECIAL.sub(lambda match: f"\\{match[0]}", text)
    if begin and text.strip():
        at = len(begin[0].rstrip()) - 1
        escaped = f"{escaped[:at]}\\{escaped[at:]}"
    return Markdown(escaped)


def code(value: Any) -> Markdown:
    """Return a value as a code span, which may stand in a table."""
    text = " ".join(str(value).split())
    longest = max(map(len, re.findall("`+", text)), default=0)
    marks = "`" * (longest + 1)
    pad = " " if longest or not text else ""
    # A table is split before its code is read; a span cannot hold an entity.
    return Markdown(f"{marks}{pad}{text}{pad}{marks}".replace("|", "\\|"))


def cells(row: Iterable[Any]) -> Markdown:
    """Return the cells of a row of a table, side by side."""
    return Markdown(" | ".join(str(escape(cell)).strip() or "–" for cell in row))


def fence(text: str, language: str = "text") -> Markdown:
    """Return a text in a fence that it cannot close."""
    longest = max(map(len, re.findall(r"`{3,}", text)), default=2)
    marks = "`" * (longest + 1)
    return Markdown(f"{marks}{language}\n{text}\n{marks}")


def literal(value: Any) -> Markdown:
    """Return a text as Python and JSON write it, for code in a fence."""
    return Markdown(json.dumps(str(value), ensure_ascii=False))
