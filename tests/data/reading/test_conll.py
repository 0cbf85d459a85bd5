"""Sentences of words with tags, one a line."""

from pathlib import Path

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
    with pytest.raises(DataError, match=r"a\.conll line 4: line 4 has 2 columns where the first"):
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
