"""The GRPO recipe end to end on a tiny model, and its two rewards by hand."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from hfstack.errors import ConfigError, DataError
from hfstack.runs.record import read_run

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def grpo(run_recipe, tiny_llama: Path, tmp_path: Path):
    """Call the recipe from its YAML with tiny settings and rows of one column of questions and one
    more.
    """

    def call(column: str = "answer", **changes: object) -> dict[str, float]:
        rows = [
            {"question": f"{number} owls and 2 foxes?", column: f"#### {number + 2}"}
            for number in range(24)
        ]
        data = tmp_path / f"{column}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        settings = {
            "model_name_or_path": tiny_llama,
            "as_chat": "false",
            "text_column": "question",
            # a random model solves nothing, and a first evaluation without spread stops a run
            "eval_on_start": "false",
            "eval_fraction": 0.2,
            "datasets": data,
            "output_dir": tmp_path / "out" / column,
            "max_steps": 2,
            "per_device_train_batch_size": 8,
            "gradient_accumulation_steps": 1,
            "max_completion_length": 8,
            "eval_steps": 2,
            "save_steps": 2,
            "bf16": "false",
            "activation_checkpointing": "false",
        } | changes
        text = (
            (ROOT / "recipes" / "grpo.yaml")
            .read_text()
            .replace("  - {path: openai/gsm8k, name: main}\n", "")
        )
        path = tmp_path / "settings.yaml"
        path.write_text(
            "\n".join(line for line in text.splitlines() if line.split(":")[0] not in settings)
        )
        flags = [flag for key, value in settings.items() for flag in (f"--{key}", value)]
        return run_recipe("grpo", "--config", path, *flags)

    return call


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("recipe_grpo", ROOT / "recipes" / "grpo.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


def test_trains_with_two_weighted_rewards(grpo, tmp_path: Path) -> None:
    metrics = grpo()
    assert metrics["steps"] == 2
    rewards = {
        "eval_rewards/exact_answer/mean",
        "eval_rewards/well_formed/mean",
        "eval_reward",
    }
    assert rewards | {"eval_kl_per_completion", "ended_share"} <= metrics.keys()
    assert metrics["eval_reward"] == pytest.approx(
        metrics["eval_rewards/exact_answer/mean"] + 0.2 * metrics["eval_rewards/well_formed/mean"],
        abs=1e-6,
    )
    assert read_run(tmp_path / "out" / "answer").status == "finished"


def test_a_column_that_a_reward_reads_is_asked_for(grpo) -> None:
    with pytest.raises(
        DataError,
        match="reward 'exact_answer' reads the column 'answer'; the rows have: .*solution",
    ):
        grpo(column="solution")


def test_the_advantages_of_other_recipes_are_refused(grpo) -> None:
    with pytest.raises(ConfigError, match="--advantage must be one of grpo, dr_grpo here, got 'ga"):
        grpo(advantage="gae")


def test_the_rewards_by_hand(recipe: ModuleType) -> None:
    completions = [
        "2 + 40 is\n#### 42",
        "It is 1,042.",
        "none",
        [{"role": "assistant", "content": "-3\n#### -3.5 "}],
    ]
    answers = ["so\n#### 42", "#### 1042", "#### 1", "no number"]
    assert recipe.exact_answer([""] * 4, completions, answer=answers) == [1.0, 1.0, 0.0, None]
    assert recipe.well_formed([""] * 4, completions) == [1.0, 0.0, 0.0, 1.0]
    assert recipe.last_number("from 7 to 1,234.5!") == 1234.5
    assert recipe.exact_answer([""], ["It is 18."], answer=[18]) == [1.0]  # a table holds numbers
