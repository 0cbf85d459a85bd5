"""Run L-BFGS from many starts at once, in numpy.

A grid of starts and hundreds of bootstrap draws take seconds. The method is that of Liu and Nocedal
(1989), with the two-loop recursion and a backtracking line search, written over a leading axis of
independent problems. Legend: S problems, P parameters, M remembered steps.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hfstack.scaling.rungs import FloatArray

BatchedObjective = Callable[[FloatArray, NDArray[np.intp]], tuple[FloatArray, FloatArray]]
"""Called with parameters (S, P) and the numbers of their problems (S,); returns values (S,) and
gradients (S, P)."""

_MEMORY = 8
_SUFFICIENT_DECREASE = 1e-4
_HALVINGS = 25


@dataclass(frozen=True)
class Minimum:
    """Where each problem ended."""

    parameters: FloatArray
    """(S, P)"""
    value: FloatArray
    """(S,)"""


@dataclass
class _Memory:
    """The last steps of each problem, and how they changed the gradient.

    A product of 0 marks a step without curvature.
    """

    steps: list[FloatArray]
    changes: list[FloatArray]
    products: list[FloatArray]

    def direction(self, gradient: FloatArray) -> FloatArray:
        """Return minus the inverse Hessian's estimate times the gradient, (S, P).

        This is the two-loop recursion.
        """
        direction = -gradient
        shares: list[FloatArray] = []
        pairs = list(zip(self.steps, self.changes, self.products, strict=True))

        # from the newest step back
        for step, change, product in reversed(pairs):
            share = np.where(
                product > 0, (step * direction).sum(1) / np.where(product > 0, product, 1), 0
            )  # (S,)
            direction = direction - share[:, None] * change
            shares.append(share)

        # the newest step sets the scale
        if pairs:
            _, change, product = pairs[-1]
            length = (change * change).sum(1)
            scale = np.where(product > 0, product / np.where(length > 0, length, 1), 1)
            direction = direction * scale[:, None]

        # and forward again
        for (step, change, product), share in zip(pairs, reversed(shares), strict=True):
            back = np.where(
                product > 0, (change * direction).sum(1) / np.where(product > 0, product, 1), 0
            )
            direction = direction + np.where(product > 0, share - back, 0)[:, None] * step
        return direction

    def remember(self, step: FloatArray, change: FloatArray) -> None:
        """Add the last step of each problem."""
        product = (step * change).sum(1)
        curved = product > 1e-12 * np.sqrt((step**2).sum(1) * (change**2).sum(1))
        self.steps.append(step)
        self.changes.append(change)
        self.products.append(np.where(curved, product, 0.0))
        for kept in (self.steps, self.changes, self.products):
            del kept[:-_MEMORY]

    def keep(self, rows: NDArray[np.bool_]) -> None:
        """Keep the problems of these rows."""
        for kept in (self.steps, self.changes, self.products):
            kept[:] = [values[rows] for values in kept]


def minimise(
    objective: BatchedObjective,
    starts: FloatArray,
    *,
    iterations: int = 400,
    tolerance: float = 1e-10,
) -> Minimum:
    """Return the minimum that each start leads to.

    A problem ends when no step along its direction lowers the value, or when ten steps in a row
    lower it by less than `tolerance` of itself.

    Args:
        objective: see `BatchedObjective`; by the second argument each problem can have data of its
            own.
        starts: (S, P).
        iterations: most steps a problem.
        tolerance: relative.
    """
    final = starts.astype(float)
    active = np.arange(len(starts))
    x = final.copy()
    value, gradient = objective(x, active)
    final_value = value.copy()
    memory = _Memory([], [], [])
    stalled = np.zeros(len(active), dtype=int)

    for _ in range(iterations):
        direction = memory.direction(gradient)
        slope = (direction * gradient).sum(1)
        uphill = ~(slope < 0)  # also where it is not a number
        direction[uphill], slope[uphill] = -gradient[uphill], -(gradient[uphill] ** 2).sum(1)
        if not memory.steps:
            direction, slope = _at_most(direction, slope, 1.0)

        moved, moved_value, moved_gradient, found = _line_search(
            objective, (x, value, direction, slope), active
        )
        memory.remember(
            np.where(found[:, None], moved - x, 0),
            np.where(found[:, None], moved_gradient - gradient, 0),
        )

        small = value - moved_value <= tolerance * np.abs(moved_value)
        stalled = np.where(small, stalled + 1, 0)
        x, value, gradient = moved, moved_value, moved_gradient
        final[active], final_value[active] = x, value

        # Problems that have ended leave the arrays.
        going = found & (stalled < 10)
        if not going.any():
            break
        if not going.all():
            x, value, gradient = x[going], value[going], gradient[going]
            active, stalled = active[going], stalled[going]
            memory.keep(going)
    return Minimum(final, final_value)


def _at_most(
    direction: FloatArray, slope: FloatArray, length: float
) -> tuple[FloatArray, FloatArray]:
    """Shorten the very first step, which knows no scale, to `length` at most."""
    factor = np.minimum(1.0, length / np.maximum(np.sqrt((direction**2).sum(1)), 1e-300))
    return direction * factor[:, None], slope * factor


def _line_search(
    objective: BatchedObjective,
    state: tuple[FloatArray, FloatArray, FloatArray, FloatArray],
    active: NDArray[np.intp],
) -> tuple[FloatArray, FloatArray, FloatArray, NDArray[np.bool_]]:
    """Halve the step of each problem until Armijo's condition holds.

    A problem without such a step stays where it is.
    """
    x, value, direction, slope = state
    moved, moved_value, moved_gradient = x.copy(), value.copy(), np.zeros_like(x)
    waiting = np.arange(len(x))
    size = np.ones(len(x))

    for _ in range(_HALVINGS):
        trial = x[waiting] + size[waiting, None] * direction[waiting]
        trial_value, trial_gradient = objective(trial, active[waiting])
        enough = (
            trial_value <= value[waiting] + _SUFFICIENT_DECREASE * size[waiting] * slope[waiting]
        )
        enough &= np.isfinite(trial_gradient).all(1)

        done = waiting[enough]
        moved[done], moved_value[done] = trial[enough], trial_value[enough]
        moved_gradient[done] = trial_gradient[enough]

        waiting = waiting[~enough]
        if not len(waiting):
            break
        size[waiting] /= 2

    found = np.ones(len(x), dtype=bool)
    found[waiting] = False
    return moved, moved_value, moved_gradient, found
