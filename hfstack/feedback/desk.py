"""Give people their items and take their judgements, behind the HTTP interface.

Everything that is answered is first written to the store; the queue is what can be made again from
it.
"""

import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from hfstack.errors import DataError
from hfstack.feedback.agreement import agreement_now, majority
from hfstack.feedback.kinds import blind_order, from_page, is_tie, read_verdict, to_page
from hfstack.feedback.queue import Queue, QueueSettings
from hfstack.feedback.store import ACTIONS, Judgement, Step, Store
from hfstack.tasks.preferences.rows import answer_text

_LONGEST_COMMENT = 2000  # characters
_LONGEST_ID = 64
_MOST_SECONDS = 24 * 3600.0


class Desk:
    """The project that is being judged.

    Args:
        store: opened, with a project in it.
        clock: seconds since 1970; tests give their own.
    """

    def __init__(self, store: Store, clock: Callable[[], float] = time.time) -> None:
        self.store, self._clock = store, clock
        self.project = store.project()
        self.items = store.items()
        self.kind: str = self.project["kind"]
        self.annotators: list[str] = self.project["annotators"]

        settings = QueueSettings(**self.project["queue"])
        self._seed = settings.seed
        self.queue = Queue(self.items, settings)
        self.queue.restore(store.steps(), store.judgements())
        self.stopped = False  # by the lead
        self.last_request_s = time.monotonic()

    @property
    def is_finished(self) -> bool:
        """Return whether nobody has anything left to judge."""
        return self.queue.is_finished(self.annotators, self._clock())

    @property
    def is_complete(self) -> bool:
        """Return whether every item has its judgements."""
        judged, wanted = self.queue.progress
        return judged >= wanted

    def describe(self) -> dict[str, Any]:
        """Return what the page needs to know of the project."""
        names = ("kind", "scales", "guidelines", "title")
        return {name: self.project[name] for name in names}

    def next(self, annotator: str) -> dict[str, Any]:
        """Return the item that a person judges now, or that there is none left."""
        self.last_request_s = time.monotonic()
        done = len(self.queue.judged[annotator])
        judged, wanted = self.queue.progress
        progress = {"done": done, "judged_in_all": judged, "wanted": wanted}
        if self.stopped:
            return {"state": "stopped"} | progress

        step = self.queue.next_step(annotator, self._clock())
        if step is None:
            return {"state": "done"} | progress
        if step.number == len(self.queue.steps[annotator]):
            self.store.add_step(step)
            self.queue.add_step(step)
        return {"state": "item"} | progress | self._show(step)

    def step(self, annotator: str, number: int) -> dict[str, Any]:
        """Return a step that was shown before, with the judgement that counts now."""
        self.last_request_s = time.monotonic()
        return {"state": "item"} | self._show(self._find(annotator, number))

    def history(self, annotator: str) -> list[dict[str, Any]]:
        """Return a person's own judgements, the latest first."""
        self.last_request_s = time.monotonic()
        judged = self.queue.judged[annotator]
        rows = []
        for number in sorted(judged, reverse=True):
            prompt = answer_text(self.items[self.queue.steps[annotator][number].item].prompt)
            row = {"step": number, "action": judged[number].action, "prompt": prompt[:80]}
            rows.append(row | {"flag": bool(judged[number].body.get("flag"))})
        return rows

    def judge(self, annotator: str, given: dict[str, Any]) -> dict[str, Any]:
        """Write a judgement, a skip or an undo, and return what is judged next.

        Args:
            given: id (made by the page), step, action, and for a judgement its verdict on the
                page's sides; comment, flag and seconds.

        Raises:
            DataError: something of it is malformed; nothing is written.
        """
        action, client_id, number = given.get("action"), given.get("id"), given.get("step")
        if action not in ACTIONS:
            raise DataError(f"action must be one of {', '.join(ACTIONS)}, got {action!r:.60}")
        if not isinstance(client_id, str) or not 8 <= len(client_id) <= _LONGEST_ID:
            raise DataError(f"id must be text of 8 to {_LONGEST_ID} characters, got {client_id!r}")

        step = self._find(annotator, number)
        item = self.items[step.item]
        order = blind_order(self._seed, step.item, annotator, answers=len(item.answers))
        body = _read_beside(given) | {"order": order}
        if action == "judge":
            scales = self.project["scales"]
            verdict = read_verdict(
                self.kind, given.get("verdict"), answers=len(item.answers), scales=scales
            )
            body["verdict"] = from_page(self.kind, verdict, order)

        judgement = Judgement(client_id, annotator, step.number, action, body)
        is_new = self.store.add_judgement(judgement)
        if is_new:
            self.queue.add_judgement(judgement)
        return {"saved": True, "repeated": not is_new, "next": self.next(annotator)}

    def _find(self, annotator: str, number: Any) -> Step:
        steps = self.queue.steps[annotator]
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < len(steps):
            raise DataError(f"step must be one that was shown to you, got {number!r:.60}")
        return steps[number]

    def _show(self, step: Step) -> dict[str, Any]:
        """Return an item as the page shows it: texts in the blind order, and no source."""
        item = self.items[step.item]
        order = blind_order(self._seed, step.item, step.annotator, answers=len(item.answers))
        judged = self.queue.judged[step.annotator].get(step.number)
        body = judged.body if judged else {}
        verdict = body.get("verdict")

        return {
            "step": step.number,
            "prompt": _as_turns(item.prompt, "user"),
            "answers": [_as_turns(item.answers[place], "assistant") for place in order],
            "verdict": verdict and to_page(self.kind, verdict, order),
            "comment": body.get("comment", ""),
            "flag": body.get("flag", False),
            "is_judged": judged is not None,
        }

    def summary(self) -> dict[str, Any]:
        """Return what the lead's page shows: progress, speed, agreement, divided items."""
        judged, wanted = self.queue.progress
        people, comments = [], []
        votes: dict[int, list[dict[str, Any]]] = defaultdict(list)
        for name in self.annotators:
            own = self.queue.judged[name]
            for number, judgement in own.items():
                step, body = self.queue.steps[name][number], judgement.body
                if judgement.action == "judge" and step.role == "turn":
                    votes[step.item].append(body["verdict"])
                if body.get("comment") or body.get("flag"):
                    comments.append(
                        {"annotator": name, "item": step.item, "flag": bool(body.get("flag"))}
                        | {"comment": body.get("comment", "")}
                    )
            people.append(_describe_person(self.kind, name, list(own.values())))

        divided = [
            {"item": item, "prompt": answer_text(self.items[item].prompt)[:100]}
            | {"votes": len(verdicts)}
            for item, verdicts in votes.items()
            if majority(self.kind, verdicts).is_divided
        ]
        return {
            **self.describe(),
            "judged": judged,
            "wanted": wanted,
            "items": sum(item.gold is None for item in self.items),
            "stopped": self.stopped,
            "people": people,
            "agreement": agreement_now(self.kind, votes),
            "divided": divided[:50],
            "comments": comments[-50:],
        }


def _read_beside(given: dict[str, Any]) -> dict[str, Any]:
    """Return comment, flag and seconds of a judgement, refused where out of range."""
    comment, flag = given.get("comment", ""), given.get("flag", False)
    seconds = given.get("seconds", 0)
    if not isinstance(comment, str) or len(comment) > _LONGEST_COMMENT:
        raise DataError(f"comment must be text of at most {_LONGEST_COMMENT} characters")
    if not isinstance(flag, bool):
        raise DataError(f"flag must be true or false, got {flag!r:.60}")
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise DataError(f"seconds must be a number, got {seconds!r:.60}")
    if not 0 <= seconds <= _MOST_SECONDS:
        raise DataError(f"seconds must be from 0 to {_MOST_SECONDS:.0f}, got {seconds!r:.60}")
    return {"comment": comment, "flag": flag, "seconds": seconds}


def _as_turns(value: Any, role: str) -> list[dict[str, str]]:
    """Return a text or a conversation as turns of plain text."""
    if isinstance(value, str):
        return [{"role": role, "text": value}]
    return [{"role": str(turn["role"]), "text": answer_text([turn])} for turn in value]


def _describe_person(kind: str, name: str, judgements: list[Judgement]) -> dict[str, Any]:
    made = [one for one in judgements if one.action == "judge"]
    seconds = [one.body["seconds"] for one in made if one.body.get("seconds")]
    return {
        "annotator": name,
        "judged": len(made),
        "skipped": len(judgements) - len(made),
        "ties": sum(is_tie(kind, one.body["verdict"]) for one in made),
        "median_seconds": statistics.median(seconds) if seconds else None,
    }
