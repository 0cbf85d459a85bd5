"""Decide which item a person judges next.

Items go out by priority, each to `overlap` people and never twice to one, except where a repeat is
wanted to see whether a person agrees with themselves. Hidden checks with a known answer (gold) are
mixed in. What was shown and not judged is shown again, so that a reload loses nothing.
"""

import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from hfstack.feedback.kinds import Item
from hfstack.feedback.store import Judgement, Step

# An item that somebody was shown and left is free for others after this.
HOLD_S = 1800.0
# Steps between an item and its repeat, so that it is judged again and not remembered.
_REPEAT_AFTER = 8


@dataclass(frozen=True)
class QueueSettings:
    """How items are given out.

    Args:
        overlap: people who judge each item.
        gold_share: share of the steps that are hidden checks, in [0, 1).
        repeat_share: share of the steps that show an earlier item again, in [0, 1).
        seed: of what is mixed in where, and of the blind order of sides.
    """

    overlap: int
    gold_share: float
    repeat_share: float
    seed: int


class Queue:
    """Who was shown what, and what is judged; made again from the store."""

    def __init__(self, items: Sequence[Item], settings: QueueSettings) -> None:
        self.settings = settings
        turns = [number for number, item in enumerate(items) if item.gold is None]
        self._turns = sorted(turns, key=lambda number: -items[number].priority)
        self._gold = [number for number, item in enumerate(items) if item.gold is not None]
        self._first_open = 0  # of _turns: all before it have their judgements

        self.steps: dict[str, list[Step]] = defaultdict(list)
        self.judged: dict[str, dict[int, Judgement]] = defaultdict(dict)  # by step number
        self._open: dict[str, set[int]] = defaultdict(set)  # step numbers without a judgement
        self._seen: dict[str, set[int]] = defaultdict(set)
        self._repeated: dict[str, set[int]] = defaultdict(set)

        self._counts: dict[int, int] = defaultdict(int)
        self._held: dict[int, dict[str, float]] = defaultdict(dict)
        self._done = 0

    def restore(self, steps: Iterable[Step], judgements: Iterable[Judgement]) -> None:
        """Take in what a store holds."""
        for step in steps:
            self.add_step(step)
        for judgement in judgements:
            self.add_judgement(judgement)

    def add_step(self, step: Step) -> None:
        """Take in that an item is shown."""
        self.steps[step.annotator].append(step)
        self._open[step.annotator].add(step.number)
        self._seen[step.annotator].add(step.item)
        if step.role == "turn":
            self._held[step.item][step.annotator] = step.shown
        elif step.role == "repeat":
            self._repeated[step.annotator].add(step.item)

    def add_judgement(self, judgement: Judgement) -> None:
        """Take in a judgement, a skip or an undo."""
        name, number = judgement.annotator, judgement.step
        step = self.steps[name][number]
        before = self.judged[name].pop(number, None)
        if judgement.action == "undo":
            self._open[name].add(number)
        else:
            self._open[name].discard(number)
            self.judged[name][number] = judgement
        if step.role != "turn":
            return

        # A skip says nothing of the item: somebody else is asked.
        change = (judgement.action == "judge") - (before is not None and before.action == "judge")
        # Who comes back after a hold may judge what others have judged: nothing more is wanted.
        self._done -= min(self._counts[step.item], self.settings.overlap)
        self._counts[step.item] += change
        self._done += min(self._counts[step.item], self.settings.overlap)
        self._held[step.item].pop(name, None)
        if judgement.action == "undo":
            self._held[step.item][name] = step.shown
        if change < 0:
            self._first_open = 0

    def next_step(self, annotator: str, now: float) -> Step | None:
        """Return what a person judges now: what is open, else something new, else None.

        A new step is not taken in yet: the caller writes it down first, then calls `add_step`.
        """
        if self._open[annotator]:
            return self.steps[annotator][min(self._open[annotator])]

        item = self._next_turn(annotator, now)
        if item is None:
            return None
        number = len(self.steps[annotator])
        chance = random.Random(f"mix/{self.settings.seed}/{annotator}/{number}")
        luck = chance.random()

        gold = [one for one in self._gold if one not in self._seen[annotator]]
        if luck < self.settings.gold_share and gold:
            return Step(annotator, number, chance.choice(gold), "gold", now)
        earlier = self._repeatable(annotator)
        if luck > 1 - self.settings.repeat_share and earlier:
            return Step(annotator, number, chance.choice(earlier), "repeat", now)
        return Step(annotator, number, item, "turn", now)

    def _next_turn(self, annotator: str, now: float) -> int | None:
        """Return the first item that still needs people, and that this one has not seen."""
        seen, turns = self._seen[annotator], self._turns
        while self._first_open < len(turns) and self._is_complete(turns[self._first_open]):
            self._first_open += 1
        for place in range(self._first_open, len(turns)):
            item = turns[place]
            if item not in seen and self._is_free(item, now):
                return item
        return None

    def _is_complete(self, item: int) -> bool:
        return self._counts[item] >= self.settings.overlap

    def _is_free(self, item: int, now: float) -> bool:
        # a clock that was set back leaves times in the future, which must not hold for ever
        holders = sum(abs(now - shown) < HOLD_S for shown in self._held[item].values())
        return self._counts[item] + holders < self.settings.overlap

    def _repeatable(self, annotator: str) -> list[int]:
        """Return the items that a person has judged long ago and not seen again."""
        judged = self.judged[annotator]
        return [
            step.item
            for step in self.steps[annotator][:-_REPEAT_AFTER]
            if step.role == "turn"
            and step.item not in self._repeated[annotator]
            and step.number in judged
            and judged[step.number].action == "judge"
        ]

    def is_finished(self, annotators: Iterable[str], now: float) -> bool:
        """Return whether nobody has anything left to judge."""
        return all(self.next_step(name, now) is None for name in annotators)

    @property
    def progress(self) -> tuple[int, int]:
        """Return how many judgements there are, and how many are wanted."""
        return self._done, len(self._turns) * self.settings.overlap
