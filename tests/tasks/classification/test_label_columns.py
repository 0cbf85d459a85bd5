"""Label columns as people write them: each is read right, or refused with all of its rows."""

import datasets.config
import pytest
from datasets import Dataset

from hfstack.data.sources import DataArgs, Source
from hfstack.errors import ConfigError, DataError
from hfstack.row_counts import RowCounts
from hfstack.tasks.classification.data import LabelArgs, load_labelled
from hfstack.tasks.classification.label_columns import (
    keep_rare_classes,
    read_label_columns,
    several_zero_one,
)
from hfstack.tasks.classification.labels import find_labels, label_targets, log_classes


def read(values: list, held_out: list | None = None, kind: str | None = None, given=()) -> list:
    """Return the labels of the train rows as they are read."""
    splits = {"train": Dataset.from_dict({"label": values})}
    if held_out is not None:
        splits["eval"] = Dataset.from_dict({"label": held_out})
    found, column, _ = read_label_columns(splits, ["label"], kind=kind, given=given)
    return found["train"][column][:]


def test_multi_hot_lists_are_read_as_the_labels_that_are_given():
    names = ["rain", "snow", "wind"]
    hot = [[0, 1, 1], [0, 0, 0], [1, 0, 0]]
    wanted = [["snow", "wind"], [], ["rain"]]
    assert read(hot, given=names) == wanted
    assert read([[float(v) for v in row] for row in hot], given=names) == wanted
    assert read([[bool(v) for v in row] for row in hot], given=names) == wanted
    assert read([str(row) for row in hot], given=names) == wanted  # from a CSV
    assert read([[0, 1], [1, 0]], given=["no", "yes"]) == [["yes"], ["no"]]

    with pytest.raises(ConfigError, match=r"multi-hot lists of 3 zeros and ones: .* --labels"):
        read(hot)
    with pytest.raises(DataError, match=r"3 rows cannot be used, .*has 3 zeros and ones, not 2"):
        read(hot, given=names[:2])

    # of ids no list names one twice: these are the classes 0 and 1
    assert read([[0, 1], [1], []], given=["a", "b"]) == [[0, 1], [1], []]
    assert read([[0], [1]]) == [[0], [1]]
    assert read([[0, 2], [1, 2]]) == [[0, 2], [1, 2]]


def test_several_columns_of_zero_and_one():
    rows = Dataset.from_dict(
        {
            "text": ["a", "b", "c"],
            "rude": [0, 1, 0],
            "spam": ["1", "true", "False"],
            "labels": [7, 8, 9],
        }
    )
    splits = {"train": rows}
    assert several_zero_one(rows) == ["rude", "spam"]
    found, column, names = read_label_columns(splits, ["rude", "spam"], kind=None, given=[])
    assert (found["train"][column][:], names) == (
        [["spam"], ["rude", "spam"], []],
        ["rude", "spam"],
    )
    labels = find_labels(found["train"], column, given=names)
    assert label_targets(found["train"], column, labels) == [[0.0, 1.0], [1.0, 1.0], [0.0, 0.0]]
    _, _, names = read_label_columns(splits, ["rude", "spam"], kind=None, given=["A", "B"])
    assert names == ["A", "B"]

    with pytest.raises(DataError, match=r"3 rows cannot be used, first: train row 1: labels is 7"):
        read_label_columns(splits, ["rude", "labels"], kind=None, given=[])
    with pytest.raises(ConfigError, match=r"several labels a row, not --kind single_label"):
        read_label_columns(splits, ["rude", "spam"], kind="single_label", given=[])
    with pytest.raises(ConfigError, match=r"2 label columns, but 1 --labels"):
        read_label_columns(splits, ["rude", "spam"], kind=None, given=["A"])
    assert LabelArgs(label_column="one").label_column == ["one"]  # pyright: ignore


@pytest.mark.parametrize(
    ("texts", "wanted"),
    [
        (["['joy', 'fear']", "[]", "['joy']"], [["joy", "fear"], [], ["joy"]]),
        (['["a, b"]', '["c"]'], [["a, b"], ["c"]]),
        (["['joy' 'fear']", "['joy']"], [["joy", "fear"], ["joy"]]),  # numpy, without commas
        (["[2 27]", "[3]"], [[2, 27], [3]]),
        (["[ 2, 27 ]", "[3]"], [[2, 27], [3]]),
        (["{'joy', 'fear'}", "{'joy'}"], [["fear", "joy"], ["joy"]]),  # a set
        (["('joy', 'fear')", "('joy',)", "()"], [["joy", "fear"], ["joy"], []]),
        (["(a)", "{b}"], ["(a)", "{b}"]),
        (["[urgent]", "[later]"], ["[urgent]", "[later]"]),  # names that look a little like it
    ],
)
def test_lists_written_as_text(texts: list[str], wanted: list):
    assert read(texts) == wanted


def test_texts_that_may_be_lists_are_never_guessed_at():
    with pytest.raises(DataError, match=r"2 rows cannot be used.*train row 2: label is not a list"):
        read(["['joy']", "fear", "['fear']", "['joy'"])
    with pytest.raises(DataError, match=r"'2,27': for lists of labels set --kind multi_label"):
        read(["2,27", "3"])
    assert read(["2,27", "3"], kind="multi_label") == [["2", "27"], ["3"]]
    assert read(["joy| fear", "joy"], kind="multi_label") == [["joy", "fear"], ["joy"]]


@pytest.mark.parametrize("joined", ["joy|fear", "joy; fear", "fear, joy"])
def test_a_class_is_not_several_others_in_one_cell(joined: str):
    labels = ["joy", joined, "fear"]
    with pytest.raises(
        DataError, match=r"its parts are labels of other rows: .*--kind multi_label"
    ):
        read(labels)
    assert set(read(labels, kind="multi_label")[1]) == {"joy", "fear"}
    assert read(labels, kind="single_label") == read(labels, given=labels) == labels
    assert read([joined, "joy"]) == [joined, "joy"]  # a name with a comma in it


def test_whole_decimals_are_classes_and_others_numbers(caplog):
    classes = read([1.0, 0.0, 2.0])
    assert classes == [1, 0, 2] and all(type(value) is int for value in classes)
    assert (
        "holds whole decimals: 3 classes; to predict numbers set --kind regression" in caplog.text
    )
    assert read([1.0, 0.5]) == [1.0, 0.5]
    assert read([1.0, 2.0], kind="regression") == [1.0, 2.0]
    assert read([1.0, 2.0], [0.5]) == [1.0, 2.0]  # held-out rows are of the same column
    many = [float(value) for value in range(30)]
    assert read(many) == many and "30 different whole decimals: numbers" in caplog.text
    assert read(many, kind="single_label") == list(range(30))


def test_blanks_around_names_and_empty_cells(caplog):
    assert read(["shipping ", "shipping", " billing"]) == ["shipping", "shipping", "billing"]
    assert "blanks around labels are taken away: ' billing', 'shipping '" in caplog.text
    with pytest.raises(DataError) as error:
        read(["a", "", None, " ", "b"], ["a", None])
    assert str(error.value) == (
        "4 rows cannot be used, first: train row 2: no label in column 'label'; train row 3: no "
        "label in column 'label'; train row 4: no label in column 'label'; eval row 2: no label in "
        "column 'label'; remove such rows or label them"
    )
    with pytest.raises(DataError, match=r"^train row 2: no label"):
        read([1.0, float("nan"), 0.0])


def test_unknown_labels_are_counted_and_the_first_five_shown():
    labels = find_labels(Dataset.from_dict({"label": ["a", "b"]}), "label")
    rows = Dataset.from_dict({"label": ["a", *"uvwxyz"]})
    with pytest.raises(DataError, match=r"^6 rows cannot be used, first: eval row 2: .*; \.\.\.$"):
        label_targets(rows, "label", labels, name="eval")


def test_a_class_that_was_held_out_whole_goes_back_to_train(caplog):
    splits = {
        "train": Dataset.from_dict({"text": ["1", "2"], "label": ["a", "b"]}),
        "eval": Dataset.from_dict({"text": ["3", "4", "4"], "label": ["a", "rare", "b"]}),
    }
    found = keep_rare_classes(splits, "label", "text")
    assert found["train"]["label"][:] == ["a", "b", "rare", "b"]  # rows of one text stay together
    assert found["eval"]["label"][:] == ["a"]
    assert "2 rows go back from eval to train" in caplog.text and "(rare)" in caplog.text
    assert keep_rare_classes(found, "label", "text") is found
    alone = splits | {"eval": splits["eval"].select([1])}
    with pytest.raises(DataError, match=r"every held-out row is the only one of its class"):
        keep_rare_classes(alone, "label", "text")


def test_one_text_with_several_labels_is_counted(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    path, counts = tmp_path / "a.csv", RowCounts()
    path.write_text("text,label\nfine,x\nwell,y\n fine,y\nfine,x\nwell,y\n", encoding="utf-8")
    load_labelled(DataArgs([Source(str(path))], eval_fraction=0), LabelArgs(), row_counts=counts)
    assert (
        "train: 1 texts in 3 rows have different labels; first 'fine': "
        f"'x' in {path} line 2, 'y' in {path} line 4"
    ) in caplog.text
    assert counts.lines()[0] == (
        "train: 5 rows read, 5 used; 3 have a text that has another label elsewhere"
    )


def test_one_line_says_what_the_classes_are(caplog):
    caplog.set_level("INFO", logger="hfstack")
    rows = Dataset.from_dict({"label": ["billing", "Ads", "billing", "ads"]})
    log_classes(rows, "label", find_labels(rows, "label"))
    assert "3 classes: Ads 1, ads 1, billing 2" in caplog.text
    assert "classes that differ in case alone: Ads, ads" in caplog.text
    alike = [["1", "1.0"], ["caf\u00e9", "cafe\u0301"], ["at  once", "at once"]]
    for names in (*alike, ["x", "x\u200b"], ["Q&A", "Q&amp;A"]):
        rows = Dataset.from_dict({"label": names})
        log_classes(rows, "label", find_labels(rows, "label"))
        assert (
            f"that differ in how they are written alone: {', '.join(sorted(names))}" in caplog.text
        )
    rows = Dataset.from_dict({"label": [["x", "y"], [], ["x"]]})
    log_classes(rows, "label", find_labels(rows, "label"))
    assert "2 labels: x 2, y 1, none 1" in caplog.text
    rows = Dataset.from_dict({"label": [0.5, 2.0]})
    log_classes(rows, "label", find_labels(rows, "label"))
    assert "numbers to predict: 0.5 to 2 in 2 rows" in caplog.text
