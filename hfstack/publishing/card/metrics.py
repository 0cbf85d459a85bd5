"""List the metrics of a card, with intervals, and those of the Hub's model index."""

import math
from typing import Any, NamedTuple

from huggingface_hub import EvalResult

from hfstack.drawing.measures import (
    REINFORCED,
    figure_of,
    interval_of,
    is_result,
    is_telling,
    rank_of,
)
from hfstack.drawing.numbers import metric
from hfstack.publishing.card.markdown import Markdown, code, escape
from hfstack.publishing.files import PublishedKind
from hfstack.publishing.lineage import Chain, RunLink

NOT_RECORDED = "not recorded"
BEFORE_AFTER = "before and after"  # the table of a run that measured its model twice
_CARD_RESULTS = 14
# Names that the Hub's metric pages have.
_HUB_NAMES = {
    "accuracy": "accuracy",
    "f1": "f1",
    "perplexity": "perplexity",
    "bleu": "bleu",
    "rougel": "rouge",
}


class Result(NamedTuple):
    """One number with who measured it, and its 95 % interval where there is one.

    `in_training` marks what the last steps of training saw, and no held-out data.
    """

    name: str
    value: float
    low: float | None
    high: float | None
    link: RunLink

    @property
    def in_training(self) -> bool:
        return self.link.record.recipe in REINFORCED and not self.name.startswith("eval_")


def list_results(chain: Chain) -> list[Result]:
    """Return what was measured of the published run, the most telling first."""
    found: list[Result] = []
    for link in [*chain.evaluations, chain.last]:
        metrics = link.record.metrics
        for name, value in metrics.items():
            if is_result(name, link.record.recipe):
                low, high = interval_of(name, metrics) or (None, None)
                found.append(Result(name, value, low, high, link))
    return sorted(found, key=lambda one: (_result_rank(one), one.low is None))


def count_most_telling(found: list[Result]) -> int:
    """Return how many results to show first: those of a known name, else a dozen."""
    known = sum(is_telling(one.name) and not one.in_training for one in found)
    return min(known or _CARD_RESULTS, _CARD_RESULTS)


def tabulate(found: list[Result]) -> list[list[str]]:
    """Return the results as cells: label with name, value, interval, and the run."""
    table = []
    for one in found:
        record = one.link.record
        figure = figure_of(one.name, record.metrics, record.recipe)
        interval = "–"
        if one.low is not None and one.high is not None:
            low, high = metric(one.name, one.low).text, metric(one.name, one.high).text
            interval = f"{low} to {high}"

        value = str(figure)

        # What it was before training; the KL divergence was 0 then.
        before = record.metrics.get(f"start_{one.name.removeprefix('eval_')}")
        comparable = one.name.startswith("eval_") and not one.name.startswith("eval_kl")
        if before is not None and comparable:
            value += f" (before training {metric(one.name, before).text})"

        measured = f"{one.link.label}, in training" if one.in_training else one.link.label
        label = Markdown(f"{escape(figure.label)} ({code(one.name)})")
        table.append([label, value, interval, measured])
    return table


def before_and_after(chain: Chain) -> tuple[list[list[str]], str]:
    """Return what training changed on fixed probes: rows of a table, and the verdict.

    Nothing where it was not measured.
    """
    table = chain.last.record.tables.get(BEFORE_AFTER)
    if table is None:
        return [], ""
    *rows, verdict = table["rows"]
    return [[str(cell) for cell in row] for row in rows], str(verdict[1])


def bias_results(chain: Chain) -> list[Result]:
    """Return the results about bias; of the recipe, those with an interval."""
    return [
        one
        for one in list_results(chain)
        if (one.link.record.recipe == "bias" and one.low is not None)
        or (one.link.record.recipe != "bias" and "bias" in one.name.split("_"))
    ]


def safety_results(chain: Chain) -> list[Result]:
    """Return what the recipe safety measured, with intervals."""
    found = list_results(chain)
    return [one for one in found if one.link.record.recipe == "safety" and one.low is not None]


def model_index_results(found: list[Result], kind: PublishedKind) -> list[EvalResult]:
    """Return the results for the Hub's model index, intervals as metric arguments.

    The index puts results of equal type, config and split under one dataset, whatever its name is,
    so that files of one's own differ in their config. What was seen in training is left out.
    """
    made: list[EvalResult] = []
    seen: set[tuple[str, str]] = set()
    for one in found:
        name, revision, split = evaluated_on(one.link)
        short = one.name.removeprefix("eval_").lower()
        if not math.isfinite(one.value) or one.in_training or (short, name) in seen:
            continue
        seen.add((short, name))

        interval = None
        if one.low is not None and one.high is not None:
            interval = {"interval_95": [one.low, one.high]}

        on_hub = revision is not None or "/" in name
        result = EvalResult(
            task_type=kind.pipeline_tag or "other",
            dataset_type=name if on_hub else "custom",
            dataset_name=name,
            dataset_config=None if on_hub else name,
            dataset_revision=revision,
            dataset_split=split,
            metric_type=_HUB_NAMES.get(short, short.replace("/", "_")),
            metric_value=one.value,
            metric_name=metric(one.name, one.value).label,
            metric_args=interval,
        )
        made.append(result)
    return made


def evaluated_on(link: RunLink) -> tuple[str, str | None, str | None]:
    """Return name, revision and split of the data that a run was measured on."""
    roles: dict[str, list[dict[str, Any]]] = {}
    for entry in link.record.data:
        roles.setdefault(str(entry.get("role")), []).append(entry)
    named = next(
        (roles[role] for role in ("eval", "prompts", "train", "text") if role in roles), None
    )
    if named is None:
        return NOT_RECORDED, None, None

    found = list(dict.fromkeys(_data_of(entry, link) for entry in named))
    if len(found) == 1:
        return found[0]
    # no revision and no split is that of all of them
    return ", ".join(dict.fromkeys(name for name, _, _ in found)), None, None


def _data_of(entry: dict[str, Any], link: RunLink) -> tuple[str, str | None, str | None]:
    path, revision = str(entry["path"]), entry.get("revision")
    if not entry.get("files"):
        return path, revision, entry.get("split")
    name = path.rstrip("/").rsplit("/", 1)[-1]
    held_out = entry.get("role") == "train" and link.record.recipe not in ("tokenizer", "clean")
    return (f"{name} (held-out part)" if held_out else name), revision, None


def _result_rank(one: Result) -> float:
    """Return a rank, smaller first, for what a reader asks for first."""
    return math.inf if one.in_training else rank_of(one.name)
