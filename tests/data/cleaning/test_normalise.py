"""Normalisation repairs what is broken and leaves ordinary text, Chinese included, as it is."""

import gzip
import json
import time
from pathlib import Path

import pytest

from hfstack.data.cleaning.normalise import normalise, repair_encoding


@pytest.mark.parametrize(
    ("raw", "expected", "change"),
    [
        (
            "The Mona Lisa doesnâ€™t have eyebrows.",
            "The Mona Lisa doesn’t have eyebrows.",
            "mojibake",
        ),
        ("中文乱码，你好".encode().decode("latin-1"), "中文乱码，你好", "mojibake"),
        ("前文。" + "中文".encode().decode("latin-1") + "后文", "前文。中文后文", "mojibake"),
        ("schön".encode().decode("latin-1").encode().decode("latin-1"), "schön", "mojibake"),
        ("cafe\u0301", "café", "characters"),
        ("a\u200bb\ufeffc\x07d\u202ee", "abcde", "characters"),
        ("\x1b[31mred\x1b[0m", "red", "characters"),
        ("one\r\ntwo\rthree\u2028four", "one\ntwo\nthree\nfour", "characters"),
        ("15\xa0minutes, ﬁne", "15 minutes, fine", "characters"),
        ("half \ud83d and whole \ud83d\ude00", "half \ufffd and whole 😀", "characters"),
        ("  a  \n\n\n\n\tb\t\n", "a\n\n\tb", "whitespace"),
    ],
)
def test_mends_text(raw: str, expected: str, change: str) -> None:
    result = normalise(raw)
    assert result.text == expected
    assert change in result.changes
    result.text.encode("utf-8")


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("<p>Hello <b>world</b></p>bye", "Hello world\nbye"),
        ("f<br>g<BR/>h<img src='x.png'>", "f\ng\nh"),
        ("a<script>var x = 1 < 2;</script>b<!-- note -->c<style>p {}</style>d", "abcd"),
        ("Tom &amp;amp; Jerry&nbsp;&copy; &#20013;&#x6587;", "Tom & Jerry © 中文"),
        ("&lt;p&gt;escaped&lt;/p&gt;", "escaped"),
        ("{{Infobox|a={{b|c}}}}Text{{citation needed}}.", "Text."),
        (
            "in [[Paris|the city]] of [[France]][[File:x.jpg|thumb|A [[cat]]]].",
            "in the city of France.",
        ),
        ("北京是[[中华人民共和国|中国]]的首都。[[分类:城市]]", "北京是中国的首都。"),
        ("== Title ==\n'''Bold''' and ''it's italic''", "Title\nBold and it's italic"),
        ("{| class\n|-\n| a\n|}\nrest<ref>cite</ref> more<ref name=x/>. __TOC__", "rest more."),
        ("see [http://a.b the page] and [edit]", "see the page and"),
        ("[b]bold[/b] [url=http://x.y]link[/url][img]http://x/y.png[/img]", "bold link"),
        ("[text](http://a.b/c)![alt](x.png) is **strong**", "text is strong"),
        ("## Heading\ntext", "Heading\ntext"),
    ],
)
def test_removes_markup(raw: str, expected: str) -> None:
    result = normalise(raw)
    assert result.text == expected
    assert "markup" in result.changes
    assert "markup" not in normalise(raw, strip_markup=False).changes


def test_removes_boilerplate_lines() -> None:
    prose = (
        "The council wrote a privacy policy "
        + "and then it talked about the policy at length. " * 5
        + "."
    )
    raw = (
        "本网站使用Cookie。\nThis site uses cookies. Accept | Settings\n"
        f"{prose}\nCopyright 2019. All "
        "rights reserved."
    )
    result = normalise(raw)
    assert result == (prose, frozenset({"boilerplate"}))
    assert normalise(raw, strip_boilerplate=False).text == raw


@pytest.mark.parametrize(
    "text",
    [
        "a < b && c > d, if (a<b) then c>d, 1<2",
        "List<int> of <unk> and <|endoftext|> <3 <email>",
        "AT&T at ?a=1&copy=2",
        "x[[1]], x[0][[1]], [[1, 2]], [[1, 2], [3, 4]], if [[ -f x ]]; then",
        "{{name}} and {{ x | upper }}, \\frac{{a}}{b}",
        "x = ''; y = 'it''s' don''t",
        "def __init__(self, *args, **kwargs): a == b == c",
        "a[i] + b[0](x) - 2**3**4 [b]",
        "# comment in a program",
        "```\n<b>code</b> &amp; [[x|y]]\n## heading\n```",
        "“引号”，全角：（１２）……《书名》",
        "Il dit : « bonjour » — café naïve Ñandú",
    ],
)
def test_leaves_ordinary_text(text: str) -> None:
    assert normalise(text) == (text, frozenset())


@pytest.mark.parametrize(
    "text",
    [
        *(
            "<" * 200_000,
            "{{a|" * 50_000,
            "[[" * 100_000,
            "[[File:" * 40_000,
            "[b]" * 60_000 + "[/i]",
            "![](a" * 40_000,
        ),
        *(
            "&amp;" * 50_000,
            "&" + "amp;" * 50_000,
            "<script>" * 30_000,
            "<!--" * 50_000,
            "{|\n" * 60_000,
        ),
        *("''a " * 60_000, " " * 200_000 + "x"),
    ],
)
def test_hostile_text_takes_linear_time(text: str) -> None:
    """200 kB of any opening bracket take under a second; a quadratic pattern takes minutes."""
    started = time.process_time()
    normalise(text)
    assert time.process_time() - started < 1.5


def test_mends_only_the_broken_line() -> None:
    assert (
        repair_encoding("voilÃ  le travail\n中文“，”不变\ncafé")
        == "voilà le travail\n中文“，”不变\ncafé"
    )


@pytest.mark.shared
@pytest.mark.parametrize("name", ["zh_poetry", "zh_wiki", "tinystories_lower", "wiki_en"])
def test_changes_little_in_clean_text(shared_data: Path, name: str) -> None:
    """Curated text has no mojibake to find, keeps its letters, and comes back the same the second
    time.
    """
    with gzip.open(shared_data / "lm" / f"{name}.jsonl.gz", "rt", encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line, _ in zip(lines, range(300), strict=False)]
    results = [normalise(text) for text in texts]
    assert not any("mojibake" in result.changes for result in results)
    visible = sum(len(part) for text in texts for part in text.split())
    kept = sum(len(part) for result in results for part in result.text.split())
    assert kept > 0.995 * visible
    assert all(normalise(result.text).text == result.text for result in results)
