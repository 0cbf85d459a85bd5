"""Describe rounds of feedback in a table, with an honest verdict."""

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hfstack.runs.record import RunRecord, read_run
from hfstack.tokens.turns import extract_text

# The stages of a round, the recipes that each may be, and what it must have measured.
_STAGES: dict[str, tuple[tuple[str, ...], set[str]]] = {
    "feedback": (("feedback",), {"kept"}),
    "reward": (("reward",), set()),
    "policy": (("ppo", "rloo", "dpo"), set()),
    "win_rate": (("win_rate",), {"win_rate", "win_rate_low", "win_rate_high"}),
}
_ROUND_COLUMNS = [
    *("round", "rows", "agreement", "reward accuracy", "proxy reward", "KL"),
    "win rate over the first policy",
]


def metrics_by_round(records: Mapping[str, RunRecord]) -> list[dict[str, dict[str, float]]]:
    """Return the metrics of the stages of each round that has ended, in order.

    Args:
        records: by the name of their folder, such as reward1; others are left aside.
    """

    def finished(number: int) -> dict[str, dict[str, float]]:
        return {
            stage: record.metrics
            for stage, (recipes, measured) in _STAGES.items()
            for recipe in recipes
            if (record := records.get(f"{recipe}{number}")) is not None
            and (record.recipe, record.status) == (recipe, "finished")
            and record.metrics.keys() >= measured
        }

    by_round = map(finished, itertools.count(1))
    return list(itertools.takewhile(lambda found: len(found) == len(_STAGES), by_round))


def round_table(rounds: Sequence[dict[str, dict[str, float]]]) -> dict[str, list[Any]]:
    """Return what the page and the terminal show of rounds of feedback."""
    rows = [
        [
            str(number),
            f"{found['feedback']['kept']:.0f}",
            _share(found["feedback"].get("agreement")),
            _share(found["reward"].get("eval_accuracy")),
            _format_number(found["policy"].get("eval_reward")),
            _format_number(found["policy"].get("eval_kl_per_completion")),
            _format_interval(found["win_rate"]),
        ]
        for number, found in enumerate(rounds, 1)
    ]
    return {"columns": _ROUND_COLUMNS, "rows": rows}


def verdict_of_rounds(rounds: Sequence[dict[str, dict[str, float]]]) -> str:
    """Return whether the last round's policy is better than the first, in a sentence."""
    return verdict(rounds[-1]["win_rate"], rounds[-1]["feedback"]["kept"])


def describe_rounds(folder: str | Path, rounds: int) -> str:
    """Return the table of rounds of feedback_rounds.sh, and the verdict."""
    names = [
        f"{recipe}{number}"
        for number in range(1, rounds + 1)
        for recipes, _ in _STAGES.values()
        for recipe in recipes
    ]
    paths = {name: Path(folder) / name for name in names}
    found = metrics_by_round(
        {name: read_run(path) for name, path in paths.items() if path.is_dir()}
    )
    table = round_table(found)

    lines = [table["columns"], *table["rows"]]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    shown = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]
    return "\n".join([*shown, "", verdict_of_rounds(found)])


def compare_rounds(folder: str | Path, rounds: int, *, tasks: int = 3) -> str:
    """Return the first tasks of the last win rate, as both policies answer them."""
    path = Path(folder) / f"win_rate{rounds}" / "answers.jsonl"
    with path.open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in itertools.islice(file, tasks)]
    return "\n\n".join(
        f"{extract_text(row['prompt'])}\n  before: {row['reference_answer'].strip()}"
        f"\n  after:  {row['answer'].strip()}"
        for row in rows
    )


def verdict(win_rate: dict[str, float], labels: float) -> str:
    """Return in a sentence whether the last policy is better than the first.

    Args:
        win_rate: metrics of the win_rate run, with the interval.
        labels: rows that the reward model learned from.
    """
    low, high = win_rate["win_rate_low"], win_rate["win_rate_high"]
    if low > 0.5:
        return (
            f"The model is better than it was: {_format_interval(win_rate)} of the tasks are won."
        )
    advice = f"{labels:.0f} judgements are few; judge more, or look whether people agree."
    if high < 0.5:
        return f"The model is worse than it was ({_format_interval(win_rate)}). {advice}"
    return f"No difference is measurable ({_format_interval(win_rate)} around 50 %). {advice}"


def _format_interval(metrics: dict[str, Any]) -> str:
    rate, low, high = (100 * metrics[f"win_rate{end}"] for end in ("", "_low", "_high"))
    return f"{rate:.1f} % [{low:.1f}, {high:.1f}]"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.0f} %"


def _format_number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
