"""Smoothing keeps straight lines, and thinning keeps spikes."""

import math

import pytest

from hfstack.drawing.smoothing import smooth, thin_out


def test_smoothing_keeps_straight_lines_and_removes_noise() -> None:
    line = [(step, 3.0 - step / 100) for step in range(100)]
    assert [value for _, value in smooth(line)] == pytest.approx([value for _, value in line])
    noisy = [(step, (-1.0) ** step) for step in range(200)]
    assert max(abs(value) for _, value in smooth(noisy)[40:-40]) < 0.1


def test_thinning_keeps_extremes_and_what_is_not_finite() -> None:
    line = [
        (step, 50.0 if step == 777 else math.nan if step == 42 else 1.0) for step in range(9000)
    ]
    thinned = thin_out(line)
    assert len(thinned) < 3000 and (777, 50.0) in thinned
    assert [step for step, value in thinned if math.isnan(value)] == [42]
    assert thin_out(line[:40]) == line[:40]
