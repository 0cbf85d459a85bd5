"""What is served: to whom, how much, and with which headers; and judgements over HTTP."""

import contextlib
import json
import logging
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from hfstack.errors import ConfigError, DataError
from hfstack.feedback.access import LEAD, MOST_BODY_BYTES, RateLimit, find_name, token_of
from hfstack.feedback.export import name_people, read_judged
from hfstack.feedback.kinds import Item
from hfstack.feedback.server import bind
from hfstack.feedback.simulate import Client, Habits, judge_all
from tests.feedback.feedback_project import make_desk, pairs, request, served, token


def judgement(step: int, verdict: dict[str, Any], **changes: Any) -> dict[str, Any]:
    given = {"id": f"some-id-{step}", "step": step, "action": "judge", "verdict": verdict}
    return given | {"seconds": 2.5} | changes


def test_serving_leaves_the_logging_of_the_process_as_it_was(tmp_path: Path) -> None:
    class Handler(logging.StreamHandler):
        closed = False

        def close(self) -> None:
            self.closed = True

    handler = Handler()
    with served(make_desk(tmp_path, pairs(2))):
        assert not handler.closed


def test_a_judgement_travels_from_the_page_to_the_store(tmp_path: Path) -> None:
    desk = make_desk(tmp_path, pairs(2))
    with served(desk) as address, Client(address, token(desk, "ann")) as client:
        shown = client.ask("/api/next")
        texts = [answer[0]["text"] for answer in shown["answers"]]
        side = texts.index(next(text for text in texts if text.startswith("good")))
        verdict = {"choice": side, "strength": 2}
        body = judgement(0, verdict, comment="kind", flag=True)
        answer = client.ask("/api/judgements", body)
        assert answer["saved"] and answer["next"]["step"] == 1
        assert client.ask("/api/judgements", body)["repeated"], "a retry is the same judgement"

        # what the page reads when it edits: its own sides, and the comment
        before = client.ask("/api/steps/0")
        assert before["verdict"] == verdict and before["comment"] == "kind" and before["flag"]
        assert client.ask("/api/steps") == [
            {"step": 0, "action": "judge", "prompt": shown["prompt"][0]["text"], "flag": True}
        ]
        saved = list(desk.store.judgements())
    assert [one.body["verdict"] for one in saved] == [{"choice": 0, "strength": 2}], "the good one"


def test_nothing_is_shown_without_a_token_and_nobody_guesses_one(tmp_path: Path) -> None:
    desk = make_desk(tmp_path, pairs(1))
    with served(desk) as address:
        paths = ("/api/project", "/api/next", "/api/steps", "/api/lead", "/api/lead/export")
        for path in paths:
            assert request(address, path)[0] == 401
        # an annotator is no lead, a lead no annotator
        assert request(address, "/api/lead", token(desk, "ann"))[0] == 401
        assert request(address, "/api/next", token(desk, LEAD))[0] == 401
        assert request(address, "/api/lead", token(desk, LEAD))[0] == 200
        seen = {request(address, "/api/next", f"guess{number}")[0] for number in range(20)}
        assert seen == {401, 429}
        assert request(address, "/api/next", token(desk, "ann"))[0] == 200
    key = desk.project["key"]
    tokens = {name: token_of(key, name) for name in ("ann", "ben")}
    assert find_name(tokens, tokens["ben"]) == "ben" and len(set(tokens.values())) == 2
    assert find_name(tokens, "ünknown") is None


def test_the_store_is_not_served_and_the_page_may_load_nothing(tmp_path: Path) -> None:
    desk = make_desk(tmp_path, pairs(1))
    with served(desk) as address:
        for path in ("/feedback.sqlite", "/../feedback.sqlite", "/openapi.json", "/docs", "/api"):
            assert request(address, path, token(desk, LEAD))[0] == 404
        for path in ("/", "/page.js", "/outbox.js", "/page.css", "/lead", "/lead.js"):
            status, headers, body = request(address, path)
            assert status == 200 and body
            policy = headers["content-security-policy"]
            assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
            assert "unsafe" not in policy and "http" not in policy
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["referrer-policy"] == "no-referrer"
            assert b"innerHTML" not in body and b"://" not in body, "text stays text, from here"


def test_what_is_too_large_or_malformed_is_refused_and_not_written(tmp_path: Path) -> None:
    desk = make_desk(tmp_path, pairs(2))
    with served(desk) as address:
        key = token(desk, "ann")
        with Client(address, key) as client:
            client.ask("/api/next")

        def send(body: Any) -> tuple[int, str]:
            status, _, read = request(address, "/api/judgements", key, method="POST", body=body)
            return status, json.loads(read).get("error", "")

        assert send(b"x" * (MOST_BODY_BYTES + 1))[0] == 413
        good = {"choice": 0, "strength": 1}
        for body, message in (
            (b"{", "is no JSON"),
            (b"[" * 100_000, "is no JSON"),
            (b"[]", "must be a JSON object"),
            (judgement(0, good, comment="\ud83d"), "half a character"),
            (judgement(0, good, id="\udfff" * 8), "half a character"),
            (judgement(0, good, seconds=float("nan")), "seconds must be from 0"),
            (judgement(10**400, good, id="huge-step"), "step must be one that was shown"),
            (judgement(0, {"choice": 2, "strength": 1}), "choice must be 0, 1 or null"),
            (judgement(0, {"choice": True, "strength": 1}), "choice must be 0, 1 or null"),
            (judgement(0, {"choice": 0}), "lacks 'strength'"),
            (judgement(7, good), "step must be one that was shown"),
            (judgement(0, good, action="delete"), "action must be one of"),
            (judgement(0, good, id="x"), "id must be text of 8"),
            (judgement(0, good, seconds=-1), "seconds must be from 0"),
            (judgement(0, good, comment="x" * 2001), "comment must be text of at most 2000"),
        ):
            status, error = send(body)
            assert status == 422 and message in error
        assert list(desk.store.judgements()) == []


def test_the_rate_is_limited_for_each_sender() -> None:
    now = [0.0]
    limit = RateLimit(per_s=2, burst=3, clock=lambda: now[0])
    assert [limit.allows("ann") for _ in range(4)] == [True, True, True, False]
    assert limit.allows("ben")
    now[0] = 0.5
    assert [limit.allows("ann") for _ in range(2)] == [True, False]


def test_a_server_that_is_started_again_goes_on_where_it_was(tmp_path: Path) -> None:
    desk = make_desk(tmp_path, pairs(6))
    with served(desk) as address:
        before = token(desk, "ann")
        prefer = {"good": 1.0, "bad": 0.0}
        with Client(address, before) as client:
            made = judge_all(client, lambda _, text: prefer[text[:-2]], Habits(), seed="a", most=3)
    desk = make_desk(tmp_path, [])
    with served(desk) as address, Client(address, before) as client:
        assert token(desk, "ann") == before, "links stay good"
        made += judge_all(client, lambda _, text: 0.0, Habits(), seed="b")
        assert made == 6 and desk.is_finished
    verdicts = [
        json.loads(body)["verdict"]["choice"]
        for (body,) in sqlite3.connect(tmp_path / "feedback.sqlite").execute(
            "SELECT body FROM judgements ORDER BY id"
        )
    ]
    assert verdicts == [0, 0, 0, None, None, None], "the better answer, then ties"


def test_the_lead_sees_progress_and_ends_the_project(tmp_path: Path) -> None:
    desk = make_desk(tmp_path, pairs(3), overlap=2)
    with contextlib.ExitStack() as stack:
        address = stack.enter_context(served(desk))
        for name, choice in (("ann", 1.0), ("ben", -1.0)):
            with Client(address, token(desk, name)) as client:
                judge_all(
                    client,
                    lambda _, text, sign=choice: sign * text.startswith("good"),
                    Habits(),
                    seed=name,
                )
        lead = stack.enter_context(Client(address, token(desk, LEAD)))
        found = lead.ask("/api/lead")
        assert found["judged"] == found["wanted"] == 6
        assert [person["judged"] for person in found["people"]] == [3, 3]
        assert found["agreement"]["raw"] == 0.0 and len(found["divided"]) == 3
        # for two people who contradict each other on each of three pairs: 1 - (n - 1) / n_a,
        # hand-worked from the coincidence matrix: 1 - (6 - 1) * 6 / (6 * 6 - 2 * 9) = -2/3
        assert found["agreement"]["alpha_nominal"] == pytest.approx(-2 / 3)

        status, _, body = request(address, "/api/lead/export", token(desk, LEAD))
        rows = [json.loads(line) for line in body.decode().splitlines()]
        assert status == 200 and len(rows) == 6
        assert {row["annotator"] for row in rows} == {"A1", "A2"}, "no names leave"
        assert b"ann" not in body.replace(b"annotator", b"")
        # and a person is called the same in what the recipe feedback writes
        judged = read_judged(desk.store)
        written = name_people(judged, [str(desk.store.path)], with_names=False)
        order = [one.annotator for one in desk.store.steps()]
        assert [row["annotator"] for row in rows] == [written[name] for name in order]

        lead.ask("/api/lead/stop", {})
        status, _, body = request(
            address,
            "/api/judgements",
            token(desk, "ann"),
            method="POST",
            body=judgement(0, {"choice": 0, "strength": 1}),
        )
        assert status == 409 and b"ended" in body
        ann = stack.enter_context(Client(address, token(desk, "ann")))
        assert ann.ask("/api/next")["state"] == "stopped"


def test_a_port_in_use_and_a_host_of_somebody_else_end_in_one_line(caplog) -> None:
    with bind("127.0.0.1", 0) as sock:
        port = sock.getsockname()[1]
        with pytest.raises(ConfigError, match=f"--port {port} cannot be used: .*another --port"):
            bind("127.0.0.1", port)
    with pytest.raises(ConfigError, match="cannot be used: .*give a --host that is an address"):
        bind("192.0.2.1", 0)
    with bind("0.0.0.0", 0):
        assert "whoever can reach this machine can read the page" in caplog.text


def test_verdicts_of_every_kind_are_kept_on_the_items_own_answers(tmp_path: Path) -> None:
    item = Item("p", ["a", "b", "c"])
    desk = make_desk(tmp_path, [item], kind="ranking")
    shown = desk.next("ann")
    wanted = {"a": 1, "b": 3, "c": 2}
    ranks = [wanted[answer[0]["text"]] for answer in shown["answers"]]
    desk.judge("ann", judgement(0, {"ranks": ranks}))
    assert next(desk.store.judgements()).body["verdict"] == {"ranks": [1, 3, 2]}
    assert desk.step("ann", 0)["verdict"] == {"ranks": ranks}
    with pytest.raises(DataError, match="ranks must be whole numbers from 1 to 3"):
        desk.judge("ann", judgement(0, {"ranks": [1, 2, 4]}, id="another-id"))
    desk.store.close()
