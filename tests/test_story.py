"""The story at its full size: what docs/story.md reports is reproduced."""

import os
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from hfstack.runs.record import read_run

ROOT = Path(__file__).resolve().parents[1]
# of Student's t: half the width of a 95 % interval over three seeds, in standard errors
T_975_TWO_DEGREES = 4.303

pytestmark = pytest.mark.slow


def interval_over_seeds(values: list[float]) -> tuple[float, float]:
    """The 95 % interval of a mean over three seeds."""
    half = T_975_TWO_DEGREES * statistics.stdev(values) / len(values) ** 0.5
    return statistics.mean(values) - half, statistics.mean(values) + half


def run(*command: object) -> None:
    """Run a command with this Python's `hfstack` first on the path; show its output on failure."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [str(word) for word in command],
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"


def run_recipe(recipe: str, **options: object) -> None:
    """Run a recipe as the command line does."""
    run("hfstack", "run", recipe, *(f"--{name}={value}" for name, value in options.items()))


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a whole story: ten minutes on two cores."""
    folder = tmp_path_factory.mktemp("story")
    run("bash", ROOT / "recipes" / "full_story.sh", folder)
    return folder


def metrics(folder: Path) -> dict[str, float]:
    return read_run(folder).metrics


def test_the_reward_model_learns_what_the_gold_rule_prefers(story: Path) -> None:
    reward = metrics(story / "reward")
    assert reward["eval_accuracy_low"] > 0.5
    assert reward["eval_accuracy_low"] > reward["eval_length_rule_accuracy"]


@pytest.mark.parametrize("trainer", ["rloo", "ppo"])
def test_a_policy_beats_its_start_by_a_rule_that_it_was_not_trained_on(
    story: Path, trainer: str
) -> None:
    assert metrics(story / f"win_rate_{trainer}")["win_rate_low"] > 0.5
    policy = metrics(story / trainer)
    assert policy["eval_reward"] > policy["start_reward"]
    assert policy["eval_kl_per_completion"] < 10


def test_rloo_raises_the_gold_reward_over_three_seeds(story: Path, tmp_path: Path) -> None:
    prompts = story / "prompts" / "instructions.jsonl"
    unseen = story / "asked" / "instructions.jsonl"  # of another seed
    before, after = list[float](), list[float]()
    for seed in (1, 2, 3):
        policy, compared = tmp_path / f"gold_{seed}", tmp_path / f"win_{seed}"
        run_recipe(
            "rloo",
            model_name_or_path=story / "sft",
            reward_model="",
            seed=seed,
            datasets=prompts,
            eval_fraction=0.15,
            output_dir=policy,
            max_steps=22,
            learning_rate=6e-4,
            kl_coef=0.02,
            max_tokens_per_microbatch=1_000_000,
            warmup_steps=2,
            per_device_train_batch_size=128,
            per_device_eval_batch_size=240,
            num_generations=8,
            num_generations_eval=2,
            gradient_accumulation_steps=1,
            max_completion_length=80,
            eval_steps=1000,
            save_strategy="no",
            activation_checkpointing="false",
            bf16="false",
        )
        run_recipe(
            "win_rate",
            model_name_or_path=policy,
            reference_model=story / "sft",
            datasets=unseen,
            eval_fraction=0,
            max_new_tokens=80,
            temperature=1,
            batch_size=128,
            seed=seed,
            output_dir=compared,
        )
        trained = metrics(policy)
        before.append(trained["start_reward"])
        after.append(trained["eval_reward"])
        assert trained["eval_kl_per_completion"] < 10
        assert metrics(compared)["win_rate_low"] > 0.5
    assert interval_over_seeds(after)[0] > interval_over_seeds(before)[1]
