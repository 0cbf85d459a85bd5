"""Score a classifier or regression on held-out rows, and list its mistakes.

Scores come from counts, so that a thousand bootstrap draws take a second; they equal scikit-learn's
and SciPy's. Legend: N rows, C classes.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy

from hfstack.intervals import at_least_wilson, bootstrap_intervals
from hfstack.tasks.classification.calibration import (
    Array,
    calibration_error,
    confidences,
    log_loss,
    probabilities,
    reliability_bins,
)

SINGLE, SEVERAL, NUMBER = "single_label_classification", "multi_label_classification", "regression"


def scores(predictions: Array, targets: Array, problem_type: str, classes: int) -> dict[str, float]:
    """Return the metrics of predictions: class ids (N), 0/1 (N, C), or numbers (N).

    Macro averages are over the classes that occur among predictions or targets. `f1` is that of
    class 1 of two.
    """
    if problem_type == NUMBER:
        return _number_scores(predictions.astype(float), targets.astype(float))

    if problem_type == SEVERAL:
        said, true = predictions.astype(bool), targets.astype(bool)
        hits, wanted, given = (said & true).sum(axis=0), true.sum(axis=0), said.sum(axis=0)
        return {
            "accuracy": float((said == true).all(axis=1).mean()),
            "label_accuracy": float((said == true).mean()),
            "f1_macro": _mean_f1(hits, wanted, given),
            "f1_micro": float(_f1(hits.sum(), wanted.sum(), given.sum())),
        }

    table = confusion_counts(predictions, targets, classes)
    hits, wanted, given = table.diagonal(), table.sum(axis=1), table.sum(axis=0)
    total, right = table.sum(), hits.sum()
    per_class = _f1(hits, wanted, given)

    # Gorodkin 2004, "Comparing two K-category assignments by a K-category correlation coefficient"
    spread = float(numpy.sqrt((total**2 - (given**2).sum()) * (total**2 - (wanted**2).sum())))
    found = {
        "accuracy": float(right / total),
        "f1_macro": _mean_f1(hits, wanted, given),
        "f1_micro": float(right / total),
        "matthews": float((right * total - (given * wanted).sum()) / spread) if spread else 0.0,
    }

    return found | ({"f1": float(per_class[1])} if classes == 2 else {})


def predicted(logits: Array, problem_type: str) -> Array:
    """Return the predictions of logits: class ids (N), 0/1 (N, C), or numbers (N)."""
    if problem_type == NUMBER:
        return logits[:, 0]
    return (logits > 0).astype(int) if problem_type == SEVERAL else logits.argmax(axis=1)


def measure(
    logits: Array,
    targets: Array,
    problem_type: str,
    *,
    temperature: float | Array = 1.0,
    draws: int = 1000,
    seed: int = 0,
) -> dict[str, float]:
    """Return every metric with its interval, the baseline, and the calibration.

    95 % bootstrap intervals, at least Wilson's for shares of few rows, as `_low` and `_high`.

    The baseline is the most frequent class of the targets themselves (for numbers, their mean):
    what is to be beaten.

    Args:
        temperature: one for each row (N, 1), for `calibration_error_calibrated` and
            `log_loss_calibrated`.
    """
    said = predicted(logits, problem_type)
    classes = logits.shape[1]
    metrics = scores(said, targets, problem_type, classes)

    def again(index: Array) -> dict[str, float]:
        return scores(said[index], targets[index], problem_type, classes)

    intervals = bootstrap_intervals(again, len(targets), draws=draws, seed=seed)
    found: dict[str, float] = {}
    for name, value in metrics.items():
        found[name] = value
        if name in intervals:
            interval = _interval(name, intervals[name], value, len(targets), problem_type)
            found[f"{name}_low"], found[f"{name}_high"] = interval

    # the baselines
    if problem_type == NUMBER:
        return found | {
            "baseline_mean_squared_error": float(numpy.var(targets)),
            "rows": len(targets),
        }
    if problem_type == SINGLE:
        found["baseline_accuracy"] = float(numpy.bincount(targets.astype(int)).max() / len(targets))
    else:
        share = targets.mean(axis=0)  # (L,): of the rows that have each label
        found["baseline_label_accuracy"] = float(numpy.maximum(share, 1 - share).mean())

    # the calibration, as the logits are and with the temperature
    scales: dict[str, float | Array] = {"": 1.0}
    if not isinstance(temperature, float):
        scales["_calibrated"] = temperature
    for suffix, scale in scales.items():
        sure = confidences(probabilities(logits, problem_type, scale), targets, problem_type)
        found[f"calibration_error{suffix}"] = calibration_error(reliability_bins(*sure))
        found[f"log_loss{suffix}"] = log_loss(logits, targets, problem_type, scale)

    return found | {"rows": len(targets)}


def _interval(
    name: str, interval: tuple[float, float], value: float, rows: int, problem_type: str
) -> tuple[float, float]:
    """Return a score's interval, at least Wilson's where the score is a share of rows."""
    if problem_type == NUMBER:
        return interval
    if name != "matthews":
        return at_least_wilson(interval, value, rows)
    low, high = at_least_wilson(
        ((interval[0] + 1) / 2, (interval[1] + 1) / 2), (value + 1) / 2, rows
    )
    return 2 * low - 1, 2 * high - 1


def confusion_counts(predictions: Array, targets: Array, classes: int) -> Array:
    """Return (C, C) counts: rows are true classes, columns predicted ones."""
    flat = targets.astype(int) * classes + predictions.astype(int)
    return numpy.bincount(flat, minlength=classes * classes).reshape(classes, classes)


def per_class_table(
    predictions: Array, targets: Array, problem_type: str, names: Sequence[str]
) -> tuple[list[str], list[list[Any]]]:
    """Return a table of precision, recall, F1 and frequency of each label."""
    if problem_type == SEVERAL:
        said, true = predictions.astype(bool), targets.astype(bool)
        hits, wanted, given = (said & true).sum(axis=0), true.sum(axis=0), said.sum(axis=0)
    else:
        table = confusion_counts(predictions, targets, len(names))
        hits, wanted, given = table.diagonal(), table.sum(axis=1), table.sum(axis=0)

    rows: list[list[Any]] = []
    for name, hit, want, give in zip(names, hits, wanted, given, strict=True):
        precision, recall = (float(hit / part) if part else 0.0 for part in (give, want))
        rows.append([name, precision, recall, float(_f1(hit, want, give)), int(want), int(give)])

    return ["label", "precision", "recall", "f1", "rows", "predicted"], rows


def worst_mistakes(
    texts: Sequence[str],
    logits: Array,
    targets: Array,
    problem_type: str,
    *,
    names: Sequence[str],
    count: int = 20,
) -> tuple[list[str], list[list[Any]]]:
    """Return a table of the mistakes that the model is surest of, or largest errors."""
    said = predicted(logits, problem_type)
    if problem_type == NUMBER:
        order = numpy.argsort(-numpy.abs(said - targets), kind="stable")[:count]
        return ["text", "true", "predicted"], [
            [texts[i], float(targets[i]), float(said[i])] for i in order
        ]

    chance = probabilities(logits, problem_type)
    if problem_type == SEVERAL:
        # each label of a row is an answer of its own; to say no with 0.01 is to be 0.99 sure
        wrong = [(i, j) for i, j in zip(*numpy.nonzero(said != (targets >= 0.5)), strict=True)]
        sure = {(i, j): float(max(chance[i, j], 1 - chance[i, j])) for i, j in wrong}
        worst = sorted(sure, key=lambda place: -sure[place])[:count]
        words = {True: "yes", False: "no"}
        rows = [
            [texts[i], names[j], words[bool(targets[i, j])], words[bool(said[i, j])], sure[i, j]]
            for i, j in worst
        ]
        return ["text", "label", "true", "predicted", "confidence"], rows

    wrong_rows = numpy.flatnonzero(said != targets)
    order = wrong_rows[numpy.argsort(-chance[wrong_rows].max(axis=1), kind="stable")][:count]
    return ["text", "true", "predicted", "confidence"], [
        [texts[i], names[int(targets[i])], names[int(said[i])], float(chance[i].max())]
        for i in order
    ]


def trainer_metrics(problem_type: str) -> Callable[[Any], dict[str, float]]:
    """Return `compute_metrics` for a Trainer, for curves and to choose the best model."""

    def compute(prediction: Any) -> dict[str, float]:
        logits = numpy.asarray(prediction.predictions, dtype=float)
        targets = numpy.asarray(prediction.label_ids)
        return scores(predicted(logits, problem_type), targets, problem_type, logits.shape[1])

    return compute


def _f1(hits: Any, wanted: Any, given: Any) -> Any:
    """Return F1 = 2 TP / (actual + predicted), 0 where there is neither."""
    return numpy.where((wanted + given) > 0, 2 * hits / numpy.maximum(wanted + given, 1), 0.0)


def _mean_f1(hits: Any, wanted: Any, given: Any) -> float:
    """Mean F1 of the classes that occur as true or predicted; 0 without any."""
    occurs = (wanted + given) > 0
    return float(_f1(hits, wanted, given)[occurs].mean()) if occurs.any() else 0.0


def _number_scores(said: Array, true: Array) -> dict[str, float]:
    from scipy.stats import rankdata  # takes half a second, which labels do not need

    errors = said - true
    return {
        "pearson": _correlation(said, true),
        "spearman": _correlation(rankdata(said), rankdata(true)),
        "mean_squared_error": float((errors**2).mean()),
        "mean_absolute_error": float(numpy.abs(errors).mean()),
    }


def _correlation(first: Array, second: Array) -> float:
    """Return Pearson's correlation, 0 where one side does not vary."""
    a, b = first - first.mean(), second - second.mean()
    spread = float(numpy.sqrt((a**2).sum() * (b**2).sum()))
    return float((a * b).sum() / spread) if spread > 0 else 0.0
