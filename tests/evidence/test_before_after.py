"""Before and after: the same probes twice, their changes with intervals, and a verdict in words."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest

from hfstack.errors import ConfigError
from hfstack.evidence.before_after import (
    FILE,
    compare_probes,
    describe_changes,
    tabulate_changes,
)
from hfstack.runs.record import read_run
from tests.tasks.rewards.test_prepare import Endpoint
from tests.tiny_chat import save_tiny_chat

pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)
SMALL = {
    "max_steps": 2,
    "per_device_train_batch_size": 4,
    "learning_rate": 5e-3,
    "report_to": "none",
    "bf16": "false",
    "dataloader_pin_memory": "false",
    "save_strategy": "no",
    "activation_checkpointing": "false",
    "eval_strategy": "no",
    "probe_rows": 10,
    "probe_tokens": 6,
}


def table(sums: list[float], counts: float = 1.0) -> numpy.ndarray:
    return numpy.array([[value, counts] for value in sums])


def test_the_verdict_names_what_was_trained_what_it_cost_and_what_got_worse() -> None:
    draw = numpy.random.default_rng(0)
    noise = draw.normal(0, 0.01, 40)
    before = {
        "general_bits_per_byte": table([100.0] * 40, counts=50.0),
        "held_out_loss": table((20 + noise).tolist(), counts=10.0),
        "ended_share": table([1.0] * 30 + [0.0] * 10),
        "answer_tokens": table([20.0] * 40),
        "repetition": table([0.1] * 40),
    }
    after = {
        "general_bits_per_byte": table((102 + noise).tolist(), counts=50.0),
        "held_out_loss": table([15.0] * 40, counts=10.0),
        "ended_share": table([1.0] * 5 + [0.0] * 35),
        "answer_tokens": table((20 + noise).tolist()),
        "repetition": table([0.11] * 40),
    }
    changes = compare_probes(before, after)
    assert changes["general_bits_per_byte"].relative == pytest.approx(0.02, abs=1e-3)
    assert changes["held_out_loss"].after == pytest.approx(1.5)
    assert describe_changes(changes) == (
        "better at what was trained (loss of held-out answers 2 to 1.5); general text 2.0 % worse; "
        "worse: answers that end 0.75 to 0.125"
    )
    columns, rows = tabulate_changes(changes)
    verdicts = {row[0]: row[-1] for row in rows}
    assert columns[-1] == "verdict" and verdicts["answers that end"] == "worse"
    assert verdicts["tokens of an answer"] == "no clear change"
    assert rows[-1][:2] == ["in words", describe_changes(changes)]

    # ten rows or more have an interval, fewer are shown without one
    few = compare_probes({"reward": table([1.0] * 9)}, {"reward": table([2.0] * 9)})
    assert few["reward"].difference is None and not few["reward"].is_clear
    assert "too few rows" in tabulate_changes(few)[1][0]
    assert describe_changes(few).startswith("too few rows to judge what was trained (reward")


@pytest.fixture
def endpoint() -> Iterator[Callable[[Any], Endpoint]]:
    """Start servers that answer as a function says."""
    servers: list[Endpoint] = []

    def start(answer: Any) -> Endpoint:
        servers.append(Endpoint(answer))
        return servers[-1]

    yield start
    for server in servers:
        server.server.shutdown()
        server.server.server_close()


@pytest.fixture
def train(run_recipe, tiny_llama: Path, tmp_path: Path):
    """Train a tiny chat model by a recipe; return the metrics and what run.json's table says."""
    model = save_tiny_chat(tiny_llama, tmp_path / "model")

    def call(recipe: str, rows: list[dict], **options: object) -> tuple[dict, dict[str, list]]:
        file = tmp_path / "rows.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        settings = SMALL | {"model_name_or_path": model, "datasets": file, "eval_fraction": 0.25}
        settings |= {"output_dir": tmp_path / recipe} | options
        metrics = run_recipe(recipe, *(f"--{k}={v}" for k, v in settings.items() if v is not None))
        tables = read_run(tmp_path / recipe).tables
        found = tables.get("before and after", {"rows": []})["rows"]
        return metrics, {row[0]: row[1:] for row in found}

    return call


def test_sft_measures_both_ends_and_switches_off(train, tmp_path: Path) -> None:
    rows = [
        {"prompt": f"Who is number {n}?", "completion": f"The {('fox', 'owl')[n % 2]}."}
        for n in range(44)
    ]
    metrics, probes = train("sft", rows, max_length=64, max_steps=8, packing="false")
    assert metrics["after_held_out_loss"] < metrics["before_held_out_loss"]
    # the probes are the held-out rows, so the loss after is that of the end of training on them
    assert len(json.loads((tmp_path / "sft" / FILE).read_text())["held_out_loss"]) == 10
    assert set(probes) == {
        "general text, bits per byte",
        "loss of held-out answers",
        "tokens of an answer",
        "answers that end",
        "repetition in answers",
        "in words",
    }
    assert probes["loss of held-out answers"][-1] == "better"
    assert probes["in words"][0].startswith("better at what was trained")

    metrics, probes = train(
        "sft",
        rows,
        max_length=64,
        packing="false",
        probe_rows=0,
        output_dir=tmp_path / "off",
    )
    assert not probes or "before_held_out_loss" not in metrics


def test_tasks_and_a_judge_are_asked_and_the_card_says_what_changed(
    train, run_recipe, endpoint, tmp_path: Path
) -> None:
    rows = [
        {"prompt": f"Who is number {n}?", "completion": f"The {('fox', 'owl')[n % 2]}."}
        for n in range(44)
    ]
    asked = [
        {"prompt": f"Who is number {n}?", "answer": "The fox.", "choices": ["The fox.", "A tree"]}
        for n in range(0, 24, 2)
    ]
    task = tmp_path / "foxes.jsonl"
    task.write_text("".join(json.dumps(row) + "\n" for row in asked))

    def grade(number: int, body: dict) -> tuple[int, dict, dict]:
        answer = body["messages"][1]["content"].partition("Answer:\n")[2]
        score = 10 if answer.strip() in ("The fox.", "The owl.") else 1
        return 200, {}, {"choices": [{"message": {"content": f"Score: {score}"}}]}

    server = endpoint(grade)
    metrics, probes = train(
        *("sft", rows),
        max_length=64,
        max_steps=8,
        packing="false",
        eval_strategy="steps",
        eval_steps=4,
        eval_tasks=task,
        probe_judge_url=server.url.rsplit("/", 1)[0],
        probe_judge_model="judge-1",
    )
    assert metrics["before_foxes_accuracy"] <= metrics["after_foxes_accuracy"] == 1
    assert probes["foxes accuracy"][1] == "1"
    assert metrics["before_judge_grade"] == 1.0 <= metrics["after_judge_grade"]
    assert probes["grade by the judge, 1 to 10"][0] == "1"
    # each answer once, and what was said is kept
    kept = (tmp_path / "sft" / "judgements.jsonl").read_text().splitlines()
    assert len(kept) == len(server.bodies) <= 20

    # beside each evaluation, for the curves
    state = json.loads((tmp_path / "sft" / "trainer_state.json").read_text())
    curve = [row["step"] for row in state["log_history"] if "eval_foxes_accuracy" in row]
    assert sorted(set(curve)) == [4, 8]

    flags = ("--dry_run", "true", "--output_dir", tmp_path / "card")
    run_recipe("publish", "--run", tmp_path / "sft", *flags)
    card = (tmp_path / "card" / "README.md").read_text()
    section = card[card.index("### Before and after training") :].partition("\n### ")[0]
    assert probes["in words"][0].split(" (")[0] in section
    assert "| foxes accuracy |" in section and "| 95 % interval | verdict |" in section


def test_a_probe_that_cannot_be_asked_ends_in_one_line(train) -> None:
    rows = [{"prompt": f"Who is {n}?", "completion": "The fox."} for n in range(20)]
    for options, message in (
        ({"probe_rows": 0, "eval_tasks": "t.yaml"}, "asked --probe_rows rows each"),
        ({"probe_judge_url": "http://127.0.0.1:1"}, "needs --probe_judge_model"),
        ({"probe_rubric_file": "r.txt"}, "needs a judge: --probe_judge_url"),
        ({"eval_tasks": "none.yaml"}, "none.yaml: no such file"),
    ):
        with pytest.raises(ConfigError, match=message):
            train("sft", rows, max_length=64, packing="false", **options)


PAIRS = [
    {"prompt": f"Who is number {n}?", "chosen": f"The fox {n}.", "rejected": f"A ball {n}."}
    for n in range(44)
]
THUMBS = [
    {"prompt": row["prompt"], "completion": row[side], "label": side == "chosen"}
    for row in PAIRS
    for side in ("chosen", "rejected")
]


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["dpo", "kto", "orpo"])
def test_preferences(train, recipe: str) -> None:
    rows = THUMBS if recipe == "kto" else PAIRS
    metrics, probes = train(recipe, rows, max_length=64)
    assert metrics["before_held_out_loss"] > 0 and metrics["after_ended_share"] <= 1
    assert ("before_pair_margin" in metrics) == (recipe != "kto")
    assert "what was trained" in probes["in words"][0]


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["ppo", "rloo", "grpo"])
def test_rewards(train, recipe: str, tmp_path: Path) -> None:
    rows = [{"prompt": f"Tell of fox {n}.", "answer": str(n)} for n in range(44)]
    metrics, probes = train(
        recipe,
        rows,
        max_completion_length=8,
        max_steps=4,  # one rollout of ppo
        dataloader_pin_memory=None,
        per_device_train_batch_size=8,
    )
    assert metrics["before_reward"] >= 0 and "reward of answers" in probes
    assert "general text" in probes["in words"][0]
