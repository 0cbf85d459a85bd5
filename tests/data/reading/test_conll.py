"""Sentences of words with tags, one a line."""

from pathlib import Path
from typing import Any

import pytest

from hfstack.data.reading.folders import expand_files
from hfstack.data.reading.rows import read_rows
from hfstack.errors import DataError

SENTENCES = (
    "-DOCSTART- -X- O\n\nAda NNP B-PER\nran VBD O\n\n\nhe PRP O\n-DOCSTART- -X- O\n\nBonn NNP S-LOC"
)


@pytest.mark.parametrize("name", ["train.txt", "train.conll"])
@pytest.mark.parametrize("separator", [" ", "\t"])
def test_sentences(tmp_path: Path, name: str, separator: str) -> None:
    path = tmp_path / name
    path.write_text(SENTENCES.replace(" ", separator) + "\r\n")
    assert list(read_rows(expand_files(str(path)))) == [
        {"tokens": ["Ada", "ran"], "tags": ["B-PER", "O"], "column_2": ["NNP", "VBD"]},
        {"tokens": ["he"], "tags": ["O"], "column_2": ["PRP"]},
        {"tokens": ["Bonn"], "tags": ["S-LOC"], "column_2": ["NNP"]},
    ]


def test_a_line_of_other_columns_spoils_its_sentence(tmp_path: Path) -> None:
    path = tmp_path / "a.conll"
    path.write_text("a DT O\nb NN O\n\nc NN\nd NN O\n\ne NN O\n")
    with pytest.raises(DataError, match=r"a\.conll line 4: line 4 has 2 columns where most have 3"):
        list(read_rows(expand_files(str(path))))
    kept = read_rows(expand_files(str(path)), on_bad_row="skip")
    assert [row["tokens"] for row in kept] == [["a", "b"], ["e"]]

    path.write_text("word\nword\n")
    with pytest.raises(DataError, match=r"line 1 has a word without a tag: 'word'"):
        list(read_rows(expand_files(str(path))))


def test_prose_is_no_list_of_words(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("Carry O\nSolo mio\n")
    assert [row["text"] for row in read_rows(expand_files(str(path)))] == ["Carry O", "Solo mio"]


def read(path: Path, text: str, **settings: Any) -> list[dict[str, Any]]:
    path.write_bytes(text.encode())
    return list(read_rows(expand_files(str(path)), **settings))


EXPECTED = [
    {"tokens": ["Ada", "met", "#", "Bonn"], "tags": ["B-PER", "O", "O", "S-LOC"]},
    {"tokens": ["He", "ran"], "tags": ["O", "O"]},
]
LAYOUTS = {
    "two columns": "Ada B-PER\nmet O\n# O\nBonn S-LOC\n\nHe O\nran O",
    "tabs, CRLF and blanks behind": "Ada\tB-PER \r\nmet\tO\r\n#\tO\r\nBonn\tS-LOC\r\n\r\n"
    "He\tO\r\nran\tO\r\n\r\n\r\n",
    "comments": "# a first one\n# id 7\nAda B-PER\nmet O\n# O\nBonn S-LOC\n\n# id 8\nHe O\nran O\n",
    "comments as wide as words": "# 7 en\nAda _ B-PER\nmet _ O\n# _ O\nBonn _ S-LOC\n\n"
    "# 8 en\nHe _ O\nran _ O\n",
    "the word last": "B-PER Ada\nO met\nO #\nS-LOC Bonn\n\nO He\nO ran\n",
    "the tag second of three": "Ada B-PER N\nmet O V\n# O X\nBonn S-LOC N\n\nHe O P\nran O V\n",
    "numbered words": "#\thttp\n1\tAda\tB-PER\n2\tmet\tO\n3\t#\tO\n4\tBonn\tS-LOC\n\n"
    "#\thttp\n1\tHe\tO\n2\tran\tO\n",
    "-DOCSTART-": "-DOCSTART- -X- O O\n\nAda N I B-PER\nmet V I O\n# X I O\nBonn N I S-LOC\n\n"
    "-DOCSTART- -X- O O\nHe P I O\nran V I O\n",
}


@pytest.mark.parametrize("name", ["a.conll", "a.txt"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_columns_are_found(tmp_path: Path, name: str, layout: str) -> None:
    found = read(tmp_path / name, LAYOUTS[layout])
    assert [{key: row[key] for key in ("tokens", "tags")} for row in found] == EXPECTED


@pytest.mark.parametrize("marks", ["BI", "IE", "BIES", "BILU", "BMES", "BMEW"])
def test_a_character_a_line_in_any_scheme(tmp_path: Path, marks: str) -> None:
    begin, end = marks[0], marks[2] if len(marks) > 2 else marks[1]
    text = f"中 {begin}-LOC\n国 {end}-LOC\n\u3000 O\n人 O\n"
    (row,) = read(tmp_path / "a.txt", text * 3)[:1]
    assert row["tokens"][:4] == ["中", "国", "\u3000", "人"]
    assert row["tags"][:4] == [f"{begin}-LOC", f"{end}-LOC", "O", "O"]


def test_an_empty_word_spoils_its_sentence(tmp_path: Path) -> None:
    text = "Ada\tB-PER\n\nran\tO\n\tO\n\nhe\tO\n"
    with pytest.raises(DataError, match=r"a\.conll line 3: line 4 has an empty word"):
        read(tmp_path / "a.conll", text)
    assert len(read(tmp_path / "a.conll", text, on_bad_row="skip")) == 2


def test_tags_of_words_are_read_by_the_name_of_the_file(tmp_path: Path) -> None:
    text = "the DT\nowl NN\n\nhe PRP\n"
    assert [row["tags"] for row in read(tmp_path / "a.conll", text)] == [["DT", "NN"], ["PRP"]]
    assert "text" in read(tmp_path / "a.txt", text)[0]


UNIVERSAL = """\
# text = Vámonos al mar
1-2\tVámonos\t_\t_\t_\t_\t_\t_\t_\t_
1\tVamos\tir\tVERB\t_\tMood=Imp\t0\troot\t_\t_
2\tnos\tnosotros\tPRON\t_\t_\t1\tobj\t_\t_
# a comment between words
3.1\tal\t_\t_\t_\t_\t_\t_\t_\t_
3\t#\t#\tSYM\t_\t_\t1\tobl\t_\t_

1\tmar\tmar\tNOUN\t_\t_\t0\troot\t_\tSpaceAfter=No
"""


def test_universal_dependencies(tmp_path: Path) -> None:
    path = tmp_path / "es.conllu"
    path.write_text(UNIVERSAL)
    first, second = read_rows(expand_files(str(path)))
    assert first["tokens"] == ["Vamos", "nos", "#"] and first["tags"] == ["VERB", "PRON", "SYM"]
    assert first["lemmas"] == ["ir", "nosotros", "#"] and first["head"] == ["0", "1", "1"]
    assert first["feats"] == ["Mood=Imp", "_", "_"] and second["misc"] == ["SpaceAfter=No"]

    path.write_text(UNIVERSAL.replace("\t_\tSpaceAfter=No", ""))
    with pytest.raises(DataError, match=r"es.conllu line 9: line 9 has 8 columns where most have"):
        list(read_rows(expand_files(str(path))))
