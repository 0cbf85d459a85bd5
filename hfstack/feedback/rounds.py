"""Describe rounds of feedback in a table, with an honest verdict."""

import itertools
import json
from pathlib import Path
from typing import Any

from hfstack.runs.record import read_run
from hfstack.tokens.chat import extract_text

_ROUND_COLUMNS = (
    *("round", "rows", "agreement", "reward accuracy", "proxy reward", "KL"),
    "win rate over the first policy",
)


def describe_rounds(folder: str | Path, rounds: int) -> str:
    """Return the table of rounds of feedback_rounds.sh, and the verdict."""
    lines: list[tuple[str, ...]] = [_ROUND_COLUMNS]
    last: dict[str, float] = {}
    labels = 0.0
    for number in range(1, rounds + 1):
        feedback, reward, policy, last = (
            read_run(Path(folder) / f"{stage}{number}").metrics
            for stage in ("feedback", "reward", "ppo", "win_rate")
        )
        labels = feedback["kept"]
        lines.append(
            (
                str(number),
                f"{labels:.0f}",
                _share(feedback.get("agreement")),
                _share(reward.get("eval_accuracy")),
                _format_number(policy.get("eval_reward")),
                _format_number(policy.get("eval_kl_per_completion")),
                _format_interval(last),
            )
        )

    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    table = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]
    return "\n".join([*table, "", verdict(last, labels)])


def before_and_after(folder: str | Path, rounds: int, *, tasks: int = 3) -> str:
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
