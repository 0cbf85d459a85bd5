"""Count what a read of local files found, and log it."""

from dataclasses import dataclass, field

from hfstack.logs import get_logger

logger = get_logger(__name__)

_MOST_COLUMNS = 1000


@dataclass
class ReadReport:
    """What a read found: good rows, bad rows by reason, nulls by column, and where.

    `notes` counts the files of which each sentence is true.
    """

    rows: int = 0
    bad_rows: dict[str, int] = field(default_factory=dict)
    first_bad: dict[str, str] = field(default_factory=dict)
    bad_files: dict[str, int] = field(default_factory=dict)
    nulls: dict[str, int] = field(default_factory=dict)
    first_null: dict[str, str] = field(default_factory=dict)
    notes: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)  # columns that nobody reads -> why

    def leave_out(self, column: str, why: str) -> None:
        """Remember a column that no table can hold, where nobody reads it."""
        if len(self.left_out) < _MOST_COLUMNS:
            self.left_out.setdefault(column, why)

    def note(self, text: str) -> None:
        """Count a file of which something is worth saying."""
        self.notes[text] = self.notes.get(text, 0) + 1

    def log(self, name: str) -> None:
        """Log one line per note, per reason and per column with nulls, whatever the files."""
        for text, count in self.notes.items():
            logger.info("%s: %s%s", name, text, f" ({count} files)" if count > 1 else "")

        total = self.rows + sum(self.bad_rows.values())
        for reason, count in self.bad_rows.items():
            logger.warning(
                "%s: left out %d of %d rows: %s; first: %s",
                name,
                count,
                total,
                reason,
                self.first_bad[reason],
            )

        for what, count in self.bad_files.items():
            others = f" and {count - 1} more" if count > 1 else ""
            logger.warning("%s%s: %s", self.first_bad[what], others, what)

        if self.left_out:
            shown = [f"{column!r} ({why})" for column, why in list(self.left_out.items())[:5]]
            more = f" and {len(self.left_out) - 5} more" if len(self.left_out) > 5 else ""
            logger.warning(
                "%s: columns that nothing reads and that are not alike in all rows are not kept: "
                "%s%s",
                name,
                "; ".join(shown),
                more,
            )

        for column, count in self.nulls.items():
            if column in self.left_out:
                continue
            logger.warning(
                "%s: column %r is null in %d of %d rows; first: %s",
                name,
                column,
                count,
                self.rows,
                self.first_null[column],
            )
