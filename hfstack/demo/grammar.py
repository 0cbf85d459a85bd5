"""Fill templates: `[a|b|]` chooses, `{name}` inserts a fact, `<name>` a phrase.

Templates are compiled once into nested tuples, so that a story costs a few hundred list appends.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple


class Fact(NamedTuple):
    """A place where a fact of the story goes."""

    name: str


class Choice(NamedTuple):
    """A place where one of several templates goes, each as likely."""

    options: "tuple[Parts, ...]"


Parts = tuple[str | Fact | Choice, ...]
_TEMPLATE_TOKEN = re.compile(r"[\[\]|]|\{\w+\}|<\w+>|[^\[\]|{}<>]+")
_SPACES = re.compile(r" {2,}")
_BEFORE_MARK = re.compile(r" +(?=[.,!?])")
_ARTICLE = re.compile(r"\b([Aa]) (?=[aei]|o(?!ne\b)|u(?!s)|hour|honest)")
_SENTENCE_START = re.compile(r'(?:^|(?<=[.!?] )|(?<=\." ))"?[a-z]')
# Fact used -> (fact that changes, fact that it takes the words of): "a fox named Tom" first, "Tom"
# from then on.
_FIRST_MENTION = {"F": ("F", "FN"), "FX": ("F", "FN"), "E": ("E", "EN")}


def compile_template(text: str, phrases: Mapping[str, Sequence[str]] | None = None) -> Parts:
    """Turn a template into nested tuples of literals, facts and choices.

    Args:
        text: the template.
        phrases: shared phrase lists, name -> templates, inserted where `<name>` stands.

    Raises:
        ValueError: unbalanced brackets, a stray bracket, or an unknown phrase name (a bug of the
            author's).
    """
    tokens = _TEMPLATE_TOKEN.findall(text)
    if "".join(tokens) != text:
        raise ValueError(f"template has a stray bracket: {text!r}")
    parts, end = _sequence(tokens, 0, phrases or {})
    if end != len(tokens):
        raise ValueError(f"template has an unbalanced bracket: {text!r}")
    return parts


def _sequence(
    tokens: list[str], start: int, phrases: Mapping[str, Sequence[str]]
) -> tuple[Parts, int]:
    parts: list[str | Fact | Choice] = []
    index = start
    while index < len(tokens) and tokens[index] not in ("|", "]"):
        token = tokens[index]
        if token == "[":
            options, index = _options(tokens, index + 1, phrases)
            parts.append(Choice(options))
        elif token[0] == "{":
            parts.append(Fact(token[1:-1]))
        elif token[0] == "<":
            if token[1:-1] not in phrases:
                raise ValueError(f"unknown phrase {token}")
            parts.append(
                Choice(tuple(compile_template(text, phrases) for text in phrases[token[1:-1]]))
            )
        else:
            parts.append(token)

        index += 1

    return tuple(parts), index


def _options(
    tokens: list[str], start: int, phrases: Mapping[str, Sequence[str]]
) -> tuple[tuple[Parts, ...], int]:
    options: list[Parts] = []
    index = start

    while True:
        parts, index = _sequence(tokens, index, phrases)
        options.append(parts)
        if index >= len(tokens):
            raise ValueError("template has an unbalanced bracket: " + "".join(tokens))
        if tokens[index] == "]":
            return tuple(options), index
        index += 1


def render(parts: Parts, facts: dict[str, str], uniform: Callable[[], float]) -> str:
    """Fill one compiled template.

    Facts F and E (friend, elder) change after their first mention.

    Args:
        parts: what compile_template returned.
        facts: fact name -> words; changed in place by first mentions.
        uniform: returns the next random number in [0, 1).
    """
    words: list[str] = []
    _append(parts, facts, uniform, words)
    return "".join(words)


def _append(
    parts: Parts, facts: dict[str, str], uniform: Callable[[], float], words: list[str]
) -> None:
    for part in parts:
        if isinstance(part, str):
            words.append(part)
        elif isinstance(part, Fact):
            words.append(facts[part.name])
            if part.name in _FIRST_MENTION:
                changed, source = _FIRST_MENTION[part.name]
                facts[changed] = facts[source]
        else:
            _append(part.options[int(uniform() * len(part.options))], facts, uniform, words)


def tidy(text: str) -> str:
    """Repair what templates cannot know: double spaces, "a owl", small first letters."""
    text = _ARTICLE.sub(r"\1n ", _BEFORE_MARK.sub("", _SPACES.sub(" ", text.strip())))
    return _SENTENCE_START.sub(lambda match: match.group().upper(), text)
