"""Measure how far people agree: raw, and by Krippendorff's alpha with an interval.

A unit is what several people judge on one scale: a pair, an answer, an answer's place in a ranking,
a named scale. Alpha is 1 for perfect agreement and 0 for that of chance (Krippendorff 2019, Content
Analysis, chapter 12).
"""

import importlib
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy

from hfstack.errors import MissingExtraError
from hfstack.intervals import bootstrap_intervals

Level = Literal["nominal", "ordinal"]
Votes = Mapping[Hashable, Sequence[float]]  # the values that people gave to each unit


@dataclass(frozen=True)
class Majority:
    """What most people said of an item.

    Args:
        value: of pairs 0 or 1, of thumbs true or false; None where a tie has the most votes, or
            the most votes are equal.
        is_divided: people preferred opposite sides.
        margin: of pairs the mean strength towards the majority, in [0, 3]; else 0.
        is_even: opposite sides have equally many votes, so that there is no majority.
    """

    value: Any
    is_divided: bool
    margin: float
    is_even: bool


def units_of(kind: str, item: Hashable, verdict: dict[str, Any]) -> dict[Hashable, float]:
    """Return a verdict as numbers by unit; a free correction has none.

    A pair is -3 to 3 with 0 for a tie, so that "a little" and "much better" are near each other on
    an ordinal scale; for a nominal one the sign counts.
    """
    if kind == "pairs":
        sign = {0: -1, 1: 1, None: 0}[verdict["choice"]]
        return {item: float(sign * verdict["strength"])}
    if kind == "thumbs":
        return {item: {True: 1.0, False: -1.0, None: 0.0}[verdict["label"]]}
    if kind == "ranking":
        return {(item, place): float(rank) for place, rank in enumerate(verdict["ranks"])}
    if kind == "ratings":
        return {(item, scale): float(value) for scale, value in verdict["scales"].items()}
    return {}


def collect_units(
    kind: str, verdicts: Mapping[Any, Sequence[dict[str, Any]]], level: Level
) -> dict[Hashable, list[float]]:
    """Return the values of each unit over the people who judged it."""
    units: dict[Hashable, list[float]] = {}
    for item, given in verdicts.items():
        for verdict in given:
            for unit, value in units_of(kind, item, verdict).items():
                if level == "nominal" and kind == "pairs":
                    value = float(numpy.sign(value))
                units.setdefault(unit, []).append(value)
    return units


def raw_agreement(votes: Votes) -> float | None:
    """Return the share of pairs of judgements of one unit that are equal."""
    same = pairs = 0
    for values in votes.values():
        counts = Counter(values)
        same += sum(count * (count - 1) for count in counts.values())
        pairs += len(values) * (len(values) - 1)
    return same / pairs if pairs else None


def alpha(votes: Votes, level: Level) -> float | None:
    """Return Krippendorff's alpha, or None where it is not defined.

    It is not where no unit has two judgements, or all judgements are the same.

    Raises:
        MissingExtraError: the package krippendorff is not installed.
    """
    counts, domain = _count_values(votes)
    return _alpha_of_counts(counts, domain, level)


def alpha_interval(
    votes: Votes, level: Level, *, draws: int = 500, seed: int = 0
) -> tuple[float, float] | None:
    """Return the 95 % bootstrap interval of alpha, over units."""
    counts, domain = _count_values(votes)
    if _alpha_of_counts(counts, domain, level) is None:
        return None

    def score(rows: Any) -> dict[str, float]:
        found = _alpha_of_counts(counts[rows], domain, level)
        return {"alpha": float("nan") if found is None else found}

    found = bootstrap_intervals(score, len(counts), draws=draws, seed=seed)
    return found.get("alpha")


def agreement_now(
    kind: str, verdicts: Mapping[Any, Sequence[dict[str, Any]]]
) -> dict[str, float | None]:
    """Return what the lead sees while people judge: no intervals, which take longer."""
    nominal = collect_units(kind, verdicts, "nominal")
    ordinal = collect_units(kind, verdicts, "ordinal")
    return {
        "raw": raw_agreement(nominal),
        "alpha_nominal": alpha(nominal, "nominal"),
        "alpha_ordinal": alpha(ordinal, "ordinal"),
    }


def majority(kind: str, verdicts: Sequence[dict[str, Any]]) -> Majority:
    """Return what most people said of one pair or thumb; other kinds have none."""
    if kind not in ("pairs", "thumbs"):
        return Majority(None, is_divided=False, margin=0.0, is_even=False)
    values = [value for verdict in verdicts for value in units_of(kind, 0, verdict).values()]
    up, down = sum(value > 0 for value in values), sum(value < 0 for value in values)
    ties = len(values) - up - down

    sides = {"pairs": (0, 1), "thumbs": (False, True)}[kind]
    mean = sum(values) / len(values) if values else 0.0
    # A tie is never a win: as many ties as votes for the better side leave it undecided.
    value = None if up == down or ties >= max(up, down) else sides[up > down]
    margin = max(0.0, mean if up > down else -mean)
    return Majority(
        value,
        is_divided=bool(up and down),
        margin=margin if kind == "pairs" else 0.0,
        is_even=up == down and up > 0,
    )


def _count_values(votes: Votes) -> tuple[Any, list[float]]:
    """Return (U, V) counts of values in units with two judgements, and the values."""
    domain = sorted({value for values in votes.values() for value in values})
    places = {value: place for place, value in enumerate(domain)}
    kept = [values for values in votes.values() if len(values) > 1]
    counts = numpy.zeros((len(kept), len(domain)), dtype=int)  # (U, V)
    for unit, values in enumerate(kept):
        for value in values:
            counts[unit, places[value]] += 1
    return counts, domain


def _alpha_of_counts(counts: Any, domain: list[float], level: Level) -> float | None:
    # alpha compares with what differs by chance: with one value alone nothing does
    used = counts.sum(axis=0) > 0
    if used.sum() < 2:
        return None
    found = _load_krippendorff().alpha(
        value_counts=counts[:, used],
        value_domain=[value for value, is_used in zip(domain, used, strict=True) if is_used],
        level_of_measurement=level,
    )
    return float(found)


def _load_krippendorff() -> Any:
    try:
        return importlib.import_module("krippendorff")
    except ImportError:
        raise MissingExtraError("krippendorff", "feedback") from None
