"""Make one self-contained HTML page about a chain of runs.

It needs no network, and no fonts or scripts from elsewhere: a content security policy lets it load
nothing and run only its own script, by hash.
"""

import base64
import hashlib
import os
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path

from hfstack.drawing.html import Html, json_block, tag
from hfstack.drawing.measures import figure_of, headline_names, is_at_chance, range_of
from hfstack.drawing.numbers import Figure, counted, duration, instant
from hfstack.reporting.charts import curves_section, make_charts, samples_section
from hfstack.reporting.provenance import (
    changed_data_paths,
    data_section,
    differing_settings,
    environment_section,
    run_section,
    short_commit,
)
from hfstack.reporting.results import Overview, overview_block, results_section
from hfstack.reporting.runs import Report

_STATUS = {
    "finished": "finished",
    "running": "still running",
    "failed": "failed",
    "preempted": "stopped early",
}


def render_page(
    reports: list[Report], *, title: str, made: datetime, overviews: Sequence[Overview] = ()
) -> str:
    """Return the HTML text of the page.

    Args:
        reports: the runs in the order in which they are shown.
        made: when the page is made, for its foot.
        overviews: tables about several runs at once, which stand before their results.
    """
    groups = _by_recipe(reports)
    drawn = {
        recipe: make_charts(group, f"chart-{index}")
        for index, (recipe, group) in enumerate(groups.items())
    }

    # the parts of the page that have something to show
    curves = [curves_section(groups[name], made) for name, made in drawn.items() if made]
    samples = [samples_section(report) for report in reports if report.samples]
    sections = [
        *(_section(one.name.lower(), one.name, [overview_block(one)]) for one in overviews),
        _section("results", "Results", _present(results_section, list(groups.values()))),
        _section("samples", "Samples", samples),
        _section("curves", "Curves", curves),
        _section("data", "Data", _present(data_section, [reports])),
        _section("environment", "Hardware and versions", [environment_section(reports)]),
        _section("runs", "Runs", _runs(reports, groups)),
    ]
    present = [section for section in sections if section]

    # the document: style, script and the logged values are inside it
    style = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
    script = Path(__file__).with_name("page.js").read_text(encoding="utf-8")
    data = {chart.identifier: chart.data for made in drawn.values() for chart in made}
    head = [
        tag("meta", {"charset": "utf-8"}),
        tag("meta", {"http-equiv": "Content-Security-Policy", "content": _policy(script)}),
        tag("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}),
        tag("meta", {"name": "referrer", "content": "no-referrer"}),
        tag("title", f"{title} – hfstack report"),
        tag("style", Html(style)),
    ]

    # what is shown
    records, day = counted(len(reports), "run record"), instant(made.isoformat())
    contents = [content for _, _, content in present]
    body = [
        _header(reports, title, [(name, heading) for name, heading, _ in present]),
        tag("main", _chain(reports), _alerts(reports), contents),
        tag("footer", f"Made by hfstack from {records} on {day}."),
        json_block("chart-data", data),
        tag("script", Html(script)),
    ]
    document = tag("html", {"lang": "en"}, tag("head", head), tag("body", body))
    return f"<!doctype html>\n{document}\n"


def default_title(reports: list[Report]) -> str:
    """Return the name of the folder that all the runs share."""
    shared = os.path.commonpath([report.directory.resolve().parent for report in reports])
    return Path(shared).name or "Runs"


def _policy(script: str) -> str:
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'"
    )


def _by_recipe(reports: list[Report]) -> dict[str, list[Report]]:
    groups: dict[str, list[Report]] = {}
    for report in reports:
        groups.setdefault(report.record.recipe, []).append(report)
    return groups


def _present(
    section: Callable[[list[Report]], Html | None], arguments: list[list[Report]]
) -> list[Html]:
    made = map(section, arguments)
    return [html for html in made if html is not None]


def _section(name: str, heading: str, content: list[Html]) -> tuple[str, str, Html] | None:
    """Return a part of the page with its anchor, or None without content."""
    if not content:
        return None
    return name, heading, tag("section.part", {"id": name}, tag("h2", heading), content)


def _header(reports: list[Report], title: str, anchors: list[tuple[str, str]]) -> Html:
    # how many runs, how they ended, how long they took
    total_s = sum(report.record.duration_s or 0 for report in reports)
    finished = sum(report.finished for report in reports)
    state = "all finished" if finished == len(reports) else f"{finished} finished"
    if len(reports) == 1:
        state = _STATUS.get(reports[0].record.status)
    facts = [
        f"{counted(len(reports), 'run')}, {state}",
        f"{duration(total_s)} of work",
        f"started {instant(reports[0].record.started)}",
    ]
    commits = {report.record.commit for report in reports if report.record.commit}
    if len(commits) == 1:
        facts.append(f"commit {short_commit(commits.pop())}")

    # hidden until the script that they need runs
    buttons = [
        tag(
            "button",
            {"type": "button", "data-theme-choice": choice, "aria-pressed": "false"},
            choice.capitalize(),
        )
        for choice in ("auto", "light", "dark")
    ]
    themes = {"role": "group", "aria-label": "colour theme", "hidden": True}

    links = [tag("a", {"href": f"#{anchor}"}, text) for anchor, text in anchors]
    return tag(
        "header",
        tag("div.themes", themes, buttons),
        tag("p.eyebrow", "hfstack run report"),
        tag("h1", title),
        tag("p.facts", [tag("span", fact) for fact in facts]),
        tag("nav", {"aria-label": "parts of this page"}, links),
    )


def _chain(reports: list[Report]) -> Html:
    """Return the stages as a row of cards, each a link to its record."""
    cards = []
    for report in reports:
        record = report.record
        figures = _headline_figures(report)
        headline, second = [], None
        if figures:
            value = tag(f"span.value{_mark_of(report)}", figures[0].text)
            headline = [value, tag("span.what", _headline_label(figures[0]))]
        # under the number its interval, or else another number
        first = next(iter(headline_names(record.metrics, record.recipe)), "")
        if bounds := range_of(first, record.metrics):
            second = bounds
        elif len(figures) > 1:
            second = _second_figure(figures[1])

        took = f" · {duration(record.duration_s)}" if record.duration_s is not None else ""
        card = tag(
            "a",
            {"href": f"#run-{report.label}"},
            tag("span.stage", report.label),
            tag("span.run", record.recipe if record.recipe != report.label else None),
            tag("span.headline", headline),
            tag("span.second", second),
            tag("span.status", _STATUS.get(record.status, record.status) + took),
        )
        cards.append(tag(f"li.{record.status}", card))
    return tag("ol.chain", {"aria-label": "stages"}, cards)


def _mark_of(report: Report) -> str:
    """Return the class of a headline that is bad news, or no better than chance."""
    metrics, recipe = report.record.metrics, report.record.recipe
    name = next(iter(headline_names(metrics, recipe)), "")
    if recipe == "diagnose" and metrics.get("bad"):
        return ".bad"
    return ".chance" if is_at_chance(name, metrics) else ""


def _headline_figures(report: Report) -> list[Figure]:
    """Return the two metrics that say most about a run, or those that it has."""
    metrics, recipe = report.record.metrics, report.record.recipe
    names = headline_names(metrics, recipe)[:2]
    return [figure_of(name, metrics, recipe) for name in names]


def _headline_label(figure: Figure) -> str:
    """Return what a headline counts: a label, and a unit unless the label names it."""
    named = not figure.unit or figure.unit.split("/")[0] in figure.label.lower()
    return figure.label if named else f"{figure.label}, {figure.unit}"


def _second_figure(figure: Figure) -> str:
    """Return a second figure in one line, naming what it counts once."""
    unit = figure.unit.split("/")[0].lower()
    named = bool(unit) and unit in figure.label.lower()
    return str(figure) if named else f"{figure.label} {figure}"


def _alerts(reports: list[Report]) -> Html | None:
    """Return what a reader must know before believing a number."""
    # runs that are not whole, and what could not be read of them
    items = []
    for report in reports:
        record = report.record
        name = tag("a", {"href": f"#run-{report.label}"}, report.label)
        if record.status == "failed":
            reason = record.error or "no reason was recorded"
            items.append(tag("li.failed", name, " failed: ", reason))
        elif record.status == "preempted":
            todo = "run it again, with --resume_from_checkpoint last if it trains."
            items.append(tag("li.preempted", name, f" was stopped before its end; {todo}"))
        elif record.status == "running":
            text = (
                f" has not ended (started {instant(record.started)}); its part here is not final."
            )
            items.append(tag("li.running", name, text))

        items += [tag("li.note", name, ": ", note) for note in report.notes]

    # data that was not the same for all
    changed = " was not the same file for all runs that read it; see Data."
    items += [tag("li.note", tag("code", path), changed) for path in changed_data_paths(reports)]
    return tag("ul.alerts", {"aria-label": "warnings"}, items) if items else None


def _runs(reports: list[Report], groups: dict[str, list[Report]]) -> list[Html]:
    by_directory = {report.directory.resolve(): report for report in reports}
    differing = [differing_settings(group) for group in groups.values() if len(group) > 1]
    records = []
    for report in reports:
        parents = [(report.directory / parent).resolve() for parent in report.record.parents]
        known = [by_directory[parent] for parent in parents if parent in by_directory]
        records.append(run_section(report, known))
    return [html for html in differing if html] + records
