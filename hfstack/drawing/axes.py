"""Make axes with round ticks, linear or logarithmic, whose labels keep apart."""

import math
from dataclasses import dataclass

from hfstack.drawing.numbers import compact, power

_DECADE = ((1.0,), (1.0, 3.0), (1.0, 2.0, 5.0), (1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0))
_FEWEST_TICKS = 4


@dataclass(frozen=True)
class Axis:
    """A range of values, linear or logarithmic, with its ticks."""

    low: float
    high: float
    ticks: list[float]
    log: bool = False

    def position(self, value: float) -> float:
        """Return where a value lies, 0 at `low` and 1 at `high`."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def can_show(self, value: float) -> bool:
        """Return whether a value has a place: finite, and positive on a logarithmic axis."""
        return math.isfinite(value) and (value > 0 or not self.log)


def linear_axis(low: float, high: float, *, ticks: int = 5, snug: bool = False) -> Axis:
    """Return an axis with ticks at 1, 2 or 5 times a power of ten.

    Args:
        ticks: about how many.
        snug: end the axis at the values themselves, not at the next tick.
    """
    # A single value gets a range around it, or above it when the axis may not go below it.
    if low == high:
        margin = abs(low) / 2 or 1.0
        low, high = (low, high + margin) if snug else (low - margin, high + margin)

    # The smallest round step with which the ticks suffice; 0.999 forgives rounding.
    step = 10 ** math.floor(math.log10((high - low) / ticks))
    step *= next(nice for nice in (1, 2, 5, 10) if nice * step * ticks >= (high - low) * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    values = [round(n * step, 12 - math.floor(math.log10(step))) for n in range(first, last + 1)]

    if not snug:
        return Axis(values[0], values[-1], values)
    margin = step * 1e-6
    return Axis(low, high, [value for value in values if low - margin <= value <= high + margin])


def log_axis(low: float, high: float, *, snug: bool = False) -> Axis:
    """Return a logarithmic axis over positive values.

    Its ticks are powers of ten, on short axes 1-3, 1-2-5 or finer within each.
    """
    if low == high:
        low, high = low / 2, high * 2

    decades = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    ticks, inside = [], []
    for mantissas in _DECADE:
        ticks = [float(f"{m}e{decade}") for decade in decades for m in mantissas]
        inside = [tick for tick in ticks if low * 0.999 <= tick <= high * 1.001]
        if len(inside) >= _FEWEST_TICKS:
            break

    if snug:
        return Axis(low, high, inside, log=True)
    below = max((tick for tick in ticks if tick <= low * 1.001), default=low)
    above = min((tick for tick in ticks if tick >= high * 0.999), default=high)
    return Axis(below, above, sorted({below, *inside, above}), log=True)


def format_ticks(axis: Axis) -> list[str]:
    """Return the ticks as text, with one number of decimals for a linear axis."""
    if axis.log:
        return [compact(tick) if abs(tick) >= 1e4 else power(f"{tick:g}") for tick in axis.ticks]

    largest = max(map(abs, axis.ticks))
    if largest >= 1e4:
        return [compact(tick) for tick in axis.ticks]
    if 0 < largest < 1e-2:
        return [_scientific(tick) for tick in axis.ticks]

    # As many decimals as it takes for neighbouring ticks to differ.
    gaps = [b - a for a, b in zip(axis.ticks, axis.ticks[1:], strict=False)]
    decimals = max(0, -math.floor(math.log10(min(gaps)) + 1e-9)) if gaps else 0
    return [f"{tick:.{decimals}f}" for tick in axis.ticks]


def _scientific(value: float) -> str:
    """Return `0.0015` as `1.5e-3`."""
    if not value:
        return "0"
    mantissa, _, exponent = f"{value:.2e}".partition("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def spread_labels(heights: list[float], gap: float) -> list[float]:
    """Return rising heights moved apart to `gap`, within 0 and 1.

    Labels that would overlap are centred on the heights that they asked for.
    """
    clusters: list[list[float]] = []  # each holds the heights that its members asked for
    for height in heights:
        clusters.append([height])
        while len(clusters) > 1 and _lowest(clusters[-1], gap) - _highest(clusters[-2], gap) < gap:
            clusters[-2:] = [clusters[-2] + clusters[-1]]

    return [_lowest(members, gap) + gap * n for members in clusters for n in range(len(members))]


def _lowest(members: list[float], gap: float) -> float:
    """Return where the lowest label of a cluster goes."""
    span = gap * (len(members) - 1)
    return max(0.0, min(sum(members) / len(members) - span / 2, 1.0 - span))


def _highest(members: list[float], gap: float) -> float:
    return _lowest(members, gap) + gap * (len(members) - 1)
