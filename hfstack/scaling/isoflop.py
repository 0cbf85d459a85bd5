"""Find where loss is lowest at a given compute: Chinchilla's first two approaches.

Hoffmann et al. (2022, arXiv:2203.15556): section 3.1 takes the lower envelope of all runs over
compute, section 3.2 a parabola of log L in log N through the runs of one compute. Either gives
points (C, N*, D*), and straight lines through them in log-log give N* proportional to C^a and D*
proportional to C^b.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import Akima1DInterpolator

from hfstack.errors import DataError
from hfstack.intervals import Interval, expanded_percentiles
from hfstack.scaling.power_laws import PowerLaw, fit_power_law, frontier
from hfstack.scaling.rungs import FloatArray, Rungs

Shape = Literal["parabola", "akima"]

_PARABOLA, _AKIMA_FROM = 3, 4  # sizes that each shape of curve needs
_POINTS_PER_CURVE = 2000


@dataclass(frozen=True)
class IsoFlopCurve:
    """The runs of one compute, the curve through them, and its lowest point."""

    flops: float
    parameters: FloatArray
    """(K,) of the runs, rising."""
    loss: FloatArray
    line_parameters: FloatArray
    """(P,) the curve itself, for drawing."""
    line_loss: FloatArray
    optimum_parameters: float
    optimum_tokens: float
    optimum_loss: float
    doubt: str = ""
    """Why the optimum does not count, empty where it does."""


@dataclass(frozen=True)
class Allocation:
    """How compute is best divided: N* and D* as power laws of C, and the loss reached."""

    flops: FloatArray
    """(K,) of the points."""
    parameters: FloatArray
    tokens: FloatArray
    loss: FloatArray
    parameters_law: PowerLaw
    tokens_law: PowerLaw
    loss_law: PowerLaw
    curves: tuple[IsoFlopCurve, ...] = ()
    exponent_interval: Interval | None = None
    """95 % of the exponent of N*, by the bootstrap over the runs where there is one, else Student's
    t of the line."""
    notes: tuple[str, ...] = ()


def isoflop_groups(rungs: Rungs, *, tolerance: float = 0.1) -> list[NDArray[np.intp]]:
    """Return the rungs of each compute, in rising order.

    Neighbours within `tolerance` of the first are together.
    """
    order = np.argsort(rungs.flops, kind="stable")
    groups: list[list[int]] = []
    for row in order:
        if not groups or rungs.flops[row] > rungs.flops[groups[-1][0]] * (1 + tolerance):
            groups.append([])
        groups[-1].append(int(row))
    return [np.array(group, dtype=np.intp) for group in groups]


def fit_isoflop(
    rungs: Rungs,
    *,
    tolerance: float = 0.1,
    shape: Shape = "parabola",
    window: float | None = None,
    draws: int = 200,
    seed: int = 0,
) -> Allocation:
    """Fit a curve at each compute, and power laws through the minima (approach 2).

    Args:
        rungs: of at least two computes, with three or more sizes at each.
        tolerance: runs whose compute differs by less, as a share, are of one compute.
        shape: a parabola, as Hoffmann et al. draw it, or Akima's interpolation, as Porian et al.
            (2024, arXiv:2406.19146) do: it goes through every run, and so needs many of them and
            little noise.
        window: use only runs whose N is within this factor of the best run's; None for all. A
            parabola is the first terms of a series around the minimum, so runs far from it bend it.
        draws: bootstrap refits, each with the runs of every compute sampled again.
        seed: of the bootstrap.

    Raises:
        DataError: fewer than two computes have a minimum among their runs.
    """
    # a curve for each compute with sizes enough
    groups = isoflop_groups(rungs, tolerance=tolerance)
    curves = tuple(
        _fit_curve(rungs.select(group), shape, window)
        for group in groups
        if len(np.unique(rungs.parameters[group])) >= _PARABOLA
    )

    good = [curve for curve in curves if not curve.doubt]
    if len(good) < 2:
        reasons = "; ".join(
            f"C = {curve.flops:.3g}: {curve.doubt}" for curve in curves if curve.doubt
        )
        raise DataError(
            f"IsoFLOP curves: {len(good)} of {len(groups)} computes have a minimum inside their 3 "
            "or more sizes, 2 are "
            f"needed{': ' + reasons if reasons else '; add sizes at equal compute'}"
        )

    notes = [f"C = {curve.flops:.3g} is left out: {curve.doubt}" for curve in curves if curve.doubt]
    if len(groups) > len(curves):
        notes.append(
            f"{len(groups) - len(curves)} computes have fewer than 3 sizes and are left out"
        )

    flops = np.array([curve.flops for curve in good])
    best = np.array([[c.optimum_parameters, c.optimum_tokens, c.optimum_loss] for c in good])
    interval = None
    if draws:
        interval = _bootstrap_exponent(rungs, groups, (shape, window), draws=draws, seed=seed)
    if interval is None and draws:
        notes.append(
            "too few runs at each compute to sample them again: no bootstrap interval of the "
            "exponent"
        )
    return _make_allocation(flops, best, curves=curves, interval=interval, notes=tuple(notes))


def fit_envelope(rungs: Rungs) -> Allocation:
    """Fit power laws through the runs that no cheaper run beats (approach 1).

    The original follows every training curve; with finished runs only, each gives one point, and
    the frontier is as fine as the ladder.

    Raises:
        DataError: fewer than two runs are on the frontier.
    """
    kept = frontier(rungs.flops, rungs.loss)
    if len(kept) < 2 or rungs.flops[kept[-1]] <= rungs.flops[kept[0]] * 1.001:
        raise DataError(
            f"envelope: {len(kept)} of {len(rungs)} rungs are on the frontier, 2 of different "
            "compute are needed: add rungs, or check that loss falls with compute"
        )
    best = np.column_stack([rungs.parameters[kept], rungs.tokens[kept], rungs.loss[kept]])
    notes = () if len(kept) > 3 else (f"only {len(kept)} rungs are on the frontier",)
    return _make_allocation(rungs.flops[kept], best, notes=notes)


def _make_allocation(
    flops: FloatArray,
    best: FloatArray,
    *,
    curves: tuple[IsoFlopCurve, ...] = (),
    interval: Interval | None = None,
    notes: tuple[str, ...] = (),
) -> Allocation:
    """Fit the power laws through the points (C, N*, D*, L*)."""
    laws = [
        fit_power_law(flops, best[:, i], name=name)
        for i, name in enumerate(("N*(C)", "D*(C)", "L*(C)"))
    ]

    return Allocation(
        flops=flops,
        parameters=best[:, 0],
        tokens=best[:, 1],
        loss=best[:, 2],
        parameters_law=laws[0],
        tokens_law=laws[1],
        loss_law=laws[2],
        curves=curves,
        exponent_interval=interval or laws[0].exponent_interval,
        notes=notes,
    )


def _fit_curve(runs: Rungs, shape: Shape, window: float | None) -> IsoFlopCurve:
    """Fit one curve over log N.

    Tokens at the optimum are interpolated between the runs' own.
    """
    runs = _average_by_size(runs)
    if window is not None:
        best = runs.parameters[np.argmin(runs.loss)]
        near = np.abs(np.log(runs.parameters / best)) <= np.log(window)
        runs = runs.select(near) if near.sum() >= _PARABOLA else runs

    x, y = np.log(runs.parameters), np.log(runs.loss)
    line = np.linspace(x[0], x[-1], _POINTS_PER_CURVE)
    doubt = ""

    if shape == "parabola" or len(x) < _AKIMA_FROM:
        middle = x.mean()
        c2, c1, c0 = np.polyfit(x - middle, y, 2)
        heights = c0 + c1 * (line - middle) + c2 * (line - middle) ** 2
        lowest = float(middle - c1 / (2 * c2)) if c2 > 0 else float(x[np.argmin(y)])
        depth = float(c0 - c1**2 / (4 * c2)) if c2 > 0 else float(y.min())
        doubt = "" if c2 > 0 else "the runs show no minimum"
    else:
        heights = Akima1DInterpolator(x, y)(line)
        lowest, depth = float(line[np.argmin(heights)]), float(heights.min())

    # A minimum outside the sizes that were trained is a guess: the nearest size stands for it.
    if not doubt and not x[0] < lowest < x[-1]:
        end = "smallest" if lowest <= x[0] else "largest"
        doubt = f"the minimum lies beyond the {end} of its sizes"
        lowest = float(np.clip(lowest, x[0], x[-1]))
        depth = float(np.interp(lowest, line, heights))

    return IsoFlopCurve(
        flops=float(np.exp(np.log(runs.flops).mean())),
        parameters=runs.parameters,
        loss=runs.loss,
        line_parameters=np.exp(line),
        line_loss=np.exp(heights),
        optimum_parameters=float(np.exp(lowest)),
        optimum_tokens=float(np.exp(np.interp(lowest, x, np.log(runs.tokens)))),
        optimum_loss=float(np.exp(depth)),
        doubt=doubt,
    )


def _average_by_size(runs: Rungs) -> Rungs:
    """Return the runs by rising size; of several at one size their mean log loss."""
    sizes, place = np.unique(runs.parameters, return_inverse=True)
    counts = np.bincount(place)

    def mean(values: FloatArray) -> FloatArray:
        return np.exp(np.bincount(place, weights=np.log(values)) / counts)

    return Rungs(
        sizes, mean(runs.tokens), mean(runs.loss), mean(runs.flops), mean(runs.unique_tokens)
    )


def _bootstrap_exponent(
    rungs: Rungs,
    groups: list[NDArray[np.intp]],
    way: tuple[Shape, float | None],
    *,
    draws: int,
    seed: int,
) -> Interval | None:
    """Return the spread of the exponent over bootstrap draws.

    Only draws in which every compute has its minimum count; None when most have not.
    """
    rng = np.random.default_rng(seed)
    exponents = []
    usable = [group for group in groups if len(np.unique(rungs.parameters[group])) > _PARABOLA]
    if len(usable) < 2:
        return None

    for _ in range(draws):
        flops, best = [], []
        for group in usable:
            resampled = rungs.select(rng.choice(group, len(group)))
            if len(np.unique(resampled.parameters)) < _PARABOLA:
                continue
            curve = _fit_curve(resampled, *way)
            if not curve.doubt:
                flops.append(curve.flops)
                best.append(curve.optimum_parameters)

        if len(set(flops)) >= 2:
            exponents.append(fit_power_law(flops, best).exponent)

    if len(exponents) < draws / 2:
        return None
    return expanded_percentiles(np.array(exponents), freedom=max(1, len(usable) - 2))
