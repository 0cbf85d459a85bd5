"""Make raw text uniform: Unicode form, encodings, control characters, markup.

Everything here is a function of one text. Each markup rule is narrow on purpose: `a < b`,
`List<int>`, `x[[1]]`, `__init__` and `{{ name }}` are ordinary text and stay. Fenced code blocks
(```) are never touched by a markup rule, and what code.py beside this file finds to be code keeps
its characters.
"""

import html.entities
import re
import unicodedata
from typing import NamedTuple

from ftfy import TextFixerConfig, fix_encoding
from ftfy.badness import is_bad
from ftfy.fixes import fix_surrogates, remove_terminal_escapes

from hfstack.data.cleaning.code import CODE_KINDS, TextPart, code_kind, split_parts, tidy_code

# Text in one encoding read as another is repaired line by line, and nothing else of ftfy is used:
# its other repairs turn the full-width commas and curly quotes of Chinese into ASCII.
_REPAIR = TextFixerConfig(unescape_html=False, normalization=None, explain=False)
# Mojibake needs two neighbours, or a capital A with an accent before a space, out of what
# single-byte encodings hold: no CJK, no ASCII. ftfy is asked about such places first, and about the
# line only when one of them looks bad: the same answer, 10 times faster on English and Chinese.
_MAYBE_MOJIBAKE = re.compile("[\x80-\u2e7f\ufb01\ufb02\ufffd]{2,}|[\xc2\xc3] |[\x80-\x9f]")
_CONTEXT_CHARACTERS = 8  # longer than any pattern of ftfy.badness

_LIGATURES = {
    0xFB00: "ff",
    0xFB01: "fi",
    0xFB02: "fl",
    0xFB03: "ffi",
    0xFB04: "ffl",
    0xFB05: "st",
    0xFB06: "st",
}
_TRANSLATION = (
    # controls
    dict.fromkeys([*range(0x09), *range(0x0E, 0x20), *range(0x7F, 0xA0)], "")
    # soft hyphen, zero width...
    | dict.fromkeys([0xAD, 0x200B, 0x2060, 0xFEFF, *range(0xFFF9, 0xFFFD), 0xFFFE, 0xFFFF], "")
    # overrides of the display's direction
    | dict.fromkeys([*range(0x202A, 0x202F), *range(0x2066, 0x206A)], "")
    | dict.fromkeys([0x0B, 0x0C, 0x85, 0x2028, 0x2029], "\n")
    # no-break spaces; the ideographic space U+3000 stays
    | dict.fromkeys([0xA0, 0x202F], " ")
    | _LIGATURES
)
_TRANSLATED = re.compile(f"[{''.join(map(chr, _TRANSLATION))}]")
_BOILERPLATE = (
    # C4
    "terms of use",
    "privacy policy",
    "cookie policy",
    "uses cookies",
    "use of cookies",
    "use cookies",
    # ours
    "enable javascript",
    "all rights reserved",
    "share on facebook",
    "subscribe to our newsletter",
    "使用cookie",
    "使用 cookie",
    "隐私政策",
    "隱私政策",
    "版权所有",
    "版權所有",
    "启用javascript",
    "启用 javascript",
)
_BOILERPLATE_CHARACTERS = 200
_BLANK_LINES = re.compile(r"\n{3,}")


class Normalised(NamedTuple):
    """A text and which changes were made to it.

    Any of `mojibake`, `characters`, `markup`, `boilerplate`, `whitespace`.
    """

    text: str
    changes: frozenset[str]


def normalise(
    text: str, *, strip_markup: bool = True, strip_boilerplate: bool = True
) -> Normalised:
    """Return the text in Unicode NFC, cleaned of mojibake, controls and markup.

    Args:
        text: any string, lone surrogates included; the result has none and can always be written as
            UTF-8. Its parts that are code are left as they are, but for line ends.
        strip_markup: also apply `remove_markup`.
        strip_boilerplate: also apply `remove_boilerplate`.
    """
    parts, changes = normalise_parts(
        text, strip_markup=strip_markup, strip_boilerplate=strip_boilerplate
    )
    return Normalised("".join(part.text for part in parts), changes)


def normalise_parts(
    text: str, *, strip_markup: bool = True, strip_boilerplate: bool = True
) -> tuple[list[TextPart], frozenset[str]]:
    """Do what `normalise` does, and return the parts, code and prose, in order."""
    changes: set[str] = set()
    document = text.removeprefix("\ufeff").replace("\r\n", "\n")
    if document != text:
        changes.add("characters")

    parts = split_parts(document)
    if strip_markup and "<" in document:
        parts = [piece for part in parts for piece in _open_pre(part)]

    cleaned: list[TextPart] = []
    for part in parts:
        if part.kind in CODE_KINDS:
            cleaned.append(TextPart(tidy_code(part.text), part.kind))
            continue
        prose = _normalise_prose(
            part.text, strip_markup and part.kind == "prose", strip_boilerplate
        )
        cleaned.append(TextPart(prose.text, part.kind))
        changes |= prose.changes

    trimmed = _trim_ends(cleaned)
    if trimmed != cleaned:
        changes.add("whitespace")
    return trimmed, frozenset(changes)


def _normalise_prose(text: str, strip_markup: bool, strip_boilerplate: bool) -> Normalised:
    changes = set()
    if (repaired := repair_encoding(text)) != text:
        changes.add("mojibake")
    if (plain := _uniform_characters(repaired)) != repaired:
        changes.add("characters")

    bare = remove_markup(plain) if strip_markup else plain
    if bare != plain:
        changes.add("markup")
        bare = _uniform_characters(bare)  # an entity may have stood for a control character

    if strip_boilerplate and (prose := remove_boilerplate(bare)) != bare:
        changes.add("boilerplate")
        bare = prose

    if (tidy := _tidy_blanks(bare)) != bare:
        changes.add("whitespace")
    return Normalised(tidy, frozenset(changes))


def _trim_ends(parts: list[TextPart]) -> list[TextPart]:
    """Trim the document's ends.

    Of code only empty lines, since its indentation may mean something.
    """
    trimmed = list(parts)
    for place, trim in ((0, str.lstrip), (-1, str.rstrip)):
        while trimmed:
            last = trimmed[place]
            kept = trim(last.text, "\n") if last.kind in CODE_KINDS else trim(last.text)
            trimmed[place] = TextPart(kept, last.kind)
            if kept:
                break
            del trimmed[place]
    return trimmed


def _open_pre(part: TextPart) -> list[TextPart]:
    """Split prose at `<pre>` and wiki's `<syntaxhighlight>` where they hold code.

    Of the code, tags that colour it are removed, and entities are resolved once.
    """
    if part.kind != "prose" or not _PRE.search(part.text):
        return [part]

    pieces: list[TextPart] = []
    position = searched = 0
    while opening := _PRE.search(part.text, searched):
        closing = re.compile(rf"</{opening[1]}\s*>", re.IGNORECASE).search(part.text, opening.end())
        if closing is None:
            break

        searched = closing.end()
        shown = _HTML_TAG.sub("", part.text[opening.end() : closing.start()])
        shown = _ENTITY.sub(_resolve_entity, shown)
        if kind := code_kind(shown):
            pieces += [
                TextPart(part.text[position : opening.start()] + "\n", "prose"),
                TextPart(shown, kind),
            ]
            position = searched
    rest = part.text[position:]
    return [*pieces, TextPart(f"\n{rest}" if pieces else rest, "prose")]


def repair_encoding(text: str) -> str:
    """Repair mojibake such as `schÃ¶n` -> `schön`.

    UTF-8 that was read in a single-byte encoding, once or several times.
    """
    if text.isascii() or not _MAYBE_MOJIBAKE.search(text):
        return text
    lines = text.split("\n")
    return "\n".join(fix_encoding(line, _REPAIR) if _looks_bad(line) else line for line in lines)


def _looks_bad(line: str) -> bool:
    """Return whether ftfy finds mojibake at a place of the line that may hold it."""
    for place in _MAYBE_MOJIBAKE.finditer(line):
        start = max(0, place.start() - _CONTEXT_CHARACTERS)
        if is_bad(line[start : place.end() + _CONTEXT_CHARACTERS]):
            return True
    return False


def remove_markup(text: str) -> str:
    """Remove what is left of HTML, wiki markup, BBCode and Markdown.

    The words a reader would see are kept, and code in backticks stays as it is.
    """
    if "`" not in text:
        return _remove_markup(text)
    parts = text.split("```")  # even ones are prose, odd ones are code
    return "```".join(
        part if index % 2 else _remove_around_code(part) for index, part in enumerate(parts)
    )


def _remove_around_code(text: str) -> str:
    """Remove the markup around code in backticks: bold and links may reach over it."""
    if any(mark in text for mark in _HIDDEN):
        return _remove_markup(text)
    kept: list[str] = []

    def hide(code: re.Match[str]) -> str:
        kept.append(code[0])
        return f"{_HIDDEN[0]}{len(kept) - 1}{_HIDDEN[1]}"

    shown = _remove_markup(_INLINE_CODE.sub(hide, text))
    return _HIDDEN_CODE.sub(lambda place: kept[int(place[1])], shown)


def remove_boilerplate(text: str) -> str:
    """Remove short boilerplate lines: cookie notices, share buttons, copyright.

    C4 (Raffel et al. 2020, arXiv:1910.10683, section 2.2) removes every line with one of its
    phrases; here a line of more than 200 characters is prose about such things and stays.
    """
    folded = text.casefold()
    if not any(phrase in folded for phrase in _BOILERPLATE):
        return text
    return "\n".join(line for line in text.split("\n") if not _is_boilerplate(line))


def _is_boilerplate(line: str) -> bool:
    folded = line.casefold()
    return len(line) <= _BOILERPLATE_CHARACTERS and any(phrase in folded for phrase in _BOILERPLATE)


def _uniform_characters(text: str) -> str:
    """Return the text in NFC, without controls, with one kind of line end."""
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    if "\x1b" in text:
        text = remove_terminal_escapes(text)
    if _TRANSLATED.search(text):
        text = _TRANSLATED.sub(lambda match: _TRANSLATION[ord(match[0])], text)

    if text.isascii():
        return text
    return unicodedata.normalize("NFC", fix_surrogates(text))


def _tidy_blanks(text: str) -> str:
    """Trim the ends of lines, and keep at most one empty line in a row."""
    if " \n" in text or "\t\n" in text or "\u3000\n" in text:
        text = "\n".join(line.rstrip() for line in text.split("\n"))
    if "\n\n\n" in text:
        text = _BLANK_LINES.sub("\n\n", text)
    return text


# Of templates within templates, and escapes of escapes; deeper ones are data, not prose.
_NESTING_LIMIT = 6
_WIKI_MARKS = ("{{", "{|", "[", "==", "''", "__")

# Markup. Each family is entered only when a character that it cannot do without is there; every
# pattern is linear in the length of the text, because web text holds megabytes of "<" and "{{" too.

_INLINE_TAGS = (
    "a abbr acronym b bdi bdo big cite code data del dfn em font i ins kbd label mark q rp rt "
    "ruby s samp small span strike strong sub sup time tt u var wbr nowiki"
)
_BLOCK_TAGS = (
    "address article aside blockquote body br button canvas caption center col colgroup dd "
    "details dialog div dl dt embed fieldset figcaption figure footer form frame frameset h1 h2 "
    "h3 h4 h5 h6 head header hr html iframe img input legend li link main map meta nav noscript "
    "object ol optgroup option p param picture pre section select source summary svg table "
    "tbody td textarea tfoot th thead title tr track ul video audio gallery poem"
)
_HTML_TAG = re.compile(
    rf"</?({_INLINE_TAGS}|{_BLOCK_TAGS})(?:[\s/][^<>]*)?>".replace(" ", "|"), re.IGNORECASE
)
_INLINE = frozenset(_INLINE_TAGS.split())
_PRE = re.compile(r"<(pre|syntaxhighlight|source)\b[^<>]*>", re.IGNORECASE)
_SKIPPED_TAGS = ("script", "style", "ref", "math")  # their content is not prose
_ENTITY = re.compile(r"&(?:amp;)*(#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")

_TEMPLATE = re.compile(r"\{\{(?![\s{])([^{}|]{1,80})(\|[^{}]*)?\}\}")
_BARE_TEMPLATES = re.compile(
    r"reflist|citation needed|cn|fact|clear|dead link|authority control|stub|.*-stub", re.I
)
_WIKI_LINK = re.compile(
    r"(?<![A-Za-z0-9_)])(?<![^\]]\])\[\[:?((?![\d\s,.]*,)\w[^\[\]\n|]*)(?:\|([^\[\]\n]*))?\]\]"
)
_WIKI_MEDIA = re.compile(  # with links in the caption
    r"\[\[(?:file|image|category|文件|檔案|档案|图像|圖像|分类|分類)[ \t]*:"
    r"[^\[\]\n]*(?:\[\[[^\[\]\n]*\]\][^\[\]\n]*)*\]\]",
    re.IGNORECASE,
)
_WIKI_URL = re.compile(r"\[(?:https?|ftp)://[^\s\[\]]{1,2000}(?:[ \t]+([^\[\]\n]*))?\](?!\()")
_WIKI_HEADING = re.compile(r"^[ \t]*(={2,6})[ \t]*([^=\n][^\n]*?)[ \t]*\1[ \t]*$", re.MULTILINE)
_WIKI_EMPHASIS = re.compile(
    r"(?<![A-Za-z0-9'])('''''|'''|'')(?=\w)([^'\n]*(?:'[^'\n]+)*\w)\1(?![A-Za-z0-9'])"
)
_WIKI_LITTER = re.compile(
    r"__(?:NO|FORCE)?TOC__|__NOEDITSECTION__|__NOINDEX__|__NOGALLERY__"
    r"|\[(?:edit|citation needed|clarification needed|編輯|编辑|来源请求|來源請求)\]"
)

_BBCODE = (
    "b i u s url img quote code size color font list center left right spoiler youtube email h1 "
    "h2 h3 table tr td"
)
_BBCODE_CLOSE = re.compile(rf"\[/({_BBCODE})\]".replace(" ", "|"), re.IGNORECASE)

_MARKDOWN_IMAGE = re.compile(r"!\[([^\[\]\n]*)\]\([^()\s]{1,2000}(?:[ \t]+\"[^\"\n]*\")?\)")
_MARKDOWN_LINK = re.compile(
    r"\[([^\[\]\n]+)\]\((?:https?://|mailto:|www\.|[/#])[^()\s]{0,2000}(?:[ \t]+\"[^\"\n]*\")?\)"
)
# one # may be a comment in a program
_MARKDOWN_HEADING = re.compile(r"^#{2,6}[ \t]+(?=\S)", re.MULTILINE)
_INLINE_CODE = re.compile(r"(?<![`\\])(`{1,2})(?![`\s])[^`\n]*(?<![`\s])\1(?!`)")
_HIDDEN = "\ue000\ue001"  # private characters, around the number of a piece of code
_HIDDEN_CODE = re.compile(f"{_HIDDEN[0]}(\\d+){_HIDDEN[1]}")

_MARKDOWN_STRONG = re.compile(r"(?<![*\w])\*\*(?![\s*])([^*\n]*[^*\s])\*\*(?![*])")


def _remove_markup(text: str) -> str:
    # Most texts have no markup: looking for a substring spares them the patterns.
    if "&" in text:
        text = _resolve_entities(text)
    if "<" in text:
        text = _remove_html(text)

    if any(mark in text for mark in _WIKI_MARKS):
        text = _remove_wiki(text)
    if "[/" in text:
        text = _remove_bbcode(text)
    if "](" in text:
        text = _MARKDOWN_LINK.sub(r"\1", _MARKDOWN_IMAGE.sub("", text))
    if "**" in text:
        text = _MARKDOWN_STRONG.sub(r"\1", text)
    if "##" in text:
        text = _MARKDOWN_HEADING.sub("", text)
    return text


def _resolve_entities(text: str) -> str:
    """Replace `&amp;` and similar entities, also when escaped several times.

    `AT&T` and `?a=1&copy=2` stay.
    """
    for _ in range(_NESTING_LIMIT):
        resolved = _ENTITY.sub(_resolve_entity, text)
        if resolved == text:
            break
        text = resolved
    return text


def _resolve_entity(match: re.Match[str]) -> str:
    name = match[1]
    if name[0] != "#":
        return html.entities.html5.get(f"{name};", match[0])

    code = int(name[2:], 16) if name[1] in "xX" else int(name[1:])
    return chr(code) if 0 < code < 0x110000 and not 0xD800 <= code < 0xE000 else ""


def _remove_html(text: str) -> str:
    text = _remove_between(text, re.compile("<!--"), re.compile("-->"))
    lowered = text.lower()

    for name in _SKIPPED_TAGS:
        if f"<{name}" in lowered:
            text = re.sub(rf"<{name}\b[^<>]*/>", "", text, flags=re.IGNORECASE)
            opening, closing = rf"<{name}(?:\s[^<>]*)?>", rf"</{name}\s*>"
            text = _remove_between(
                text, re.compile(opening, re.IGNORECASE), re.compile(closing, re.IGNORECASE)
            )

    return _HTML_TAG.sub(lambda tag: "" if tag[1].lower() in _INLINE else "\n", text)


def _remove_wiki(text: str) -> str:
    # The innermost templates go first, so that what is around them can be matched next.
    for _ in range(_NESTING_LIMIT):
        if "{{" not in text:
            break
        shorter = _TEMPLATE.sub(_template_replacement, text)
        if shorter == text:
            break
        text = shorter

    if "{|" in text:
        text = _remove_between(
            text, re.compile(r"^\{\|", re.MULTILINE), re.compile(r"^\|\}", re.MULTILINE)
        )

    if "[" in text:
        text = _WIKI_MEDIA.sub("", text)
        text = _WIKI_LINK.sub(lambda link: link[1] if link[2] is None else link[2], text)
        text = _WIKI_URL.sub(lambda link: link[1] or "", text)

    if "==" in text:
        text = _WIKI_HEADING.sub(r"\2", text)
    if "''" in text:
        text = _WIKI_EMPHASIS.sub(r"\2", text)
    if "__" in text or "[" in text:
        text = _WIKI_LITTER.sub("", text)
    return text


def _template_replacement(match: re.Match[str]) -> str:
    """Return what replaces a template: nothing for `{{cite web|url=...}}`.

    `{{name}}` is a placeholder of many template languages and stays unless it is a known one.
    """
    if match[2] is not None or _BARE_TEMPLATES.fullmatch(match[1].strip()):
        return ""
    return match[0]


def _remove_bbcode(text: str) -> str:
    """Remove BBCode tags that are closed in the text.

    `a[i]` and a footnote `[b]` stay.
    """
    names = {name.lower() for name in _BBCODE_CLOSE.findall(text)}
    if not names:
        return text

    if "img" in names:
        text = _remove_between(
            text, re.compile(r"\[img[^\[\]]*\]", re.I), re.compile(r"\[/img\]", re.I)
        )

    marker = r"|\[\*\]" if "list" in names else ""
    return re.sub(
        rf"\[/?(?:{'|'.join(sorted(names))})(?:=[^\[\]\n]*)?\]{marker}",
        "",
        text,
        flags=re.IGNORECASE,
    )


def _remove_between(text: str, opening: re.Pattern[str], closing: re.Pattern[str]) -> str:
    """Remove every stretch from `opening` to the next `closing`, in linear time.

    One that is never closed stays.
    """
    kept, position = [], 0
    while start := opening.search(text, position):
        end = closing.search(text, start.end())
        if end is None:
            break
        kept.append(text[position : start.start()])
        position = end.end()
    return "".join([*kept, text[position:]]) if kept else text
