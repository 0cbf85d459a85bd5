"""Define what a diagnosis reads of runs, and what it finds about each link.

Everything here is plain numbers. A finding is never a guess: where a run or a number is missing it
says so, and `bad` needs evidence beyond noise, a 95 % interval on the wrong side of the limit
wherever the sample is known.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import Any, Literal

from hfstack.diagnosis.win_rate import distinct
from hfstack.intervals import share_interval

Link = Literal["sft", "preferences", "reward model", "policy"]
Verdict = Literal["ok", "warn", "bad", "unknown"]
LoggedSeries = Sequence[tuple[int, float]]

# in the order of the chain
LINKS: tuple[Link, ...] = ("sft", "preferences", "reward model", "policy")
ONLINE_RECIPES = ("ppo", "rloo", "grpo")

_GRADES: tuple[Verdict, ...] = ("bad", "warn", "ok")
_GRAM = 4


@dataclass(frozen=True)
class ChainRun:
    """One run of the chain, as its run.json and the files listed there have it."""

    recipe: str
    label: str
    """How the run is named in findings."""
    metrics: dict[str, float]
    history: Mapping[str, LoggedSeries] = field(default_factory=dict)
    """Logged values by name, as (step, value) in order of step; those of evaluations begin with
    `eval_`.
    """
    settings: dict[str, Any] = field(default_factory=dict)
    """All settings in one flat mapping."""
    parents: tuple[str, ...] = ()
    """Labels of the runs that this one reads, as far as they were given."""
    answers: tuple[dict[str, Any], ...] = ()
    """Rows of answers.jsonl."""
    completions: tuple[dict[str, Any], ...] = ()
    """Rows of completions.jsonl: step, completion and reward of what the policy generated while
    it trained.
    """
    error: str | None = None
    """Why the run failed, if it did."""


@dataclass(frozen=True)
class Finding:
    """What one check says about one link."""

    link: Link
    check: str
    verdict: Verdict
    evidence: str
    advice: str = ""


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """Return the worst of them: bad, warn, ok, and unknown when there is nothing else."""
    found = set(verdicts)
    for verdict in _GRADES:
        if verdict in found:
            return verdict
    return "unknown"


def by_limit(value: float, *, warn: float, bad: float) -> Verdict:
    """Grade a number that is worse the further it is beyond `warn`, towards `bad`.

    `bad` may be above `warn` or below it.
    """
    sign = 1 if bad > warn else -1
    if sign * (value - bad) > 0:
        return "bad"
    return "warn" if sign * (value - warn) > 0 else "ok"


def share_by_limit(
    share: float, count: float | None, *, warn: float, bad: float
) -> tuple[Verdict, str]:
    """Return the grade of a share of `count` cases, and its text with an interval.

    It is bad only when its whole 95 % interval (Wilson) is beyond `bad`, and a warning when the
    share itself is beyond `warn`. Without a count there is no interval, and the share alone counts.
    """
    if not count:
        return by_limit(share, warn=warn, bad=bad), percent(share)

    low, high = share_interval([share] * round(count))
    nearest = low if bad > warn else high
    verdict = by_limit(share, warn=warn, bad=bad)

    if verdict == "bad" and by_limit(nearest, warn=warn, bad=bad) != "bad":
        verdict = "warn"
    return verdict, f"{percent(share)} [{percent(low)}, {percent(high)}] of {count:.0f}"


def percent(share: float) -> str:
    """Return a share in percent, without decimals that a sample cannot hold."""
    return f"{100 * share:.0f} %"


def repeated_share(texts: Sequence[str]) -> float | None:
    """Return the mean share of repeated four-word runs; None if texts are short.

    seq-rep-4 of Welleck et al. 2020 ("Neural Text Generation With Unlikelihood Training",
    arXiv:1908.04319), by words.
    """
    shares = [1 - distinct([text], _GRAM) for text in texts if len(text.split()) > _GRAM]
    return fmean(shares) if shares else None


def series(run: ChainRun, *names: str) -> list[float]:
    """Return the values of the first of these names that the run logged, by step."""
    return next(
        ([value for _, value in run.history[name]] for name in names if run.history.get(name)), []
    )


def first_metric(run: ChainRun, *names: str) -> float | None:
    """Return the first of these metrics that the run has, or None."""
    return next((run.metrics[name] for name in names if name in run.metrics), None)


def quarters(values: Sequence[float]) -> list[Sequence[float]]:
    """Return four parts of nearly equal length, in order; `values` has four or more."""
    edges = [round(len(values) * part / 4) for part in range(5)]
    return [values[low:high] for low, high in itertools.pairwise(edges)]


def rise(before: Sequence[float], after: Sequence[float]) -> tuple[float, float]:
    """Return by how much the mean rose between two parts, and its standard error.

    Values of neighbouring steps are taken as independent; a curve that moves within a part has a
    larger error.
    """
    variances = [stdev(part) ** 2 / len(part) if len(part) > 1 else 0.0 for part in (before, after)]
    return fmean(after) - fmean(before), sum(variances) ** 0.5
