"""Count rows from their files to training, and name the columns that are read.

A user checks three lines of the log, or run.json: rows read, left out and why, used; columns used
and not used; the first row as it is trained.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

_HELD_OUT = "held out for evaluation"
_MOST_COLUMNS, _SHOWN_COLUMNS = 1000, 20


class ReadRows(Protocol):
    """Good rows of a source, bad ones by reason, and columns that were left out."""

    @property
    def rows(self) -> int | None: ...
    @property
    def bad_rows(self) -> Mapping[str, int]: ...
    @property
    def left_out(self) -> Sequence[str]: ...


@dataclass
class SplitCounts:
    """Rows of one split: read = left out + used, unless they became something else."""

    read: int = 0
    left_out: dict[str, int] = field(default_factory=dict)  # by reason
    used: int = 0
    made: str | None = None  # what the rows became, such as "640 pairs"


@dataclass
class RowCounts:
    """What a run has read of its data: rows of each split, and columns."""

    splits: dict[str, SplitCounts] = field(default_factory=dict)
    columns_used: list[str] = field(default_factory=list)
    columns_not_used: list[str] = field(default_factory=list)
    columns_left_out: list[str] = field(default_factory=list)  # not alike in all rows, and unread
    columns_for_rewards: list[str] = field(default_factory=list)  # what rewards are called with
    contamination: dict[str, int] = field(default_factory=dict)  # eval rows in train, see Overlap
    conflicts: dict[str, int] = field(default_factory=dict)  # rows whose text has other labels too

    def read(self, split: str, count: int) -> None:
        """Count the rows of a split as its files hold them, the bad ones included."""
        self.splits[split] = SplitCounts(read=count, used=count)

    def read_sources(self, split: str, sources: Sequence[ReadRows]) -> int:
        """Count the rows of a split's sources, and return how many are good.

        Bad ones are counted by reason; columns that were not kept are named.
        """
        reasons: Counter[str] = Counter()
        for each in sources:
            reasons.update(each.bad_rows)
            lost = [name for name in each.left_out if name not in self.columns_left_out]
            self.columns_left_out += lost[: max(0, _MOST_COLUMNS - len(self.columns_left_out))]

        good = sum(each.rows or 0 for each in sources)
        self.read(split, good + reasons.total())
        for reason, count in reasons.items():
            self.leave_out(split, reason, count)
        return good

    def hold_out(self, count: int) -> None:
        """Count rows of the train files that are held out for evaluation, if any."""
        if not count:
            return
        self.leave_out("train", _HELD_OUT, count)
        self.read("eval", count)

    def leave_out(self, split: str, reason: str, count: int) -> None:
        """Count rows that are not used; none is no reason."""
        if not count:
            return
        counts = self.splits.setdefault(split, SplitCounts())
        counts.left_out[reason] = counts.left_out.get(reason, 0) + count
        counts.used -= count

    def turn_into(self, split: str, kind: str, count: int) -> None:
        """Record what the rows of a split became: from here on those are counted."""
        counts = self.splits.setdefault(split, SplitCounts())
        counts.made, counts.used = f"{count} {kind}", count

    def take_back(self, count: int) -> None:
        """Count held-out rows that are trained after all."""
        self.splits["eval"].read -= count
        self.splits["eval"].used -= count
        self.leave_out("train", _HELD_OUT, -count)

    def name_columns(
        self, found: Sequence[str], used: Iterable[str | None], *, rest_for_rewards: bool = False
    ) -> None:
        """Name the columns that the data has, by whether anything reads them.

        Args:
            found: columns of the data.
            used: those that are read; what the data lacks is left out.
            rest_for_rewards: rewards are called with the other columns.
        """
        # The train rows come first; others may have columns of their own.
        if self.columns_used:
            return
        wanted = set(used)
        self.columns_used = [name for name in found if name in wanted]
        rest = [name for name in found if name not in wanted]
        self.columns_for_rewards, self.columns_not_used = (
            (rest, []) if rest_for_rewards else ([], rest)
        )

    def lines(self) -> list[str]:
        """Return what the log says: a line for each split, and one for the columns."""
        lines = []
        for name, counts in self.splits.items():
            made = f", which make {counts.made}" if counts.made else ""
            reasons = ", ".join(f"{count} {reason}" for reason, count in counts.left_out.items())
            left = f"; left out: {reasons}" if reasons else ""
            others = self.conflicts.get(name)
            left += f"; {others} have a text that has another label elsewhere" if others else ""
            lines.append(f"{name}: {counts.read} rows read{made}, {counts.used} used{left}")

        if self.columns_used:
            unread = ", ".join(self.columns_not_used) or "none"
            line = f"columns used: {', '.join(self.columns_used)}; not used: {unread}"
            lost = ", ".join(self.columns_left_out[:_SHOWN_COLUMNS])
            line += f"; not alike in all rows, and left out: {lost}" if lost else ""
            passed = ", ".join(self.columns_for_rewards)
            lines.append(f"{line}; given to the rewards: {passed}" if passed else line)
        return lines


def read_row_counts(values: dict[str, Any]) -> RowCounts:
    """Read row counts as run.json has them.

    Raises:
        TypeError: they have another form.
    """
    counts = RowCounts(**values)
    counts.splits = {name: SplitCounts(**split) for name, split in values.get("splits", {}).items()}
    return counts
