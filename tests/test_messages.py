"""The page of messages quotes the code, in both languages."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from tests.conftest import ROOT

_PLACEHOLDER = "\0"


@cache
def texts_of_the_code() -> tuple[str, ...]:
    """Every text in the code; what is filled in, by an f-string or a log line, is a placeholder."""
    files = [*(ROOT / "hfstack").rglob("*.py"), *(ROOT / "recipes").glob("*.py")]
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in files]
    return tuple(text for tree in trees for node in ast.walk(tree) if (text := text_of(node)))


def text_of(node: ast.AST) -> str:
    """Return a text with placeholders, "" of what is none."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return re.sub(r"%(?:\.\d+)?[sdrfg]", _PLACEHOLDER, node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(
            text_of(part) if isinstance(part, ast.Constant) else _PLACEHOLDER
            for part in node.values
        )
    return ""


def messages_of(page: Path) -> list[str]:
    """The messages that a page quotes, in its order."""
    return re.findall(r"^\| `([^`]+)` \|", page.read_text(encoding="utf-8"), re.MULTILINE)


def test_each_message_of_the_page_is_one_of_the_code() -> None:
    quoted = messages_of(ROOT / "docs" / "messages.md")
    assert len(quoted) > 30
    for message in quoted:
        # what stands for a value is at least one thing that is filled in
        words = [re.escape(part.strip()) for part in message.split("...")]
        pattern = re.compile(f"[^\\n]*{_PLACEHOLDER}[^\\n]*".join(words))
        assert any(pattern.search(text) for text in texts_of_the_code()), message


@pytest.mark.parametrize("language", ["zh"])
def test_a_translation_quotes_the_same_messages(language: str) -> None:
    assert messages_of(ROOT / "docs" / language / "messages.md") == messages_of(
        ROOT / "docs" / "messages.md"
    )
