"""Rounds of feedback: an honest verdict, and the whole loop at its tiniest size."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hfstack.feedback.rounds import describe_rounds, metrics_by_round, verdict
from hfstack.runs.record import read_run
from tests.reporting.test_page import write_run

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (0.55, 0.75, "The model is better than it was: 60.0 % [55.0, 75.0]"),
        (
            0.45,
            0.75,
            "No difference is measurable (60.0 % [45.0, 75.0] around 50 %). 40 judgements",
        ),
        (0.25, 0.45, "The model is worse than it was"),
    ],
)
def test_the_verdict_is_that_of_the_interval(low: float, high: float, words: str) -> None:
    metrics = {"win_rate": 0.6, "win_rate_low": low, "win_rate_high": high}
    assert words in verdict(metrics, 40)


def write_round(folder: Path, number: int, **changes: Any) -> None:
    metrics: dict[str, dict[str, float]] = {
        "feedback": {"kept": 40.0 * number, "agreement": 0.75},
        "reward": {"eval_accuracy": 0.8},
        "ppo": {"eval_reward": 1.25, "eval_kl_per_completion": 3.5},
        "win_rate": {"win_rate": 0.6, "win_rate_low": 0.52, "win_rate_high": 0.68},
    }
    for recipe, found in metrics.items():
        write_run(folder / f"{recipe}{number}", recipe, metrics=found, **changes)


def test_all_rounds_that_have_ended_are_on_the_page(run_recipe: Any, tmp_path: Path) -> None:
    write_round(tmp_path, 1)
    write_round(tmp_path, 2)
    write_round(tmp_path, 3, status="failed")
    write_round(tmp_path / "halves", 1)
    write_run(tmp_path / "halves" / "win_rate1", "win_rate", metrics={"win_rate": 0.6})
    found = {name: read_run(tmp_path / "halves" / name) for name in ("feedback1", "win_rate1")}
    assert metrics_by_round(found) == [], "a record without its interval is no round"
    shutil.rmtree(tmp_path / "halves")
    run_recipe("report", "--runs", tmp_path, "--output_dir", tmp_path / "report")
    page = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    found = page[page.index('id="rounds"') : page.index('id="results"')]
    rows = re.findall(r"<tr>(.*?)</tr>", found, re.DOTALL)
    cells = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in rows[1:]]
    last = ["75 %", "80 %", "1.25", "3.50", "60.0 % [52.0, 68.0]"]
    assert cells == [["1", "40", *last], ["2", "80", *last]]
    assert "The model is better than it was: 60.0 % [52.0, 68.0]" in found
    # the terminal says the same
    assert "2      80    75 %" in describe_rounds(tmp_path, 2)

    # a round may train its policy by other recipes, which measure other things
    (tmp_path / "ppo2").rename(tmp_path / "gone")
    write_run(tmp_path / "dpo2", "dpo", metrics={})
    assert re.search(r"2 +80 +75 % +80 % +- +- +60.0 %", describe_rounds(tmp_path, 2))

    write_run(tmp_path / "other" / "reward1", "reward", metrics={"eval_accuracy": 0.8})
    run_recipe("report", "--runs", tmp_path / "other", "--output_dir", tmp_path / "none")
    page = (tmp_path / "none" / "report.html").read_text(encoding="utf-8")
    assert 'id="rounds"' not in page


def run(script: str, *arguments: Path, **environment: str) -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", str(ROOT / "recipes" / script), *map(str, arguments)],
        env=os.environ | {"PATH": path} | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.mark.slow
def test_two_rounds_of_simulated_feedback_close_the_loop(tmp_path: Path) -> None:
    story, out = tmp_path / "story", tmp_path / "rounds"
    run("full_story.sh", story, STORY_SIZE="tiny")
    tiny = {"SIZE": "tiny", "ANNOTATORS": "simulated", "ROUNDS": "2", "LABELS": "24"}
    printed = run("feedback_rounds.sh", story, out, **tiny)
    assert "before:" in printed and "after:" in printed
    assert read_run(out / "feedback2").metrics["items"] == 48, "the judgements of both rounds"
    kept = [str(out / "annotate1" / "feedback.sqlite"), str(out / "annotate2" / "feedback.sqlite")]
    assert [entry["path"] for entry in read_run(out / "feedback2").data] == kept
    # the second round starts from the first's policy, and is kept near the first of all
    models = {model["path"] for model in read_run(out / "ppo2").models}
    assert any(path.startswith(str(out / "ppo1")) for path in models)
    assert any(path.startswith(str(story / "sft")) for path in models)
    # a second start has nothing to do
    written = (out / "ppo2" / "run.json").stat().st_mtime_ns
    run("feedback_rounds.sh", story, out, **tiny)
    assert (out / "ppo2" / "run.json").stat().st_mtime_ns == written


@pytest.mark.slow
@pytest.mark.parametrize("method", ["rloo", "dpo"])
def test_a_round_trains_by_other_methods(tmp_path: Path, method: str) -> None:
    story, out = tmp_path / "story", tmp_path / "rounds"
    run("full_story.sh", story, STORY_SIZE="tiny")
    tiny = {"SIZE": "tiny", "ANNOTATORS": "simulated", "ROUNDS": "1", "LABELS": "24"}
    printed = run("feedback_rounds.sh", story, out, **tiny, METHOD=method)
    assert read_run(out / f"{method}1").status == "finished"
    assert re.search(r"win rate over the first policy\n1 ", printed)
    assert any(
        model["path"].startswith(str(out / f"{method}1"))
        for model in read_run(out / "win_rate1").models
    )


@pytest.mark.slow
def test_a_server_that_is_killed_again_and_again_loses_and_doubles_nothing() -> None:
    import json

    command = [sys.executable, str(ROOT / "benchmarks" / "feedback_load.py"), "--kills", "4"]
    command += ["--annotators", "12", "--judgements", "960", "--pause_s", "0.2"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    found = json.loads(done.stdout)
    assert (
        found["lost"] == found["doubled"] == 0 and found["acknowledged"] == found["wanted"] == 960
    )
