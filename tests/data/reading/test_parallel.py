"""Parallel text: the lines of a file in each language are one row."""

import gzip
import logging
import zipfile
from pathlib import Path

import pytest

from hfstack.data.places import BadRows
from hfstack.data.reading.folders import expand_files
from hfstack.data.reading.parallel import join_parallel, language_of
from hfstack.data.reading.rows import read_rows
from hfstack.data.sources import DataArgs, Source, describe_sources, load_splits
from hfstack.errors import DataError
from hfstack.tasks.seq2seq.data import Pair, read_sources_and_targets

ENGLISH = "A cat.\n\nTwo\u2028dogs, three\x85birds.\nThe end.\n"
GERMAN = "Eine Katze.\r\nLeer.\r\nZwei Hunde, drei Vögel.\r\nEnde."


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("train", "val", "europarl-v7.de-en"):
        (tmp_path / f"{name}.en").write_bytes(ENGLISH.encode())
        (tmp_path / f"{name}.de").write_bytes(GERMAN.encode())
    return tmp_path


def rows_of(path: Path | str, split: str = "train") -> list[dict[str, str]]:
    return list(read_rows(expand_files(str(path), split)))


EXPECTED = [
    {"en": "A cat.", "de": "Eine Katze."},
    {"en": "", "de": "Leer."},
    {"en": "Two\u2028dogs, three\x85birds.", "de": "Zwei Hunde, drei Vögel."},
    {"en": "The end.", "de": "Ende."},
]


def test_files_named_one_by_one_are_rows_of_both(folder: Path) -> None:
    names = [f"{folder}/train.en", f"{folder}/val.en", f"{folder}/train.de", f"{folder}/val.de"]
    args = DataArgs(datasets=names, eval_fraction=0)  # type: ignore[arg-type]
    assert [one.path for one in args.datasets] == [
        f"{folder}/train.{{en,de}}",
        f"{folder}/val.{{en,de}}",
    ]
    splits = load_splits(args)
    assert splits["train"].to_list() == EXPECTED * 2
    # blank lines are kept in step, and counted by the recipe
    with pytest.raises(
        DataError, match="^2 rows .*: train row 2: the source is empty; train row 6"
    ):
        read_sources_and_targets(splits["train"], ("en", "de"), name="train")
    pairs = read_sources_and_targets(
        splits["train"], ("en", "de"), name="train", bad_rows=BadRows("skip")
    )
    assert pairs[:2] == [
        Pair("A cat.", ["Eine Katze."]),
        Pair("Two\u2028dogs, three\x85birds.", ["Zwei Hunde, drei Vögel."]),
    ]
    recorded = [Path(file["path"]).name for file in splits.inputs["train"][0]["files"]]
    assert recorded == ["train.en", "train.de"]


def test_a_changed_translation_is_read_again(folder: Path) -> None:
    source = Source(f"{folder}/train.{{en,de}}")
    before = load_splits(DataArgs([source], eval_fraction=0))["train"]["de"][0]
    (folder / "train.de").write_text(GERMAN.replace("Eine", "Die"))
    after = load_splits(DataArgs([source], eval_fraction=0))["train"]["de"][0]
    assert (before, after) == ("Eine Katze.", "Die Katze.")
    assert len(describe_sources([source])[0]["files"]) == 2


def test_a_glob_and_a_folder_by_split(folder: Path) -> None:
    swapped = [{"de": row["de"], "en": row["en"]} for row in EXPECTED]
    assert rows_of(f"{folder}/europarl-v7.de-en.*") == swapped
    assert rows_of(folder) == swapped  # train.de and train.en alone
    assert rows_of(folder, "validation") == swapped
    with pytest.raises(DataError, match=r"no such file, of the parallel text .*train\.\{en,fr\}"):
        rows_of(f"{folder}/train.{{en,fr}}")


@pytest.mark.parametrize("kind", ["source target", "src tgt", "zh_CN eng_Latn", "foo bar"])
def test_other_names_of_the_sides_and_compressed_files(tmp_path: Path, kind: str) -> None:
    paths = []
    for side, text in zip(kind.split(), (ENGLISH, GERMAN), strict=True):
        path = tmp_path / f"val.{side}.gz"
        path.write_bytes(gzip.compress(text.encode()))
        paths.append(str(path))

    ((_, joined),) = join_parallel(paths)
    assert list(rows_of(joined)[0]) == kind.split()
    if kind == "foo bar":
        with pytest.raises(DataError, match="holds no data file"):
            rows_of(tmp_path)
    else:
        assert rows_of(tmp_path)[3][kind.split()[0]] == "The end."


def test_members_of_an_archive(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("data/train.en", ENGLISH)
        archive.writestr("data/train.de", GERMAN)
        archive.writestr("data/test.en", "x")
        archive.writestr("data/test.de", "y")
    assert [row["en"] for row in rows_of(tmp_path / "a.zip")] == [row["en"] for row in EXPECTED]
    assert rows_of(tmp_path / "a.zip", "test") == [{"de": "y", "en": "x"}]


def test_other_numbers_of_lines_are_refused_before_the_first_row(folder: Path) -> None:
    (folder / "train.de").write_text(GERMAN + "\nNoch eine.\n")
    stream = read_rows(expand_files(f"{folder}/train.{{en,de}}"), max_rows=1)
    with pytest.raises(DataError, match=r"train\.en has 4, .*train\.de has 5 lines"):
        next(stream)


def test_a_line_that_is_no_utf_8_is_named_by_its_file(folder: Path) -> None:
    (folder / "train.de").write_bytes(GERMAN.encode("latin-1"))
    with pytest.raises(
        DataError, match=r"train\.en and train\.de line 3: train\.de: invalid UTF-8 at byte 3\d"
    ):
        rows_of(f"{folder}/train.{{en,de}}")
    files = expand_files(f"{folder}/train.{{en,de}}")
    kept = list(read_rows(files, on_bad_row="skip"))
    assert kept == [EXPECTED[0], EXPECTED[1], EXPECTED[3]]


def test_one_language_alone_is_lines_to_translate(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="hfstack"):
        assert rows_of(folder / "val.en") == [{"en": row["en"]} for row in EXPECTED]
    assert "val.en is read alone; for parallel text name val.de as well" in caplog.text


def test_names_that_end_in_no_language(tmp_path: Path) -> None:
    for name in ("a.py", "b.md", "imdb.vocab", "labeledBow.feat", "README", "model.safetensors"):
        assert language_of(name) is None
    paths = ["user/set", "a.jsonl", "b.jsonl", "no/train.en", "no/train.de"]
    assert join_parallel(paths) == list(enumerate(paths))
    (tmp_path / "x.en").touch()
    twice = [f"{tmp_path}/x.en"] * 2
    assert join_parallel(twice) == list(enumerate(twice))
