"""The numbers about a reward model, against values worked out by hand and against other
implementations.
"""

import math
import xml.etree.ElementTree as ElementTree

import pytest
from scipy.stats import binomtest

from hfstack.errors import DataError
from hfstack.intervals import gain_interval, share_interval, wins
from hfstack.tasks.preferences.metrics import (
    accuracy_by_margin,
    calibration_bins,
    expected_calibration_error,
    rank_correlation,
    reward_metrics,
)
from hfstack.tasks.preferences.pictures import reward_histogram


def test_ties_win_half():
    assert wins([2.0, 0.0, -1.0]) == [1.0, 0.5, 0.0]


def test_the_interval_is_wilsons():
    found = share_interval([1.0] * 13 + [0.0] * 7)
    expected = binomtest(13, 20).proportion_ci(method="wilson")
    assert found == pytest.approx((expected.low, expected.high))
    assert share_interval([1.0] * 5) == pytest.approx((5 / (5 + 1.959964**2), 1.0))
    with pytest.raises(DataError):
        share_interval([])


def test_pairs_of_one_prompt_count_together():
    # Four prompts of two pairs, alike within a prompt: the deviations are +-1 for each prompt,
    # squared 4 in all, single pairs give 8 * 1/4 = 2, so the design effect is 2 and 8 pairs tell as
    # much as 4.
    shares, groups = [1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0], [0, 0, 1, 1, 2, 2, 3, 3]
    assert share_interval(shares, groups) == pytest.approx(share_interval([1.0, 1.0, 0.0, 0.0]))
    assert share_interval(shares, list(range(8))) == pytest.approx(share_interval(shares))
    # Opposite pairs within a prompt would make the interval shorter; it is not let.
    assert share_interval([1.0, 0.0] * 4, groups) == pytest.approx(share_interval(shares))


def test_accuracy_by_margin_by_hand():
    rows = accuracy_by_margin([0.1, -0.2, 3.0, 2.0], bins=2)
    assert rows == [[0.1, 0.2, 2, 0.5], [2.0, 3.0, 2, 1.0]]
    assert accuracy_by_margin([1.0], bins=5) == [[1.0, 1.0, 1, 1.0]]


def test_calibration_by_hand():
    # ln 4 is a confidence of 0.8; right in 3 of 4, so the gap is 0.05. ln 1.5 is 0.6, right in
    # both: 0.4.
    margins = [math.log(4)] * 3 + [-math.log(4)] + [math.log(1.5)] * 2
    rows = calibration_bins(margins, bins=5)
    assert [(round(c, 6), a, n) for c, a, n in rows] == [(0.6, 1.0, 2), (0.8, 0.75, 4)]
    assert expected_calibration_error(margins, bins=5) == pytest.approx((4 * 0.05 + 2 * 0.4) / 6)
    assert expected_calibration_error([1e9, 1e9]) == pytest.approx(0.0)


def test_rank_correlation():
    assert rank_correlation([1, 2, 3], [10, 100, 1000]) == pytest.approx(1.0)
    assert rank_correlation([1, 2, 3], [3, 2, 1]) == pytest.approx(-1.0)
    assert rank_correlation([1, 1, 1], [3, 2, 1]) == 0.0


def test_gain_interval_by_hand():
    # Differences 1, 0, 0, 0: mean 1/4, squared deviations 9/16 + 3/16, so the standard error is
    # sqrt(12/16) / 4.
    low, high = gain_interval([1.0, 1.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0])
    assert (low + high) / 2 == pytest.approx(0.25)
    assert (high - low) / 2 == pytest.approx(1.959964 * math.sqrt(0.75) / 4)
    with pytest.raises(DataError):
        gain_interval([], [])


def test_reward_metrics_tell_length_from_worth():
    found = reward_metrics(
        [3.0, 1.0, 0.0, 2.0],
        [1.0, 2.0, -1.0, 0.0],
        chosen_lengths=[9, 9, 2, 2],
        rejected_lengths=[3, 3, 4, 2],
    )
    assert found["accuracy"] == 0.75 and found["length_accuracy"] == pytest.approx(2.5 / 4)
    assert found["gain_over_length"] == pytest.approx(0.125) and found[
        "length_rule_accuracy"
    ] == pytest.approx(0.625)
    assert found["accuracy_chosen_longer"] == 0.5 and found["accuracy_chosen_shorter"] == 1.0
    assert found["margin"] == pytest.approx((2 - 1 + 1 + 2) / 4) and found["reward_mean"] == 1.0
    assert found["pairs"] == 4 and found["accuracy_low"] < 0.75 < found["accuracy_high"]


def test_where_train_pairs_prefer_the_shorter_answer_that_is_the_rule_to_beat():
    lengths = {"chosen_lengths": [1, 1, 1, 9], "rejected_lengths": [5, 5, 5, 5]}
    found = reward_metrics([1.0] * 4, [0.0] * 4, **lengths, shorter_wins=True)
    assert (found["length_accuracy"], found["length_rule_accuracy"]) == (0.25, 0.75)
    assert found["gain_over_length"] == 0.25


def test_the_picture_is_an_svg_with_both_sides():
    root = ElementTree.fromstring(reward_histogram([1.0, 2.0, 2.5, math.inf], [0.0, 1.0], bins=5))
    space = "{http://www.w3.org/2000/svg}"
    words = " ".join(text.text or "" for text in root.iter(f"{space}text"))
    assert "chosen: mean 1.833, 3 answers" in words and "rejected: mean 0.500, 2 answers" in words
    heights = [float(box.get("height", 0)) for box in root.iter(f"{space}rect") if box.get("x")]
    # 1/3 and 2/3 of the chosen, half and half of the rejected
    assert [height / heights[0] for height in heights] == pytest.approx([1, 2, 1.5, 1.5], abs=0.01)
    assert ElementTree.fromstring(reward_histogram([1.0], [1.0])) is not None
