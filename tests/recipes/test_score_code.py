"""Programs that a model writes, run and counted, and the same as a reward of rloo."""

import json
from pathlib import Path
from typing import Any

import pytest

from hfstack.demo.functions import functions
from hfstack.errors import ConfigError, DataError
from hfstack.evidence import score_code
from hfstack.runs.record import read_run
from hfstack.sandbox.run import why_not_isolated
from hfstack.tasks.causal_lm.generate import Completion

ROWS = list(functions(0, 6))


@pytest.fixture
def problems(tmp_path: Path) -> Path:
    if reason := why_not_isolated():
        pytest.skip(f"this system gives no namespaces: {reason}")
    path = tmp_path / "functions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


@pytest.fixture
def score(run_recipe, tiny_llama: Path, tmp_path: Path):
    def call(*flags: object, out: str = "out") -> dict[str, float]:
        return run_recipe(
            *("score", "--model_name_or_path", tiny_llama, "--task", "code"),
            *("--code_tokens", 4, "--output_dir", tmp_path / out, "--allow_root", "true"),
            *flags,
        )

    return call


def test_an_untrained_model_passes_nothing_and_the_rows_own_solutions_all(
    score, problems: Path, tmp_path: Path
) -> None:
    found = score("--datasets", problems, "--code_samples", 2, "--code_temperature", 1)
    assert found["code_pass_at_1"] == 0 and found["code_pass_at_1_high"] > 0.2
    assert found["code_solutions_pass"] == 1 and found["code_problems"] == 6
    record = read_run(tmp_path / "out")
    rows = (tmp_path / "out" / record.artifacts["programs"]).read_text().splitlines()
    assert len(rows) == 12 and json.loads(rows[0])["reason"]
    outcomes = record.tables["programs by what became of them"]["rows"]
    assert sum(count for _, count in outcomes) == 12


def test_answers_that_are_right_pass_and_stand_beside_the_reference(
    score, problems: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def solve(model: Any, tokenizer: Any, prompts: list[str], **settings: Any) -> list[Completion]:
        # the first model knows all, the reference the first half alone
        known = {row["prompt"]: row["canonical_solution"] for row in ROWS[: 3 if asked else 6]}
        asked.append(len(prompts))
        return [
            Completion(prompt, known.get(prompt, "    return 0"), 4, True) for prompt in prompts
        ]

    monkeypatch.setattr(score_code, "generate_from_texts", solve)
    found = score("--datasets", problems, "--reference_model", tiny_llama)
    assert found["code_pass_at_1"] == 1 and found["reference_code_pass_at_1"] == 0.5
    assert asked == [6, 6]


def test_what_cannot_be_is_refused(score, problems: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="are one program several times: set a temperature"):
        score("--datasets", problems, "--code_samples", 3)
    with pytest.raises(ConfigError, match="pass@5 needs at least 5 answers"):
        score("--datasets", problems, "--code_k", 5)
    with pytest.raises(ConfigError, match="--code_temperature 0.5 is read with --task code"):
        score("--datasets", problems, "--task", "rows", "--code_temperature", 0.5)
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"prompt": "def f():"}\n')
    with pytest.raises(DataError, match="row 1 has no 'test'"):
        score("--datasets", bad, out="bad")


def test_rloo_learns_from_programs_that_pass(
    run_recipe, problems: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    flags = {
        "model_name_or_path": tiny_llama,
        "datasets": problems,
        "as_chat": "false",
        "reward_function": "code_tests",
        "allow_root": "true",
        "output_dir": tmp_path / "rloo",
        "per_device_train_batch_size": 4,
        "num_generations": 2,
        "max_steps": 1,
        "max_completion_length": 4,
        "report_to": "none",
        "save_strategy": "no",
        "bf16": "false",
        "activation_checkpointing": "false",
    }
    run_recipe("rloo", *(f"--{k}={v}" for k, v in flags.items()))
    history = json.loads((tmp_path / "rloo/trainer_state.json").read_text())["log_history"]
    assert any("rewards/code_tests/mean" in entry for entry in history)
    with pytest.raises(ConfigError, match="are two rewards: name one"):
        run_recipe(
            "rloo",
            *(f"--{k}={v}" for k, v in flags.items()),
            f"--reward_model={tiny_llama}",
            f"--output_dir={tmp_path / 'two'}",
        )
