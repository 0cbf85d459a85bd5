"""Measure how well rewards order pairs: accuracy, margins, calibration, length.

Everything here is a function of plain numbers. A margin is the reward of the chosen answer minus
that of the rejected one; by the model of Bradley and Terry (1952) the chosen one is better with
probability sigmoid(margin).
"""

import itertools
import math
from collections import defaultdict
from collections.abc import Hashable, Sequence
from statistics import fmean, pstdev

import numpy

from hfstack.intervals import gain_interval, share_interval, wins


def accuracy_by_margin(margins: Sequence[float], *, bins: int = 5) -> list[list[float]]:
    """Return the accuracy of equally many pairs each, by rising margin.

    Rows are [smallest |margin|, largest |margin|, pairs, accuracy]. A reward model that knows what
    it knows is near 0.5 in the first row and near 1 in the last.
    """
    ranked = sorted(margins, key=abs)
    edges = [round(len(ranked) * i / bins) for i in range(bins + 1)]
    parts = [ranked[low:high] for low, high in itertools.pairwise(edges) if high > low]
    return [[abs(part[0]), abs(part[-1]), len(part), fmean(wins(part))] for part in parts]


def calibration_bins(margins: Sequence[float], *, bins: int = 10) -> list[list[float]]:
    """Return confidence and accuracy of pairs, binned by confidence from 0.5 to 1.

    Rows are [mean confidence, accuracy, pairs], in equally wide bins, empty ones left out. The
    confidence is sigmoid(|margin|): how sure the model is of the answer that it prefers.
    """
    found: defaultdict[int, list[tuple[float, float]]] = defaultdict(list)
    for margin, win in zip(margins, wins(margins), strict=True):
        confidence = 1 / (1 + math.exp(-min(abs(margin), 700.0)))
        found[min(bins - 1, int((confidence - 0.5) * 2 * bins))].append((confidence, win))
    rows = [found[index] for index in sorted(found)]
    return [[fmean(c for c, _ in row), fmean(w for _, w in row), len(row)] for row in rows]


def expected_calibration_error(margins: Sequence[float], *, bins: int = 10) -> float:
    """Return the mean gap of confidence and accuracy over `calibration_bins`.

    Weighted by their pairs (Guo et al. 2017).
    """
    rows = calibration_bins(margins, bins=bins)
    return sum(pairs * abs(confidence - accuracy) for confidence, accuracy, pairs in rows) / len(
        margins
    )


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Return Spearman's correlation of ranks, 0 where one of them does not vary."""
    if len(set(first)) < 2 or len(set(second)) < 2:
        return 0.0
    from scipy.stats import spearmanr  # takes half a second, which few runs need

    return float(numpy.asarray(spearmanr(first, second))[0])


def reward_metrics(
    chosen: Sequence[float],
    rejected: Sequence[float],
    *,
    chosen_lengths: Sequence[int],
    rejected_lengths: Sequence[int],
    prompts: Sequence[Hashable] | None = None,
    shorter_wins: bool = False,
) -> dict[str, float]:
    """Return all metrics of a reward model on held-out pairs.

    The keys are those of docs/recipes/reward.md.

    Args:
        chosen, rejected: rewards of the answers, one of each for a pair.
        chosen_lengths, rejected_lengths: lengths of the answers, in any unit.
        prompts: an id of each pair's prompt, for the interval; by default every pair has its own.
        shorter_wins: the rule of length that the train pairs suggest, which the reward model must
            beat: where their chosen answers are mostly the shorter ones, a model that has learned
            length alone prefers the shorter.
    """
    margins = [c - r for c, r in zip(chosen, rejected, strict=True)]
    length_margins = [float(c - r) for c, r in zip(chosen_lengths, rejected_lengths, strict=True)]
    correct, longer = wins(margins), wins(length_margins)
    low, high = share_interval(correct, prompts)
    length_low, length_high = share_interval(longer, prompts)

    rule = [1.0 - win if shorter_wins else win for win in longer]
    gain_low, gain_high = gain_interval(correct, rule, prompts)
    rewards, lengths = [*chosen, *rejected], [*chosen_lengths, *rejected_lengths]

    metrics = {
        "accuracy": fmean(correct),
        "accuracy_low": low,
        "accuracy_high": high,
        "length_accuracy": fmean(longer),
        "length_accuracy_low": length_low,
        "length_accuracy_high": length_high,
        "length_rule_accuracy": fmean(rule),
        "gain_over_length": fmean(correct) - fmean(rule),
        "gain_over_length_low": gain_low,
        "gain_over_length_high": gain_high,
    }

    # the rewards themselves
    metrics |= {
        "margin": fmean(margins),
        "calibration_error": expected_calibration_error(margins),
        "reward_length_correlation": rank_correlation(rewards, lengths),
        "reward_mean": fmean(rewards),
        "reward_std": pstdev(rewards),
        "pairs": len(margins),
    }

    for name, side in {"accuracy_chosen_longer": 1.0, "accuracy_chosen_shorter": 0.0}.items():
        part = [win for win, long in zip(correct, longer, strict=True) if long == side]
        if part:
            metrics[name] = fmean(part)

    return metrics
