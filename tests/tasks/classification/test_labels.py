"""What a label column means, and what is refused with its row."""

import pytest
from datasets import ClassLabel, Dataset, Features, Value

from hfstack.errors import ConfigError, DataError
from hfstack.tasks.classification.glue import TASKS, glue_task
from hfstack.tasks.classification.labels import LabelSet, class_weights, find_labels, label_targets


def rows(values: list, **columns: list) -> Dataset:
    return Dataset.from_dict({"label": values, **columns})


def test_names_numbers_and_declared_classes():
    assert find_labels(rows(["pos", "neg", "pos"]), "label").names == ("neg", "pos")
    stars = find_labels(rows([5, 1, 3]), "label")
    assert (stars.kind, stars.names, stars.values) == ("single_label", ("1", "3", "5"), (1, 3, 5))
    assert label_targets(rows([3, 5]), "label", stars) == [1, 2]
    named = find_labels(rows([1, 0], name=["yes", "no"]), "label", name_column="name")
    assert named.id2label == {0: "no", 1: "yes"}
    assert label_targets(rows(["yes", "no"]), "label", named) == [1, 0], (
        "names are taken for numbers"
    )
    features = Features({"label": ClassLabel(names=["a", "b", "c"])})
    declared = find_labels(Dataset.from_dict({"label": [0, 1]}, features=features), "label")
    assert declared.names == ("a", "b", "c") and declared.count == 3
    assert find_labels(rows([True, False]), "label").names == ("False", "True")


def test_given_names_keep_their_order():
    labels = find_labels(rows(["b", "a"]), "label", given=["c", "b", "a"])
    assert label_targets(rows(["a", "c"]), "label", labels) == [2, 0]
    numbered = find_labels(rows([0, 1]), "label", given=["no", "yes"])
    assert label_targets(rows([1, 0]), "label", numbered) == [1, 0]


def test_several_labels_and_numbers():
    labels = find_labels(rows([["x", "y"], [], ["x"]]), "label")
    assert (labels.kind, labels.names, labels.problem_type) == (
        "multi_label",
        ("x", "y"),
        "multi_label_classification",
    )
    assert label_targets(rows([["y"], []]), "label", labels) == [[0.0, 1.0], [0.0, 0.0]]
    scores = find_labels(rows([0.5, 2.0]), "label")
    assert (scores.kind, scores.count, scores.id2label) == ("regression", 1, {0: "score"})
    assert find_labels(rows([1, 2, 2]), "label", kind="regression").problem_type == "regression"
    assert label_targets(rows([1, 2]), "label", scores) == [1.0, 2.0]


def test_class_weights_make_the_mean_row_weigh_one():
    labels = LabelSet("single_label", ("a", "b"), ("a", "b"))
    weights = class_weights([0, 0, 0, 1], labels)
    assert weights == pytest.approx([4 / 6, 2.0])
    assert (3 * weights[0] + weights[1]) / 4 == pytest.approx(1)
    several = LabelSet("multi_label", ("x", "y"), ("x", "y"))
    assert class_weights(
        [[1.0, 0.0], [1.0, 1.0], [0.0, 1.0], [0.0, 1.0]], several
    ) == pytest.approx([1.0, 1 / 3])
    with pytest.raises(DataError, match="no train row has the label b"):
        class_weights([0, 0], labels)
    with pytest.raises(ConfigError, match="the labels are numbers"):
        class_weights([0.5], LabelSet("regression"))


def test_labels_that_are_refused():
    with pytest.raises(DataError, match=r"has 1 class only \('a'\)"):
        find_labels(rows(["a", "a"]), "label")
    with pytest.raises(DataError, match=r"row 2 has no label"):
        find_labels(rows(["a", None, "b"]), "label")
    with pytest.raises(DataError, match=r"1001 different labels in 1001 rows"):
        find_labels(rows(list(range(1001))), "label")
    with pytest.raises(
        ConfigError, match=r"holds a number, which cannot be labels of kind 'single_label'"
    ):
        find_labels(rows([0.5, 1.0]), "label", kind="single_label")
    with pytest.raises(DataError, match=r"label 1 has two names in 'name': 'x' and 'y'"):
        find_labels(rows([1, 1, 0], name=["x", "y", "z"]), "label", name_column="name")
    with pytest.raises(ConfigError, match=r"--label_name_column 'names': found label"):
        find_labels(rows(["a", "b"]), "label", name_column="names")
    known = find_labels(rows([0, 1]), "label")
    with pytest.raises(
        DataError, match=r"eval row 2: label is -1, which is none of the 2 labels 0, 1; unlabelled"
    ):
        label_targets(rows([0, -1]), "label", known, name="eval")


def test_mixed_types_name_both_rows():
    class Mixed:
        features = {"label": Value("string")}  # noqa: RUF012

        def __getitem__(self, column: str) -> list:
            return ["a", "b", 3]

    with pytest.raises(
        DataError, match=r"mixes types: text in row 1 \('a'\), a whole number in row 3 \(3\)"
    ):
        find_labels(Mixed(), "label")  # pyright: ignore[reportArgumentType]


def test_glue_as_the_benchmark_has_it():
    assert set(TASKS) == {"sst2", "cola", "mrpc", "rte", "stsb", "qqp", "mnli", "qnli"}
    assert glue_task("cola").metrics == ("matthews",)
    assert glue_task("stsb").metrics == ("pearson", "spearman") and glue_task("stsb").labels == ()
    assert glue_task("mnli").eval_splits == ("validation_matched", "validation_mismatched")
    assert glue_task("qqp").columns == ("question1", "question2") and glue_task("qqp").metrics == (
        "accuracy",
        "f1",
    )
    with pytest.raises(ConfigError, match=r"--task 'wnli': choose one of sst2"):
        glue_task("wnli")
