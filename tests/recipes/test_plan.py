"""The recipe plan, as it is called."""

from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoConfig

from hfstack.errors import ConfigError
from hfstack.runs.record import read_run

Recipe = Callable[..., dict[str, float]]


def test_a_budget_becomes_a_model_and_steps(
    run_recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics = run_recipe(
        "plan",
        "--budget_flops",
        "1e17",
        "--architecture",
        "llama-1m.json",
        "--block_size",
        "256",
        "--device_name",
        "NVIDIA H200",
        "--memory_gib",
        "141",
        "--output_dir",
        str(tmp_path / "plan"),
    )
    assert metrics["predicted_loss"] > 1.8
    assert metrics["hours"] == pytest.approx(1e17 / (989.5e12 * 0.4) / 3600, rel=0.05)
    assert "no interval" in capsys.readouterr().out
    config = AutoConfig.from_pretrained(tmp_path / "plan" / "config.json")
    assert config.model_type == "llama" and config.max_position_embeddings == 256
    assert read_run(tmp_path / "plan").artifacts["config"] == "config.json"


def test_a_recipe_is_planned_for(
    run_recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = (
        "--model_name_or_path gpt2-1m.json --per_device_train_batch_size 8 --block_size 128 "
        "--max_steps 20"
    )
    metrics = run_recipe(
        "plan",
        "--recipe",
        "pretrain_clm",
        "--recipe_options",
        options,
        "--memory_gib",
        "0.03",
        "--price_per_device_hour",
        "3",
        "--output_dir",
        str(tmp_path / "plan"),
    )
    assert metrics["fits"] == 0 and metrics["steps"] == 20
    assert metrics["money"] == pytest.approx(3 * metrics["hours"])
    shown = capsys.readouterr().out
    assert "it does not fit into" in shown and "changes that make it fit" in shown
    assert {"memory by model", "plan"} <= read_run(tmp_path / "plan").tables.keys()


def test_real_steps_are_measured(run_recipe: Recipe, tmp_path: Path) -> None:
    options = (
        "--model_name_or_path gpt2-1m.json --per_device_train_batch_size 16 --block_size 256 "
        "--max_steps 20"
    )
    metrics = run_recipe(
        "plan",
        "--recipe",
        "pretrain_clm",
        "--recipe_options",
        options,
        "--measure",
        "true",
        "--output_dir",
        str(tmp_path / "plan"),
    )
    assert 0 < metrics["utilization"] < 1
    rows = read_run(tmp_path / "plan").tables["memory by model"]["rows"]
    kinds = {row[0]: row[1:] for row in rows}
    assert metrics["peak_mib"] == pytest.approx(
        sum(kinds["model"]) + kinds["allocator, measured"][-1], abs=0.3
    )
    # how much more it is, is the machine's own affair
    assert metrics["peak_mib"] > sum(kinds["model"][:3])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "give one budget of --budget_flops"),
        (["--recipe", "nothing"], "--recipe nothing: no such recipe"),
        (["--recipe", "sft", "--recipe_options", "--max_lenght 3"], "unknown option"),
        (["--budget_flops", "1e18", "--devices", "0"], "--devices must be at least 1"),
        (
            ["--budget_flops", "1e18", "--architecture", "gpt2"],
            "--architecture gpt2: give a config.json",
        ),
    ],
)
def test_mistakes_are_one_line(
    run_recipe: Recipe, tmp_path: Path, flags: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        run_recipe("plan", *flags, "--output_dir", str(tmp_path / "plan"))
