"""The recipe: every file, the run record, and the same bytes for the same seed."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from hfstack.errors import ConfigError
from hfstack.runs.record import read_run


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_writes_the_raw_corpus_with_the_truth_beside_it(run_recipe: Callable, tmp_path: Path):
    metrics = run_recipe(
        "demo_corpus", "--stories", 200, "--noise_share", 0.2, "--output_dir", tmp_path / "out"
    )
    raw, truth = rows(tmp_path / "out" / "raw.jsonl"), rows(tmp_path / "out" / "planted.jsonl")
    assert [row["id"] for row in raw] == [row["id"] for row in truth]
    assert all(row.keys() == {"id", "text"} for row in raw)
    assert metrics["documents"] == len(raw) == 200
    assert metrics["text_bytes"] == sum(len(row["text"].encode()) for row in raw)
    assert metrics["planted_share"] == pytest.approx(
        sum(row["planted"] is not None for row in truth) / 200
    )

    record = read_run(tmp_path / "out")
    assert record.status == "finished"
    assert sum(row[2] for row in record.tables["planted_noise"]["rows"]) == round(
        200 * metrics["planted_share"]
    )
    assert len((tmp_path / "out" / "prompts.txt").read_text(encoding="utf-8").splitlines()) == 20
    assert not (tmp_path / "out" / "instructions.jsonl").exists()
    assert not (tmp_path / "out" / "sentiment.jsonl").exists()


def test_writes_the_later_stages_on_request(run_recipe: Callable, tmp_path: Path):
    run_recipe(
        "demo_corpus",
        "--stories",
        10,
        "--instructions",
        30,
        "--sentiment",
        20,
        "--output_dir",
        tmp_path,
    )
    tasks, chat = rows(tmp_path / "instructions.jsonl"), rows(tmp_path / "chat.jsonl")
    assert len(tasks) == len(chat) == 30
    assert all(row["prompt"] and row["completion"] for row in tasks)
    assert [row["messages"][1]["content"] for row in chat] == [row["completion"] for row in tasks]
    assert sum(row["label"] for row in rows(tmp_path / "sentiment.jsonl")) == 10


def test_asks_for_beginnings_on_request(run_recipe: Callable, tmp_path: Path):
    run_recipe(
        "demo_corpus",
        "--stories",
        10,
        "--instructions",
        20,
        "--task",
        "beginning",
        "--output_dir",
        tmp_path,
    )
    tasks = rows(tmp_path / "instructions.jsonl")
    assert len(tasks) == 20 and {row["task"] for row in tasks} == {"beginning"}


def test_same_seed_same_bytes(run_recipe: Callable, tmp_path: Path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run_recipe("demo_corpus", "--stories", 50, "--seed", seed, "--output_dir", tmp_path / name)
    raw = {name: (tmp_path / name / "raw.jsonl").read_bytes() for name in "abc"}
    assert raw["a"] == raw["b"] != raw["c"]


def test_runs_from_its_yaml(run_recipe: Callable, tmp_path: Path):
    yaml = Path(__file__).parents[2] / "recipes" / "demo_corpus.yaml"
    metrics = run_recipe("demo_corpus", "--config", yaml, "--stories", 20, "--output_dir", tmp_path)
    assert metrics["documents"] == 20
    assert len(rows(tmp_path / "sentiment.jsonl")) == 4000


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("--noise_share", "1.5", "noise_share must be in"),
        ("--stories", "0", "stories must be at least 1"),
        ("--sentiment", "-1", "--sentiment must be 0 or above, got -1"),
        ("--task", "poem", "task"),
        ("--careless_share", "1", "careless_share must be in"),
        ("--careless_share", "0.5", "careless_share is for --task beginning, got --task mixed"),
    ],
)
def test_wrong_values_are_refused_in_one_line(
    run_recipe: Callable, tmp_path: Path, flag: str, value: str, message: str
):
    with pytest.raises(ConfigError, match=message) as caught:
        run_recipe("demo_corpus", flag, value, "--output_dir", tmp_path)
    assert "\n" not in str(caught.value)


def test_functions_of_the_test_are_in_no_training_file(run_recipe: Callable, tmp_path: Path):
    for seed in (0, 1):
        run_recipe(
            *("demo_corpus", "--stories", 1, "--functions", 300, "--seed", seed),
            *("--output_dir", tmp_path / f"{seed}"),
        )
    train = [row["prompt"] for n in "01" for row in rows(tmp_path / n / "functions.jsonl")]
    test = [row["prompt"] for n in "01" for row in rows(tmp_path / n / "functions_test.jsonl")]
    assert (len(train), len(test)) == (600, 60)
    assert not set(train) & set(test)
    with pytest.raises(ConfigError, match="--functions must be 0 or above"):
        run_recipe("demo_corpus", "--functions", -1, "--output_dir", tmp_path / "bad")
