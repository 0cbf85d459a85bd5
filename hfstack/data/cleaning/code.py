"""Find the parts of a text that are code.

A document is code by one of these rules, tried in this order; nothing is learned from data:

1. It is JSON, or an object of JSON a line: it starts and ends with braces or brackets, and parses.
2. Its lines are a program's. Of the lines that are neither blank nor comments, half or more look
   like code (`SURE_LINE` or `LIKELY_LINE`), and one or more is hardly possible in prose
   (`SURE_LINE`); where three or more are, four tenths are enough.
3. Its lines are YAML's (`key:` and `- item`, nested, or a flat list with a `snake_case:` key or
   whose values are mostly single words), TOML's, INI's or those of a file of properties
   (`[section]` and `key = value`, or what parses as TOML), or those of a Makefile (a target, then
   lines that begin with a tab). The text of a block of YAML's (`key: |`) says nothing, and a flat
   list with an e-mail address or a phone number is a record, whose values are masked.
4. It parses as Python, and holds a definition, an import, an assignment or a call. A module that is
   nearly all docstring is found like this.
5. It is a table, of cells between commas, semicolons or tabs below a header, and half of the cells
   of a column are code.

HTML and XML are markup and no code, except for what stands in `<pre>`. In a document that is no
code, a fenced block (``` or ~~~) and an indented block are parts of their own, judged by the same
rules; a closed fence that names a programming language is code.
"""

import ast
import csv
import io
import json
import re
import tomllib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Literal, NamedTuple

from ftfy.fixes import fix_surrogates

from hfstack.data.cleaning.code_lines import LIKELY_LINE, SURE_LINE
from hfstack.data.cleaning.pii import mask_pii

PartKind = Literal["prose", "literal", "code", "json"]
CODE_KINDS = ("code", "json")


@dataclass(frozen=True, slots=True)
class TextPart:
    """A stretch of a document.

    `literal` is a fence with something else than code in it, such as a letter or a log.
    """

    text: str
    kind: PartKind


class _Fence(NamedTuple):
    """Where a fenced block and its inside begin and end, and the language it names."""

    start: int
    inside: int
    closing: int
    end: int
    language: str


_COMMENT = ("//", "#", "--", "<", "%", ";;", "/*", "*/")  # and tags: JSX holds as many as HTML
# A line of several words without these marks, and without such a first word, is prose: two of three
# lines need no other pattern.
_PLAIN = re.compile(r"[^=(){}\[\]<>$@#\"\\]*[^=(){}\[\]<>$@#\"\\*&|+]")
_FIRST_WORDS = frozenset(
    "import from raise package return yield assert del not and or if in echo cd sudo grep sed "
    "awk rm cp mv mkdir curl exit source select insert create alter drop delete update where "
    "on group order having limit values set join left inner cdef cpdef ctypedef cimport "
    "subroutine function program module end implicit integer real logical complex character "
    "call use type allocate print if elif else while for with except try finally class def case "
    "default using break continue begin do then fi done esac loop".split()
)

# What a document must hold somewhere before its lines are looked at one by one.
_CODE_MARKS = (
    "=",
    "(",
    "{",
    "[",
    "<",
    "#",
    "@",
    "$",
    ";",
    "\\",
    "import ",
    ":\n",
    "_",
    "end ",
    "END ",
)
_SAMPLED_LINES = 400
_PYTHON_CHARACTERS = 4_000_000
_TABLE_CHARACTERS = 400_000
_LONGEST_HEADER = 300

# What may hold prose inside of a program, and programs inside of a page.
_DOCSTRING = re.compile(r'"""|\'\'\'')
_BLOCK_COMMENT = re.compile(r"^[ \t]*/\*", re.MULTILINE)
_EMBEDDED = re.compile(r"<(?:script|style)\b", re.IGNORECASE)
_FENCE = re.compile(r"^[ \t>]{0,12}(`{3,}|~{3,})[ \t]*([^`\n]*)$", re.MULTILINE)
# a file of Vue's
_COMPONENT = re.compile(r"\s*<(?:template|script\s+(?:setup|lang)\b[^<>]*)>", re.IGNORECASE)
_SCRIPT_FIRST = re.compile(r"<\?php|\A\s*<%")  # a page that a program writes
_INDENTED = re.compile(
    r"(?:(?<=\n\n)|\A)(?:(?: {4}|\t)[^\n]*(?:\n|\Z)|[ \t]*\n(?=[ \t]*\n|    |\t))+"
)
_PROGRAMMING_LANGUAGES = frozenset(
    "ada asm awk bash bat c c# c++ cl clj clojure cmake cpp cs csharp css cu cuda cxx cython "
    "d dart diff dockerfile elixir elm erl erlang ex f90 fish fortran fsharp gdscript glsl go "
    "golang gradle graphql groovy h haskell hcl hlsl hpp hs ini java javascript jinja jl js "
    "json json5 jsonc jsonnet jsx julia kotlin kt latex less lisp lua m4 make makefile matlab "
    "ml nasm nim nix objc ocaml octave pascal patch perl php pl powershell proto protobuf ps1 "
    "py py3 pycon python python3 r racket rb rs ruby rust sass scala scheme scss sed sh shell "
    "sol solidity sparql sql svelte swift tcl terraform tex tf toml ts tsx typescript v vb "
    "verilog vhdl vim vue wasm wat xsl yaml yml zig zsh".split()
)

_YAML_KEY = re.compile(r"(?:- )*(?:[\w.\"'$/-]+|<<):(?:\s|$)")
_YAML_BLOCK = re.compile(r"^([ \t]*)((?:- )*[\w.\"'$/-]+:[ \t]*)[|>][-+\d]*[ \t]*\n", re.MULTILINE)
# a key that no heading or header of a letter has, and its value, without a comment
_FLAT_KEY = re.compile(r"[a-z][\w.-]*:\s+(?P<value>(?:(?! #)[^\n])*)")
_ONE_WORD = re.compile(r"\S+|[\"'][^\"']*[\"']|<(\w+)[^<>]*>[^<>]*</\1>|[\[{].*[\]}]")
_SNAKE_KEY = re.compile(r"[a-z]+(?:_[a-z0-9]+)+:(?:\s|$)")
_YAML_NESTED = re.compile(
    r"^[ \t]*(?:- )*[a-z_][\w.-]*:[ \t]*(?:&\w+)?\n\s+(?:- ?|[\w.\"'$/-]+:|<<:)", re.MULTILINE
)
_YAML_OTHER = re.compile(r"- \S|---$|\.\.\.$|[|>]")
_SECTION = re.compile(r"\[\[?[\w.\"' :*{},!/-]+\]\]?\s*(?:#.*)?$")
_ASSIGNMENT = re.compile(r"[\w.\"'-]+\s*[=:]\s*\S?")
_PROPERTY = re.compile(r"(?:export\s+)?[A-Za-z_][\w.-]*\s*=(?!=)")
_TARGET = re.compile(r"^[\w./%$(){} -]+:(?![=:/])[^.?!]*\n\t", re.MULTILINE)


def split_parts(text: str) -> list[TextPart]:
    """Split a document into prose and code; their texts joined are the document."""
    if kind := code_kind(text):
        return [TextPart(text, kind)]

    if "```" not in text and "~~~" not in text:
        return _split_indented(text)

    parts: list[TextPart] = []
    for part in _split_fences(text):
        parts += _split_indented(part.text) if part.kind == "prose" else [part]
    return parts


def code_kind(text: str) -> Literal["code", "json"] | None:
    """Return what code a text is, by the rules of this file, or None."""
    if not any(mark in text for mark in _CODE_MARKS):
        return None

    start = text.lstrip("\ufeff \t\r\n")[:1]
    if start in ("{", "[") and _is_json(text):
        return "json"
    if start == "<" and not _SCRIPT_FIRST.search(text[:200]):
        return "code" if _COMPONENT.match(text) else None

    bare = _without_prose(text)
    lines = _sample_lines(bare)
    if not lines:
        return None

    marked = [line for line in lines if not _is_plain(line)]
    unsure = [line for line in marked if not (SURE_LINE.match(line) or _is_dense(line))]
    sure = len(marked) - len(unsure)
    likely = sum(1 for line in unsure if LIKELY_LINE.match(line))
    share = 0.4 if sure >= 3 else 0.5
    if sure and sure + likely >= share * len(lines) and not _only_inside(bare):
        return "code"
    if _is_configuration(bare, lines):
        return "code"

    # Where most lines are plain words, there is no need to parse.
    if (sure or likely) and 2 * len(marked) >= len(lines) and parses_as_python(text):
        return "code"
    return "code" if _has_column_of_code(text) else None


def _has_column_of_code(text: str) -> bool:
    """Return whether a text is a table below a header, and half of a column is code."""
    header = text.lstrip("\ufeff\n").partition("\n")[0]
    mark = next((mark for mark in "\t,;" if mark in header), None)
    if mark is None or len(header) > _LONGEST_HEADER or text.count("\n") < 2:
        return False

    table: list[list[str]] = []
    reader = csv.reader(io.StringIO(text[:_TABLE_CHARACTERS], newline=""), delimiter=mark)
    try:
        for row in islice(filter(None, reader), _SAMPLED_LINES):
            table.append(row)
            if len(row) != len(table[0]):
                break
    except csv.Error:
        return False
    if len(text) > _TABLE_CHARACTERS:
        table = table[:-1]  # its last row may be truncated
    if len(table) < 3 or len(table[-1]) != len(table[0]):
        return False

    for column in zip(*table[1:], strict=True):
        filled = [cell for cell in column if cell.strip()]
        if filled and 2 * sum(1 for cell in filled if code_kind(cell)) >= len(filled):
            return True
    return False


def _only_inside(text: str) -> bool:
    """Return whether what is not indented is prose, around blocks of code."""
    lines = _sample_lines("\n".join(line for line in text.split("\n") if line[:1].strip()))
    marked = [line for line in lines if not _is_plain(line)]
    if any(map(SURE_LINE.match, marked)) or any(map(_is_dense, marked)):
        return False
    return 2 * sum(1 for line in marked if LIKELY_LINE.match(line)) < len(lines)


def _is_plain(line: str) -> bool:
    """Return whether a line is four words or more without marks, or not in ASCII."""
    if line.count(" ") < 3 and (line.isascii() or line[0] in "'" or line[-1] in ",:;"):
        return False  # "int x;", "size: int", "color: red;" and "'é': 3," are short
    first = line.partition(" ")[0]
    return first.lower() not in _FIRST_WORDS and _PLAIN.fullmatch(line) is not None


def _is_dense(line: str) -> bool:
    """Return whether a long line is a minified program: many marks, few blanks."""
    if len(line) < 150:
        return False
    marks = sum(map(line.count, "(){};=,"))
    return marks > 0.1 * len(line) and line.count(" ") < 0.1 * len(line) and "{" in line


def _is_json(text: str) -> bool:
    stripped = text.strip("\ufeff \t\r\n")
    if stripped[-1] not in "}]" or not ('"' in stripped or stripped[:2] == "[["):
        return False
    try:
        return bool(json.loads(stripped))
    except RecursionError:
        return False
    except ValueError as error:
        # an object a line
        if not str(error).startswith("Extra data") or "\n" not in stripped:
            return False
    try:
        return all(type(json.loads(line)) in (dict, list) for line in _filled_lines(stripped))
    except (ValueError, RecursionError):
        return False


def _filled_lines(text: str) -> Iterator[str]:
    return (line for line in text.split("\n") if line.strip())


def _without_prose(text: str) -> str:
    """Return the text without docstrings, block comments, fences, scripts and styles."""
    if "<" in text and _EMBEDDED.search(text):
        text = _truncate_at(text, _EMBEDDED, lambda found: f"</{found[0][1:]}", fold=True)
    if "/*" in text:
        text = _truncate_at(text, _BLOCK_COMMENT, lambda _: "*/")
    if '"""' in text or "'''" in text:
        text = _truncate_at(text, _DOCSTRING, lambda found: found[0])
    if "```" in text or "~~~" in text:
        fences = list(_find_fences(text))
        starts, ends = [fence.start for fence in fences], [fence.end for fence in fences]
        pairs = zip([0, *ends], [*starts, len(text)], strict=True)
        text = "".join(text[end:start] for end, start in pairs)
    return text


def _truncate_at(
    text: str,
    opening: re.Pattern[str],
    closing_of: Callable[[re.Match[str]], str],
    fold: bool = False,
) -> str:
    """Remove each stretch from `opening` to what closes it, in linear time."""
    searched = text.lower() if fold and len(text.lower()) == len(text) else text
    kept, position = [], 0
    while found := opening.search(text, position):
        closing = closing_of(found)
        end = searched.find(closing.lower() if fold else closing, found.end())
        if end < 0:
            break
        kept.append(text[position : found.start()])
        position = end + len(closing)
    return "".join([*kept, text[position:]])


def _sample_lines(text: str) -> list[str]:
    """Return up to 400 lines, evenly spread, that are neither blank nor comments."""
    lines = [line for line in map(str.strip, text.split("\n")) if line]
    lines = [line for line in lines if not line.startswith(_COMMENT) or SURE_LINE.match(line[:200])]
    lines = lines[:: 1 + len(lines) // _SAMPLED_LINES]
    # of a long line, the ends say enough, and no pattern takes long
    return [line if len(line) <= 200 else line[:150] + line[-50:] for line in lines]


def _is_configuration(text: str, lines: list[str]) -> bool:
    """Return whether the lines are YAML's, TOML's, INI's or a Makefile's."""
    if "|" in text or ">" in text:
        lines = _sample_lines(bare) if (bare := _without_blocks(text)) != text else lines
    lines = [line for line in lines if line[0] != ";"]  # a comment of INI
    if len(lines) >= 2 and (all(map(_PROPERTY.match, lines)) or _is_flat_yaml(lines)):
        return not _names_people(text)

    assigned = sum(1 for line in lines if _ASSIGNMENT.match(line))
    if assigned >= 0.5 * len(lines) and _is_toml(text):
        return True
    if len(lines) < 3:
        return False

    rules = len(_TARGET.findall(text)) if ":" in text and "\n\t" in text else 0
    paired = sum(1 for line in lines if ":" in line or "=" in line or line[0] in "[-")
    if not rules and 2 * paired < len(lines):
        return False

    keys = sum(1 for line in lines if _YAML_KEY.match(line))
    other = sum(1 for line in lines if _YAML_OTHER.match(line))
    if _YAML_NESTED.search(text) and keys >= 2 and keys + other >= 0.9 * len(lines):
        return True

    flat = sum(1 for line in lines if _SNAKE_KEY.match(line))
    if flat and keys + other == len(lines):
        return not _names_people(text)

    sections = sum(1 for line in lines if _SECTION.fullmatch(line))
    if sections and assigned >= 2 and sections + assigned >= 0.8 * len(lines):
        return True
    likely = sum(1 for line in lines if LIKELY_LINE.match(line) or line[0] in "@$.-")
    return bool(rules) and 2 * (2 * rules + likely) >= len(lines)


def _is_flat_yaml(lines: list[str]) -> bool:
    """Return whether lines are keys in small letters, mostly of one-word values."""
    pairs = [_FLAT_KEY.fullmatch(line.split(" #")[0].rstrip()) for line in lines]
    values = [pair["value"] for pair in pairs if pair]
    if len(values) < len(lines):
        return False
    words = sum(1 for value in values if _ONE_WORD.fullmatch(value))
    return words > 0.6 * len(values)


def _names_people(text: str) -> bool:
    """Return whether a flat list holds personal data, which is masked."""
    return mask_pii(text, ("email", "phone"))[0] != text


def _without_blocks(text: str) -> str:
    """Return YAML without the text of its blocks, which are indented below `key: |`."""
    kept, position = [], 0
    for block in _YAML_BLOCK.finditer(text):
        if block.start() < position:
            continue
        kept.append(text[position : block.end()])
        position = block.end()

        while position < len(text):
            end = text.find("\n", position) + 1 or len(text)
            line = text[position:end]
            if line.strip() and not line.startswith((f"{block[1]} ", f"{block[1]}\t")):
                break
            position = end
    return "".join([*kept, text[position:]])


def _is_toml(text: str) -> bool:
    try:
        return bool(tomllib.loads(text))
    except (ValueError, RecursionError):
        return False


def parses_as_python(text: str) -> bool:
    """Return whether a text parses as Python and holds more than bare words."""
    if len(text) > _PYTHON_CHARACTERS:
        return False

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            body = ast.parse(text.lstrip("\ufeff")).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False

    def says_something(node: ast.stmt) -> bool:
        if isinstance(node, ast.Expr):
            return isinstance(node.value, ast.Call)
        return not isinstance(node, ast.AnnAssign) or node.value is not None

    return any(map(says_something, body))


def _split_fences(text: str) -> list[TextPart]:
    """Split at fenced blocks; the lines of the fences are literal."""
    parts: list[TextPart] = []
    position = 0
    for fence in _find_fences(text):
        block = text[fence.inside : fence.closing]
        kind = code_kind(block) or (
            "code" if fence.language in _PROGRAMMING_LANGUAGES else "literal"
        )
        parts += [
            TextPart(text[position : fence.start], "prose"),
            TextPart(text[fence.start : fence.inside], "literal"),
            TextPart(block, kind),
            TextPart(text[fence.closing : fence.end], "literal"),
        ]
        position = fence.end

    parts.append(TextPart(text[position:], "prose"))
    return [part for part in parts if part.text]


def _find_fences(text: str) -> Iterator[_Fence]:
    """Yield the fenced blocks.

    One that is never closed reaches to the end, and names no language.
    """
    position = 0
    while opening := _FENCE.search(text, position):
        before = text[position : opening.start()]
        if before.count("```") % 2 and opening[1][0] == "`":
            # it closes a fence that began behind some prose
            start, position = position + before.rindex("```"), opening.end()
            yield _Fence(start, start + 3, opening.start(), position, "")
            continue

        mark = re.escape(opening[1])
        end_of_fence = re.compile(rf"^[ \t>]*{mark}{mark[-1]}*[ \t]*$", re.MULTILINE)
        closing = end_of_fence.search(text, opening.end())
        if closing is None:
            yield _Fence(opening.start(), opening.end(), len(text), len(text), "")
            return

        language = opening[2].strip(" {.}").partition(" ")[0].lower()
        position = closing.end()
        yield _Fence(opening.start(), opening.end(), closing.start(), position, language)


def _split_indented(text: str) -> list[TextPart]:
    """Split at blocks that are indented by four blanks or a tab, and are code."""
    indented = "\n    " in text or "\n\t" in text or text[:1] in (" ", "\t")
    page = "<" in text and (text.lstrip()[:1] == "<" or _EMBEDDED.search(text))
    if not indented or page or not text:
        return [TextPart(text, "prose")] if text else []

    parts: list[TextPart] = []
    position = 0
    for block in _INDENTED.finditer(text):
        dedented = "\n".join(line.lstrip() for line in block[0].split("\n"))
        if code_kind(dedented):
            parts.append(TextPart(text[position : block.start()], "prose"))
            parts.append(TextPart(block[0], "code"))
            position = block.end()

    parts.append(TextPart(text[position:], "prose"))
    return [part for part in parts if part.text]


def tidy_code(text: str) -> str:
    """Return code as it is; a lone surrogate, which no file can hold, becomes U+FFFD."""
    return text if text.isascii() else fix_surrogates(text)
