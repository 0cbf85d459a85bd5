"""Record held-out results: metrics, tables, pictures, and every prediction."""

from collections.abc import Sequence
from typing import Any

import numpy
from accelerate import PartialState

from hfstack.data.reading.jsonl import write_jsonl
from hfstack.errors import DataError
from hfstack.logs import get_logger
from hfstack.runs.run import Run
from hfstack.tasks.classification.calibration import (
    Array,
    confidences,
    cross_fitted_temperatures,
    fit_temperature,
    probabilities,
    reliability_bins,
)
from hfstack.tasks.classification.data import Encoded
from hfstack.tasks.classification.metrics import (
    NUMBER,
    SINGLE,
    confusion_counts,
    measure,
    per_class_table,
    predicted,
    worst_mistakes,
)
from hfstack.tasks.classification.model import ClassifierInfo
from hfstack.tasks.classification.pictures import confusion_picture, reliability_picture
from hfstack.tasks.classification.predict import answers_of_row

logger = get_logger(__name__)


def calibrate(logits: Array, targets: Array, info: ClassifierInfo, *, seed: int) -> Array | float:
    """Set the temperature of a classifier by held-out rows.

    Return what to measure those rows with.

    That is for each row the temperature of the other half, which has not seen it. With numbers to
    predict, or rows or mistakes too few to tell, nothing is fitted, and the temperature stays 1.
    """
    if info.problem_type == NUMBER:
        return 1.0

    try:
        info.temperature = fit_temperature(logits, targets, info.problem_type)
    except DataError as error:
        logger.warning("no temperature is fitted, it stays 1: %s", error)
        return 1.0
    return cross_fitted_temperatures(logits, targets, info.problem_type, seed=seed)


def record_split(
    run: Run,
    logits: Array,
    encoded: Encoded,
    info: ClassifierInfo,
    *,
    name: str,
    seed: int | None,
    benchmark: Sequence[str] = (),
) -> dict[str, float]:
    """Record one held-out split, calibrated by its own rows when a seed is given.

    Args:
        logits: (N, C), one row for each row of `encoded`.
        seed: of the halves that the temperatures are fitted on; None leaves logits as they are.
        benchmark: the metrics whose mean is a benchmark's score.
    """
    targets = numpy.asarray(encoded.targets)
    temperature = 1.0 if seed is None else calibrate(logits, targets, info, seed=seed)
    return record_results(
        run,
        logits,
        targets,
        texts=encoded.texts,
        info=info,
        temperature=temperature,
        split=name,
        benchmark=benchmark,
    )


def record_results(
    run: Run,
    logits: Array,
    targets: Array,
    *,
    texts: Sequence[str],
    info: ClassifierInfo,
    temperature: Array | float = 1.0,
    seed: int = 0,
    split: str = "eval",
    benchmark: Sequence[str] = (),
) -> dict[str, float]:
    """Add tables, pictures and predictions of held-out rows to a run.

    Return the metrics, `<split>_...`.

    Args:
        benchmark: the metrics whose mean is a benchmark's score, given as `<split>_glue_score`.
    """
    names = info.names
    if info.problem_type != NUMBER:
        said = predicted(logits, info.problem_type)
        run.add_table(f"{split} classes", *per_class_table(said, targets, info.problem_type, names))
        pictures = {
            f"{split}_reliability": _reliability(logits, targets, info.problem_type, temperature)
        }

        if info.problem_type == SINGLE:
            counts = confusion_counts(said, targets, len(names))
            pictures[f"{split}_confusion"] = confusion_picture(counts.tolist(), names)

        # Every process has all the logits and records the same, but only one of them writes.
        for name, picture in pictures.items():
            if PartialState().is_main_process:
                (run.output_dir / f"{name}.svg").write_text(picture, encoding="utf-8")
            run.add_artifact(name, f"{name}.svg")

    mistakes = worst_mistakes(texts, logits / temperature, targets, info.problem_type, names=names)
    run.add_table(f"{split} most confident mistakes", *mistakes)

    if PartialState().is_main_process:
        with write_jsonl(run.output_dir / f"{split}_predictions.jsonl") as add:
            for text, target, answer in zip(
                texts, targets.tolist(), answers_of_row(logits, info), strict=True
            ):
                add({"text": text, "true": true_answer(target, info), **answer})

    run.add_artifact(f"{split}_predictions", f"{split}_predictions.jsonl")
    found = measure(logits, targets, info.problem_type, temperature=temperature, seed=seed)
    found = name_positive_class(found, names)
    if "f1" in found:
        logger.info("%s_f1 is that of the class %r", split, names[1])

    if benchmark:
        found["glue_score"] = sum(found[name] for name in benchmark) / len(benchmark)
    return {f"{split}_{name}": value for name, value in found.items()}


def _reliability(
    logits: Array, targets: Array, problem_type: str, temperature: Array | float
) -> str:
    """Draw the diagram with and without the temperature."""
    curves: dict[str, Sequence[Sequence[float]]] = {}
    plain = confidences(probabilities(logits, problem_type), targets, problem_type)
    curves["as trained"] = reliability_bins(*plain)

    if not isinstance(temperature, float):
        scaled = confidences(
            probabilities(logits, problem_type, temperature), targets, problem_type
        )
        curves["with temperature"] = reliability_bins(*scaled)

    return reliability_picture(curves)


def name_positive_class(metrics: dict[str, float], names: Sequence[str]) -> dict[str, float]:
    """Return metrics with F1 by the name of its class, which the number does not say."""
    return metrics | ({f"f1_of_{names[1]}": metrics["f1"]} if "f1" in metrics else {})


def true_answer(target: Any, info: ClassifierInfo) -> Any:
    """Return a target as its name, its names, or the number that it is."""
    if info.problem_type == NUMBER:
        return target
    if isinstance(target, list):
        return [name for name, has in zip(info.names, target, strict=True) if has]
    return info.names[int(target)]
