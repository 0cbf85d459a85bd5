"""Axes have round ticks, and labels that would overlap are moved apart."""

import pytest

from hfstack.drawing.axes import Axis, format_ticks, linear_axis, log_axis, spread_labels


def test_axes_have_round_ticks() -> None:
    """By hand: 4.5 over 5 ticks asks for steps of 0.9; the next of 1, 2, 5 is 1."""
    assert linear_axis(1.2, 5.7).ticks == [1, 2, 3, 4, 5, 6]
    assert linear_axis(0, 600, ticks=6, snug=True).ticks == [0, 100, 200, 300, 400, 500, 600]
    assert linear_axis(0, 0.002).ticks == [0, 0.0005, 0.001, 0.0015, 0.002]
    assert format_ticks(linear_axis(0, 0.002)) == ["0", "5e-4", "1e-3", "1.5e-3", "2e-3"]
    assert format_ticks(linear_axis(0.1, 0.4)) == ["0.1", "0.2", "0.3", "0.4"]
    assert log_axis(1, 1000).ticks == [1, 10, 100, 1000]
    axis = log_axis(0.3, 40)
    assert axis.low <= 0.3 < 40 <= axis.high
    assert Axis(1, 100, [], log=True).position(10) == pytest.approx(0.5)
    assert linear_axis(2, 2).position(2) == pytest.approx(0.5)


def test_labels_that_overlap_are_moved_apart() -> None:
    assert spread_labels([0.2, 0.5], gap=0.1) == pytest.approx([0.2, 0.5])
    assert spread_labels([0.5, 0.5], gap=0.1) == pytest.approx([0.45, 0.55])
    assert spread_labels([0.99, 1.0], gap=0.1) == pytest.approx([0.9, 1.0])
    assert spread_labels([0.0, 0.0, 0.05], gap=0.1) == pytest.approx([0.0, 0.1, 0.2])
