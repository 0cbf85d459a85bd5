"""A picture of how rewards are distributed: one histogram for the chosen answers, one for the rejected ones."""

import math
from collections.abc import Sequence
from statistics import fmean

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 720, 300, 16, 44, 40
_COLORS = {"chosen": "#2a7f9e", "rejected": "#c8643c"}


def reward_histogram(chosen: Sequence[float], rejected: Sequence[float], *, bins: int = 30) -> str:
    """Return an SVG of both distributions over one axis of rewards, with the means marked.

    Bars show the share of a side's answers in a bin; infinite and NaN rewards are left out.
    """
    sides = {"chosen": _finite(chosen), "rejected": _finite(rejected)}
    everything = [*sides["chosen"], *sides["rejected"]] or [0.0]
    low, high = min(everything), max(everything)
    if low == high:
        low, high = low - 0.5, high + 0.5
    shares = {name: _shares(values, low, high, bins) for name, values in sides.items()}
    tallest = max(max(each) for each in shares.values()) or 1.0
    plot_width, plot_height, base = _WIDTH - 2 * _LEFT, _HEIGHT - _BOTTOM - _TOP, _HEIGHT - _BOTTOM

    def across(value: float) -> float:
        return _LEFT + plot_width * (value - low) / (high - low)

    parts = [f'<line x1="{_LEFT}" y1="{base}" x2="{_WIDTH - _LEFT}" y2="{base}" stroke="#808080"/>']
    bar = plot_width / bins
    for name, side in shares.items():
        for index, share in enumerate(side):
            tall = plot_height * share / tallest
            if tall > 0:
                parts.append(
                    f'<rect x="{_LEFT + index * bar:.1f}" y="{base - tall:.1f}" width="{bar * 0.96:.1f}" '
                    f'height="{tall:.1f}" fill="{_COLORS[name]}" fill-opacity="0.5"/>'
                )
    for row, (name, values) in enumerate(sides.items()):
        if values:
            x = across(fmean(values))
            parts.append(
                f'<line x1="{x:.1f}" y1="{_TOP}" x2="{x:.1f}" y2="{base}" stroke="{_COLORS[name]}" '
                'stroke-width="2" stroke-dasharray="5 4"/>'
            )
            text = f"{name}: mean {fmean(values):.3f}, {len(values)} answers"
            parts.append(_text(_LEFT, 16 + 17 * row, text, _COLORS[name]))
    for tick in _ticks(low, high):
        parts.append(_text(across(tick), base + 18, f"{tick:g}", "#808080", anchor="middle"))
    parts.append(_text(_WIDTH / 2, _HEIGHT - 6, "reward", "#808080", anchor="middle"))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" '
        f'height="{_HEIGHT}" role="img" font-family="sans-serif" font-size="13">'
        f"<title>Rewards of chosen and rejected answers</title>{''.join(parts)}</svg>\n"
    )


def _finite(values: Sequence[float]) -> list[float]:
    return [float(value) for value in values if math.isfinite(value)]


def _shares(values: Sequence[float], low: float, high: float, bins: int) -> list[float]:
    counts = [0] * bins
    for value in values:
        counts[min(bins - 1, int((value - low) / (high - low) * bins))] += 1
    return [count / max(1, len(values)) for count in counts]


def _ticks(low: float, high: float) -> list[float]:
    """About six values at 1, 2 or 5 times a power of ten within the range."""
    step = 10 ** math.floor(math.log10((high - low) / 5))
    step *= next(nice for nice in (1, 2, 5, 10) if nice * step * 6 >= high - low)
    return [round(n * step, 10) for n in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _text(x: float, y: float, words: str, color: str, *, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" fill="{color}" text-anchor="{anchor}">{words}</text>'
