"""Programs come out of cleaning as they went in; prose about programs is cleaned as before."""

import ast
import json
import sysconfig
import time
import tomllib
import warnings
from pathlib import Path

import pytest
import yaml

from hfstack.data.cleaning.code import code_kind, split_parts
from hfstack.data.cleaning.filters import Filter
from hfstack.data.cleaning.pipeline import CleaningReport, clean_documents, clean_text

INSTALLED = Path(sysconfig.get_paths()["purelib"])


def syntax_tree(source: str) -> str:
    """Return a program's tree as text, without its docstrings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tree = ast.parse(source)

    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = node.body[1:] if ast.get_docstring(node) is not None else node.body
    return ast.dump(tree)


def changed_programs(paths: list[Path]) -> tuple[int, list[str]]:
    """Return how many files parse before cleaning, and which have another tree after it."""
    parsed, changed = 0, []
    for path in paths:
        try:
            source = path.read_text(encoding="utf-8")
            before = syntax_tree(source)
        except (SyntaxError, ValueError):
            continue

        parsed += 1
        try:
            same = syntax_tree(clean_text(source).text) == before
        except (SyntaxError, ValueError):
            same = False
        if not same:
            changed.append(str(path))
    return parsed, changed


def test_installed_python_files_keep_their_trees() -> None:
    """Every 40th of the files beside their package's `__init__`, in the order of their paths."""
    parsed, changed = changed_programs(sorted(INSTALLED.glob("*/*.py"))[::40])
    assert parsed > 20
    assert changed == []


@pytest.mark.slow
def test_all_installed_python_files_keep_their_trees() -> None:
    parsed, changed = changed_programs(sorted(INSTALLED.rglob("*.py")))
    print(f"{parsed} files parse before cleaning, {len(changed)} differ after it")
    assert parsed > 1000
    assert changed == []


@pytest.mark.slow
def test_installed_headers_keep_their_includes() -> None:
    headers = [path for ending in ("h", "hpp", "cuh") for path in INSTALLED.rglob(f"*.{ending}")]
    changed = []
    for path in sorted(headers):
        source = path.read_text(encoding="utf-8", errors="replace")
        includes = [line for line in source.split("\n") if line.lstrip().startswith("#include")]
        cleaned = clean_text(source).text.split("\n")
        if includes != [line for line in cleaned if line.lstrip().startswith("#include")]:
            changed.append(str(path))
    assert changed == []


PROGRAMS = {
    "python": (
        "import numpy as np\n\n\n\ndef norm(p, q):\n    ## both axes\n"
        "    return (p[0]**2 + q[0]**2) ** 0.5, dict(**p,**q), np.array([[p]])\n"
    ),
    "python string": "PAGE = '''\n<b>bold</b> &amp; **more**   \n\n\n\n[[link|text]]\n'''\n",
    "python docstring": '"""'
    + "Long words about nothing.\n" * 30
    + '"""\n\nLINKS = [[a], [[b]]]\n',
    "python notice": "# (c) A. All rights reserved.\nNOTICE = '''\nAll rights reserved.\n'''\n",
    "python characters": "NAMES = ['cafe\u0301', 'a\xa0b', '\ufb01', 'z\u200bw']\nprint(NAMES)\n",
    "python table": "WIDTHS = {\n"
    + "".join(f"    'e{n * chr(769)}': {n},\n" for n in range(1, 9))
    + "}\n",
    "python fragment": "    for x in [[a]]:\n        y = x**2 + z**2\n        yield y\n",
    "python formfeed": "import os\n\x0c\ndef f():\n    return os.name\n",
    "c": (
        "#include <map>\n#include <time.h>\n\n\n\nint main(int argc, char **argv) {\n"
        "  if (a<b && c>d) return **argv;\n}\n"
    ),
    "c table": '/* ** all ** */\nstatic const char *t[] = {\n    "<b>x</b>",\n};\n',
    "c++": (
        "template <typename a>\nstruct Box {\n  std::map<std::string, std::vector<a>> items;\n"
        "  [[nodiscard]] bool small() const { return i<b && j>k; }\n};\n"
    ),
    "javascript": "const s = `<b>${name}</b>`;\n\n\n\nfoo(a[[0]], x => x**2 + y**2);\n",
    "jsx": (
        "import React from 'react';\n\nexport default function App({ rows }) {\n  return (\n"
        "    <table>\n      <b>{rows.map(row => <Row key={row} />)}</b>\n      &nbsp;\n"
        "    </table>\n  );\n}\n"
    ),
    "typescript": "interface Props<a> {\n  list: Array<a>;\n  title?: string;\n}\n",
    "rust": (
        "use std::collections::HashMap;\n\npub fn get<'a, b>(m: &'a HashMap<b, Vec<i>>) "
        "-> Option<&'a b> {\n    m.keys().next()\n}\n"
    ),
    "go": 'package main\n\nimport "fmt"\n\nfunc main() {\n\tfmt.Println("<b>x</b>")\n}\n',
    "java": "package a.b;\n\npublic class A {\n    private Map<a, List<b>> m;\n}\n",
    "ruby": "require 'json'\n\nclass A < B\n  def f(x)\n    x**2 + y**2\n  end\nend\n",
    "shell": (
        "#!/bin/sh\nif [[ -f a ]]; then\n  cat <<EOF\n## Title\n**bold**\nEOF\nfi\n"
        'for f in *.txt; do\n  echo "$f" > out   \ndone\n'
    ),
    "sql": "SELECT a.x, b.[[y]]\nFROM t AS a\nJOIN u AS b ON a.id = b.id\nWHERE x <b.y AND z> 3;\n",
    "yaml": 'version: 3\nservices:\n  web:\n    image: "<b>x</b>"\n    ports:\n      - "80:80"\n',
    "toml": '[[bin]]\nname = "first"\n\n\n\n[[bin]]\nname = "<b>second</b>"\n',
    "ini": "[core]\n  editor = <b>vi</b>\n  path = **a**\n",
    "makefile": "CC := gcc\n\nall: main.o\n\t$(CC) -o $@ $<\n\n\n\n## doc\nclean:\n\trm -f *.o\n",
    "json": '{\n  "a": "**b**",\n  "rows": [[1, 2]],\n  "html": "<b>x</b>"\n}\n',
    "css": "a:hover {\n  color: red;\n}\n\n\n\n.b > p {\n  margin: 0 auto;\n}\n",
    "diff": "--- a/x.py\n+++ b/x.py\n@@ -1,2 +1,2 @@\n-x = [[a]]\n+x = y**2 + z**2\n",
    "haskell": "module Main where\n\nimport Data.Map (Map)\n\nf :: Int -> [[a]]\nf x = [[x]]\n",
    "r": 'library(dplyr)\nx <- read.csv("a.csv")\ny <- x[[1]]\nf <- function(a) {\n  a**2\n}\n',
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_are_left_as_they_are(name: str) -> None:
    source = PROGRAMS[name]
    cleaned = clean_text(source)
    assert cleaned.text == source.strip("\n")
    assert "code" in cleaned.changes
    assert clean_text(source.replace("\n", "\r\n")).text == source.strip("\n")


def test_data_files_hold_the_same_values() -> None:
    for name, load in (("json", json.loads), ("toml", tomllib.loads), ("yaml", yaml.safe_load)):
        assert load(clean_text(PROGRAMS[name]).text) == load(PROGRAMS[name])


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (
            "In Python `**kwargs` is a <b>dict</b>, and x = 3; see [[Python|the docs]].",
            "In Python `**kwargs` is a dict, and x = 3; see the docs.",
        ),
        (
            "It says:\nx = 3\nprint(x)\nand then **it** prints 3, which [[we]] want.\nThat is all.",
            "It says:\nx = 3\nprint(x)\nand then it prints 3, which we want.\nThat is all.",
        ),
        (
            "- **One** item\n- **Two** items\n- [link](http://a.b)",
            "- One item\n- Two items\n- link",
        ),
        (
            "Name: Bob\nCity: <b>Paris</b>\nMail: bob@example.org",
            "Name: Bob\nCity: Paris\nMail: [EMAIL]",
        ),
        ("ROMEO:\nO <i>Romeo</i>;\nwherefore art thou;", "ROMEO:\nO Romeo;\nwherefore art thou;"),
        (
            "    An indented <b>letter</b>\n    to you, with **love**.",
            "An indented letter\n    to you, with love.",
        ),
        ("1. e4 e5\n2. a3 b6 (slow);\n**dull**", "1. e4 e5\n2. a3 b6 (slow);\ndull"),
        ("Skip\n<script>\nvar a = 1;\nf(a);\n</script>\nto <b>text</b>", "Skip\n\nto text"),
        ("<div>\n<script>\nvar a;\n\n    var b = f(a);\n</script>\n<p>Hi</p></div>", "Hi"),
    ],
)
def test_prose_that_mentions_code_is_cleaned(raw: str, expected: str) -> None:
    cleaned = clean_text(raw)
    assert cleaned.text == expected
    assert "code" not in cleaned.changes


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (
            "A **list**:\n\n```python\nx = [[a]]   \n\n\n\ny = z**2 + x**2\n```\n\n<b>More</b>.",
            "A list:\n\n```python\nx = [[a]]   \n\n\n\ny = z**2 + x**2\n```\n\nMore.",
        ),
        (
            "A **list**:\n\n~~~\n#include <map>\nint x;\n~~~\nMore <b>text</b>.",
            "A list:\n\n~~~\n#include <map>\nint x;\n~~~\nMore text.",
        ),
        (
            "A **list**:\n\n    def f(x):\n        return [[x]]\n\n\n    f(y**2)\n\n**More**.",
            "A list:\n\n    def f(x):\n        return [[x]]\n\n\n    f(y**2)\n\nMore.",
        ),
        (
            "<p>Use <b>it</b>:</p><pre><code>#include &lt;map&gt;\nint f();</code></pre><p>Bye</p>",
            "Use it:\n\n#include <map>\nint f();\n\nBye",
        ),
        ("Say:```\n<b>x</b>\n```\nthen **go** on", "Say:```\n<b>x</b>\n```\nthen go on"),
    ],
)
def test_parts_that_are_code_are_left_in_cleaned_prose(raw: str, expected: str) -> None:
    assert clean_text(raw).text == expected
    assert "".join(part.text for part in split_parts(raw)) == raw


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        # every comment of what parses as Python, nothing that the program reads
        (
            "# by b@example.org\nTO = 'a@example.org'  # or c@example.org\nx = m@w.T.real\n",
            "# by [EMAIL]\nTO = 'a@example.org'  # or [EMAIL]\nx = m@w.T.real",
        ),
        # of other languages, the comment at the head
        (
            "/*\n * b@example.org\n */\n// 8.8.8.8\n#include <a.h>\n// a@b.org\nint x = f();\n",
            "/*\n * [EMAIL]\n */\n// [IP]\n#include <a.h>\n// a@b.org\nint x = f();",
        ),
        (
            "#!/bin/sh\n# b@example.org\ncat <<E\n# al@example.org\nE\nif [ -f x ]; then\n  f\nfi",
            "#!/bin/sh\n# [EMAIL]\ncat <<E\n# al@example.org\nE\nif [ -f x ]; then\n  f\nfi",
        ),
        (
            "#define MAIL a@example.org\n#include <a.h>\n",
            "#define MAIL a@example.org\n#include <a.h>",
        ),
        # strings of JSON, which it stays
        (
            '{"to": "x\\nbob@example.org", "n": 13800138000, "phone": "13800138000"}',
            '{"to": "x\\n[EMAIL]", "n": 13800138000, "phone": "[PHONE]"}',
        ),
        # a fence with a letter in it is no code
        (
            "Hi\n\n```\nDear bob@example.org,\nall is well.\n```",
            "Hi\n\n```\nDear [EMAIL],\nall is well.\n```",
        ),
    ],
)
def test_masks_in_code_only_what_no_program_reads(raw: str, expected: str) -> None:
    assert clean_text(raw).text == expected


@pytest.mark.parametrize(
    "text",
    [
        "{" * 200_000 + "}",
        "[" * 100_000 + '"' + "]" * 100_000,
        "```\n" * 50_000,
        "a```b\n" * 40_000,
        "<pre>" * 40_000,
        "import os\n" + '"""' * 60_000 + "x",
        "/*\n" * 60_000,
        "text\n\n    x = 1\n\n" * 10_000,
        "x = " + "-" * 50_000 + "1",
        "x = " + "a." * 50_000 + "b",
        "x = " + "1 + " * 50_000 + "1",
        "a<b> " * 40_000 + "(",
        "#" * 200_000 + "\nx = f()\n" + "bob@example.org " * 5_000,
    ],
)
def test_hostile_code_takes_linear_time(text: str) -> None:
    started = time.process_time()
    clean_text(text)
    # what grows with the square of the length takes minutes here
    assert time.process_time() - started < 8


def test_a_letter_without_marks_is_never_code() -> None:
    assert code_kind("Once upon a time\nthere was a fox.\n" * 50) is None
    assert [part.kind for part in split_parts("白日依山盡，黃河入海流。\n欲窮千里目。")] == [
        "prose"
    ]
    assert split_parts("") == []


def test_reports_how_many_documents_hold_code() -> None:
    report = CleaningReport()
    checks: list[Filter] = []
    rows = [{"text": PROGRAMS["c"]}, {"text": "Plain words of a story, and no more."}]
    list(clean_documents(rows, checks, report))
    assert report.metrics()["documents_code"] == 1
    assert ["code", 1, ""] in report.changed_table()[1]


def test_code_in_the_backticks_of_prose_stays() -> None:
    prose = (
        "**Use `<map>`, `x **2 + y[0]**` or `a[[b]]` now**, and [`&lt;`](https://x.org) <b>so</b>."
    )
    kept = "Use `<map>`, `x **2 + y[0]**` or `a[[b]]` now, and `&lt;` so."
    assert clean_text(prose).text == kept
    assert clean_text("``Old <b>quotes</b>'' of `some' and `other' kinds").text == (
        "``Old quotes'' of `some' and `other' kinds"
    )


@pytest.mark.parametrize(
    "program",
    [
        '{"a": "**b**", "c": "<map>"}\n{"a": "[[x]]", "c": "&amp;"}\n',
        "local t = {}\nt[#t + 1] = [[long **string**]]\n",
        "function y = f(x)\n% of **b**\ny = x.^2 + A(1,:)';\nend\n",
    ],
    ids=["lines of json", "lua", "matlab"],
)
def test_other_programs_stay(program: str) -> None:
    assert clean_text(program).text == program.rstrip("\n")


@pytest.mark.parametrize(
    "table",
    [
        'id,code\n1,"#include <map>"\n2,"std::vector<int> v;"\n3,"return a[b[0]] ** 2;"\n',
        "lang\tsnippet\npy\tx = [[a]] ** 2 + f(**b)\npy\tprint(y[0][[1]])\n",
        'name;body\nf;"def f(a):\n    return a ** 2 + b[[0]]"\ng;"import os\n\nos.walk(**k)"\n',
        'row,given\n1,"{""a"": ""<b>x</b>""}"\n2,"{""a"": ""**y**""}"\n',
    ],
)
def test_a_table_with_a_column_of_code_stays_as_it_is(table: str) -> None:
    cleaned = clean_text(table, mask=())
    assert cleaned.text.strip() == table.strip() and "code" in cleaned.changes


@pytest.mark.parametrize(
    "text",
    [
        'id,text\n1,"Hello <b>you</b> there"\n2,"And **this** is bold"\n3,"x = 3;"\n',
        "Dear friends, we met\nin the park, and <b>ran</b>\nto the hill, as **usual**\n",
    ],
)
def test_a_table_of_prose_is_cleaned(text: str) -> None:
    cleaned = clean_text(text, mask=()).text
    assert "<b>" not in cleaned and "**" not in cleaned


# files of other kinds, with tags, links and stars that mean something there
FILES = {
    kind: text
    for kind, _, text in (
        part.partition("\n")
        for part in (Path(__file__).parent / "tagged_files.txt").read_text().split("=== ")[1:]
    )
}


@pytest.mark.parametrize("kind", list(FILES))
def test_tags_in_files_of_settings_and_programs_stay(kind: str) -> None:
    cleaned = clean_text(FILES[kind])
    assert cleaned.text.strip("\n") == FILES[kind].strip("\n")
    assert "markup" not in cleaned.changes


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (
            "question: What is a <b>fox</b>?\nanswer: It is a wild animal.\nsource: a book",
            "question: What is a fox?\nanswer: It is a wild animal.\nsource: a book",
        ),
        (
            "name: bob\nmail: bob@example.org\ncity: <b>Paris</b>",
            "name: bob\nmail: [EMAIL]\ncity: Paris",
        ),
        ("user_name: bob\nmail: bob@example.org", "user_name: bob\nmail: [EMAIL]"),
        ("to.mail = bob@example.org\nto.name = Bob Ray", "to.mail = [EMAIL]\nto.name = Bob Ray"),
    ],
)
def test_lists_of_sentences_or_of_people_are_text(raw: str, expected: str) -> None:
    assert clean_text(raw).text == expected
