"""Panels: where marks are, that text is escaped, that nothing leaves the picture."""

import math
from xml.etree import ElementTree

import pytest

from hfstack.drawing.panels import Marks, Panel, draw_panels

SVG = "{http://www.w3.org/2000/svg}"


def parse(text: str) -> ElementTree.Element:
    return ElementTree.fromstring(text)


def circles(picture: ElementTree.Element) -> list[tuple[float, float]]:
    return [
        (float(c.get("cx", "")), float(c.get("cy", "")))
        for c in picture.iter(f"{SVG}circle")
        if c.get("cx")
    ]


def test_points_stand_where_the_axes_say() -> None:
    """On logarithmic axes equal ratios are equal distances; larger is right and up."""
    points = [(1e3, 2.0), (1e4, 4.0), (1e5, 8.0)]
    picture = parse(draw_panels("t", [Panel("p", "x", "y", [Marks(points)])]))
    (x1, y1), (x2, y2), (x3, y3) = circles(picture)
    assert x2 - x1 == pytest.approx(x3 - x2, abs=0.2) and x1 < x2
    assert y1 - y2 == pytest.approx(y2 - y3, abs=0.2) and y1 > y2


def test_everything_is_inside_and_escaped() -> None:
    marks = [
        Marks([(1e9, 3.1), (2e9, math.nan), (4e9, 2.9)], "a < b & c", 0, "rings", name="end"),
        Marks([(1e9, 3.0), (4e9, 2.8)], "line", 1, "line"),
        Marks(ranges=[(2e9, 2.7, 3.3)], color=2),
    ]
    panels = [Panel("one <script>", "N", "loss", marks, y_kind="loss"), Panel("empty", "x", "y")]
    text = draw_panels("t", panels, width=900, height=300)
    picture = parse(text)
    assert "<script>" not in text and "nothing to draw" in text and "a &lt; b &amp; c" in text
    assert "nan" not in text.replace("serif", "")
    for x, y in circles(picture):
        assert 0 <= x <= 900 and 0 <= y <= float(picture.get("height", "0"))


def test_rows_have_names_and_ranges_lie() -> None:
    marks = [Marks(ranges=[(0, 1.0, 3.0)]), Marks([(2.0, 0)], "llama"), Marks([(5.0, 1)], "gru", 1)]
    panel = Panel(
        "alpha", "fall with N", "", marks, x_kind="linear", y_kind="linear", rows=("llama", "gru")
    )
    picture = parse(draw_panels("t", [panel]))
    line = next(one for one in picture.iter(f"{SVG}line") if one.get("stroke-width") == "2")
    assert line.get("y1") == line.get("y2") and float(line.get("x1", "")) < float(
        line.get("x2", "")
    )
    texts = [element.text for element in picture.iter(f"{SVG}text")]
    assert texts.count("llama") == 2  # the row and the legend


def test_a_single_point_has_axes_around_it() -> None:
    for kind in ("log", "linear", "loss"):
        picture = parse(
            draw_panels("t", [Panel("p", "x", "y", [Marks([(1e6, 3.0)])], y_kind=kind)])
        )
        assert len(circles(picture)) == 1


def test_columns_have_the_heights_of_their_values() -> None:
    marks = [Marks(columns=[(0.0, 1.0, 0.25), (1.0, 2.0, 0.5)])]
    panel = Panel("p", "reward", "share", marks, x_kind="linear", y_kind="from_zero")
    boxes = [box for box in parse(draw_panels("t", [panel])).iter(f"{SVG}rect") if box.get("x")]
    small, tall = (float(box.get("height", "")) for box in boxes)
    assert tall == pytest.approx(2 * small, abs=0.2)


def test_panels_fill_rows_of_columns() -> None:
    panels = [Panel(f"p{n}", "x", "y", [Marks([(1.0, 1.0)])]) for n in range(3)]
    picture = parse(draw_panels("t", panels, width=400, height=100, columns=2))
    moved = [group.get("transform") for group in picture.iter(f"{SVG}g")]
    assert moved == [f"translate({x}.0 {y}.0)" for x, y in ((0, 0), (200, 0), (0, 100))]
    assert picture.get("height") == "200"
