"""Fit power laws y = coefficient * x ** exponent, with exact intervals.

They are straight lines in log-log. Kaplan et al. (2020, arXiv:2001.08361, equations 1.1 to 1.3)
write L(N) = (N_c / N) ** alpha_N: the exponent here is -alpha_N, a negative number, because loss
falls as N grows, and N_c = coefficient ** (1 / alpha_N).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import stdtrit  # scipy.stats takes half a second to import

from hfstack.errors import DataError
from hfstack.intervals import Interval
from hfstack.scaling.rungs import FloatArray, Rungs, step_starts


@dataclass(frozen=True)
class PowerLaw:
    """y = coefficient * x ** exponent."""

    coefficient: float
    exponent: float
    r_squared: float
    """Share of the variance of log y that the line explains."""
    points: int
    exponent_interval: Interval | None = None
    """95 %, Student's t; None for two points, which any line fits."""
    residual_std: float = 0.0
    """Standard deviation of log y around the line."""
    center: float = 0.0
    """Mean of log x, and below the sum of squares around it: what a prediction's interval is made
    of."""
    spread: float = 0.0

    def predict(self, x: float) -> float:
        """Return y at x."""
        return float(self.coefficient * x**self.exponent)

    def predict_interval(self, x: float) -> Interval | None:
        """Return the 95 % interval of one new point at x, its own noise included."""
        if self.points <= 2 or not self.spread:
            return None
        far = (np.log(x) - self.center) ** 2 / self.spread
        quantile = stdtrit(self.points - 2, 0.975)
        width = quantile * self.residual_std * np.sqrt(1 + 1 / self.points + far)
        middle = self.predict(x)
        return Interval(float(middle * np.exp(-width)), float(middle * np.exp(width)))

    @property
    def scale(self) -> float:
        """Return Kaplan's constant, such as N_c: the x at which the law says 1."""
        return float(self.coefficient ** (-1 / self.exponent)) if self.exponent else float("inf")


def fit_power_law(
    x: Any, y: Any, *, weights: Any | None = None, name: str = "power law"
) -> PowerLaw:
    """Fit a straight line to log y over log x by least squares.

    Args:
        x: positive numbers.
        y: positive numbers.
        weights: of the squared residuals, such as 1 / variance of log y.
        name: what is fitted, for messages.

    Raises:
        DataError: fewer than two different x.
    """
    log_x, log_y = np.log(np.asarray(x, dtype=float)), np.log(np.asarray(y, dtype=float))
    if len(log_x) < 2 or np.ptp(log_x) < 1e-12:
        raise DataError(
            f"{name}: {len(log_x)} rungs at one value; a power law needs 2 different ones, better 4"
        )

    w = np.ones_like(log_x) if weights is None else np.asarray(weights, dtype=float)
    center = float((w * log_x).sum() / w.sum())
    middle = float((w * log_y).sum() / w.sum())
    spread = float((w * (log_x - center) ** 2).sum())
    exponent = float((w * (log_x - center) * (log_y - middle)).sum() / spread)

    residuals = log_y - middle - exponent * (log_x - center)
    left = float((w * residuals**2).sum())
    total = float((w * (log_y - middle) ** 2).sum())

    # Two points leave nothing to judge the line by.
    freedom = len(log_x) - 2
    residual_std, interval = 0.0, None
    if freedom > 0:
        residual_std = float(np.sqrt(left / freedom))
        reach = float(stdtrit(freedom, 0.975) * residual_std / np.sqrt(spread))
        interval = Interval(exponent - reach, exponent + reach)

    return PowerLaw(
        coefficient=float(np.exp(middle - exponent * center)),
        exponent=exponent,
        r_squared=1 - left / total if total > 0 else 1.0,
        points=len(log_x),
        exponent_interval=interval,
        residual_std=residual_std,
        center=center,
        spread=spread,
    )


@dataclass(frozen=True)
class KaplanFit:
    """L(N), L(D) and L(C), as far as the rungs have them."""

    laws: dict[str, PowerLaw]
    """By `N`, `D` and `C`; every exponent is negative."""
    notes: tuple[str, ...] = ()


def fit_kaplan(rungs: Rungs) -> KaplanFit:
    """Fit L(N), L(D) and L(C), each to the best rung of every step in its direction.

    L(N) holds where data does not bind and L(D) where size does not, so of the rungs of one N the
    one with the lowest loss counts, and likewise for D; L(C) takes the rungs that no cheaper one
    beats. A direction with one step, or in which the other quantity binds so much that the best
    losses rise, is left out with a note.

    Raises:
        DataError: no direction is left.
    """
    laws: dict[str, PowerLaw] = {}
    rising: list[str] = []
    directions = {
        "N": ("parameters", rungs.parameters),
        "D": ("tokens", rungs.tokens),
        "C": ("compute", rungs.flops),
    }

    for letter, (what, values) in directions.items():
        best = frontier(values, rungs.loss) if letter == "C" else best_of_steps(values, rungs.loss)
        if len(best) < 2:
            continue

        # Every scaling law falls: where this one rises, the other quantity binds.
        law = fit_power_law(values[best], rungs.loss[best], name=f"L({letter})")
        if law.exponent < 0:
            laws[letter] = law
        else:
            rising.append(
                f"L({letter}): losses rise with {what} (exponent {law.exponent:+.4f} over "
                f"{law.points} steps)"
            )

    if not laws:
        found = (
            "; ".join(rising)
            or f"{len(rungs)} rungs at one size, one number of tokens and one compute"
        )
        raise DataError(
            f"{found}: every scaling law falls; check the columns, and whether large models were "
            "trained to the end"
        )
    return KaplanFit(
        laws, tuple(f"{text}: left out, because the other quantity binds" for text in rising)
    )


def best_of_steps(values: FloatArray, loss: FloatArray) -> list[int]:
    """Return the rung of lowest loss at each step of `values`, in rising order."""
    starts = np.array(step_starts(values))
    step = np.searchsorted(starts, values * (1 + 1e-12), side="right") - 1
    return [
        int(rows[np.argmin(loss[rows])])
        for rows in (np.flatnonzero(step == s) for s in range(len(starts)))
    ]


def frontier(cost: FloatArray, loss: FloatArray) -> list[int]:
    """Return the rungs that no rung of equal or lower cost beats, by rising cost.

    Costs within 2 % count as equal.
    """
    kept: list[int] = []
    for row in np.lexsort((loss, cost)):
        if kept and loss[row] >= loss[kept[-1]]:
            continue
        if kept and cost[row] <= 1.02 * cost[kept[-1]]:
            kept.pop()
        kept.append(int(row))
    return kept
