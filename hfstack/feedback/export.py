"""Turn judgements into rows that the preference recipes and sft read as they are.

A tie or a skip is never a preference: it is counted and makes no pair. Where people contradict each
other the majority counts, or the item is left out; an even split always is.
"""

import secrets
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from hfstack.disk import is_inside, target_of
from hfstack.errors import DataError
from hfstack.feedback.access import token_of
from hfstack.feedback.agreement import majority
from hfstack.feedback.kinds import Item, is_tie
from hfstack.feedback.store import Judgement, Store, latest_judgements, open_store

Conflicts = Literal["majority", "drop"]
# How the rows of each kind are called, as a file and as a kind of preferences.
FILES = {
    "pairs": "pairs",
    "ranking": "rankings",
    "thumbs": "thumbs",
    "ratings": "ratings",
    "correction": "corrections",
}


@dataclass(frozen=True)
class Vote:
    """What one person said of one item, and how."""

    annotator: str
    role: str  # turn, gold or repeat
    verdict: dict[str, Any]
    body: dict[str, Any]  # comment, flag, seconds and order
    number: int  # of the step


@dataclass
class JudgedItem:
    """An item with all that was said of it."""

    item: Item
    votes: list[Vote] = field(default_factory=list)
    skipped_by: list[str] = field(default_factory=list)
    flags: int = 0

    def in_turn(self) -> list[Vote]:
        """Return the votes that count: no hidden checks and no repeats."""
        return [vote for vote in self.votes if vote.role == "turn"]


@dataclass
class ExportCounts:
    """What was judged, and what became of it."""

    items: int = 0  # without hidden checks
    judgements: int = 0  # without hidden checks, repeats and skips
    skips: int = 0
    ties: int = 0  # judgements that prefer nothing
    flagged: int = 0  # items that somebody flagged
    conflicts: int = 0  # items on which people took opposite sides
    gold_judgements: int = 0
    repeats: int = 0
    kept: int = 0  # rows of the export
    left_out_too_few: int = 0  # items with fewer judgements than asked for, or none
    left_out_ties: int = 0  # items that most people called a tie
    left_out_conflicts: int = 0  # items with an even split, or all conflicts where asked for
    left_out_flagged: int = 0


def store_paths(places: Sequence[str]) -> list[Path]:
    """Return the files of stores that are named by file or by the folder of their run.

    Raises:
        DataError: what a folder has as its store is a link to another one, whose rows would be
            exported; or one is named twice.
    """
    found = []
    for place in map(Path, places):
        path = place / "feedback.sqlite" if place.is_dir() else place
        if place.is_dir() and not is_inside(path, place):
            raise DataError(
                f"{path} is a link to {target_of(path)}, outside of {place}: name that file if its "
                "judgements are meant"
            )
        if path.resolve() in (one.resolve() for one in found):
            raise DataError(f"--stores names {path} twice: its judgements would count twice")
        found.append(path)
    return found


def read_stores(places: Sequence[str]) -> tuple[str, list[JudgedItem]]:
    """Return the kind of some projects, and their items with what was said of them.

    Args:
        places: stores, or folders of annotate runs.

    Raises:
        DataError: one is no store, they are of several kinds, or none holds a judgement.
    """
    kinds: dict[str, str] = {}
    judged: list[JudgedItem] = []
    for place, path in zip(places, store_paths(places), strict=True):
        store = open_store(path)
        try:
            kinds[place] = store.project()["kind"]
            judged += read_judged(store)
        finally:
            store.close()

    if len(set(kinds.values())) > 1:
        found = ", ".join(f"{place} of {kind}" for place, kind in kinds.items())
        raise DataError(f"the stores are of several kinds ({found}): export each kind by itself")
    if not any(one.votes for one in judged):
        raise DataError(f"{', '.join(places)}: nothing is judged yet")
    return next(iter(kinds.values())), judged


def read_judged(store: Store) -> list[JudgedItem]:
    """Return the items of a store with what counts now."""
    judged = [JudgedItem(item) for item in store.items()]
    latest = latest_judgements(store)
    for step in store.steps():
        judgement = latest.get((step.annotator, step.number))
        if judgement is None:
            continue
        one, body = judged[step.item], judgement.body
        one.flags += bool(body.get("flag"))
        if judgement.action == "skip":
            one.skipped_by.append(step.annotator)
        else:
            one.votes.append(
                Vote(step.annotator, step.role, body["verdict"], body, number=step.number)
            )
    return judged


def export_rows(
    kind: str,
    judged: Sequence[JudgedItem],
    *,
    min_judgements: int = 1,
    conflicts: Conflicts = "majority",
    leave_out_flagged: bool = False,
    with_names: bool = False,
) -> tuple[list[dict[str, Any]], ExportCounts]:
    """Return the rows of a kind, and what became of every item.

    Args:
        judged: of `read_stores`.
        min_judgements: items with fewer are left out.
        conflicts: keep the majority where people took opposite sides, or drop the item.
        leave_out_flagged: drop items that somebody flagged.
        with_names: a column of who judged.
    """
    counts = ExportCounts()
    rows: list[dict[str, Any]] = []
    for one in judged:
        _count_item(kind, one, counts)
        if one.item.gold is not None:
            continue
        votes = one.in_turn()
        if len(votes) < min_judgements:
            counts.left_out_too_few += 1
            continue
        if leave_out_flagged and one.flags:
            counts.left_out_flagged += 1
            continue

        made = _rows_of(kind, one.item, votes, counts, conflicts)
        if with_names:
            names = [vote.annotator for vote in votes]
            made = [row | {"annotators": row.pop("by", names)} for row in made]
        rows += [{name: value for name, value in row.items() if name != "by"} for row in made]

    counts.kept = len(rows)
    return rows, counts


def _count_item(kind: str, one: JudgedItem, counts: ExportCounts) -> None:
    counts.gold_judgements += sum(vote.role == "gold" for vote in one.votes)
    counts.repeats += sum(vote.role == "repeat" for vote in one.votes)
    if one.item.gold is not None:
        return
    votes = one.in_turn()
    counts.items += 1
    counts.judgements += len(votes)
    counts.skips += len(one.skipped_by)
    counts.flagged += bool(one.flags)
    counts.ties += sum(is_tie(kind, vote.verdict) for vote in votes)
    counts.conflicts += majority(kind, [vote.verdict for vote in votes]).is_divided


def _rows_of(
    kind: str, item: Item, votes: list[Vote], counts: ExportCounts, conflicts: Conflicts
) -> list[dict[str, Any]]:
    """Return the rows that an item becomes: one, none, or one for each correction."""
    verdicts = [vote.verdict for vote in votes]
    if kind == "correction":
        return [
            {
                "prompt": item.prompt,
                "completion": _in_form_of(item.answers[0], vote.verdict["text"]),
            }
            | {"original": item.answers[0], "by": [vote.annotator]}
            for vote in votes
        ]
    if kind == "ranking":
        ranks = _joint_ranks([verdict["ranks"] for verdict in verdicts])
        if len(set(ranks)) == 1:
            counts.left_out_ties += 1
            return []
        return [{"prompt": item.prompt, "completions": item.answers, "ranks": ranks}]
    if kind == "ratings":
        return [_rated_row(item, verdicts)]

    # pairs and thumbs: one side, or nothing
    found = majority(kind, verdicts)
    if found.is_even or (found.is_divided and conflicts == "drop"):
        counts.left_out_conflicts += 1
        return []
    if found.value is None:
        counts.left_out_ties += 1
        return []
    if kind == "thumbs":
        answer = item.answers[0]
        return [{"prompt": item.prompt, "completion": answer, "label": found.value}]

    chosen, rejected = item.answers[found.value], item.answers[1 - found.value]
    row = {"prompt": item.prompt, "chosen": chosen, "rejected": rejected}
    return [row | {"margin": round(found.margin, 3), "judgements": len(votes)}]


def _in_form_of(answer: Any, text: str) -> Any:
    """Return a text as an answer was given: as it is, or as the turn of an assistant."""
    return text if isinstance(answer, str) else [{"role": "assistant", "content": text}]


def _joint_ranks(given: list[list[int]]) -> list[int]:
    """Return one ranking of several: by mean rank, with equal means as ties."""
    means = [statistics.fmean(ranks) for ranks in zip(*given, strict=True)]
    places = {mean: place for place, mean in enumerate(sorted(set(means)), 1)}
    return [places[mean] for mean in means]


def _rated_row(item: Item, verdicts: list[dict[str, Any]]) -> dict[str, Any]:
    """Return a row with the mean rating, and that of each scale."""
    scales: dict[str, list[int]] = defaultdict(list)
    for verdict in verdicts:
        for scale, value in verdict["scales"].items():
            scales[scale].append(value)
    means = {scale: statistics.fmean(values) for scale, values in scales.items()}
    row = {"prompt": item.prompt, "completion": item.answers[0]}
    return row | {"rating": statistics.fmean(means.values()), "scales": means}


def name_annotators(names: Iterable[str], key: str) -> dict[str, str]:
    """Return a name for each annotator that says nothing, such as A1.

    Args:
        key: of the store (hexadecimal), without which nobody can find out the order.
    """
    ordered = sorted(set(names), key=lambda name: token_of(key, name))
    return {name: f"A{place}" for place, name in enumerate(ordered, 1)}


def name_people(
    judged: Sequence[JudgedItem], places: Sequence[str], *, with_names: bool
) -> dict[str, str]:
    """Return how each annotator is called in what is written.

    Args:
        judged: of `read_stores`, or of a file of another tool.
        places: of the stores; the first one's lead knows its people by the same names.
        with_names: by their own.
    """
    found = {vote.annotator for one in judged for vote in one.votes}
    found |= {name for one in judged for name in one.skipped_by}
    if with_names:
        return {name: name for name in sorted(found)}
    if not places:
        return name_annotators(found, secrets.token_hex(32))

    projects = []
    for path in store_paths(places):
        store = open_store(path)
        projects.append(store.project())
        store.close()
    key, people = projects[0]["key"], projects[0]["annotators"]
    ordered = [*name_annotators(people, key), *name_annotators(found - set(people), key)]
    return {name: f"A{place}" for place, name in enumerate(ordered, 1) if name in found}


def anonymous_rows(store: Store) -> list[dict[str, Any]]:
    """Return every judgement that counts, with an alias in place of its name."""
    project, items = store.project(), store.items()
    names = name_annotators(project["annotators"], project["key"])
    latest: dict[tuple[str, int], Judgement] = latest_judgements(store)
    rows = []
    for step in store.steps():
        judgement = latest.get((step.annotator, step.number))
        if judgement is None:
            continue
        item, body = items[step.item], judgement.body
        rows.append(
            {"item": step.item, "annotator": names[step.annotator], "role": step.role}
            | {"action": judgement.action, "prompt": item.prompt, "answers": item.answers}
            | {name: body.get(name) for name in ("verdict", "seconds", "flag", "comment")}
        )
    return rows
