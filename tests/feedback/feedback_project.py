"""A small project with its server, for the tests of what is served."""

import contextlib
import http.client
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hfstack.feedback.access import token_of
from hfstack.feedback.desk import Desk
from hfstack.feedback.kinds import Item
from hfstack.feedback.server import bind, serving
from hfstack.feedback.store import Store

VERDICTS: dict[str, dict[str, Any]] = {
    "pairs": {"choice": 1, "strength": 2},
    "ranking": {"ranks": [2, 1, 3]},
    "thumbs": {"label": True},
    "ratings": {"scales": {"kind": 4}},
    "correction": {"text": "The owl was kind."},
}
QUEUE = {"overlap": 1, "gold_share": 0.0, "repeat_share": 0.0, "seed": 0}


def make_desk(
    folder: Path,
    items: Sequence[Item],
    *,
    kind: str = "pairs",
    annotators: Sequence[str] = ("ann", "ben"),
    **changes: Any,
) -> Desk:
    """Return a desk over a new store, or over the one that is there."""
    store = Store(folder / "feedback.sqlite")
    if store.is_new:
        queue = QUEUE | {name: value for name, value in changes.items() if name in QUEUE}
        project = {"kind": kind, "annotators": list(annotators), "queue": queue, "scales": []}
        project |= {"title": "Feedback", "guidelines": "Prefer the kinder answer."}
        rest = {name: value for name, value in changes.items() if name not in QUEUE}
        store.create(project | rest, items)
    return Desk(store)


def pairs(count: int) -> list[Item]:
    return [Item(f"Say {number}.", [f"good {number}", f"bad {number}"]) for number in range(count)]


def token(desk: Desk, name: str) -> str:
    return token_of(desk.project["key"], name)


def judge_items(folder: Path, kind: str, *, as_turns: bool) -> None:
    """Write a store of a kind in which one person has judged 12 items."""

    def said(role: str, text: str) -> Any:
        return [{"role": role, "content": text}] if as_turns else text

    count = {"pairs": 2, "ranking": 3}.get(kind, 1)
    items = [
        Item(
            said("user", f"Tell me of fox {n}."), [said("assistant", f"Fox {n}{c}.") for c in "abc"]
        )
        for n in range(12)
    ]
    for item in items:
        item.answers = item.answers[:count]
    folder.mkdir()
    scales = ["kind"] if kind == "ratings" else []
    desk = make_desk(folder, items, kind=kind, annotators=["ann"], scales=scales)
    for number in range(len(items)):
        # of one answer each second one is worse, so that there is something to learn
        verdict = VERDICTS[kind]
        if number % 2 and kind == "thumbs":
            verdict = {"label": False}
        shown = desk.next("ann")
        given = {"id": f"judgement {number}", "step": shown["step"], "action": "judge"}
        desk.judge("ann", given | {"verdict": verdict, "seconds": 2})
    desk.store.close()


@contextlib.contextmanager
def served(desk: Desk, port: int = 0) -> Iterator[tuple[str, int]]:
    """Serve a desk, give its address, and close its store."""
    sock = bind("127.0.0.1", port)
    try:
        with serving(desk, sock):
            yield sock.getsockname()[:2]
    finally:
        desk.store.close()


def request(
    address: tuple[str, int],
    path: str,
    key: str = "",
    *,
    method: str = "GET",
    body: bytes | dict[str, Any] | None = None,
) -> tuple[int, dict[str, str], bytes]:
    """Send one request and return status, headers and body."""
    connection = http.client.HTTPConnection(*address, timeout=30)
    sent = json.dumps(body).encode() if isinstance(body, dict) else body
    connection.request(method, path, body=sent, headers={"Authorization": f"Bearer {key}"})
    answer = connection.getresponse()
    read = answer.read()
    connection.close()
    return answer.status, {name.lower(): value for name, value in answer.getheaders()}, read
