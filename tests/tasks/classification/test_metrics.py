"""Scores, calibration and intervals: equal to scikit-learn's and SciPy's, by hand, and pictures
that parse.
"""

import xml.etree.ElementTree as ElementTree

import numpy
import pytest
from scipy import stats
from sklearn import metrics as sklearn

from hfstack.errors import DataError
from hfstack.intervals import at_least_wilson, bootstrap_intervals, share_interval
from hfstack.tasks.classification.calibration import (
    calibration_error,
    confidences,
    cross_fitted_temperatures,
    fit_temperature,
    log_loss,
    probabilities,
    reliability_bins,
)
from hfstack.tasks.classification.metrics import (
    NUMBER,
    SEVERAL,
    SINGLE,
    confusion_counts,
    measure,
    per_class_table,
    scores,
    worst_mistakes,
)
from hfstack.tasks.classification.model import ClassifierInfo
from hfstack.tasks.classification.pictures import confusion_picture, reliability_picture
from hfstack.tasks.classification.report import calibrate


def drawn(classes: int, rows: int = 300, seed: int = 0) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Logits (N, C) that know something, and targets (N)."""
    generator = numpy.random.default_rng(seed)
    targets = generator.integers(0, classes, rows)
    logits = generator.normal(size=(rows, classes))
    logits[numpy.arange(rows), targets] += 1
    return logits, targets


@pytest.mark.parametrize("classes", [2, 4])
def test_scores_are_scikit_learns(classes: int):
    logits, targets = drawn(classes)
    said = logits.argmax(1)
    expected = {
        "accuracy": sklearn.accuracy_score(targets, said),
        "f1_macro": sklearn.f1_score(targets, said, average="macro"),
        "f1_micro": sklearn.f1_score(targets, said, average="micro"),
        "matthews": sklearn.matthews_corrcoef(targets, said),
    } | ({"f1": sklearn.f1_score(targets, said)} if classes == 2 else {})
    assert scores(said, targets, SINGLE, classes) == pytest.approx(expected, abs=1e-9)
    assert (
        confusion_counts(said, targets, classes) == sklearn.confusion_matrix(targets, said)
    ).all()
    columns, rows = per_class_table(said, targets, SINGLE, [str(index) for index in range(classes)])
    by_class = sklearn.precision_recall_fscore_support(targets, said)
    assert columns == ["label", "precision", "recall", "f1", "rows", "predicted"]
    for index, row in enumerate(rows):
        assert row[1:5] == pytest.approx([float(part[index]) for part in by_class], abs=1e-9)


def test_one_sided_predictions_have_no_correlation():
    assert scores(numpy.zeros(4), numpy.array([0, 1, 0, 1]), SINGLE, 2)["matthews"] == 0


def test_several_labels_as_scikit_learn_scores_them():
    generator = numpy.random.default_rng(1)
    targets, said = generator.integers(0, 2, (80, 5)), generator.integers(0, 2, (80, 5))
    found = scores(said, targets, SEVERAL, 5)
    assert found == pytest.approx(
        {
            "accuracy": sklearn.accuracy_score(targets, said),
            "label_accuracy": 1 - sklearn.hamming_loss(targets, said),
            "f1_macro": sklearn.f1_score(targets, said, average="macro"),
            "f1_micro": sklearn.f1_score(targets, said, average="micro"),
        },
        abs=1e-9,
    )


def test_a_label_that_no_row_has_lowers_no_mean():
    targets = numpy.array([[1, 0, 0], [0, 1, 0]])
    assert scores(targets, targets, SEVERAL, 3)["f1_macro"] == 1
    assert scores(numpy.zeros((2, 3)), numpy.zeros((2, 3)), SEVERAL, 3)["f1_macro"] == 0
    assert scores(numpy.array([0, 1]), numpy.array([0, 1]), SINGLE, 3)["f1_macro"] == 1


def test_numbers_as_scipy_scores_them():
    generator = numpy.random.default_rng(2)
    targets = generator.normal(size=50).round(1)  # with ties
    said = targets + generator.normal(size=50)
    assert scores(said, targets, NUMBER, 1) == pytest.approx(
        {
            "pearson": stats.pearsonr(said, targets).statistic,
            "spearman": stats.spearmanr(said, targets).statistic,
            "mean_squared_error": sklearn.mean_squared_error(targets, said),
            "mean_absolute_error": sklearn.mean_absolute_error(targets, said),
        },
        abs=1e-9,
    )


def test_log_loss_is_scikit_learns():
    logits, targets = drawn(3)
    expected = sklearn.log_loss(targets, probabilities(logits, SINGLE))
    assert log_loss(logits, targets, SINGLE) == pytest.approx(expected, abs=1e-9)
    yes = (numpy.random.default_rng(0).random(logits.shape) < 0.5).astype(float)
    expected = numpy.mean(
        [sklearn.log_loss(yes[:, i], probabilities(logits, SEVERAL)[:, i]) for i in range(3)]
    )
    assert log_loss(logits, yes, SEVERAL) == pytest.approx(expected, abs=1e-9)


def test_calibration_error_by_hand():
    confidence, right = numpy.array([0.95, 0.95, 0.95, 0.55]), numpy.array([1.0, 1.0, 0.0, 1.0])
    bins = reliability_bins(confidence, right, bins=10)
    assert bins == [[pytest.approx(0.55), 1.0, 1], [pytest.approx(0.95), pytest.approx(2 / 3), 3]]
    assert calibration_error(bins) == pytest.approx((0.45 + 3 * (0.95 - 2 / 3)) / 4)
    with pytest.raises(DataError, match="no rows"):
        calibration_error([])


def test_a_temperature_undoes_what_made_a_model_too_sure():
    generator = numpy.random.default_rng(3)
    honest = generator.normal(size=(4000, 3)) * 1.5
    chance = probabilities(honest, SINGLE)
    targets = numpy.array([generator.choice(3, p=row) for row in chance])
    sure = 3 * honest
    assert fit_temperature(sure, targets, SINGLE) == pytest.approx(3, rel=0.08)
    before, after = (
        calibration_error(
            reliability_bins(*confidences(probabilities(sure, SINGLE, heat), targets, SINGLE))
        )
        for heat in (1.0, cross_fitted_temperatures(sure, targets, SINGLE))
    )
    assert before > 0.15 and after < 0.03
    with pytest.raises(DataError, match="no rows to fit"):
        fit_temperature(sure[:0], targets[:0], SINGLE)


def test_a_temperature_is_refused_where_it_would_only_sharpen():
    generator = numpy.random.default_rng(0)
    targets = generator.integers(0, 2, 119)
    logits = numpy.where(targets[:, None] == numpy.arange(2), 1.5, -1.5)

    def wrong(count: int) -> numpy.ndarray:
        return numpy.concatenate([logits[:count, ::-1], logits[count:]])

    for mistakes in (0, 1, 9):
        with pytest.raises(DataError, match=f"119 held-out decisions {mistakes} are mistakes"):
            fit_temperature(wrong(mistakes), targets, SINGLE)
    with pytest.raises(DataError, match="19 held-out rows are fewer than 20"):
        fit_temperature(wrong(10)[:19], targets[:19], SINGLE)

    # 12 of 119 wrong: the log odds are 2.19 at a logit difference of 3, so 3 / 2.19 without a prior
    heat = fit_temperature(wrong(12), targets, SINGLE)
    assert 1 < heat < 3 / numpy.log(107 / 12) and heat == pytest.approx(1.37, rel=0.05)

    yes = numpy.stack([targets, 1 - targets], axis=1).astype(float)
    with pytest.raises(DataError, match="of 238 held-out decisions 0 are mistakes"):
        fit_temperature(logits[:, ::-1], yes, SEVERAL)


def test_a_temperature_is_bounded():
    targets = numpy.array([0, 1] * 1000)
    unsure = numpy.where(targets[:, None] == numpy.arange(2), 0.1, -0.1)
    unsure[:20] *= -1  # 1 of 100: log odds of 4.6 at a logit difference of 0.2
    assert fit_temperature(unsure, targets, SINGLE) == pytest.approx(0.25, rel=0.01)


def test_calibrate_leaves_one_and_says_why(caplog):
    info = ClassifierInfo(SINGLE, ["a", "b"])
    targets = numpy.array([0, 1] * 60)
    logits = numpy.where(targets[:, None] == numpy.arange(2), 2.0, -2.0)
    assert calibrate(logits, targets, info, seed=0) == 1.0 == info.temperature
    assert "no temperature is fitted, it stays 1: of 120 held-out decisions 0" in caplog.text


def test_no_interval_of_a_share_has_zero_width():
    targets = numpy.array([0, 1] * 60)
    logits = numpy.where(targets[:, None] == numpy.arange(2), 2.0, -2.0)
    found = measure(logits, targets, SINGLE, draws=50)
    for name in ("accuracy", "f1_macro", "f1", "f1_micro"):
        assert found[f"{name}_low"] == pytest.approx(120 / (120 + 1.959964**2))
        assert found[f"{name}_high"] == 1.0
    assert found["matthews_low"] < found["matthews_high"] == 1.0
    none = measure(-logits, targets, SINGLE, draws=50)
    assert (none["accuracy_low"], none["matthews_low"]) == (0.0, -1.0)
    assert none["accuracy_high"] == pytest.approx(1.959964**2 / (120 + 1.959964**2))

    # far from the ends the bootstrap stands as it is
    assert at_least_wilson((0.4, 0.6), 0.5, 100) == (0.4, 0.6)
    low, high = at_least_wilson((0.4, 0.6), 0.5, 10)
    assert (low, high) == pytest.approx(share_interval([0.5] * 10)) and low < 0.4


def test_intervals_hold_what_they_say():
    covered = 0
    for seed in range(60):
        values = numpy.random.default_rng(seed).normal(1.0, 1.0, 80)
        found = bootstrap_intervals(
            lambda i, v=values: {"mean": float(v[i].mean())}, 80, draws=200, seed=seed
        )
        low, high = found["mean"]
        covered += low <= 1.0 <= high
    assert 51 <= covered <= 60
    again = [
        bootstrap_intervals(lambda i: {"mean": float(i.mean())}, 9, draws=50, seed=4)
        for _ in range(2)
    ]
    assert again[0] == again[1]
    with pytest.raises(DataError, match="no rows"):
        bootstrap_intervals(lambda i: {}, 0)


def test_measure_puts_intervals_baseline_and_calibration_together():
    logits, targets = drawn(3)
    found = measure(logits, targets, SINGLE, temperature=numpy.full((300, 1), 2.0), draws=100)
    assert found["accuracy_low"] < found["accuracy"] < found["accuracy_high"]
    assert found["baseline_accuracy"] == numpy.bincount(targets).max() / 300
    assert found["log_loss_calibrated"] == pytest.approx(log_loss(logits, targets, SINGLE, 2.0))
    assert (
        measure(logits[:, :1], targets.astype(float), NUMBER, draws=10)[
            "baseline_mean_squared_error"
        ]
        > 0
    )


def test_the_surest_mistakes_come_first():
    logits = numpy.array([[4.0, 0.0], [0.0, 9.0], [1.0, 0.0], [0.0, 3.0]])
    _, rows = worst_mistakes(
        ["a", "b", "c", "d"], logits, numpy.array([1, 0, 1, 1]), SINGLE, names=["no", "yes"]
    )
    assert [row[0] for row in rows] == ["b", "a", "c"]
    assert rows[0][1:3] == ["no", "yes"] and rows[0][3] == pytest.approx(1 / (1 + numpy.exp(-9)))
    columns, rows = worst_mistakes(
        ["a", "b"], numpy.array([[1.0], [5.0]]), numpy.array([1.5, 1.0]), NUMBER, names=[]
    )
    assert [row[0] for row in rows] == ["b", "a"] and columns == ["text", "true", "predicted"]
    yes = numpy.array([[1.0, 0.0], [0.0, 0.0]])
    _, rows = worst_mistakes(
        ["a", "b"], numpy.array([[3.0, 2.0], [-1.0, -9.0]]), yes, SEVERAL, names=["x", "y"]
    )
    assert rows == [["a", "y", "no", "yes", pytest.approx(1 / (1 + numpy.exp(-2)))]]


def test_pictures_are_well_formed_and_escape_names():
    picture = ElementTree.fromstring(
        confusion_picture([[3, 1], [0, 2]], ["a<b", "a very long name of a class"])
    )
    texts = [element.text for element in picture.iter() if element.tag.endswith("text")]
    assert "a<b" in texts and {"3", "1", "2"} <= set(texts) and "0" not in texts
    assert len([1 for element in picture.iter() if element.get("fill-opacity")]) == 4
    caption = next(element for element in picture.iter() if "true class" in (element.text or ""))
    assert float(caption.get("x", "")) + 6 * len(caption.text or "") < float(
        picture.get("width", "")
    ), "it is not cut"
    ink = {
        element.text: element.get("fill")
        for element in picture.iter()
        if element.tag.endswith("text")
    }
    assert ink["3"] == "#ffffff" != ink["1"], "the count of a dark cell is light"
    curves = {"as trained": [[0.6, 0.5, 4], [0.9, 0.8, 6]], "with temperature": [[0.7, 0.7, 10]]}
    drawing = ElementTree.fromstring(reliability_picture(curves))
    assert len([1 for element in drawing.iter() if element.tag.endswith("circle")]) == 3
