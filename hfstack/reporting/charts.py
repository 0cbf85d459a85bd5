"""Show what happened in training: curves of a recipe's runs, samples by step."""

import math
from dataclasses import dataclass
from typing import Any

from hfstack.drawing.curves import Chart, Series, draw_chart
from hfstack.drawing.html import Html, tag
from hfstack.drawing.measures import REINFORCED, unit_of_loss
from hfstack.drawing.numbers import counted, is_share, label_of, number
from hfstack.drawing.smoothing import Points
from hfstack.reporting.runs import Report, Sample, name_group

_PAGE_COLORS = 8  # the classes c0 to c7 of page.css
_SHOWN_CURVES = 6
_SHOWN_STORIES = 6


@dataclass(frozen=True)
class _Known:
    """A chart that has a place of its own: the logged names and how to draw them."""

    title: str
    unit: str
    name: str
    held_out_name: str = ""
    log_axes: str = ""
    from_zero: bool = False
    noisy: bool = True


# What is followed while a policy is trained; its loss is a surrogate and comes among the others.
_ONLINE = (
    _Known("Reward", "", "reward", "eval_reward"),
    _Known("KL", "nats per token", "kl", "eval_kl"),
    _Known("Length", "tokens", "completions/mean_length", "eval_completions/mean_length"),
    _Known("Entropy", "nats per token", "entropy", "eval_entropy"),
)
_KNOWN = (
    _Known("Loss", "", "loss", "eval_loss", log_axes="xy"),
    _Known("Bits per byte", "", "bits_per_byte", "eval_bits_per_byte", log_axes="xy"),
    _Known("Learning rate", "", "learning_rate", from_zero=True, noisy=False),
    _Known("Throughput", "tokens per second", "tokens_per_s", from_zero=True),
    _Known("Gradient norm", "", "grad_norm", log_axes="y", from_zero=True),
    _Known("Model-FLOPs utilisation", "share of the hardware's peak", "mfu", from_zero=True),
)
# Not curves: clocks and counters that Trainer logs beside the values, and exp(loss).
_NOT_CURVES = frozenset(
    {"total_flos", "train_loss", "perplexity", "eval_perplexity", "num_input_tokens_seen"}
)
_NOT_CURVE_ENDINGS = ("_runtime", "_per_second")


def make_charts(group: list[Report], identifier: str) -> list[Chart]:
    """Return the charts of the runs of one recipe.

    The known ones come first, in their order, then whatever else was logged.
    """
    restarts = [
        (restart["step"], position % _PAGE_COLORS)
        for position, report in enumerate(group)
        for restart in report.record.restarts
        if report.history and restart["step"] > 0
    ]

    made = []
    for index, spec in enumerate(_choose_charts(group)):
        series = _make_series(group, spec)
        if series:
            chart = Chart(
                f"{identifier}-{index}",
                spec.title,
                spec.unit if spec.name != "loss" else unit_of_loss(*_kind_of(group)),
                series,
                log_axes=spec.log_axes,
                from_zero=spec.from_zero,
                is_share=is_share(spec.name),
                restarts=restarts,
            )
            made.append(chart)
    return made


def _choose_charts(group: list[Report]) -> list[_Known]:
    """Return the known charts that have values, then one for each other curve."""
    logged = dict.fromkeys(name for report in group for name in report.history)
    order = (*_ONLINE, *_KNOWN) if group[0].record.recipe in REINFORCED else _KNOWN
    known = [spec for spec in order if spec.name in logged or spec.held_out_name in logged]
    taken = {name for spec in known for name in (spec.name, spec.held_out_name)} | _NOT_CURVES

    others: dict[str, None] = {}
    for name in logged:
        repeated = any(len(report.history.get(name, [])) > 1 for report in group)
        if name not in taken and not name.endswith(_NOT_CURVE_ENDINGS) and repeated:
            others[name.removeprefix("eval_")] = None
    return known + [_Known(label_of(name), "", name, f"eval_{name}") for name in others]


def _kind_of(group: list[Report]) -> tuple[str, set[str]]:
    """Return the recipe of the runs, and the names of what they measured."""
    return group[0].record.recipe, {name for report in group for name in report.record.metrics}


def curves_section(group: list[Report], made: list[Chart]) -> Html:
    """Return the charts of one recipe under its name, the first one wide.

    Args:
        group: its runs; several that trained share the charts, and get a legend.
        made: their charts.
    """
    # several runs share the charts, and need a legend
    trained = [report for report in group if report.history]
    several = len(trained) > 1
    legend = _draw_runs_legend(group) if several else None
    selector = "div.charts.labelled" if several else "div.charts"

    shown, more = made[:_SHOWN_CURVES], made[_SHOWN_CURVES:]
    rest = None
    if more:
        summary = tag("summary", counted(len(more), "curve", more=True))
        rest = tag("details", summary, tag(selector, map(draw_chart, more)))
    name, recipe = name_group(group)
    return tag(
        "section.block",
        tag("h3", name, tag("span.run", recipe) if recipe else None),
        legend,
        tag(selector, map(draw_chart, shown)),
        rest,
        tag("p.caption", _caption(trained)),
    )


def _draw_runs_legend(group: list[Report]) -> Html:
    """Return which colour is which run, and how held-out values are drawn."""
    items = [
        tag("li", tag(f"span.swatch.c{position % _PAGE_COLORS}"), report.label)
        for position, report in enumerate(group)
        if report.history
    ]
    keys = [
        tag("li.key", tag("span.stroke"), "training"),
        tag("li.key", tag("span.stroke.dashed"), "held out"),
    ]
    return tag("ul.legend", items, keys)


def samples_section(report: Report) -> Html:
    """Return what the model generated.

    With several steps, one slider moves every prompt's completion through training.
    """
    steps = sorted({sample.step for sample in report.samples if sample.step is not None})
    by_prompt: dict[str, list[Sample]] = {}
    for sample in report.samples:
        by_prompt.setdefault(sample.prompt, []).append(sample)
    stories = [_story(prompt, samples) for prompt, samples in by_prompt.items()]

    # What the page's script shows beside the slider.
    attributes: dict[str, Any] = {}
    if len(steps) > 1:
        losses = report.history.get("eval_loss") or report.history.get("loss") or []
        attributes = {
            "data-steps": ",".join(map(str, steps)),
            "data-notes": "|".join(_loss_at(losses, step) for step in steps),
        }

    shown, more = stories[:_SHOWN_STORIES], stories[_SHOWN_STORIES:]
    rest = None
    if more:
        summary = tag("summary", counted(len(more), "prompt", more=True))
        rest = tag("details", summary, tag("div.stories", more))
    name, recipe = name_group([report])
    return tag(
        "section.block.samples",
        attributes,
        tag("h3", name, tag("span.run", recipe) if recipe else None),
        _slider(steps) if len(steps) > 1 else None,
        tag("div.stories", shown),
        rest,
    )


def _make_series(group: list[Report], spec: _Known) -> list[Series]:
    """Return the lines of one chart.

    A single run gets a colour for training and one for held-out data, several a colour each.
    """
    alone = sum(bool(report.history) for report in group) == 1
    found = []
    for position, report in enumerate(group):
        for name, held_out in ((spec.name, False), (spec.held_out_name, True)):
            points: Points = report.history.get(name, []) if name else []
            if not any(math.isfinite(value) for _, value in points):
                continue

            if alone:
                label = "held out" if held_out else "training"
                line = Series(label, points, int(held_out), held_out, noisy=spec.noisy)
            else:
                label = report.label + (", held out" if held_out else "")
                line = Series(
                    label, points, position % _PAGE_COLORS, held_out, report.label, spec.noisy
                )
            found.append(line)
    return found


def _caption(trained: list[Report]) -> str:
    """Return what the marks in the charts mean, as far as they are there."""
    sentences = ["Bold lines are smoothed; the logged values are drawn faintly behind them."]
    for report in trained:
        restarted = [restart["step"] for restart in report.record.restarts if restart["step"] > 0]
        steps = [str(step) for step in dict.fromkeys(restarted)]
        if steps:
            run = f"{report.label} was" if len(trained) > 1 else "The run was"
            many = "steps" if len(steps) > 1 else "step"
            sentences.append(
                f"{run} stopped and continued from {many} {', '.join(steps)} (dotted upright line)."
            )
    return " ".join(sentences)


def _loss_at(losses: Points, step: int) -> str:
    """Return the last loss known at a step."""
    before = [value for logged_step, value in losses if logged_step <= step]
    return f"loss {number(before[-1])}" if before else ""


def _slider(steps: list[int]) -> Html:
    """Return the slider, hidden until its script runs; without it, steps are listed."""
    last = len(steps) - 1
    limits = {"type": "range", "min": 0, "max": last, "value": last, "aria-label": "training step"}
    first_step, last_step = (tag("span.bound", number(step)) for step in (steps[0], steps[-1]))
    return tag(
        "div.scrubber",
        {"hidden": True},
        tag("span.where", "step ", tag("output", number(steps[-1])), tag("span.note")),
        tag("div.track", first_step, tag("input", limits), last_step),
    )


def _story(prompt: str, samples: list[Sample]) -> Html:
    """Return one prompt and its completions, oldest first."""
    items = []
    for sample in samples:
        step = sample.step
        heading = tag("span.step", f"step {number(step)}") if step is not None else None
        nothing = tag("span.muted", "(nothing)")
        text = sample.completion if sample.completion.strip() else nothing
        line = tag("p", {"dir": "auto"}, tag("b", prompt), text)
        items.append(tag("li", {"data-step": step}, heading, line))
    return tag("article.story", tag("ol", items))
