"""Finding the files of a folder, an archive or a glob, by split and by class."""

import zipfile
from pathlib import Path

import pytest
from datasets import Dataset

from hfstack.data.reading.folders import expand_files
from hfstack.data.reading.rows import read_rows
from hfstack.errors import DataError


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")


def test_missing_file_is_one_line_with_the_closest_name(tmp_path: Path) -> None:
    touch(tmp_path, "stories.jsonl")
    with pytest.raises(
        DataError, match=r"storeis\.jsonl: no such file; did you mean .*stories\.jsonl\?"
    ) as caught:
        expand_files(str(tmp_path / "storeis.jsonl"))
    assert "\n" not in str(caught.value)


def test_glob_is_sorted_and_must_match(tmp_path: Path) -> None:
    touch(tmp_path, "b.jsonl", "a.jsonl", "deep/c.jsonl")
    assert [file.path.name for file in expand_files(f"{tmp_path}/*.jsonl")] == [
        "a.jsonl",
        "b.jsonl",
    ]
    assert [file.path.name for file in expand_files(f"{tmp_path}/**/*.jsonl")] == [
        "a.jsonl",
        "b.jsonl",
        "c.jsonl",
    ]
    with pytest.raises(DataError, match="no file matches this pattern"):
        expand_files(f"{tmp_path}/*.csv")


def test_folder_is_read_with_its_subfolders_without_hidden_files(tmp_path: Path) -> None:
    touch(tmp_path, "b/part.jsonl", "a.jsonl", ".cache/x.jsonl", "notes.md")
    assert [file.path.name for file in expand_files(str(tmp_path))] == ["a.jsonl", "part.jsonl"]


def test_folder_with_split_names_never_mixes_test_into_train(tmp_path: Path) -> None:
    touch(tmp_path, "train.jsonl", "test.jsonl", "dev-0001.jsonl", "run.json")
    assert [file.path.name for file in expand_files(str(tmp_path))] == ["train.jsonl"]
    assert [file.path.name for file in expand_files(str(tmp_path), "test")] == ["test.jsonl"]
    assert [file.path.name for file in expand_files(str(tmp_path), "validation")] == [
        "dev-0001.jsonl"
    ]
    (tmp_path / "train.jsonl").unlink()
    with pytest.raises(
        DataError,
        match=r"no file for the split 'train'; the names give test, validation; name the files",
    ):
        expand_files(str(tmp_path))


@pytest.mark.parametrize(
    "other",
    ["testset", "test2014", "Test data", "tst", "devset", "holdout", "evaluation", "x_heldout"],
)
def test_other_spellings_of_splits_are_not_trained_on(other: str, tmp_path: Path) -> None:
    touch(tmp_path, "trainset.jsonl", f"{other}.jsonl")
    assert [file.path.name for file in expand_files(str(tmp_path))] == ["trainset.jsonl"]


def test_folder_of_one_split_is_taken_as_it_is(tmp_path: Path) -> None:
    touch(tmp_path, "test-1.jsonl", "test-2.jsonl")
    assert len(expand_files(str(tmp_path))) == 2
    with pytest.raises(DataError, match="no file for the split 'validation'"):
        expand_files(str(tmp_path), "validation")


def test_folder_of_two_formats_or_of_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no data file"):
        expand_files(str(tmp_path))
    touch(tmp_path, "a.jsonl", "README.txt")
    with pytest.raises(
        DataError, match=r"mixes jsonl and txt files; choose by a glob, e\.g\. '.*\*\.jsonl'"
    ):
        expand_files(str(tmp_path))


def write(folder: Path, **texts: str) -> Path:
    for name, text in texts.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def reviews(folder: Path) -> Path:
    """Films as aclImdb has them: classes in splits, addresses and unlabelled texts beside."""
    texts = {
        f"{split}/{label}/{number}_{label}.txt": f"{split} {label} {number}\n\nend\n"
        for split in ("train", "test")
        for label in ("pos", "neg")
        for number in range(3)
    }
    texts |= {"train/unsup/0_0.txt": "train only", "train/urls_pos.txt": "http", "README": "hello"}
    return write(folder, **texts)


def test_folders_of_splits_and_classes(tmp_path: Path) -> None:
    folder = reviews(tmp_path / "aclImdb")
    rows = list(read_rows(expand_files(str(folder))))
    assert {row["text"].split()[0] for row in rows} == {"train"}
    assert [row["label"] for row in rows] == ["neg"] * 3 + ["pos"] * 3 + [None]
    assert rows[0]["text"] == "train neg 0\n\nend"

    held_out = list(read_rows(expand_files(str(folder), "test")))
    assert {row["text"].split()[0] for row in held_out} == {"test"} and len(held_out) == 6
    assert list(read_rows(expand_files(str(folder), "unsup"))) == [{"text": "train only"}]
    # the folder of one split, named itself
    assert list(read_rows(expand_files(str(folder / "train")))) == rows


def test_splits_are_named_by_folders_of_any_format(tmp_path: Path) -> None:
    touch(tmp_path, "en/training/test-a.jsonl", "en/testing/b.jsonl", "en/dev/c.jsonl")
    for split, name in [("train", "test-a"), ("test", "b"), ("validation", "c"), ("dev", "c")]:
        assert [file.path.stem for file in expand_files(str(tmp_path), split)] == [name]


def test_a_split_that_no_name_carries_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "a.jsonl", "b.jsonl")
    with pytest.raises(DataError, match="no file for the split 'test'; the names give train"):
        expand_files(str(tmp_path), "test")


def test_a_folder_of_texts_is_a_document_a_file(tmp_path: Path) -> None:
    write(tmp_path, **{"a.txt": "  one\n\ntwo \nthree\n", "b/c.txt": "four\nfive"})
    assert list(read_rows(expand_files(str(tmp_path)))) == [
        {"text": "  one\n\ntwo \nthree"},
        {"text": "four\nfive"},
    ]
    lines = list(read_rows(expand_files(str(tmp_path), document="line")))
    assert [row["text"] for row in lines] == ["  one", "two", "three", "four", "five"]


def test_parts_of_a_corpus_are_no_documents(tmp_path: Path) -> None:
    write(tmp_path / "a", **{"train-1.txt": "one\ntwo\n", "train-2.txt": "three\n"})
    write(tmp_path / "b", **{"1.txt": "one\n<|endoftext|>\ntwo\n", "2.txt": "three\n"})
    for folder in ("a", "b"):
        rows = read_rows(expand_files(str(tmp_path / folder)))
        assert [row["text"] for row in rows] == ["one", "two", "three"]

    one = str(tmp_path / "a" / "train-1.txt")
    assert list(read_rows(expand_files(one, document="file"))) == [{"text": "one\ntwo"}]


def test_an_archive_is_read_as_its_folder_is(tmp_path: Path) -> None:
    folder = reviews(tmp_path / "aclImdb")
    packed = tmp_path / "packed.zip"
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, file.relative_to(tmp_path))
        archive.writestr("__MACOSX/aclImdb/train/pos/._0_pos.txt", "resource fork")
        archive.writestr("../outside.txt", "never written")

    for split in ("train", "test"):
        plain, unpacked = expand_files(str(folder), split), expand_files(str(packed), split)
        assert list(read_rows(plain)) == list(read_rows(unpacked))
    assert str(expand_files(str(packed))[0]).endswith("packed.zip/aclImdb/train/neg/0_neg.txt")
    assert not (tmp_path.parent / "outside.txt").exists()


def test_parquet_in_an_archive(tmp_path: Path) -> None:
    Dataset.from_dict({"text": ["a", "b"]}).to_parquet(str(tmp_path / "d.parquet"))
    with zipfile.ZipFile(tmp_path / "d.zip", "w") as archive:
        archive.write(tmp_path / "d.parquet", "d.parquet")
    assert list(read_rows(expand_files(str(tmp_path / "d.zip")))) == [{"text": "a"}, {"text": "b"}]


def test_an_archive_of_one_table(tmp_path: Path) -> None:
    packed = tmp_path / "train.csv.zip"
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("train.csv", "text,label\n" + "a,1\n" * 3 + "b\n")
    assert (
        list(read_rows(expand_files(str(packed)), on_bad_row="skip"))
        == [{"text": "a", "label": 1}] * 3
    )
    with pytest.raises(DataError, match=r"train\.csv\.zip/train\.csv line 5: 1 cells where"):
        list(read_rows(expand_files(str(packed))))


def test_archives_without_data_or_damaged_are_refused(tmp_path: Path) -> None:
    packed = tmp_path / "a.zip"
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("README", "no data")
    with pytest.raises(DataError, match=r"a\.zip: this archive holds no data file"):
        expand_files(str(packed))
    packed.write_bytes(packed.read_bytes()[:-30])
    with pytest.raises(DataError, match=r"a\.zip: this is no complete zip archive"):
        expand_files(str(packed))
