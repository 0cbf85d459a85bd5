"""A judge behind an endpoint: both orders, kept judgements, cost, and agreement with people."""

import json
import time
from pathlib import Path

import pytest
from sklearn.metrics import cohen_kappa_score

from hfstack.data.sources import as_sources
from hfstack.diagnosis.win_rate import judge_both_orders
from hfstack.errors import ConfigError, DataError
from hfstack.evidence.score_judge import (
    EndpointJudge,
    JudgeArgs,
    cohen_kappa,
    compare_with_people,
)
from tests.tasks.rewards.test_prepare import Endpoint

PROMPTS = [f"Name fox {n}." for n in range(12)]


def reply(text: str, read: int = 100, written: int = 10) -> tuple[int, dict, dict]:
    usage = {"prompt_tokens": read, "completion_tokens": written}
    return 200, {}, {"choices": [{"message": {"content": text}}], "usage": usage}


def prefers_longer(number: int, body: dict) -> tuple[int, dict, dict]:
    """Prefer the longer answer, as its text shows it."""
    text = body["messages"][1]["content"]
    first, second = text.partition("Answer A:\n")[2].split("\n\nAnswer B:\n")
    better = "A" if len(first) > len(second) else "B" if len(second) > len(first) else "tie"
    return reply(f"The verdict: is easy. Verdict: {better}")


@pytest.fixture
def endpoint():
    servers: list[Endpoint] = []

    def start(answer) -> Endpoint:
        server = Endpoint(answer)
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.server.shutdown()
        server.server.server_close()


def make(server: Endpoint, folder: Path, **options: object) -> EndpointJudge:
    url = server.url.rsplit("/", 1)[0]
    args = JudgeArgs(judge_url=url, judge_model="judge-1", **options)  # type: ignore[arg-type]
    return EndpointJudge(args, folder=folder, first_wait_s=0.01)


def test_both_orders_are_asked_kept_and_paid_for(endpoint, tmp_path: Path) -> None:
    server = endpoint(prefers_longer)
    rubric = tmp_path / "rubric.txt"
    rubric.write_text("The longer answer is better.\n")
    judge = make(server, tmp_path, judge_price=[2.0, 10.0], rubric_file=str(rubric))
    ours = ["a long answer" if n % 3 else "short" for n in range(12)]
    theirs = ["same length" if n % 3 else "shorter" for n in range(12)]
    judged = judge_both_orders(judge.compare, PROMPTS, ours, theirs)
    assert judged.shares == [1.0 if n % 3 else 0.0 for n in range(12)] and judged.flips == 0
    assert judge.metrics() == {
        "judge_calls": 24,
        "judge_cached": 0,
        "judge_unreadable": 0,
        "judge_prompt_tokens": 2400,
        "judge_completion_tokens": 240,
        # 2,400 tokens at 2 and 240 at 10, both for a million
        "judge_cost": pytest.approx(0.0072),
    }
    assert server.bodies[0]["model"] == "judge-1" and server.bodies[0]["temperature"] == 0
    assert "The longer answer is better." in server.bodies[0]["messages"][0]["content"]

    # a run that was interrupted: half of the lines, the last one torn
    file = tmp_path / "judgements.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:10]) + lines[10][:20])
    again = make(server, tmp_path, rubric_file=str(rubric))
    assert judge_both_orders(again.compare, PROMPTS, ours, theirs).shares == judged.shares
    assert again.metrics()["judge_calls"] == 14 and again.metrics()["judge_cached"] == 10
    assert len(file.read_text().splitlines()) == 24
    # another rubric is another judgement
    assert make(server, tmp_path).compare(PROMPTS[:1], ours[:1], theirs[:1]) == [0.0]
    assert len(file.read_text().splitlines()) == 25


def test_a_judge_of_places_wins_nothing(endpoint, tmp_path: Path) -> None:
    judge = make(endpoint(lambda number, body: reply("Verdict: A")), tmp_path)
    judged = judge_both_orders(judge.compare, PROMPTS, ["a"] * 12, ["b"] * 12)
    assert judged.shares == [0.5] * 12 and judged.first_place_share == 1.0


def test_grades(endpoint, tmp_path: Path) -> None:
    server = endpoint(lambda number, body: reply(f"Fine.\nScore: {3 + number % 2}"))
    grades = make(server, tmp_path, judge_concurrency=1).grade(PROMPTS[:4], ["a", "b", "c", "d"])
    assert grades == [4.0, 3.0, 4.0, 3.0]


def test_kappa_is_that_of_scikit_learn_and_of_hand() -> None:
    first = ["a"] * 20 + ["a"] * 5 + ["b"] * 10 + ["b"] * 15
    second = ["a"] * 20 + ["b"] * 5 + ["a"] * 10 + ["b"] * 15
    # 0.7 agreed; by chance 0.5 * 0.6 + 0.5 * 0.4 = 0.5
    assert cohen_kappa(first, second) == pytest.approx(0.4)
    assert cohen_kappa(first, second) == pytest.approx(cohen_kappa_score(first, second))
    assert cohen_kappa(["a"], ["a"]) == 1.0 and cohen_kappa(["a", "b"], ["b", "a"]) == -1.0


def test_agreement_with_people_does_not_follow_the_place(endpoint, tmp_path: Path) -> None:
    """People chose the longer answer of ten pairs and the shorter of four."""
    rows = [
        {"prompt": prompt, "chosen": f"answer {n} is long", "rejected": f"b{n}"}
        if n < 10
        else {"prompt": prompt, "chosen": f"b{n}", "rejected": f"answer {n} is long"}
        for n, prompt in enumerate([*PROMPTS, "More?", "Yet more?"])
    ]
    file = tmp_path / "export.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    judge = make(endpoint(prefers_longer), tmp_path)
    people = JudgeArgs(
        judge_url="http://127.0.0.1:9/v1",
        judge_model="judge-1",
        human_judgements=as_sources([str(file)]),
    )
    found = compare_with_people(judge, people)
    assert found["judge_human_pairs"] == 14
    assert found["judge_human_agreement"] == pytest.approx(10 / 14)
    assert found["judge_human_kappa"] <= found["judge_human_kappa_high"]
    file.write_text('{"prompt": "a", "completion": "b", "label": true}\n')
    with pytest.raises(DataError, match="no column 'chosen', found"):
        compare_with_people(judge, people)


def test_failures_name_the_endpoint(endpoint, tmp_path: Path) -> None:
    refused = make(endpoint(lambda number, body: (401, {}, {"error": "no"})), tmp_path / "a")
    with pytest.raises(DataError, match="judge endpoint .* refused the answer to 'Name fox 0.'"):
        refused.compare(PROMPTS[:1], ["a"], ["b"])
    odd = make(endpoint(lambda number, body: (200, {}, {"rewards": [1]})), tmp_path / "b")
    with pytest.raises(DataError, match="is no chat completion"):
        odd.compare(PROMPTS[:1], ["a"], ["b"])
    mute = make(endpoint(lambda number, body: reply("I cannot say.")), tmp_path / "c")
    with pytest.raises(DataError, match="2 of 2 judgements end without a verdict"):
        mute.compare(PROMPTS[:2], ["a", "b"], ["c", "d"])
    with pytest.raises(ConfigError, match="--judge_url needs --judge_model"):
        JudgeArgs(judge_url="http://127.0.0.1:1/v1")
    with pytest.raises(ConfigError, match="need a judge: --judge_url"):
        JudgeArgs(rubric_file="rubric.txt")


def test_an_endpoint_that_times_out(endpoint, tmp_path: Path) -> None:
    def late(number: int, body: dict) -> tuple[int, dict, dict]:
        time.sleep(0.5)
        return reply("Verdict: A")

    judge = make(endpoint(late), tmp_path, judge_timeout_s=0.05)
    with pytest.raises(DataError, match=r"gave no judgement .* in 4 attempts.*after 0.05 s"):
        judge.compare(PROMPTS[:1], ["a"], ["b"])
