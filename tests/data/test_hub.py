"""Datasets that the datasets library keeps: folders of save_to_disk, published layouts."""

from pathlib import Path

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from hfstack.data.hub import in_standard_columns
from hfstack.data.sources import DataArgs, Source, describe_sources, iterate_rows, load_splits
from hfstack.errors import DataError

FEATURES = Features({"text": Value("string"), "label": ClassLabel(names=["bad", "good"])})


def rows(name: str, count: int) -> Dataset:
    values = {"text": [f"{name} {number}" for number in range(count)], "label": [0, 1] * count}
    values["label"] = values["label"][:count]
    return Dataset.from_dict(values, features=FEATURES)


def test_a_saved_dataset_keeps_the_names_of_its_classes(tmp_path: Path) -> None:
    rows("row", 10).save_to_disk(str(tmp_path / "one"))
    source = Source(str(tmp_path / "one"))
    splits = load_splits(DataArgs(datasets=[source], eval_fraction=0.2))
    assert len(splits["train"]) == 8 and splits["train"].features == FEATURES
    assert [Path(one["path"]).suffix for one in splits.inputs["train"][0]["files"]] == [".arrow"]
    assert [row["text"] for row in iterate_rows([source])] == [f"row {n}" for n in range(10)]
    assert describe_sources([source])[0]["files"] == splits.inputs["train"][0]["files"]


def test_a_saved_dictionary_is_read_by_split(tmp_path: Path) -> None:
    path = str(tmp_path / "both")
    DatasetDict({"train": rows("train", 6), "dev": rows("dev", 2)}).save_to_disk(path)
    source, held_out = Source(path), Source(path, split="validation")
    splits = load_splits(DataArgs(datasets=[source], eval_datasets=[held_out]))
    assert [row["text"] for row in splits["eval"]] == ["dev 0", "dev 1"]
    assert len(splits["train"]) == 6
    with pytest.raises(DataError, match=r"no split 'test', found dev, train; choose one in YAML"):
        load_splits(DataArgs(datasets=[Source(path, split="test")], eval_fraction=0))


def test_a_damaged_saved_dataset_is_named(tmp_path: Path) -> None:
    rows("row", 3).save_to_disk(str(tmp_path / "one"))
    (tmp_path / "one" / "dataset_info.json").unlink()
    with pytest.raises(DataError, match="one: written by save_to_disk, and cannot be read"):
        load_splits(DataArgs(datasets=[Source(str(tmp_path / "one"))], eval_fraction=0))


def test_a_published_dataset_is_converted_as_a_file_of_it_is() -> None:
    shp = {"history": ["why?"] * 2, "human_ref_A": ["a"] * 2, "human_ref_B": ["b"] * 2}
    published = Dataset.from_dict(shp | {"labels": [1, 0]})
    found = in_standard_columns(published, "user/shp", "preferences")
    assert found["chosen"][:] == ["a", "b"] and found["rejected"][:] == ["b", "a"]
    assert in_standard_columns(published, "user/shp", "rows") is published
    with pytest.raises(DataError, match="user/shp row 2: column 'labels' must be 1"):
        wrong = Dataset.from_dict(shp | {"labels": [1, 7]})
        in_standard_columns(wrong, "user/shp", "preferences")
