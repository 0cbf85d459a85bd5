"""Texts of others in Markdown: read back by a parser, they are texts."""

import re
from html import unescape

import pytest
from markdown_it import MarkdownIt

from hfstack.publishing.card.markdown import cells, code, escape, fence

PARSER = MarkdownIt("commonmark").enable(["table", "strikethrough"])
HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "[click](https://evil.example)",
    "![x](https://evil.example/p.png)",
    "<https://evil.example>",
    "# heading",
    "text\n# heading\n\n---\n",
    "a | b | c",
    "*bold* __bold__ ~~gone~~",
    "`code` ``more`` ```",
    "&lt;b&gt; &amp;",
    "- item",
    "12. item",
    "=== ",
    "---",
    "+ item",
    "back\\slash \\",
    "\\`<b>",
]


def shown(html: str) -> str:
    """Return the text of HTML, as a reader sees it."""
    return unescape(re.sub(r"<[^>]*>", "", html)).strip()


@pytest.mark.parametrize("text", HOSTILE)
def test_a_text_stays_a_text(text: str) -> None:
    one_line = " ".join(text.split())
    paragraph = PARSER.render(str(escape(text)))
    assert paragraph == f"<p>{PARSER.renderInline(str(escape(text)).strip())}</p>\n"
    assert paragraph.count("<") == 2 and shown(paragraph) == one_line

    span = PARSER.render(f"a {code(text)} b").replace("\\|", "|")
    assert span.count("<") == 4 and shown(span) == f"a {one_line} b"

    table = PARSER.render(f"| a | b |\n|---|---|\n| {cells([text, code(text)])} |\n")
    assert table.count("<td>") == 2 and table.count("<th>") == 2
    body = table.split("<tbody>")[1]
    assert body.count("<") == 10 and "<code>" in body
    assert shown(body).split("\n")[0] == one_line

    block = PARSER.render(f"{fence(text)}\n\nend\n")
    assert block.endswith("</code></pre>\n<p>end</p>\n") and shown(block).startswith(text.strip())


def test_addresses_are_no_links_where_bare_ones_are() -> None:
    # The Hub links `https://...`, `www....` and addresses of mail by themselves.
    assert escape("see https://evil.example and WWW.evil.example, a@b.example") == (
        "see https\\://evil.example and WWW\\.evil.example, a\\@b.example"
    )


def test_numbers_and_plain_words_stay_readable() -> None:
    for text in ("-1.5", "3", "1.0e-05", "bits per byte", "0.5 to 0.7", "31 Jan 2026, 12:00 UTC"):
        assert escape(text) == text
