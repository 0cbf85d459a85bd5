"""Fit the loss of data that is read more than once.

This is the data-constrained law of Muennighoff et al. (2023, arXiv:2305.16264). A token read again
is worth less each time, and so are parameters beyond what the unique tokens call for (section 3.1,
equations 5 to 7):

    L = E + A / N'^alpha + B / D'^beta
    D' = U_D + U_D R_D* (1 - exp(-R_D / R_D*))
    N' = U_N + U_N R_N* (1 - exp(-R_N / R_N*))

R_D = D / U_D - 1 says how often the U_D unique tokens were repeated, and R_N = N / U_N - 1 is the
excess over U_N, the best size for U_D tokens, at most N.

The five numbers of the plain law come from rungs that repeat nothing, or are given; R_D* and R_N*
are fitted to the rungs that repeat, in the same way: Huber loss of log loss, a grid of starts,
L-BFGS.
"""

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hfstack.errors import DataError
from hfstack.intervals import Interval, expanded_percentiles
from hfstack.scaling.batched_lbfgs import minimise
from hfstack.scaling.parametric import HUBER_DELTA, Law, huber
from hfstack.scaling.rungs import FloatArray, Rungs

_FITTED = 2
_DECAY_STARTS = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
_REPEATS_FROM = 1.1
"""Epochs from which a rung counts as repeating its data."""
_SMALL, _LARGE = 1e-3, 1e4


@dataclass(frozen=True)
class RepeatedLaw:
    """The plain law, and how fast repeated tokens and excess parameters lose value."""

    law: Law
    tokens_decay: float
    """R_D*: repetitions after which a token is worth 1/e of a new one; 15.4 in the paper."""
    parameters_decay: float
    """R_N*; 5.3 in the paper."""

    def effective(
        self, parameters: float, tokens: float, unique_tokens: float
    ) -> tuple[float, float]:
        """Return N' and D'."""
        unique = min(unique_tokens, tokens)
        size = min(best_size(self.law, unique), parameters)
        worth = [
            amount + amount * decay * (1 - np.exp(-(whole / amount - 1) / decay))
            for amount, whole, decay in (
                (size, parameters, self.parameters_decay),
                (unique, tokens, self.tokens_decay),
            )
        ]
        return float(worth[0]), float(worth[1])

    def loss(self, parameters: float, tokens: float, unique_tokens: float) -> float:
        """Return the predicted loss."""
        return self.law.loss(*self.effective(parameters, tokens, unique_tokens))


@dataclass(frozen=True)
class RepeatedFit:
    """A fitted data-constrained law."""

    law: RepeatedLaw
    objective: float
    residuals: FloatArray
    """(R,) log of measured over predicted loss."""
    intervals: dict[str, Interval]
    """95 %, of `tokens_decay` and `parameters_decay`, with the plain law held as it is."""
    notes: tuple[str, ...] = ()


def best_size(law: Law, tokens: float | FloatArray) -> float:
    """Return the size for which `tokens` is compute-optimal, under C = 6ND."""
    return (law.alpha * law.A / (law.beta * law.B)) ** (1 / law.alpha) * tokens ** (
        law.beta / law.alpha
    )


def repeating(rungs: Rungs) -> NDArray[np.bool_]:
    """Return, for each rung, whether it read its data more than once."""
    return rungs.epochs >= _REPEATS_FROM


def fit_repeated(rungs: Rungs, law: Law, *, draws: int = 200, seed: int = 0) -> RepeatedFit:
    """Fit R_D* and R_N* under a given plain law.

    Args:
        rungs: with `unique_tokens`; at least 3 read their data more than once.
        law: fitted to rungs that repeat nothing, see `fit_parametric`.
        draws: bootstrap refits, rungs sampled again; 0 for no intervals.
        seed: of the bootstrap.

    Raises:
        DataError: too few rungs repeat their data.
    """
    again = rungs.select(repeating(rungs))
    if len(again) <= _FITTED:
        raise DataError(
            f"{len(again)} of {len(rungs)} rungs read their data more than once: R_D* and R_N* "
            f"need at least {_FITTED + 1} such rungs, at several numbers of epochs"
        )

    unique = np.minimum(again.unique_tokens, again.tokens)
    size = np.minimum(best_size(law, unique), again.parameters)
    problem = _RepeatedObjective(
        law,
        size,
        again.parameters / size - 1,
        unique,
        again.tokens / unique - 1,
        np.log(again.loss),
    )

    # from every start, all rungs counting once
    starts = np.log(np.array(list(itertools.product(_DECAY_STARTS, _DECAY_STARTS))))  # (36, 2)
    every = np.ones((1, len(again)))
    found = minimise(
        lambda points, _: problem.objective(points, every), starts, iterations=500, tolerance=1e-12
    )
    winner = int(np.argmin(found.value))
    best = found.parameters[winner]
    decays = np.exp(np.clip(best, np.log(_SMALL), np.log(_LARGE)))
    intervals = _bootstrap_decays(problem, best, draws=draws, seed=seed) if draws else {}

    return RepeatedFit(
        law=RepeatedLaw(law, float(decays[0]), float(decays[1])),
        objective=float(found.value[winner]) * HUBER_DELTA * len(again),
        residuals=problem.log_loss - problem.predict(best[None])[0],
        intervals=intervals,
        notes=tuple(_list_open_questions(decays, problem)),
    )


def _bootstrap_decays(
    problem: "_RepeatedObjective", best: FloatArray, *, draws: int, seed: int
) -> dict[str, Interval]:
    """Return the interval of each decay over rungs that are sampled again."""
    rungs = len(problem.log_loss)
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(rungs, np.full(rungs, 1 / rungs), size=draws).astype(float)
    refits = minimise(
        lambda points, rows: problem.objective(points, weights[rows]), np.tile(best, (draws, 1))
    )

    ends = np.exp(np.clip(refits.parameters, np.log(_SMALL), np.log(_LARGE)))
    return {
        name: expanded_percentiles(ends[:, column], freedom=rungs - _FITTED)
        for column, name in enumerate(("tokens_decay", "parameters_decay"))
    }


@dataclass
class _RepeatedObjective:
    """Rungs that repeat, as the two decays see them; a point is (log R_D*, log R_N*)."""

    law: Law
    size: FloatArray
    excess: FloatArray
    unique: FloatArray
    repeats: FloatArray
    log_loss: FloatArray

    def predict(self, points: FloatArray) -> FloatArray:
        """Return log L (S, R)."""
        decay_d, decay_n = (np.exp(np.clip(points[:, i, None], -30, 30)) for i in range(_FITTED))
        tokens = self.unique * (1 - decay_d * np.expm1(-self.repeats / decay_d))
        size = self.size * (1 - decay_n * np.expm1(-self.excess / decay_n))
        return np.log(
            self.law.E + self.law.A * size**-self.law.alpha + self.law.B * tokens**-self.law.beta
        )

    def objective(self, points: FloatArray, weights: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return values (S,) and central-difference gradients (S, 2).

        Two numbers are not worth a derivation.
        """
        step = 1e-6
        value = self._value(points, weights)
        columns = []
        for column in range(_FITTED):
            shift = np.zeros(_FITTED)
            shift[column] = step
            rise = self._value(points + shift, weights) - self._value(points - shift, weights)
            columns.append(rise / (2 * step))
        return value, np.stack(columns, axis=1)

    def _value(self, points: FloatArray, weights: FloatArray) -> FloatArray:
        scale = 1 / (HUBER_DELTA * len(self.log_loss))
        return scale * (weights * huber(self.log_loss - self.predict(points))[0]).sum(1)


def _list_open_questions(decays: FloatArray, problem: _RepeatedObjective) -> list[str]:
    """Return a sentence for each decay that the rungs do not determine."""
    notes = []
    if decays[0] > 10 * problem.repeats.max():
        notes.append(
            "R_D* lies far beyond the measured epochs: within them repeated tokens are worth as "
            "much as new"
        )
    if problem.excess.max() < 0.1:
        notes.append("R_N* is not determined: no rung is larger than its unique tokens call for")
    elif decays[1] > 10 * problem.excess.max():
        notes.append(
            "R_N* lies far beyond the measured sizes: within them excess parameters lose nothing"
        )
    return notes
