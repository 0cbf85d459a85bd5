"""Write HTML as nested calls.

    tag("p.note", "1 < 2")  # <p class="note">1 &lt; 2</p>

Whatever is not `Html` already is escaped, so text from a model or a dataset cannot become markup by
being forgotten.
"""

import json
from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

_VOID = frozenset({"br", "img", "input", "meta"})


class Html(str):
    """Text that is markup: `tag` does not escape it."""

    __slots__ = ()


def tag(selector: str, *children: object) -> Html:
    """Return one element.

    Args:
        selector: the element's name and its classes, as in `div.card.wide`.
        children: mappings are attributes (None and False leave one out, True gives it no value),
            None is nothing, lists and other iterables are children in their turn, anything else is
            escaped text.
    """
    name, *classes = selector.split(".")
    attributes: dict[str, object] = {"class": " ".join(classes)} if classes else {}
    for child in children:
        if isinstance(child, Mapping):
            attributes |= child

    opening = name
    for key, value in attributes.items():
        if value is True:
            opening += f" {key}"
        elif value is not None and value is not False:
            opening += f' {key}="{escape(str(value))}"'

    if name in _VOID:
        return Html(f"<{opening}>")
    content = join(child for child in children if not isinstance(child, Mapping))
    return Html(f"<{opening}>{content}</{name}>")


def join(children: Iterable[object]) -> Html:
    """Return children side by side, without an element around them."""
    return Html("".join(map(_to_markup, children)))


def json_block(identifier: str, value: Any) -> Html:
    """Return data for the page's script, in a block that no text inside it can close.

    Raises:
        ValueError: the value holds NaN or infinity, which JSON cannot express.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Html(f'<script type="application/json" id="{escape(identifier)}">{text}</script>')


def _to_markup(child: object) -> str:
    if child is None:
        return ""
    if isinstance(child, Html):
        return child
    if isinstance(child, Iterable) and not isinstance(child, str | bytes | Mapping):
        return join(child)
    return escape(str(child))
