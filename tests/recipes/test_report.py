"""The report recipe: from its YAML, again over its own page, and the user's mistakes."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from hfstack.errors import CheckpointError, ConfigError, DataError
from hfstack.runs.record import read_run
from hfstack.runs.run import Run

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def story(tmp_path: Path) -> Path:
    """A folder with one finished training run, written by `Run` itself."""
    folder = tmp_path / "story"
    with Run.start("recipes/pretrain_clm.py", folder / "pretrain") as run:
        history = [{"step": step, "loss": 3.0 / step} for step in range(1, 4)]
        (run.output_dir / "trainer_state.json").write_text(json.dumps({"log_history": history}))
        (run.output_dir / "samples.jsonl").write_text(
            '{"step": 3, "prompt": "从前", "completion": "有一只狐狸"}\n'
        )
        run.add_artifact("trainer_state", "trainer_state.json")
        run.add_artifact("samples", "samples.jsonl")
        run.finish({"eval_loss": 1.0})
    return folder


def test_runs_from_its_yaml(story: Path, run_recipe: Callable[..., dict[str, float]]) -> None:
    output_dir = story / "report"
    flags = ["--config", ROOT / "recipes/report.yaml", "--runs", story, "--output_dir", output_dir]
    metrics = run_recipe("report", *flags)
    page = (output_dir / "report.html").read_text(encoding="utf-8")
    assert "有一只狐狸" in page
    assert "<h1>story</h1>" in page
    assert metrics == {"runs": 1, "curves": 1, "samples": 1, "page_bytes": len(page.encode())}
    record = read_run(output_dir)
    assert record.status == "finished"
    assert record.artifacts == {"report": "report.html"}
    assert record.parents == ["../pretrain"]


def test_the_page_is_made_again_over_itself(
    story: Path, run_recipe: Callable[..., dict[str, float]]
) -> None:
    """A page follows its runs: made twice with the same settings, it shows what came in between."""
    flags = ["--runs", story, "--output_dir", story / "report"]
    run_recipe("report", *flags)
    with Run.start("recipes/evaluate_lm.py", story / "evaluate") as run:
        run.finish({"perplexity": 2.0})
    assert run_recipe("report", *flags)["runs"] == 2
    assert "evaluate_lm" in (story / "report" / "report.html").read_text(encoding="utf-8")


def test_the_directory_of_another_run_is_refused(
    story: Path, run_recipe: Callable[..., dict[str, float]]
) -> None:
    with pytest.raises(CheckpointError, match="holds a run of pretrain_clm"):
        run_recipe("report", "--runs", story, "--output_dir", story / "pretrain")
    assert not (story / "pretrain" / "report.html").exists()


def test_mistakes_end_in_one_line(story: Path, run_recipe: Callable[..., dict[str, float]]) -> None:
    output = ["--output_dir", story / "report"]
    with pytest.raises(ConfigError, match="--runs is empty"):
        run_recipe("report", *output)
    with pytest.raises(CheckpointError, match=r"--runs nowhere: no such directory"):
        run_recipe("report", "--runs", "nowhere", *output)
    (story / "pretrain" / "samples.jsonl").unlink()
    with pytest.raises(
        DataError, match=r"samples\.jsonl is listed in run.json as samples but is not there"
    ):
        run_recipe("report", "--runs", story, *output)
    assert not (story / "report").exists()
