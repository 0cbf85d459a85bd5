"""What came out of the runs: metrics beside each other, the tables and the pictures that the recipes left."""

import re
from typing import Any

from hfstack.drawing.html import Html, join, tag
from hfstack.drawing.numbers import Figure, counted, label_of, metric, number
from hfstack.reporting.runs import Report

_EMPTY = (None, "")
_PERCENT = re.compile(r"-?[\d.]+ ?%")
_SHOWN_FIGURES = 12
_SHOWN_ROWS = 12
_FIRST_METRICS = frozenset({"eval_loss", "perplexity", "bits_per_byte"})
# Metrics that come after the others: Trainer's clocks, and counts that a table of the run shows better.
_LATER_BEGINNINGS = ("dropped_", "masked_", "epoch")
_LATER_ENDINGS = ("_runtime", "_per_second")
_SHOWN_CHARACTERS = 320
_COUNTS = frozenset({"count", "documents", "rows", "dropped", "kept"})


def results_section(group: list[Report]) -> Html | None:
    """The results of the runs of one recipe, or None when they left nothing but their record."""
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
    """The metrics of a single run, as a list of figures: a dozen in sight, the rest a click away."""
    metrics = report.record.metrics
    first = [
        name
        for name in metrics
        if not name.startswith(_LATER_BEGINNINGS) and not name.endswith(_LATER_ENDINGS)
    ]
    first = sorted(first, key=lambda name: name not in _FIRST_METRICS)[:_SHOWN_FIGURES]
    rest = [name for name in metrics if name not in first]
    more = (
        tag(
            "details",
            tag("summary", counted(len(rest), "metric", more=True)),
            _figure_list(metrics, rest),
        )
        if rest
        else None
    )
    return join([_figure_list(metrics, first), more])


def _figure_list(metrics: dict[str, float], names: list[str]) -> Html:
    items = []
    for name in names:
        shown = metric(name, metrics[name])
        unit = tag("span.unit", shown.unit) if shown.unit else None
        items.append(
            tag("div", {"title": name}, tag("dt", shown.label), tag("dd", shown.text, unit))
        )
    return tag("dl.figures", items)


def _comparison(group: list[Report]) -> Html:
    """The metrics of several runs: a row a metric, a column a run."""
    names = dict.fromkeys(name for report in group for name in report.record.metrics)
    rows = []
    for name in names:
        values = [report.record.metrics.get(name) for report in group]
        known = next(value for value in values if value is not None)
        rows.append(
            tag(
                "tr",
                tag("th", {"scope": "row", "title": name}, metric(name, known).label),
                [
                    tag("td.number", "–" if value is None else str(metric(name, value)))
                    for value in values
                ],
            )
        )
    head = tag(
        "tr", tag("td"), [tag("th.number", {"scope": "col"}, report.label) for report in group]
    )
    return tag("div.scroll", tag("table", tag("thead", head), tag("tbody", rows)))


def _table(name: str, table: dict[str, list[Any]]) -> Html:
    """One of the recipe's own tables; counts carry a bar that shows their share of the largest."""
    columns, rows = table["columns"], table["rows"]
    numeric = [
        bool(rows) and all(_is_number(cell) or cell in _EMPTY for cell in cells)
        for cells in (zip(*rows, strict=True) if rows else [()] * len(columns))
    ]
    largest = {
        index: max((row[index] for row in rows if row[index] not in _EMPTY), default=0)
        for index, column in enumerate(columns)
        if numeric[index] and len(rows) > 1 and str(column).lower() in _COUNTS
    }
    head = tag(
        "tr",
        [
            tag("th.number" if right else "th", {"scope": "col"}, label_of(str(column)))
            for column, right in zip(columns, numeric, strict=True)
        ],
    )
    body = [
        tag(
            "tr",
            [
                _cell(str(columns[i]), cell, numeric[i], largest.get(i))
                for i, cell in enumerate(row)
            ],
        )
        for row in rows
    ]
    hidden = body[_SHOWN_ROWS:]
    return tag(
        "figure.table",
        tag("figcaption", tag("h4", label_of(name))),
        tag("div.scroll", tag("table", tag("thead", head), tag("tbody", body[:_SHOWN_ROWS])))
        if rows
        else None,
        None if rows else tag("p.muted", "No rows."),
        tag(
            "details",
            tag("summary", counted(len(hidden), "row", more=True)),
            tag("div.scroll", tag("table", tag("thead", head), tag("tbody", hidden))),
        )
        if hidden
        else None,
    )


def _number(column: str, value: float) -> Figure | str:
    """A number of a table, in the unit that its column's name implies."""
    return metric(column, value) if isinstance(value, float) else number(value)


def _is_number(cell: Any) -> bool:
    return isinstance(cell, int | float) or (
        isinstance(cell, str) and bool(_PERCENT.fullmatch(cell))
    )


def _cell(column: str, cell: Any, right: bool, largest: float | None) -> Html:
    if cell in _EMPTY:
        return tag("td.number" if right else "td", "–" if cell is None else "")
    if right:
        bar = {"style": f"--share:{100 * cell / largest:.1f}%"} if largest and largest > 0 else {}
        return tag("td.number" + (".bar" if bar else ""), bar, str(_number(column, cell)))
    text = str(cell)
    if len(text) > _SHOWN_CHARACTERS:
        rest = f" … {len(text) - _SHOWN_CHARACTERS:,} more characters"
        return tag("td", {"dir": "auto"}, text[:_SHOWN_CHARACTERS], tag("span.muted", rest))
    return tag("td", {"dir": "auto"}, text)


def _picture(name: str, source: str) -> Html:
    """A picture as an image element, in which an SVG's scripts and links are dead."""
    heading = tag("figcaption", tag("h4", label_of(name)))
    return tag("figure.picture", heading, tag("img", {"src": source, "alt": label_of(name)}))
