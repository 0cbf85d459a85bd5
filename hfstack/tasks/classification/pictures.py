"""Draw the confusions of a classifier, and how calibrated it is, as SVG."""

from collections.abc import Sequence

from hfstack.drawing.html import Html
from hfstack.drawing.panels import Marks, Panel, draw_panels
from hfstack.drawing.svg import (
    COLORS,
    GREY,
    PAPER,
    draw_box,
    draw_picture,
    draw_text,
    fit_label,
    text_width,
)

_MOST_CLASSES = 30
_RIGHT_COLOR, _WRONG_COLOR = COLORS[0], COLORS[1]
_LEFT, _TOP, _BOTTOM = 130, 104, 16  # pixels around the cells, for the names of the classes
_SLANT = -40  # degrees, of a column's name
_SLANTED_WIDTH = 0.77  # its width over its length: the cosine of that angle


def confusion_picture(counts: Sequence[Sequence[int]], names: Sequence[str]) -> str:
    """Return an SVG of the counts: a row a true class, a column a predicted one.

    Cells are shaded by their share of the row. Of many classes the most frequent 30 are drawn.
    """
    frequent = sorted(range(len(names)), key=lambda index: -sum(counts[index]))
    shown = sorted(frequent[:_MOST_CLASSES])
    cell = 56 if len(shown) <= 8 else 34
    caption = f"Rows: true class; columns: predicted ({sum(map(sum, counts))} rows)"

    parts = [draw_text(8, 18, caption, color=GREY)]
    for place, row in enumerate(shown):
        label, middle = fit_label(names[row]), cell * (place + 0.5)
        x, y = _LEFT + middle, _TOP + middle + 4
        parts.append(draw_text(_LEFT - 8, y, label, color=GREY, anchor="end"))
        parts.append(draw_text(x, _TOP - 8, label, color=GREY, rotate=_SLANT))
        parts += _draw_row(counts[row], row, shown, y=_TOP + cell * place, cell=cell)

    # The picture is as wide as its cells, the slanted names over them, and the caption need.
    longest = max(text_width(fit_label(names[row])) for row in shown)
    last_name = _LEFT + cell * (len(shown) - 0.5) + _SLANTED_WIDTH * longest
    width = int(max(last_name, 8 + text_width(caption))) + 8
    height = _TOP + cell * len(shown) + _BOTTOM
    return draw_picture("Confusion matrix", parts, width=width, height=height)


def _draw_row(
    counts: Sequence[int], row: int, shown: Sequence[int], *, y: float, cell: float
) -> list[Html]:
    """Return the cells of a true class: what was predicted for its rows."""
    total = max(1, sum(counts))
    parts = []
    for place, column in enumerate(shown):
        count, x = counts[column], _LEFT + cell * place
        color = _RIGHT_COLOR if row == column else _WRONG_COLOR
        opacity = 0.06 + 0.74 * count / total
        parts.append(draw_box(x, y, cell - 1, cell - 1, color, opacity=opacity))
        if count:
            # The count of a dark cell is light.
            ink = PAPER if 2 * count > total else GREY
            middle = x + cell / 2, y + cell / 2 + 4
            parts.append(draw_text(*middle, str(count), color=ink, anchor="middle"))
    return parts


def reliability_picture(curves: dict[str, Sequence[Sequence[float]]]) -> str:
    """Return an SVG of accuracy over confidence.

    Each set of [confidence, accuracy, rows] bins is a curve. On the diagonal a probability means
    what it says; below it the model is too sure. Circles grow with the rows of a bin.
    """
    marks = [Marks([(0, 0), (1, 1)], color=GREY, style="dashed")]
    for color, (name, bins) in enumerate(curves.items()):
        points = [(row[0], row[1]) for row in bins]
        total = sum(row[2] for row in bins) or 1
        radii = [2 + 9 * (row[2] / total) ** 0.5 for row in bins]
        marks.append(Marks(points, name, color, "line"))
        marks.append(Marks(points, color=color, radii=radii))

    panel = Panel("Reliability", "confidence", "accuracy", marks, x_kind="share", y_kind="share")
    return draw_panels("Reliability diagram", [panel], width=394, height=398)
