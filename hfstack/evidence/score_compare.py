"""Put what two models did on the same rows side by side."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy
from numpy.typing import NDArray

from hfstack.drawing.numbers import metric
from hfstack.errors import DataError
from hfstack.evidence.paired import Difference, ExactTest, mcnemar, paired_differences
from hfstack.evidence.scored import Scored

_MOST_PARTED = 100  # rows that are written where none is right or wrong


@dataclass(frozen=True)
class Comparison:
    """Two models on the same rows."""

    rows: int
    main: str
    values: dict[str, tuple[float, float]]
    """Of each metric, the model's value and the reference's."""
    differences: dict[str, Difference]
    test: ExactTest | None
    """None where a row is neither right nor wrong, or rows belong together."""
    parted: list[dict[str, Any]]
    """Rows where one of both is right; without right and wrong, those that differ most."""
    verdict: str

    def metrics(self) -> dict[str, float]:
        """Return the numbers for run.json."""
        found: dict[str, float] = {"compared_rows": self.rows}
        for name, (_, theirs) in self.values.items():
            found[f"reference_{name}"] = theirs
        for name, one in self.differences.items():
            found[f"difference_{name}"] = one.value
            found |= {f"difference_{name}_low": one.low, f"difference_{name}_high": one.high}
        if self.test is not None:
            found |= {"only_model_right": self.test.only_first, "mcnemar_p": self.test.p}
            found |= {"only_reference_right": self.test.only_second}
            found["mcnemar_mid_p"] = self.test.mid_p
        return found

    def table(self) -> tuple[list[str], list[list[Any]]]:
        """Return the metrics of both beside each other."""
        rows: list[list[Any]] = []
        for name, one in self.differences.items():
            ours, theirs, gap, low, high = _compared_texts(name, self.values[name], one)
            clear = "yes" if one.is_clear else "no"
            rows.append([name, ours, theirs, gap, f"{low} to {high}", clear])
        return ["metric", "model", "reference", "difference", "95 % interval", "clear"], rows


def compare(ours: Scored, theirs: Scored, *, seed: int = 0) -> Comparison:
    """Compare two models on the rows that both could read.

    Raises:
        DataError: they have too few rows in common.
    """
    at_theirs = {place: index for index, place in enumerate(theirs.places)}
    common = [
        (index, at_theirs[place], place)
        for index, place in enumerate(ours.places)
        if place in at_theirs
    ]
    if not common:
        raise DataError("the two models have read none of the same rows")
    mine, other = (numpy.array([row[side] for row in common]) for side in (0, 1))

    units: list[Hashable] | None = None
    if ours.units is not None:
        units = [ours.units[index] for index in mine]

    def first(rows: NDArray[Any]) -> dict[str, float]:
        return ours.resample(mine[rows])

    def second(rows: NDArray[Any]) -> dict[str, float]:
        return theirs.resample(other[rows])

    differences = paired_differences(first, second, len(common), groups=units, seed=seed)
    whole = numpy.arange(len(common))
    both = first(whole), second(whole)
    values = {name: (both[0][name], both[1][name]) for name in differences}

    test: ExactTest | None = None
    if ours.right is not None and theirs.right is not None and units is None:
        test = mcnemar([ours.right[i] for i in mine], [theirs.right[i] for i in other])
    return Comparison(
        rows=len(common),
        main=ours.main,
        values=values,
        differences=differences,
        test=test,
        parted=_parted(ours, theirs, common),
        verdict=_verdict(ours, values, differences, test),
    )


def _compared_texts(name: str, values: tuple[float, float], one: Difference) -> list[str]:
    """Return both values, the difference and its interval, shares all in percent."""
    percent = all(metric(name, value).unit == "%" and 0 <= value <= 1 for value in values)
    scale = 100 if percent else 1
    gaps = [f"{scale * value:+.3g}" for value in (one.value, one.low, one.high)]
    return [*(f"{scale * value:.4g}" for value in values), *gaps]


def _verdict(
    ours: Scored,
    values: dict[str, tuple[float, float]],
    differences: dict[str, Difference],
    test: ExactTest | None,
) -> str:
    """Return what the comparison says, in one line."""
    name = ours.main if ours.main in differences else next(iter(differences))
    one = differences[name]
    mine, other, gap, low, high = _compared_texts(name, values[name], one)
    gains = one.value < 0 if name in ours.lower_is_better else one.value > 0
    said = "no clear difference"
    if one.is_clear:
        said = "the model is better" if gains else "the reference is better"
    tested = "" if test is None else f", McNemar's p {test.p:.3g}"
    return f"{name} {mine} against {other}: {gap} [{low}, {high}]{tested}: {said}"


def _parted(
    ours: Scored, theirs: Scored, common: Sequence[tuple[int, int, int]]
) -> list[dict[str, Any]]:
    """Return the rows where the models part, with what each said."""
    found: list[tuple[float, dict[str, Any]]] = []
    for mine, other, place in common:
        sides = {"model": ours.answers[mine], "reference": theirs.answers[other]}
        if ours.right is not None and theirs.right is not None:
            if ours.right[mine] != theirs.right[other]:
                right = "model" if ours.right[mine] else "reference"
                found.append((0.0, {"row": place + 1, "right": right, **sides}))
            continue

        gap = _of_row(ours, mine) - _of_row(theirs, other)
        found.append((-abs(gap), {"row": place + 1, "difference": gap, **sides}))

    if ours.right is None or theirs.right is None:
        found = sorted(found, key=lambda one: one[0])[:_MOST_PARTED]
    return [row for _, row in found]


def _of_row(scored: Scored, index: int) -> float:
    """Return a row's own value; for numbers to predict, its error."""
    answer = scored.answers[index]
    if "value" in answer:
        return abs(answer["value"] - answer["true"])
    return scored.resample(numpy.array([index]))[scored.main]
