"""Show the results of runs side by side: metrics, tables and pictures."""

import re
from dataclasses import dataclass
from typing import Any

from hfstack.drawing.html import Html, join, tag
from hfstack.drawing.measures import (
    figure_of,
    is_at_chance,
    is_bound,
    most_telling,
    range_of,
)
from hfstack.drawing.numbers import counted, label_of, metric, number
from hfstack.reporting.runs import Report, name_group

_EMPTY = (None, "")
_PERCENT = re.compile(r"-?[\d.]+ ?%")
_SHOWN_FIGURES = 12
_SHOWN_TABLE_ROWS = 12
# Metrics that come after the others: Trainer's clocks, and counts that a table shows better.
_LATER_BEGINNINGS = ("dropped_", "masked_", "epoch")
_LATER_ENDINGS = ("_runtime", "_per_second")
_SHOWN_CELL_CHARACTERS = 320
_VERDICTS = frozenset({"bad", "warn", "ok"})
_COUNT_COLUMNS = frozenset({"count", "documents", "rows", "dropped", "kept"})


@dataclass(frozen=True)
class Overview:
    """A table about several runs at once, and what it says in a sentence."""

    name: str
    heading: str
    table: dict[str, list[Any]]
    verdict: str


def overview_block(overview: Overview) -> Html:
    """Return an overview: its sentence, then its table."""
    table = _table(overview.heading, overview.table)
    return tag("section.block", tag("p", overview.verdict), tag("div.tables", table))


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
    name, recipe = name_group(group)
    return tag(
        "section.block",
        {"id": f"results-{group[0].record.recipe}"},
        tag("h3", name, tag("span.run", recipe) if recipe else None),
        parts,
    )


def _figures(report: Report) -> Html:
    """Return the metrics of a single run: a dozen in sight, the rest a click away."""
    metrics, recipe = report.record.metrics, report.record.recipe
    names = [name for name in metrics if not is_bound(name, metrics)]
    first = [
        name
        for name in dict.fromkeys((*most_telling(names, recipe), *names))
        if not name.startswith(_LATER_BEGINNINGS) and not name.endswith(_LATER_ENDINGS)
    ][:_SHOWN_FIGURES]

    rest = [name for name in names if name not in first]
    more = None
    if rest:
        summary = tag("summary", counted(len(rest), "metric", more=True))
        more = tag("details", summary, _figure_list(metrics, rest, recipe))
    return join([_figure_list(metrics, first, recipe), more])


def _figure_list(metrics: dict[str, float], names: list[str], recipe: str) -> Html:
    items = []
    for name in names:
        shown, bounds = figure_of(name, metrics, recipe), range_of(name, metrics)
        unit = tag("span.unit", shown.unit) if shown.unit else None
        interval = tag("span.range", bounds) if bounds else None
        selector = "dd.chance" if is_at_chance(name, metrics) else "dd"
        value = tag(selector, shown.text, unit, interval)
        items.append(tag("div", {"title": name}, tag("dt", shown.label), value))
    return tag("dl.figures", items)


def _comparison(group: list[Report]) -> Html:
    """Return the metrics of several runs: a row a metric, a column a run."""
    names = dict.fromkeys(
        name
        for report in group
        for name in report.record.metrics
        if not is_bound(name, report.record.metrics)
    )
    rows = []
    for name in names:
        known = next(report for report in group if name in report.record.metrics)
        label = metric(name, known.record.metrics[name]).label
        heading = tag("th", {"scope": "row", "title": name}, label)
        cells = [
            _compared(name, report) if name in report.record.metrics else "–" for report in group
        ]
        rows.append(tag("tr", heading, [tag("td.number", cell) for cell in cells]))

    columns = [tag("th.number", {"scope": "col"}, report.label) for report in group]
    return _scrolling_table(tag("tr", tag("td"), columns), rows)


def _compared(name: str, report: Report) -> Html:
    """Return one metric of one run, with its interval as a range below it."""
    metrics = report.record.metrics
    bounds = range_of(name, metrics)
    figure = str(figure_of(name, metrics, report.record.recipe))
    return join([figure, tag("span.range", bounds) if bounds else None])


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
    selector = f"td.{text}" if column == "verdict" and text in _VERDICTS else "td"
    return tag(selector, {"dir": "auto"}, shown, rest)


def _picture(name: str, source: str) -> Html:
    """Return a picture as an image element, in which an SVG's scripts do not run."""
    heading = tag("figcaption", tag("h4", label_of(name)))
    return tag("figure.picture", heading, tag("img", {"src": source, "alt": label_of(name)}))
