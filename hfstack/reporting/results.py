"""The results of the runs: metrics beside each other, tables and pictures."""

import re
from typing import Any

from hfstack.drawing.html import Html, join, tag
from hfstack.drawing.numbers import counted, label_of, metric, number
from hfstack.reporting.runs import Report

_EMPTY = (None, "")
_PERCENT = re.compile(r"-?[\d.]+ ?%")
_SHOWN_FIGURES = 12
_SHOWN_TABLE_ROWS = 12
_FIRST_METRICS = frozenset({"eval_loss", "perplexity", "bits_per_byte"})
# Metrics that come after the others: Trainer's clocks, and counts that a table shows better.
_LATER_BEGINNINGS = ("dropped_", "masked_", "epoch")
_LATER_ENDINGS = ("_runtime", "_per_second")
_SHOWN_CELL_CHARACTERS = 320
_COUNT_COLUMNS = frozenset({"count", "documents", "rows", "dropped", "kept"})


def results_section(group: list[Report]) -> Html | None:
    """Return the results of a recipe's runs, or None when there are none."""
    parts: list[Html] = []
    if any(report.record.metrics for report in group):
        parts.append(_figures(group[0]) if len(group) == 1 else _comparison(group))
    for report in group:
        of_run = f" — {report.label}" if len(group) > 1 else ""
        tables = [_table(name + of_run, table) for name, table in report.tables.items()]
        parts += [tag("div.tables", tables)] if tables else []
        parts += [_picture(name + of_run, source) for name, source in report.pictures.items()]

    if not parts:
        return None
    return tag(
        "section.block",
        {"id": f"results-{group[0].record.recipe}"},
        tag("h3", group[0].record.recipe),
        parts,
    )


def _figures(report: Report) -> Html:
    """Return the metrics of a single run: a dozen in sight, the rest a click away."""
    metrics = report.record.metrics
    first = [
        name
        for name in metrics
        if not name.startswith(_LATER_BEGINNINGS) and not name.endswith(_LATER_ENDINGS)
    ]
    first = sorted(first, key=lambda name: name not in _FIRST_METRICS)[:_SHOWN_FIGURES]

    rest = [name for name in metrics if name not in first]
    more = None
    if rest:
        summary = tag("summary", counted(len(rest), "metric", more=True))
        more = tag("details", summary, _figure_list(metrics, rest))
    return join([_figure_list(metrics, first), more])


def _figure_list(metrics: dict[str, float], names: list[str]) -> Html:
    items = []
    for name in names:
        shown = metric(name, metrics[name])
        unit = tag("span.unit", shown.unit) if shown.unit else None
        value = tag("dd", shown.text, unit)
        items.append(tag("div", {"title": name}, tag("dt", shown.label), value))
    return tag("dl.figures", items)


def _comparison(group: list[Report]) -> Html:
    """Return the metrics of several runs: a row a metric, a column a run."""
    names = dict.fromkeys(name for report in group for name in report.record.metrics)
    rows = []
    for name in names:
        values = [report.record.metrics.get(name) for report in group]
        known = next(value for value in values if value is not None)
        heading = tag("th", {"scope": "row", "title": name}, metric(name, known).label)
        cells = ["–" if value is None else str(metric(name, value)) for value in values]
        rows.append(tag("tr", heading, [tag("td.number", cell) for cell in cells]))

    columns = [tag("th.number", {"scope": "col"}, report.label) for report in group]
    return _scrolling_table(tag("tr", tag("td"), columns), rows)


def _table(name: str, table: dict[str, list[Any]]) -> Html:
    """Return one of the recipe's own tables.

    Counts carry a bar that shows their share of the largest.
    """
    columns, rows = [str(column) for column in table["columns"]], table["rows"]
    heading = tag("figcaption", tag("h4", label_of(name)))
    if not rows:
        return tag("figure.table", heading, tag("p.muted", "No rows."))

    # columns of numbers are set to the right, and those of counts get bars
    numeric = [
        all(_is_numeric_cell(cell) or cell in _EMPTY for cell in cells)
        for cells in zip(*rows, strict=True)
    ]
    largest = {
        index: max((row[index] for row in rows if row[index] not in _EMPTY), default=0)
        for index, column in enumerate(columns)
        if numeric[index] and len(rows) > 1 and column.lower() in _COUNT_COLUMNS
    }

    head = tag(
        "tr",
        [
            tag("th.number" if right else "th", {"scope": "col"}, label_of(column))
            for column, right in zip(columns, numeric, strict=True)
        ],
    )
    body = []
    for row in rows:
        cells = [
            _cell(columns[index], cell, right=numeric[index], largest=largest.get(index))
            for index, cell in enumerate(row)
        ]
        body.append(tag("tr", cells))

    shown, more = body[:_SHOWN_TABLE_ROWS], body[_SHOWN_TABLE_ROWS:]
    rest = None
    if more:
        summary = tag("summary", counted(len(more), "row", more=True))
        rest = tag("details", summary, _scrolling_table(head, more))
    return tag("figure.table", heading, _scrolling_table(head, shown), rest)


def _scrolling_table(head: Html, rows: list[Html]) -> Html:
    return tag("div.scroll", tag("table", tag("thead", head), tag("tbody", rows)))


def _is_numeric_cell(cell: Any) -> bool:
    return isinstance(cell, int | float) or (
        isinstance(cell, str) and bool(_PERCENT.fullmatch(cell))
    )


def _cell(column: str, cell: Any, *, right: bool, largest: float | None) -> Html:
    """Return one cell: a number in the unit of its column's name, or a truncated text."""
    if cell in _EMPTY:
        return tag("td.number" if right else "td", "–" if cell is None else "")

    if right:
        text = str(metric(column, cell)) if isinstance(cell, float) else number(cell)
        if largest and largest > 0:
            bar = {"style": f"--share:{100 * cell / largest:.1f}%"}
            return tag("td.number.bar", bar, text)
        return tag("td.number", text)

    text = str(cell)
    shown, more = text[:_SHOWN_CELL_CHARACTERS], len(text) - _SHOWN_CELL_CHARACTERS
    rest = tag("span.muted", f" … {more:,} more characters") if more > 0 else None
    return tag("td", {"dir": "auto"}, shown, rest)


def _picture(name: str, source: str) -> Html:
    """Return a picture as an image element, in which an SVG's scripts do not run."""
    heading = tag("figcaption", tag("h4", label_of(name)))
    return tag("figure.picture", heading, tag("img", {"src": source, "alt": label_of(name)}))
