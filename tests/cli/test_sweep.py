"""A sweep runs a recipe once for each value, goes on where it stopped, and compares the runs."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from hfstack.cli import main as cli
from hfstack.cli import sweep
from hfstack.cli.sweep import name_of, read_sweeps, run_sweep
from hfstack.errors import ConfigError
from hfstack.runs.record import RunRecord


def test_several_options_give_all_combinations() -> None:
    assert read_sweeps(["learning_rate=1e-4,3e-4", "--seed=1, 2"]) == [
        {"learning_rate": "1e-4", "seed": "1"},
        {"learning_rate": "1e-4", "seed": "2"},
        {"learning_rate": "3e-4", "seed": "1"},
        {"learning_rate": "3e-4", "seed": "2"},
    ]
    assert name_of({"learning_rate": "1e-4", "model": "org/name"}) == (
        "learning_rate=1e-4,model=org_name"
    )


@pytest.mark.parametrize(
    "texts",
    [
        ["learning_rate"],
        ["=1"],
        ["seed=1,,2"],
        ["seed=1", "seed=2"],
        ["output_dir=a,b"],
        ["seed=" + ",".join(map(str, range(101)))],
    ],
    ids=["no_value", "no_name", "empty_value", "twice", "output_dir", "too_many"],
)
def test_what_is_no_sweep_is_one_line(texts: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"^--sweep [^\n]*$|^--sweep: [^\n]*$"):
        read_sweeps(texts)


def finish(folder: Path, accuracy: float, **changes: Any) -> None:
    metrics = {"eval_accuracy": accuracy, "eval_accuracy_low": 0.5, "eval_accuracy_high": 0.9}
    plain = {"commit": None, "versions": {}, "python": "", "hardware": {}, "world_size": 1}
    plain |= {"started": "2026-01-01T00:00:00+00:00", "config_hash": "", "settings": {}}
    record = RunRecord(
        "classify",
        command="",
        output_dir=str(folder),
        metrics=metrics,
        **plain,
        **changes,  # type: ignore[arg-type]
    )
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps(asdict(record)))


def test_runs_come_one_after_the_other_and_the_last_is_a_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    started: list[tuple[str, list[str]]] = []

    def start(recipe: str, flags: list[str]) -> int:
        started.append((recipe, flags))
        if not recipe:
            finish(Path(flags[-1]), 0.7 if "1e-4" in flags[0] else 0.8)
        return 0

    assert run_sweep(["learning_rate=1e-4,3e-4"], str(tmp_path), start) == 0
    places = [str(tmp_path / f"learning_rate={rate}") for rate in ("1e-4", "3e-4")]
    assert started == [
        ("", ["--learning_rate=1e-4", "--output_dir", places[0]]),
        ("", ["--learning_rate=3e-4", "--output_dir", places[1]]),
        ("report", ["--runs", *places, "--output_dir", f"{tmp_path}/report"]),
    ]
    shown = capsys.readouterr().err
    assert "learning_rate=1e-4  accuracy 70.0 % (50.0 to 90.0)" in shown
    assert "learning_rate=3e-4  accuracy 80.0 % (50.0 to 90.0)" in shown


def test_a_failure_ends_it_and_a_checkpoint_is_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    finish(tmp_path / "seed=1", 0.5, status="finished")
    finish(tmp_path / "seed=2", 0.5, status="preempted")
    monkeypatch.setattr(sweep, "newest_checkpoint", lambda place: place / "checkpoint-5")
    started: list[list[str]] = []

    def start(recipe: str, flags: list[str]) -> int:
        started.append(flags)
        return 75 if "--seed=2" in flags else 0

    assert run_sweep(["seed=1,2,3"], str(tmp_path), start) == 75
    assert len(started) == 2
    assert started[0] == ["--seed=1", "--output_dir", str(tmp_path / "seed=1")]
    assert started[1][:3] == ["--seed=2", "--resume_from_checkpoint", "last"]
    assert "the same command goes on from there" in capsys.readouterr().err


def test_the_command_line_hands_a_sweep_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["run", "demo_corpus", "--sweep", "seed=1,2"]) == 1
    assert "--sweep needs --output_dir" in capsys.readouterr().err
    flags = ["--sweep", "sed=1", "--sweep", "stories=2", "--output_dir", "runs"]
    assert cli.main(["run", "demo_corpus", *flags]) == 1
    assert "unknown option '--sed'; did you mean '--seed'?" in capsys.readouterr().err
