"""The metrics of a card, with intervals: what the run and those that measured it found; and the Hub's model index."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from huggingface_hub import EvalResult

from hfstack.publishing.files import PublishedKind
from hfstack.publishing.lineage import Chain, RunLink

_SHOWN = 14
_REINFORCED = frozenset({"rloo", "grpo", "ppo"})  # their loss says nothing about the model
_CLOCKS = (
    "_runtime",
    "_per_second",
    "_per_s",
    "_per_cpu_s",
    "_bytes",
    "_low",
    "_high",
    "num_tokens",
)
_NO_RESULT = frozenset(
    {
        "epoch",
        "total_flos",
        "parameters",
        "parameters_non_embedding",
        "flops",
        "flops_6nd",
        "flops_kaplan",
        "mfu",
        "steps",
        "tokens",
        "unique_tokens",
        "documents",
        "train_loss",
    }
)
_LOSS_OF_TOKENS = frozenset({"pretrain_clm", "pretrain_mlm", "sft", "evaluate_lm"})
# What a reader asks for first, whoever measured it.
_FIRST = (
    "win_rate",
    "win_rate_length_controlled",
    "eval_reward",
    "eval_kl_per_completion",
    "eval_ended_share",
    "eval_accuracy",
    "eval_gain_over_length",
    "eval_f1",
    "eval_matthews",
    "eval_loss",
    "perplexity",
    "bits_per_byte",
    "token_accuracy",
    "eval_calibration_error",
    "rougeL",
    "bleu",
    "eval_rougeL",
    "eval_bleu",
    "eval_chrf",
    "ended_share",
)
# Names that the Hub's metric pages have.
_HUB_NAMES = {
    "accuracy": "accuracy",
    "f1": "f1",
    "perplexity": "perplexity",
    "bleu": "bleu",
    "rougel": "rouge",
}

Show = Callable[[str, float], Any]  # a metric's name and value -> label, text and unit


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
        return self.link.record.recipe in _REINFORCED and not self.name.startswith("eval_")


def results(chain: Chain) -> list[Result]:
    """Return what was measured of the published run, the most telling first."""
    found: list[Result] = []
    for link in [*chain.evaluations, chain.last]:
        metrics = link.record.metrics
        for name, value in metrics.items():
            if (
                name in _NO_RESULT
                or name.endswith(_CLOCKS)
                or name.startswith(("start_", "train_", "dropped_"))
            ):
                continue
            if name == "eval_loss" and link.record.recipe in _REINFORCED:
                continue
            found.append(
                Result(name, value, metrics.get(f"{name}_low"), metrics.get(f"{name}_high"), link)
            )
    return sorted(found, key=lambda one: (_rank(one), one.low is None))


def shown_first(found: list[Result]) -> int:
    """Return how many of the sorted results tell the most: those of a known name, else a dozen."""
    known = sum(_rank(one) < len(_FIRST) for one in found)
    return min(known or _SHOWN, _SHOWN)


def rows(found: list[Result], show: Show) -> list[list[str]]:
    """Return the results as cells: label with name, value, interval, and the run."""
    table = []
    for one in found:
        figure = show(one.name, one.value)
        interval = "–"
        if one.low is not None and one.high is not None:
            interval = f"{show(one.name, one.low).text} to {show(one.name, one.high).text}"
        counted = one.name != "eval_loss" or one.link.record.recipe in _LOSS_OF_TOKENS
        value = f"{figure.text} {figure.unit if counted else ''}".strip()
        before = one.link.record.metrics.get(f"start_{one.name.removeprefix('eval_')}")
        if (
            before is not None
            and one.name.startswith("eval_")
            and not one.name.startswith("eval_kl")
        ):  # 0 at the start
            value += f" (before training {show(one.name, before).text})"
        measured = f"{one.link.label}, in training" if one.in_training else one.link.label
        table.append([f"{figure.label} (`{one.name}`)", value, interval, measured])
    return table


def bias(chain: Chain, show: Show) -> str:
    """Return the figures about bias, or that there are none."""
    found = [
        one
        for one in results(chain)
        if "bias" in one.name.split("_") or one.link.record.recipe == "bias"
    ]
    if not found:
        return "Bias was not measured."
    lines = [
        f"- {label}: {value} ({interval}), by {run}"
        for label, value, interval, run in rows(found, show)
    ]
    return "\n".join(lines).replace(" (–)", "")


def eval_results(found: list[Result], kind: PublishedKind, show: Show) -> list[EvalResult]:
    """Return the results for the Hub's model index; intervals go along as arguments of the metric.

    The index puts results of equal type, config and split under one dataset, whatever its name is, so that files of
    one's own differ in their config. What was seen in training is none.
    """
    made: list[EvalResult] = []
    seen: set[tuple[str, str]] = set()
    for one in found:
        name, revision, split = evaluated_on(one.link)
        short = one.name.removeprefix("eval_").lower()
        if not math.isfinite(one.value) or one.in_training or (short, name) in seen:
            continue
        seen.add((short, name))
        interval = (
            {"interval_95": [one.low, one.high]}
            if one.low is not None and one.high is not None
            else None
        )
        on_hub = revision is not None or "/" in name
        made.append(
            EvalResult(
                task_type=kind.pipeline_tag or "other",
                dataset_type=name if on_hub else "custom",
                dataset_name=name,
                dataset_config=None if on_hub else name,
                dataset_revision=revision,
                dataset_split=split,
                metric_type=_HUB_NAMES.get(short, short.replace("/", "_")),
                metric_value=one.value,
                metric_name=show(one.name, one.value).label,
                metric_args=interval,
            )
        )
    return made


def evaluated_on(link: RunLink) -> tuple[str, str | None, str | None]:
    """Return name, revision and split of the data that a run was measured on."""
    roles = {entry.get("role"): entry for entry in link.record.data}
    entry = next((roles[role] for role in ("eval", "prompts", "train") if role in roles), None)
    if entry is None:
        return "not recorded", None, None
    local = bool(entry.get("files"))
    held_out = entry.get("role") == "train" and link.record.recipe not in ("tokenizer", "clean")
    name = str(entry["path"]).rstrip("/").rsplit("/", 1)[-1] if local else str(entry["path"])
    split = None if local else entry.get("split")
    return (f"{name} (held-out part)" if held_out and local else name), entry.get("revision"), split


def _rank(one: Result) -> int:
    return _FIRST.index(one.name) if one.name in _FIRST and not one.in_training else len(_FIRST)
