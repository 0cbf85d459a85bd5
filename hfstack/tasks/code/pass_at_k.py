"""Estimate pass@k: the chance that one of k answers to a problem passes its tests."""

import math
from collections.abc import Sequence

import numpy

from hfstack.errors import ConfigError
from hfstack.intervals import at_least_wilson, bootstrap_intervals


def pass_at_k(samples: int, passed: int, k: int) -> float:
    """Return the unbiased estimate from n answers of which c passed.

    1 - C(n - c, k) / C(n, k): the share of sets of k answers that hold one that passes, as a
    product so that no binomial overflows (Chen et al. 2021, arXiv:2107.03374, equation 1 and
    figure 3). Plain 1 - (1 - c / n)^k is too low.

    Raises:
        ConfigError: k is more than the answers.
    """
    if not 1 <= k <= samples:
        raise ConfigError(
            f"pass@{k} needs at least {k} answers to each problem, and there are {samples}: raise "
            "--code_samples, or lower --code_k"
        )
    if samples - passed < k:
        return 1.0
    return 1.0 - math.prod(1.0 - k / count for count in range(samples - passed + 1, samples + 1))


def summarise(counts: Sequence[tuple[int, int]], k: int) -> dict[str, float]:
    """Return pass@k over problems, with a 95 % interval over problems.

    Args:
        counts: of each problem the answers, and how many of them passed.
    """
    each = numpy.array([pass_at_k(samples, passed, k) for samples, passed in counts])
    name = f"pass_at_{k}"
    interval = bootstrap_intervals(lambda rows: {name: float(each[rows].mean())}, len(each))[name]
    low, high = at_least_wilson(interval, float(each.mean()), len(each))
    return {name: float(each.mean()), f"{name}_low": low, f"{name}_high": high}
