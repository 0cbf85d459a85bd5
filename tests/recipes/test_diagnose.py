"""The diagnose recipe: from its YAML on runs that `Run` itself wrote, again over its own result,
and mistakes.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hfstack.errors import CheckpointError, ConfigError, DataError
from hfstack.runs.record import read_run
from hfstack.runs.run import Run

ROOT = Path(__file__).parent.parent.parent
Call = Callable[..., dict[str, float]]


def write_run(
    folder: Path,
    recipe: str,
    metrics: dict[str, float],
    *,
    history: dict[str, list[float]] | None = None,
    answers: list[dict[str, Any]] | None = None,
    parents: tuple[Path, ...] = (),
) -> None:
    """A finished run as its recipe leaves it."""
    with Run.start(f"recipes/{recipe}.py", folder / recipe) as run:
        run.record_inputs(*parents)
        if history is not None:
            rows = [
                dict(zip(history, values, strict=True))
                for values in zip(*history.values(), strict=True)
            ]
            log = [{"step": step, **row} for step, row in enumerate(rows, 1)]
            (run.output_dir / "trainer_state.json").write_text(json.dumps({"log_history": log}))
            run.add_artifact("trainer_state", "trainer_state.json")
        if answers is not None:
            (run.output_dir / "answers.jsonl").write_text(
                "".join(json.dumps(row) + "\n" for row in answers)
            )
            run.add_artifact("answers", "answers.jsonl")
        run.finish(metrics)


@pytest.fixture
def chain(tmp_path: Path) -> Path:
    """A chain whose reward model knows nothing, and whose policy followed it."""
    folder = tmp_path / "chain"
    text = "the fox gave the red ball back to the small owl"
    write_run(
        folder,
        "sft",
        {"finished_share": 0.95, "answer_rows": 100, "held_out_loss": 1.0},
        history={"loss": [3.0, 2.0, 1.5, 1.3, 1.15, 1.13, 1.12, 1.11]},
        answers=[{"answer": text, "reference": text}],
    )
    write_run(folder, "reward", {"eval_accuracy": 0.5, "eval_pairs": 200, "eval_reward_std": 1.0})
    write_run(
        folder,
        "rloo",
        {"start_ended_share": 0.9},
        history={
            "reward": [0.1 * step for step in range(8)],
            "kl_per_completion": [0.5 * step for step in range(8)],
        },
        parents=(folder / "sft", folder / "reward"),
    )
    write_run(
        folder,
        "win_rate",
        {"win_rate": 0.5, "win_rate_low": 0.4, "win_rate_high": 0.6, "prompts": 90},
        parents=(folder / "rloo", folder / "sft"),
    )
    write_run(folder, "evaluate_lm", {"perplexity": 2.0})
    return folder


def test_runs_from_its_yaml(
    chain: Path, run_recipe: Call, capsys: pytest.CaptureFixture[str]
) -> None:
    output_dir = chain.parent / "diagnose"
    flags = [
        "--config",
        ROOT / "recipes/diagnose.yaml",
        "--runs",
        chain,
        "--output_dir",
        output_dir,
    ]
    metrics = run_recipe("diagnose", *flags)
    assert metrics["runs"] == 4 and metrics["bad"] == 1, "evaluate_lm is no link"
    record = read_run(output_dir)
    verdicts = dict(record.tables["links"]["rows"])
    assert verdicts == {
        "sft": "ok",
        "preferences": "unknown",
        "reward model": "bad",
        "policy": "warn",
    }
    words = record.tables["verdict"]["rows"][0][0]
    assert words.startswith(
        "The weak link is the reward model. pair accuracy: reward: orders 0.500 [0.431, 0.569]"
    )
    assert words.endswith("Nothing is known about: preferences.")
    assert len(record.tables["findings"]["rows"]) == sum(
        metrics[name] for name in ("ok", "warn", "bad", "unknown")
    )
    assert sorted(record.parents) == [
        "../chain/reward",
        "../chain/rloo",
        "../chain/sft",
        "../chain/win_rate",
    ]
    printed = capsys.readouterr().out
    assert (
        words in printed
        and "KL: rloo: 3.25 nats an answer at the end, 3.5 at most; the budget is 10" in printed
    )


def test_the_win_rate_is_that_of_the_policy_it_read(chain: Path, run_recipe: Call) -> None:
    run_recipe("diagnose", "--runs", chain, "--output_dir", chain / "diagnose")
    rows = read_run(chain / "diagnose").tables["findings"]["rows"]
    judge = next(row for row in rows if row[1] == "judge")
    assert (
        judge[2] == "warn"
        and "wins 0.500 [0.400, 0.600] of 90 prompts: the interval includes one half" in judge[3]
    )


def test_a_diagnosis_is_made_again_over_itself_and_shown_by_the_report(
    chain: Path, run_recipe: Call
) -> None:
    flags = ["--runs", chain, "--output_dir", chain / "diagnose"]
    run_recipe("diagnose", *flags)
    assert run_recipe("diagnose", *flags, "--kl_budget", 1)["bad"] == 2, (
        "3.25 nats are beyond three times the budget"
    )
    run_recipe("report", "--runs", chain, "--output_dir", chain / "report")
    page = (chain / "report" / "report.html").read_text(encoding="utf-8")
    assert "The weak link is the reward model." in page and "the interval includes one half" in page


def test_a_failed_run_is_named(chain: Path, run_recipe: Call) -> None:
    with pytest.raises(DataError), Run.start("recipes/ppo.py", chain / "ppo"):
        raise DataError("rewards are nan at step 3")
    run_recipe("diagnose", "--runs", chain / "ppo", "--output_dir", chain / "diagnose")
    words = read_run(chain / "diagnose").tables["verdict"]["rows"][0][0]
    assert words.startswith(
        "The weak link is the policy. run: ppo failed: rewards are nan at step 3."
    )


def test_mistakes_end_in_one_line(chain: Path, tmp_path: Path, run_recipe: Call) -> None:
    output = ["--output_dir", tmp_path / "out"]
    with pytest.raises(ConfigError, match="--runs is empty"):
        run_recipe("diagnose", *output)
    with pytest.raises(CheckpointError, match=r"--runs nowhere: no such directory"):
        run_recipe("diagnose", "--runs", "nowhere", *output)
    with pytest.raises(
        ConfigError, match="no run of sft, preferences, .* there; nothing to diagnose"
    ):
        run_recipe("diagnose", "--runs", chain / "evaluate_lm", *output)
    with pytest.raises(ConfigError, match="--kl_budget must be above 0, got -1"):
        run_recipe("diagnose", "--runs", chain, "--kl_budget", -1, *output)
    with (chain / "sft" / "answers.jsonl").open("a") as file:
        file.write("{torn\n")
    with pytest.raises(DataError, match=r"answers\.jsonl is not JSON Lines: .*; run sft again"):
        run_recipe("diagnose", "--runs", chain, *output)
