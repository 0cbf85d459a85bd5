"""Mask personal data in code where no program reads it."""

import io
import json
import re
import tokenize
from collections import Counter
from collections.abc import Callable, Sequence

from hfstack.data.cleaning.code import parses_as_python
from hfstack.data.cleaning.pii import mask_pii

_JSON_STRING = re.compile(r'"(?:\\.|[^"\\])*+"', re.DOTALL)
# Before the first line that is no comment no string can be open. `# include` is none.
_HEAD_COMMENT = re.compile(
    r"(?:[ \t]*(?:/\*(?:[^*]|\*(?!/))*+\*/[ \t]*|(?://|--(?=\s)|#!/|#(?=[ \t#]"
    r"(?![ \t]*(?:include|define|undef|if|ifdef|ifndef|elif|else|endif|pragma|error|line)\b)|\n))"
    r"[^\n]*)?\n)*+"
)


def mask_code(text: str, kinds: Sequence[str]) -> tuple[str, dict[str, int]]:
    """Mask personal data where it cannot change what code does.

    That is in the comment at its head (licence, authors) and, when it parses as Python, in every
    comment. Strings and everything else stay as they are.
    """
    if mask_pii(text, kinds)[0] == text:
        return text, {}

    if parses_as_python(text):
        spans = _python_comments(text)
    else:
        head = _HEAD_COMMENT.match(text)
        spans = [head.span()] if head else []
    return _mask_spans(text, spans, lambda found: mask_pii(found, kinds))


def mask_json(text: str, kinds: Sequence[str]) -> tuple[str, dict[str, int]]:
    """Mask personal data inside of the strings of JSON, keys included; numbers stay."""
    if mask_pii(text, kinds)[0] == text:
        return text, {}

    def mask(quoted: str) -> tuple[str, dict[str, int]]:
        masked, places = mask_pii(json.loads(quoted, strict=False), kinds)
        return (json.dumps(masked, ensure_ascii=False), places) if places else (quoted, {})

    return _mask_spans(text, [found.span() for found in _JSON_STRING.finditer(text)], mask)


def _mask_spans(
    text: str,
    spans: list[tuple[int, int]],
    mask: Callable[[str], tuple[str, dict[str, int]]],
) -> tuple[str, dict[str, int]]:
    found: Counter[str] = Counter()
    pieces, position = [], 0
    for start, end in spans:
        masked, places = mask(text[start:end])
        pieces += [text[position:start], masked]
        found.update(places)
        position = end
    return "".join([*pieces, text[position:]]), dict(found)


def _python_comments(text: str) -> list[tuple[int, int]]:
    """Return where the comments of a Python program are; none when it cannot be read."""
    starts = [0]
    for line in text.split("\n"):
        starts.append(starts[-1] + len(line) + 1)

    try:
        return [
            (starts[token.start[0] - 1] + token.start[1], starts[token.end[0] - 1] + token.end[1])
            for token in tokenize.generate_tokens(io.StringIO(text, newline="\n").readline)
            if token.type == tokenize.COMMENT
        ]
    except (tokenize.TokenError, SyntaxError):
        return []
