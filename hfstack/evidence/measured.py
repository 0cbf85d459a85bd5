"""Collect the numbers of a measurement, their intervals, and tables."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from hfstack.intervals import share_interval
from hfstack.logs import get_logger

logger = get_logger(__name__)

WIDE = 0.1
"""Half the width of an interval from which on there are too few rows to say much."""


def signed_interval(
    signs: Sequence[float], groups: Sequence[Hashable]
) -> tuple[float, float, float]:
    """Return the mean of values in [-1, 1] with Wilson's interval."""
    # of (value + 1) / 2, which is a share
    low, high = share_interval([(sign + 1) / 2 for sign in signs], groups)
    return fmean(signs), 2 * low - 1, 2 * high - 1


@dataclass
class Measured:
    """What the sets gave: numbers by name, tables, and groups with too few rows."""

    metrics: dict[str, float] = field(default_factory=dict)
    tables: dict[str, tuple[list[str], list[list[Any]]]] = field(default_factory=dict)
    few: list[str] = field(default_factory=list)

    def add_share(
        self, name: str, shares: Sequence[float], groups: Sequence[Hashable] | None = None
    ) -> None:
        """Add a mean of values in [0, 1] with its interval; nothing where there are none."""
        if not shares:
            return
        low, high = share_interval(shares, groups)
        self.metrics |= {name: fmean(shares), f"{name}_low": low, f"{name}_high": high}

    def add_bias(self, name: str, signs: Sequence[float], groups: Sequence[Hashable]) -> None:
        """Add a mean of values in [-1, 1] with its interval."""
        if not signs:
            return
        mean, low, high = signed_interval(signs, groups)
        self.metrics |= {name: mean, f"{name}_low": low, f"{name}_high": high}

    def lines(self) -> list[str]:
        """Return a line for each number that has an interval."""
        return [
            f"{name}: {value:.3f} ({low:.3f} to {self.metrics[f'{name}_high']:.3f})"
            for name, value in self.metrics.items()
            if (low := self.metrics.get(f"{name}_low")) is not None
        ]

    def warn_of_few(self) -> None:
        """Log which groups have too few rows."""
        if self.few:
            logger.warning(
                "too few rows to say much (an interval wider than %.0f points): %s",
                200 * WIDE,
                ", ".join(self.few),
            )

    def note_few(self, what: str, low: float, high: float, rows: int) -> None:
        """Keep the name of a group whose interval is too wide to say much."""
        if high - low > 2 * WIDE:
            self.few.append(f"{what} ({rows})")
