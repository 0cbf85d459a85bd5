"""Pictures of a classifier as SVG: what it takes for what, and whether its probabilities mean what they say."""

from collections.abc import Sequence
from html import escape

_BLUE, _ORANGE, _GREY = "#2a7f9e", "#c8643c", "#808080"
_MOST_CLASSES = 30
_LETTER = 7.5  # px, about the width of a letter


def confusion_picture(counts: Sequence[Sequence[int]], names: Sequence[str]) -> str:
    """Return an SVG of the counts: a row a true class, a column a predicted one, shaded by the share of the row.

    Of many classes the most frequent 30 are drawn.
    """
    order = sorted(range(len(names)), key=lambda index: -sum(counts[index]))[:_MOST_CLASSES]
    shown = sorted(order)
    cell, left, top = (56 if len(shown) <= 8 else 34), 130, 104
    caption = f"Rows: true class; columns: predicted ({sum(map(sum, counts))} rows)"
    slanted = (
        0.77 * _LETTER * max(len(_short(names[row])) for row in shown)
    )  # how far a column's name reaches right
    width = int(max(left + cell * (len(shown) - 0.5) + slanted, 8 + _LETTER * len(caption))) + 8
    height = top + cell * len(shown) + 16
    parts = [_text(8, 18, caption, _GREY)]
    for y, row in enumerate(shown):
        total = max(1, sum(counts[row]))
        parts.append(
            _text(left - 8, top + cell * (y + 0.5) + 4, _short(names[row]), _GREY, anchor="end")
        )
        x0 = left + cell * (y + 0.5)
        parts.append(
            f'<text x="{x0:.1f}" y="{top - 8}" fill="{_GREY}" transform="rotate(-40 {x0:.1f} {top - 8})">'
            f"{escape(_short(names[row]))}</text>"
        )
        for x, column in enumerate(shown):
            count = counts[row][column]
            color = _BLUE if row == column else _ORANGE
            parts.append(
                f'<rect x="{left + cell * x}" y="{top + cell * y}" width="{cell - 1}" height="{cell - 1}" '
                f'fill="{color}" fill-opacity="{0.06 + 0.74 * count / total:.3f}"/>'
            )
            if count:
                ink = "#fff" if 2 * count > total else _GREY  # on a dark cell
                place = left + cell * (x + 0.5), top + cell * (y + 0.5) + 4
                parts.append(_text(*place, str(count), ink, anchor="middle"))
    return _svg(width, height, "Confusion matrix", parts)


def reliability_picture(curves: dict[str, Sequence[Sequence[float]]]) -> str:
    """Return an SVG of accuracy over confidence, a curve for each set of [confidence, accuracy, rows] bins.

    On the diagonal a probability means what it says; below it the model is too sure. Circles grow with the rows.
    """
    size, left, top = 320, 48, 46
    width, height = left + size + 20, top + size + 46
    parts = [
        f'<rect x="{left}" y="{top}" width="{size}" height="{size}" fill="none" stroke="{_GREY}"/>',
        f'<line x1="{left}" y1="{top + size}" x2="{left + size}" y2="{top}" stroke="{_GREY}" stroke-dasharray="4 4"/>',
    ]
    for tick in (0, 0.25, 0.5, 0.75, 1):
        parts.append(
            _text(left + size * tick, top + size + 17, f"{tick:g}", _GREY, anchor="middle")
        )
        parts.append(_text(left - 7, top + size * (1 - tick) + 4, f"{tick:g}", _GREY, anchor="end"))
    for index, (name, bins) in enumerate(curves.items()):
        color = (_ORANGE, _BLUE, _GREY)[index % 3]
        total = sum(row[2] for row in bins) or 1
        points = [(left + size * row[0], top + size * (1 - row[1]), row[2] / total) for row in bins]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y, _ in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="1.5"/>')
        parts += [
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{2 + 9 * share**0.5:.1f}" fill="{color}" fill-opacity="0.6"/>'
            for x, y, share in points
        ]
        parts.append(_text(left, 16 + 17 * index, name, color))
    parts.append(
        _text(left + size / 2, height - 8, "confidence (accuracy upwards)", _GREY, anchor="middle")
    )
    return _svg(width, height, "Reliability diagram", parts)


def _svg(width: float, height: float, title: str, parts: Sequence[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" font-family="sans-serif" font-size="13"><title>{title}</title>{"".join(parts)}</svg>\n'
    )


def _short(name: str) -> str:
    return name if len(name) <= 16 else f"{name[:15]}…"


def _text(x: float, y: float, words: str, color: str, *, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" fill="{color}" text-anchor="{anchor}">{escape(words)}</text>'
