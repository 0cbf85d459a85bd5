"""Draw how the rewards of chosen and rejected answers are distributed."""

import math
from collections.abc import Sequence
from statistics import fmean

from hfstack.drawing.panels import Marks, Panel, draw_panels


def reward_histogram(chosen: Sequence[float], rejected: Sequence[float], *, bins: int = 30) -> str:
    """Return an SVG of both distributions over one axis, with the means marked.

    Columns show the share of a side's answers in a bin; infinite and NaN rewards are left out.
    """
    sides = {"chosen": _finite(chosen), "rejected": _finite(rejected)}
    everything = [*sides["chosen"], *sides["rejected"]] or [0.0]
    low, high = min(everything), max(everything)
    if low == high:
        low, high = low - 0.5, high + 0.5

    # Shares and not counts, since one side may have lost more answers than the other.
    shares = {name: _bin_shares(values, low, high, bins) for name, values in sides.items()}
    tallest = max(max(side) for side in shares.values())

    width = (high - low) / bins
    marks = []
    for color, (name, values) in enumerate(sides.items()):
        columns = [
            (low + index * width, low + (index + 1) * width, share)
            for index, share in enumerate(shares[name])
            if share > 0
        ]
        marks.append(Marks(columns=columns, color=color))
        if values:
            mean = fmean(values)
            label = f"{name}: mean {mean:.3f}, {len(values)} answers"
            marks.append(Marks([(mean, 0), (mean, tallest)], label, color, "dashed"))

    title = "Rewards of chosen and rejected answers"
    panel = Panel(
        title, "reward", "share of the answers", marks, x_kind="linear", y_kind="from_zero"
    )
    return draw_panels(title, [panel], width=720, height=300)


def _finite(values: Sequence[float]) -> list[float]:
    return [float(value) for value in values if math.isfinite(value)]


def _bin_shares(values: Sequence[float], low: float, high: float, bins: int) -> list[float]:
    """Return the share of the values in each of equal bins from low to high."""
    counts = [0] * bins
    for value in values:
        counts[min(bins - 1, int((value - low) / (high - low) * bins))] += 1
    return [count / max(1, len(values)) for count in counts]
