"""Describe each annotator: speed, habits, and agreement with gold and others."""

import statistics
from collections.abc import Sequence
from typing import Any

from hfstack.feedback.agreement import majority, units_of
from hfstack.feedback.export import JudgedItem, Vote
from hfstack.feedback.kinds import is_tie
from hfstack.intervals import share_interval

ANNOTATOR_COLUMNS = [
    *("annotator", "judged", "ties", "skips", "median s", "took the first side", "gold right"),
    *("agrees with themselves", "agrees with the majority of the others"),
]


def annotator_rows(
    kind: str, judged: Sequence[JudgedItem], names: dict[str, str]
) -> list[list[str | int | float | None]]:
    """Return a row for each annotator; shares come with their 95 % interval.

    Args:
        kind: of the project.
        judged: of `read_stores`.
        names: how each is called in the table.
    """
    rows = []
    for name in names:
        own = [(one, vote) for one in judged for vote in one.votes if vote.annotator == name]
        in_turn = [vote for _, vote in own if vote.role == "turn"]
        seconds = [vote.body["seconds"] for _, vote in own if vote.body.get("seconds")]
        shares = (
            first_side(kind, in_turn),
            [is_right(kind, one, vote) for one, vote in own if vote.role == "gold"],
            with_themselves(kind, own),
            with_others(kind, judged, name),
        )

        rows.append(
            [
                names[name],
                len(in_turn),
                sum(is_tie(kind, vote.verdict) for vote in in_turn),
                sum(name in one.skipped_by for one in judged),
                round(statistics.median(seconds), 1) if seconds else None,
                *map(_describe_share, shares),
            ]
        )
    return rows


def first_side(kind: str, votes: Sequence[Vote]) -> list[bool]:
    """Return for each pair that is no tie whether the side shown first was chosen.

    Sides are in random order: far from a half this is a habit and no preference.
    """
    if kind != "pairs":
        return []
    decided = [
        vote for vote in votes if vote.verdict["choice"] is not None and "order" in vote.body
    ]
    return [vote.body["order"][0] == vote.verdict["choice"] for vote in decided]


def is_right(kind: str, one: JudgedItem, vote: Vote) -> bool:
    """Return whether a vote on a hidden check is the known one; a tie is not."""
    gold = one.item.gold or {}
    key = {"pairs": "choice", "thumbs": "label", "ranking": "ranks"}[kind]
    return vote.verdict[key] == gold[key]


def with_themselves(kind: str, own: Sequence[tuple[JudgedItem, Vote]]) -> list[bool]:
    """Return for each item that a person saw twice whether they said the same."""
    before = {id(one): vote for one, vote in own if vote.role == "turn"}
    again = [(before[id(one)], vote) for one, vote in own if vote.role == "repeat"]
    return [_side(kind, first.verdict) == _side(kind, second.verdict) for first, second in again]


def with_others(kind: str, judged: Sequence[JudgedItem], name: str) -> list[bool]:
    """Return for each vote whether it is that of the majority of the other people."""
    same = []
    for one in judged:
        votes = one.in_turn()
        own = [vote.verdict for vote in votes if vote.annotator == name]
        others = majority(kind, [vote.verdict for vote in votes if vote.annotator != name])
        if own and others.value is not None:
            key = "choice" if kind == "pairs" else "label"
            same.append(own[0][key] == others.value)
    return same


def _side(kind: str, verdict: dict[str, Any]) -> Any:
    """Return a verdict without how strong it is."""
    if kind == "correction":
        return verdict["text"].strip()
    values = units_of(kind, 0, verdict)
    if kind != "pairs":
        return values
    return {unit: (value > 0) - (value < 0) for unit, value in values.items()}


def _describe_share(found: Sequence[bool]) -> str | None:
    """Return a share with its interval and how many it is of, or None of nothing."""
    if not found:
        return None
    low, high = share_interval([float(one) for one in found])
    share = sum(found) / len(found)
    return f"{100 * share:.0f} % [{100 * low:.0f}, {100 * high:.0f}] of {len(found)}"
