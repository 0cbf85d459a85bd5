"""Judge by a rule, with slips, through the same HTTP interface as people.

So that a loop of feedback can be tested from end to end, and its cost measured, without people.
"""

import http.client
import json
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self
from uuid import UUID

from hfstack.errors import DataError
from hfstack.feedback.kinds import HIGHEST_RATING

RateAnswer = Callable[[str, str], float]  # (prompt, answer) -> how good, in [0, 1]
# Smallest difference that a simulated person sees, and from where it is better and much better.
_SEES, _BETTER, _MUCH_BETTER = 0.02, 0.2, 0.5
_PATIENCE_S = 60.0


@dataclass
class SimulationArgs:
    """Simulated annotators in place of people."""

    simulate: bool = False
    """Let the demo's gold rule judge in place of people, through the same interface, to try a loop
    out.
    """
    annotator_noise: float = 0.1
    """Share of the judgements that a simulated annotator gets wrong on purpose."""
    position_bias: float = 0.0
    """Share of the pairs in which a simulated annotator takes the first side whatever it is."""
    careless_share: float = 0.0
    """Share of the judgements of the last annotator that are random."""


@dataclass(frozen=True)
class Habits:
    """How a simulated annotator errs; each is a share of the judgements in [0, 1]."""

    noise: float = 0.0
    position_bias: float = 0.0
    careless: float = 0.0


def decide(
    project: dict[str, Any],
    item: dict[str, Any],
    judge: RateAnswer,
    habits: Habits,
    chance: random.Random,
) -> dict[str, Any]:
    """Return a verdict on what the page shows, by a rule and with slips.

    Args:
        project: kind and scales, as `/api/project` gives them.
        item: as `/api/next` gives it.
    """
    prompt, *answers = (
        "\n".join(turn["text"] for turn in turns) for turns in (item["prompt"], *item["answers"])
    )
    scores = [judge(prompt, answer) for answer in answers]
    luck = chance.random()
    if luck < habits.careless:
        scores = [chance.random() for _ in scores]
    elif chance.random() < habits.noise:
        # a single answer is taken for the opposite, of several the order is turned round
        scores = [1 - score for score in scores]

    kind = project["kind"]
    if kind == "pairs":
        if chance.random() < habits.position_bias:
            return {"choice": 0, "strength": 1}
        gap = scores[0] - scores[1]
        if abs(gap) < _SEES:
            return {"choice": None, "strength": 0}
        strength = 1 + (abs(gap) >= _BETTER) + (abs(gap) >= _MUCH_BETTER)
        return {"choice": int(gap < 0), "strength": strength}
    if kind == "ranking":
        best_first = sorted(set(scores), reverse=True)
        return {"ranks": [best_first.index(score) + 1 for score in scores]}
    if kind == "thumbs":
        return {"label": scores[0] >= 0.5}
    if kind == "ratings":
        value = round(1 + (HIGHEST_RATING - 1) * min(1.0, max(0.0, scores[0])))
        return {"scales": dict.fromkeys(project["scales"], value)}
    return {"text": answers[0]}


class Client:
    """The page's side of the HTTP interface, with its retries.

    Args:
        address: host and port of the server.
        token: of one annotator, or of the lead.
    """

    def __init__(self, address: tuple[str, int], token: str) -> None:
        self._address = address
        self._headers = {
            "Authorization": f"Bearer {token}",
            "Content-Type": "application/json",
        }
        self._connection: http.client.HTTPConnection | None = None
        self.seconds: list[float] = []  # of each request that was answered
        self.retries = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def ask(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """Send a request until it is answered, and return the answer.

        Raises:
            DataError: it was refused.
            ConnectionError: there was no answer for a minute.
        """
        payload = json.dumps(body).encode() if body is not None else None
        began, pause_s = time.monotonic(), 0.05
        while True:
            sent = time.perf_counter()
            try:
                status, read = self._send(path, payload)
            except (OSError, http.client.HTTPException) as error:
                self.close()
                status, read = 503, {"error": str(error)}

            if status == 200:
                self.seconds.append(time.perf_counter() - sent)
                return read
            if status != 429 and status < 500:
                raise DataError(f"{path} was refused: {read.get('error')}")
            if time.monotonic() - began > _PATIENCE_S:
                raise ConnectionError(f"{path}: no answer for {_PATIENCE_S:.0f} s: {read}")
            self.retries += 1
            time.sleep(pause_s)
            pause_s = min(1.0, 2 * pause_s)

    def _send(self, path: str, payload: bytes | None) -> tuple[int, Any]:
        if self._connection is None:
            self._connection = http.client.HTTPConnection(*self._address, timeout=30)
        method = "POST" if payload is not None else "GET"
        self._connection.request(method, path, body=payload, headers=self._headers)
        answer = self._connection.getresponse()
        return answer.status, json.loads(answer.read())

    def close(self) -> None:
        """Close the connection; the next request opens another."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def judge_all(
    client: Client,
    judge: RateAnswer,
    habits: Habits,
    *,
    seed: str,
    most: int | None = None,
    pause_s: float = 0.0,
) -> int:
    """Judge until there is nothing left, and return how many judgements were sent.

    Args:
        client: of one annotator.
        judge: the rule.
        habits: how it errs.
        seed: of its slips.
        most: judgements to stop after.
        pause_s: mean time between two judgements.
    """
    chance = random.Random(f"simulate/{seed}")
    project, made = client.ask("/api/project"), 0
    shown = client.ask("/api/next")
    while shown["state"] == "item" and (most is None or made < most):
        verdict = decide(project, shown, judge, habits, chance)
        judgement = {"id": UUID(int=chance.getrandbits(128)).hex, "step": shown["step"]}
        judgement |= {"action": "judge", "verdict": verdict, "seconds": 1 + 9 * chance.random()}
        shown = client.ask("/api/judgements", judgement)["next"]
        made += 1
        if pause_s:
            time.sleep(2 * pause_s * chance.random())
    return made


def simulate_people(
    address: tuple[str, int],
    tokens: dict[str, str],
    judge: RateAnswer,
    args: SimulationArgs,
    *,
    seed: int,
) -> None:
    """Let a simulated annotator for each token judge, all at once, to the end.

    Raises:
        Whatever went wrong for one of them.
    """
    errors: list[BaseException] = []
    names: Sequence[str] = list(tokens)

    def work(name: str) -> None:
        careless = args.careless_share if name == names[-1] else 0.0
        habits = Habits(args.annotator_noise, args.position_bias, careless)
        try:
            with Client(address, tokens[name]) as client:
                judge_all(client, judge, habits, seed=f"{seed}/{name}")
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(name,), daemon=True) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
