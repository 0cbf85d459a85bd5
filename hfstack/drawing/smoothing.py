"""Smooth curves of logged values, or thin them out, so that they can be drawn."""

import math

Points = list[tuple[int, float]]
"""(step, value) in order of step."""

_MOST_DRAWN = 1500  # points of one line
_MOST_SMOOTHED = 500


def smooth(points: Points) -> Points:
    """Return the curve fitted by local straight lines.

    It neither lags nor flattens the steep beginning: each value is read off a line fitted to its
    neighbours with tricube weights (Cleveland, 1979). Long curves are averaged in stretches first.
    """
    points = _averaged(points)
    widest = max(3, len(points) // 16)
    finite = [math.isfinite(value) for _, value in points]

    smoothed: Points = []
    for index, (step, value) in enumerate(points):
        if not finite[index]:
            smoothed.append((step, value))
            continue

        # A loss falls fastest at first, so the window is narrow there.
        reach = min(widest, 1 + index // 3)
        near = range(max(0, index - reach), min(len(points), index + reach + 1))
        weights = {n: (1 - (abs(n - index) / (reach + 1)) ** 3) ** 3 for n in near if finite[n]}
        smoothed.append((step, _fitted_value(points, weights, step)))
    return smoothed


def _fitted_value(points: Points, weights: dict[int, float], step: int) -> float:
    """Return the value at a step of the straight line through weighted points."""
    total = sum(weights.values())
    mean_x = sum(w * points[n][0] for n, w in weights.items()) / total
    mean_y = sum(w * points[n][1] for n, w in weights.items()) / total

    spread_x = sum(w * (points[n][0] - mean_x) ** 2 for n, w in weights.items())
    if not spread_x:
        return mean_y
    product = sum(w * (points[n][0] - mean_x) * (points[n][1] - mean_y) for n, w in weights.items())
    return mean_y + product / spread_x * (step - mean_x)


def _averaged(points: Points) -> Points:
    """Return at most about `_MOST_SMOOTHED` means of neighbours; NaN stays NaN."""
    stretch = math.ceil(len(points) / _MOST_SMOOTHED)
    parts = [points[start : start + stretch] for start in range(0, len(points), stretch)]
    return [(part[-1][0], sum(value for _, value in part) / len(part)) for part in parts]


def thin_out(points: Points) -> Points:
    """Return at most about `_MOST_DRAWN` points.

    The lowest and the highest of each stretch stay, so that no spike is lost, and so does what is
    not finite.
    """
    if len(points) <= _MOST_DRAWN:
        return points

    stretch = math.ceil(2 * len(points) / _MOST_DRAWN)
    kept: Points = []
    for start in range(0, len(points), stretch):
        part = points[start : start + stretch]
        finite = [point for point in part if math.isfinite(point[1])] or part
        ends = {min(finite, key=lambda point: point[1]), max(finite, key=lambda point: point[1])}
        kept += sorted(ends | {point for point in part if not math.isfinite(point[1])})
    return kept
