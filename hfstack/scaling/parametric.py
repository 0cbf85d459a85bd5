"""Fit Chinchilla's law L(N, D) = E + A / N^alpha + B / D^beta, with intervals.

Rungs that cannot determine its numbers are refused.

Hoffmann et al. (2022, arXiv:2203.15556, section 3.3 and appendix D.3) minimise the Huber loss, with
a bend at 1e-3, between the logs of predicted and measured loss, by L-BFGS from a grid of starts. So
does this file, from the same grid. The starts are compared first, and the promising ones are
followed to the end, all at once.

Legend: S starts or bootstrap draws, R rungs. A point is (log E, log A, log B, alpha, beta).
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hfstack.errors import DataError
from hfstack.intervals import Interval, expanded_percentiles
from hfstack.scaling.batched_lbfgs import minimise
from hfstack.scaling.rungs import (
    FLOPS_PER_PARAMETER_TOKEN,
    FloatArray,
    Rungs,
    collinearity,
    count_steps,
    refuse_rising,
)

Resample = Literal["rows", "residuals"]

PARAMETERS = ("E", "A", "B", "alpha", "beta")
HUBER_DELTA = 1e-3
_START_VALUES = {  # Hoffmann et al. 2022, appendix D.3
    "E": (-1.0, -0.5, 0.0, 0.5, 1.0),
    "A": (0.0, 5.0, 10.0, 15.0, 20.0, 25.0),
    "B": (0.0, 5.0, 10.0, 15.0, 20.0, 25.0),
    "alpha": (0.0, 0.5, 1.0, 1.5, 2.0),
    "beta": (0.0, 0.5, 1.0, 1.5, 2.0),
}
_SCREENED, _FOLLOWED = 160, 12
_FLAT = 0.01
"""An exponent below this is no fall: over a hundredfold range the term changes by less than 5 %."""
_OVERFLOWING = 1e100
_LEAST_START_OF_E = 0.2
"""Share of the lowest loss: from log E of -30 no refit would ever come back, and the interval would
be a point."""


@dataclass(frozen=True)
class Law:
    """L(N, D) = E + A / N^alpha + B / D^beta.

    In nats per token, or the unit of the losses that it was fitted to.
    """

    E: float
    A: float
    B: float
    alpha: float
    beta: float

    def loss(self, parameters: float, tokens: float) -> float:
        """Return the predicted loss."""
        return float(self.E + self.A * parameters**-self.alpha + self.B * tokens**-self.beta)

    def optimum(self, flops: float) -> tuple[float, float]:
        """Return the parameters and tokens that make the loss lowest at C = 6ND FLOPs.

        This is equation 4 of section 3.3. Both are NaN for a law without a lowest point, as a
        bootstrap draw may be.
        """
        if min(self.A, self.B, self.alpha, self.beta) <= 0 or max(self.A, self.B) > _OVERFLOWING:
            return float("nan"), float("nan")
        ratio = (self.alpha * self.A / (self.beta * self.B)) ** (1 / (self.alpha + self.beta))
        parameters = ratio * (flops / FLOPS_PER_PARAMETER_TOKEN) ** self.parameters_exponent
        return parameters, flops / FLOPS_PER_PARAMETER_TOKEN / parameters

    @property
    def parameters_exponent(self) -> float:
        """Return a of N* proportional to C^a; the tokens' exponent is 1 - a."""
        return self.beta / (self.alpha + self.beta)

    @property
    def values(self) -> dict[str, float]:
        """Return the five numbers by name."""
        return {name: getattr(self, name) for name in PARAMETERS}


@dataclass(frozen=True)
class ParametricFit:
    """A fitted law, and how far to trust each of its numbers."""

    law: Law
    objective: float
    """Sum over rungs of the Huber loss of log loss."""
    residuals: FloatArray
    """(R,) log of measured over predicted loss."""
    draws: list[Law]
    """Bootstrap refits."""
    intervals: dict[str, Interval]
    """95 %, of each parameter, and of `a` (N* proportional to C^a); empty without a rung to
    spare."""
    notes: tuple[str, ...] = ()
    """What the data does not determine, a sentence each."""
    freedom: int = field(default=0)

    def predict_interval(
        self, parameters: float, tokens: float, *, seed: int = 0
    ) -> Interval | None:
        """Return the 95 % interval of the loss of one more rung.

        It has the draws' spread and one rung's own noise.
        """
        if not self.draws:
            return None
        noise = np.random.default_rng(seed).choice(self.residuals, len(self.draws))
        noise = noise * np.sqrt(len(self.residuals) / max(1, self.freedom))
        losses = np.array([law.loss(parameters, tokens) for law in self.draws]) * np.exp(noise)
        return expanded_percentiles(losses, freedom=self.freedom)


def predict_logs(
    points: FloatArray, log_parameters: FloatArray, log_tokens: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Return log L (S, R) and the share of each term in L (S, R, 3).

    The points are (S, 5).
    """
    e, a, b, alpha, beta = (points[:, i, None] for i in range(5))
    terms = np.stack(
        [
            np.broadcast_to(e, (len(points), log_parameters.shape[-1])),
            a - alpha * log_parameters,
            b - beta * log_tokens,
        ]
    )  # (3, S, R)
    top = terms.max(0)
    powers = np.exp(terms - top)
    total = powers.sum(0)
    return top + np.log(total), np.moveaxis(powers / total, 0, -1)


def huber(residuals: FloatArray, delta: float = HUBER_DELTA) -> tuple[FloatArray, FloatArray]:
    """Return the Huber loss of each residual, and its slope."""
    size = np.abs(residuals)
    value = np.where(size <= delta, residuals**2 / 2, delta * (size - delta / 2))
    return value, np.clip(residuals, -delta, delta)


@dataclass
class _ChinchillaObjective:
    """The objective over centred logs, where the five numbers are nearly independent."""

    log_parameters: FloatArray
    """(R,) less their mean."""
    log_tokens: FloatArray
    log_loss: FloatArray
    """(R,), or (S, R) where each problem has losses of its own."""
    weights: FloatArray
    """(R,) or (S, R): how often each rung counts."""

    def __call__(self, points: FloatArray, rows: NDArray[np.intp]) -> tuple[FloatArray, FloatArray]:
        predicted, shares = predict_logs(points, self.log_parameters, self.log_tokens)
        measured = self.log_loss if self.log_loss.ndim == 1 else self.log_loss[rows]
        weights = self.weights if self.weights.ndim == 1 else self.weights[rows]
        value, slope = huber(measured - predicted)

        scale = 1 / (HUBER_DELTA * len(self.log_parameters))  # about the mean size of a residual
        pull = -scale * weights * slope  # (S, R) by predicted log loss

        # by log E, log A, log B, alpha and beta
        by_terms = [(pull * shares[..., term]).sum(1) for term in range(3)]
        by_exponents = [
            -(pull * shares[..., 1] * self.log_parameters).sum(1),
            -(pull * shares[..., 2] * self.log_tokens).sum(1),
        ]
        gradient = np.stack([*by_terms, *by_exponents], axis=1)
        return scale * (weights * value).sum(1), gradient


def fit_parametric(
    rungs: Rungs,
    *,
    draws: int = 200,
    seed: int = 0,
    resample: Resample = "rows",
) -> ParametricFit:
    """Fit the law and its intervals.

    Args:
        rungs: at least 5, at 3 or more sizes and 3 or more numbers of tokens.
        draws: bootstrap refits; 0 for no intervals.
        seed: of the bootstrap.
        resample: `rows` samples whole rungs again, as Besiroglu et al. (2024) do; `residuals` keeps
            every rung's size and tokens and shuffles the residuals, with replacement. On synthetic
            ladders of 8 to 64 rungs the first covers the truth as often as it says or more often,
            the second somewhat less often (docs/scaling.md).

    Raises:
        DataError: the rungs are fewer than the parameters, or cannot tell the parameters apart, or
            losses rise.
    """
    refuse_unidentified(rungs)

    # over centred logs, in which the numbers hardly depend on each other
    means = float(np.log(rungs.parameters).mean()), float(np.log(rungs.tokens).mean())
    logs = np.log(rungs.parameters) - means[0], np.log(rungs.tokens) - means[1]
    log_loss = np.log(rungs.loss)
    objective = _ChinchillaObjective(*logs, log_loss, np.ones(len(rungs)))
    best, value = _minimise_from_grid(objective, means)
    law = _uncentre(best, means)
    _refuse_flat(law, len(rungs))

    predicted = predict_logs(best[None], *logs)[0][0]
    residuals = log_loss - predicted
    freedom = len(rungs) - len(PARAMETERS)
    refits: list[Law] = []
    if draws and freedom > 0:
        rng = np.random.default_rng(seed)
        if resample == "rows":
            again = _resample_rungs(objective, rng, draws)
        else:
            again = _resample_residuals(objective, predicted, rng, draws)

        # Every sample is fitted from the best point of the data, with E off zero.
        start = best.copy()
        start[0] = max(start[0], float(np.log(_LEAST_START_OF_E * rungs.loss.min())))
        found = minimise(again, np.tile(start, (draws, 1)), iterations=300, tolerance=1e-9)
        refits = [_uncentre(point, means) for point in found.parameters]

    intervals = _parameter_intervals(refits, freedom) if refits else {}
    return ParametricFit(
        law=law,
        objective=value * HUBER_DELTA * len(rungs),
        residuals=residuals,
        draws=refits,
        intervals=intervals,
        notes=tuple(_list_undetermined(law, intervals, freedom=freedom, asked=draws > 0)),
        freedom=freedom,
    )


def _resample_rungs(
    objective: _ChinchillaObjective, rng: np.random.Generator, draws: int
) -> _ChinchillaObjective:
    """Return the objective of samples in which each rung counts so many times."""
    rungs = len(objective.log_loss)
    weights = rng.multinomial(rungs, np.full(rungs, 1 / rungs), size=draws).astype(float)
    return replace(objective, weights=weights)


def _resample_residuals(
    objective: _ChinchillaObjective, predicted: FloatArray, rng: np.random.Generator, draws: int
) -> _ChinchillaObjective:
    """Return the objective of samples whose losses have each other's residuals."""
    rungs = len(predicted)
    # The residuals of a fit are smaller than the noise, by the freedom that it has used up.
    widened = (objective.log_loss - predicted) * np.sqrt(rungs / (rungs - len(PARAMETERS)))
    return replace(objective, log_loss=predicted + rng.choice(widened, size=(draws, rungs)))


def refuse_unidentified(rungs: Rungs) -> None:
    """Refuse rungs that cannot determine the five numbers, whatever the losses are.

    Raises:
        DataError: what is missing, and which rungs to add.
    """
    if len(rungs) < len(PARAMETERS):
        raise DataError(
            f"{len(rungs)} rungs for the {len(PARAMETERS)} parameters of E + A/N^alpha + B/D^beta: "
            f"measure at least {len(PARAMETERS) + 1}, at 3 sizes and 3 numbers of tokens, or fit a "
            "power law alone (--forms kaplan)"
        )

    for what, values in (("sizes", rungs.parameters), ("numbers of tokens", rungs.tokens)):
        if count_steps(values) < 3:
            raise DataError(
                f"E + A/N^alpha + B/D^beta needs rungs at 3 or more different {what}, these have "
                f"{count_steps(values)}: add rungs, or fit a power law alone (--forms kaplan)"
            )

    if collinearity(rungs) > 0.999:
        raise DataError(
            "tokens rise in step with parameters (a ladder of fixed ratio), so A/N^alpha and "
            "B/D^beta cannot be distinguished: add rungs with other tokens per parameter, or fit a "
            "power law alone (--forms kaplan)"
        )
    refuse_rising(rungs)


def _refuse_flat(law: Law, rungs: int) -> None:
    """Refuse a best law in which size or data does nothing, or does harm."""
    for name, coefficient, what in (("alpha", law.A, "parameters"), ("beta", law.B, "tokens")):
        exponent = getattr(law, name)
        if exponent < _FLAT or not 0 < coefficient < _OVERFLOWING:
            raise DataError(
                f"the law that fits these {rungs} rungs best has {name} = {exponent:.3g}: they "
                f"show no power law of {what}; add rungs over a wider range of {what}, trained for "
                "longer, or use --forms kaplan"
            )


def _minimise_from_grid(
    problem: _ChinchillaObjective, means: Sequence[float]
) -> tuple[FloatArray, float]:
    """Return the best point, in centred logs, and its objective."""
    starts = np.array(list(itertools.product(*_START_VALUES.values())))  # (4500, 5)
    starts[:, 1] -= starts[:, 3] * means[0]
    starts[:, 2] -= starts[:, 4] * means[1]
    order = np.argsort(_evaluate_in_pieces(problem, starts), kind="stable")
    first = minimise(problem, starts[order[:_SCREENED]], iterations=40)
    followed = first.parameters[np.argsort(first.value, kind="stable")[:_FOLLOWED]]
    last = minimise(problem, followed, iterations=2000, tolerance=1e-13)
    winner = int(np.argmin(last.value))
    return last.parameters[winner], float(last.value[winner])


def _evaluate_in_pieces(problem: _ChinchillaObjective, starts: FloatArray) -> FloatArray:
    """Return the objective at every start.

    A few hundred at a time, so that memory stays small.
    """
    pieces = [starts[i : i + 500] for i in range(0, len(starts), 500)]
    return np.concatenate([problem(piece, np.arange(len(piece)))[0] for piece in pieces])


def _uncentre(point: FloatArray, means: Sequence[float]) -> Law:
    """Return the law of a point in centred logs.

    What has run off to infinity is bounded where a float still holds it.
    """
    e, a, b, alpha, beta = (float(value) for value in point)
    log_a, log_b = (min(700.0, x) for x in (a + alpha * means[0], b + beta * means[1]))
    return Law(
        float(np.exp(min(e, 700.0))), float(np.exp(log_a)), float(np.exp(log_b)), alpha, beta
    )


def _parameter_intervals(draws: list[Law], freedom: int) -> dict[str, Interval]:
    """Return the interval of each number, and of `a`, over the draws."""
    columns = {name: np.array([getattr(law, name) for law in draws]) for name in PARAMETERS}
    total = columns["alpha"] + columns["beta"]
    columns["a"] = columns["beta"] / np.where(np.abs(total) > 1e-12, total, np.nan)
    return {
        name: expanded_percentiles(values[np.isfinite(values)], freedom=freedom)
        for name, values in columns.items()
        if np.isfinite(values).any()
    }


def _list_undetermined(
    law: Law, intervals: dict[str, Interval], *, freedom: int, asked: bool
) -> list[str]:
    """Return a sentence for each number that the data does not determine."""
    notes = []
    if law.E < 1e-3 * (law.A + law.B) and law.E < 1e-2:
        notes.append("E is 0: within these rungs nothing shows a floor")
    if freedom == 0:
        notes.append(
            "as many parameters as rungs: the law goes through every point, and says nothing about "
            "its error"
        )
    elif asked and freedom < 5:
        notes.append(f"only {freedom} rungs more than parameters: the intervals are rough")

    for name, interval in intervals.items():
        if name in ("alpha", "beta") and (
            interval.low <= 0 or interval.high > 3 * max(interval.low, 1e-9)
        ):
            notes.append(
                f"{name} is not determined: its 95 % interval is {interval.low:.3g} to "
                f"{interval.high:.3g}"
            )
        if name == "E" and interval.low < interval.high / 3:
            notes.append(
                f"E is not determined: its 95 % interval is {interval.low:.3g} to "
                f"{interval.high:.3g}"
            )
    return notes
