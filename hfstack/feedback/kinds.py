"""Read judgements of each kind, on the page's sides or on the item's answers.

Verdicts, as the store keeps them:

    pairs       {"choice": 0 or 1, "strength": 1 to 3}; a tie is {"choice": null, "strength": 0}
    ranking     {"ranks": [2, 1, 2]}, 1 is best, equal ranks are ties
    thumbs      {"label": true or false}, null for neither
    ratings     {"scales": {"helpful": 4}}, 1 to 5, higher is better
    correction  {"text": "the answer as it should be"}
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from hfstack.errors import DataError

JudgementKind = Literal["pairs", "ranking", "thumbs", "ratings", "correction"]
JUDGEMENT_KINDS: tuple[str, ...] = get_args(JudgementKind)

STRENGTHS = (1, 2, 3)  # a little better, better, much better
HIGHEST_RATING = 5
# Longest text of a person, in characters.
LONGEST_TEXT = 50_000


@dataclass
class Item:
    """What is shown to a person: a prompt and its answers, text or conversations."""

    prompt: Any
    answers: list[Any]
    priority: float = 0.0  # higher is shown earlier
    gold: dict[str, Any] | None = None  # the verdict that is known to be right
    source: dict[str, Any] = field(default_factory=dict)  # where it came from, for the export


def answers_wanted(kind: str) -> tuple[int, int]:
    """Return the least and the largest number of answers of an item."""
    return {"pairs": (2, 2), "ranking": (2, 9)}.get(kind, (1, 1))


def is_tie(kind: str, verdict: dict[str, Any]) -> bool:
    """Return whether a verdict prefers nothing: a tie, all ranks equal, neither thumb."""
    if kind == "pairs":
        return verdict["choice"] is None
    if kind == "ranking":
        return len(set(verdict["ranks"])) == 1
    return kind == "thumbs" and verdict["label"] is None


def read_verdict(
    kind: str, given: Any, *, answers: int, scales: Sequence[str] = ()
) -> dict[str, Any]:
    """Return a verdict that is sure to be well formed.

    Args:
        given: what came over the network; sides are those on the page.
        answers: how many the item has.
        scales: names of all scales, each of which must be rated.

    Raises:
        DataError: it is of another kind, or holds a value out of range.
    """
    if not isinstance(given, dict):
        raise DataError(f"a verdict must be an object, got {given!r:.60}")
    read = {
        "pairs": _read_choice,
        "ranking": lambda value: _read_ranks(value, answers),
        "thumbs": _read_thumb,
        "ratings": lambda value: _read_scales(value, scales),
        "correction": _read_correction,
    }[kind]

    try:
        return read(given)
    except (KeyError, TypeError) as error:
        raise DataError(f"a verdict of {kind} lacks {error}, got {given!r:.80}") from None


def _read_choice(given: dict[str, Any]) -> dict[str, Any]:
    choice = given["choice"]
    if choice is None:
        return {"choice": None, "strength": 0}
    strength = given["strength"]
    if _is_whole(choice) and choice in (0, 1) and _is_whole(strength) and strength in STRENGTHS:
        return {"choice": choice, "strength": strength}
    raise DataError(f"choice must be 0, 1 or null and strength 1 to 3, got {given!r:.80}")


def _read_ranks(given: dict[str, Any], answers: int) -> dict[str, Any]:
    ranks = given["ranks"]
    if not isinstance(ranks, list) or len(ranks) != answers:
        raise DataError(f"ranks must be a list of {answers} numbers, got {ranks!r:.80}")
    if any(not _is_whole(rank) or not 1 <= rank <= answers for rank in ranks):
        raise DataError(f"ranks must be whole numbers from 1 to {answers}, got {ranks!r:.80}")
    return {"ranks": ranks}


def _read_thumb(given: dict[str, Any]) -> dict[str, Any]:
    label = given["label"]
    if label is not None and not isinstance(label, bool):
        raise DataError(f"label must be true, false or null, got {label!r:.60}")
    return {"label": label}


def _read_scales(given: dict[str, Any], scales: Sequence[str]) -> dict[str, Any]:
    rated = given["scales"]
    if not isinstance(rated, dict) or set(rated) != set(scales):
        raise DataError(f"each of the scales {', '.join(scales)} must be rated, got {rated!r:.80}")
    if any(not _is_whole(value) or not 1 <= value <= HIGHEST_RATING for value in rated.values()):
        raise DataError(f"ratings must be whole numbers from 1 to {HIGHEST_RATING}: {rated!r:.80}")
    return {"scales": {name: rated[name] for name in scales}}


def _read_correction(given: dict[str, Any]) -> dict[str, Any]:
    text = given["text"]
    if not isinstance(text, str) or not text.strip():
        raise DataError("the corrected answer is empty: write it, or skip the item")
    if len(text) > LONGEST_TEXT:
        raise DataError(f"the corrected answer has {len(text)} characters; at most {LONGEST_TEXT}")
    return {"text": text}


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def blind_order(seed: int, item: int, annotator: str, *, answers: int) -> list[int]:
    """Return which answer stands at each place of the page.

    The same for the same person and item whenever it is shown, and a fair coin over people and
    items, so that a habit of choosing the first side is no habit of choosing one model.
    """
    order = list(range(answers))
    random.Random(f"order/{seed}/{item}/{annotator}").shuffle(order)
    return order


def from_page(kind: str, verdict: dict[str, Any], order: Sequence[int]) -> dict[str, Any]:
    """Return a verdict on the page's sides as one on the item's answers."""
    if kind == "pairs" and verdict["choice"] is not None:
        return verdict | {"choice": order[verdict["choice"]]}
    if kind == "ranking":
        ranks = dict(zip(order, verdict["ranks"], strict=True))
        return {"ranks": [ranks[answer] for answer in range(len(order))]}
    return verdict


def to_page(kind: str, verdict: dict[str, Any], order: Sequence[int]) -> dict[str, Any]:
    """Return a verdict on the item's answers as one on the page's sides."""
    if kind == "pairs" and verdict["choice"] is not None:
        return verdict | {"choice": list(order).index(verdict["choice"])}
    if kind == "ranking":
        return {"ranks": [verdict["ranks"][answer] for answer in order]}
    return verdict
