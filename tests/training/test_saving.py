"""Weights are saved before they are scored, loaded again to compare, and found by a rerun."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Trainer

from hfstack.errors import CheckpointError
from hfstack.runs.record import RunRecord, read_run
from hfstack.tasks.rl.ppo.trainer import PPOTrainer
from hfstack.training.callbacks import SampleTable
from tests.one_training_step import OLD_CHECKPOINTING

pytestmark = OLD_CHECKPOINTING
LORA = {"use_peft": "true", "lora_target_modules": "all-linear", "use_dora": "true"}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "pretrain_clm": ("pretrain_clm", {}),
    "dpo": ("dpo", {}),
    "dpo with an adapter": ("dpo", LORA),
    "ppo": ("ppo", {}),
}


def vowels(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    """The reward of ppo, in place of the demo's rule."""
    return [sum(letter in "aeiou" for letter in text) / (len(text) + 1) for text in completions]


@pytest.fixture
def train(
    run_recipe, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., RunRecord]:
    """Run a recipe for three steps of an epoch; keyword arguments override its settings."""
    monkeypatch.setattr("hfstack.tasks.rl.demo_reward.obeys", vowels)
    rows = {
        "pretrain_clm": [{"text": f"The {i} owls ran home as it got dark."} for i in range(60)],
        "dpo": [{"prompt": f"{i}:", "chosen": " kind", "rejected": " ran"} for i in range(24)],
        "ppo": [{"prompt": f"Tell of {number} owls."} for number in range(24)],
    }
    own = {
        "pretrain_clm": {"block_size": 16, "sample_tokens": 2, "max_steps": 3},
        "dpo": {"max_length": 64, "sample_tokens": 2, "activation_checkpointing": "false"}
        | {"max_steps": 3},
        "ppo": {"total_episodes": 8, "num_mini_batches": 2, "num_ppo_epochs": 1}
        | {"max_completion_length": 4, "as_chat": "false"},
    }

    def call(recipe: str, **changes: object) -> RunRecord:
        file = tmp_path / f"{recipe}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows[recipe]))
        settings = {
            "model_name_or_path": tiny_llama,
            "datasets": file,
            "eval_fraction": 0.2,
            "output_dir": tmp_path / "out",
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-2,
            "save_strategy": "no",
            "report_to": "none",
            "bf16": "false",
            **own[recipe],
            **changes,
        }
        run_recipe(recipe, *(f"--{name}={value}" for name, value in settings.items()))
        return read_run(tmp_path / "out")

    return call


def fails(*args: Any, **kwargs: Any) -> None:
    raise ZeroDivisionError("the metric is broken")


@pytest.mark.parametrize("kind", list(KINDS))
def test_an_evaluation_that_fails_costs_no_training(
    kind: str, train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog
) -> None:
    recipe, flags = KINDS[kind]
    with monkeypatch.context() as broken, pytest.raises(ZeroDivisionError):
        broken.setattr(PPOTrainer if recipe == "ppo" else Trainer, "evaluate", fails)
        train(recipe, **flags)

    # the weights are there, and a log line says where
    folder = tmp_path / "out" / ("adapter" if flags else "")
    assert read_run(tmp_path / "out").status == "failed"
    assert f"its weights are saved in {folder}: --resume_from_checkpoint last" in caplog.text
    (file,) = folder.glob("*model.safetensors")
    saved = load_file(file)

    # a rerun is asked what to do with them, and does what is missing
    with pytest.raises(CheckpointError, match="already holds trained weights, whose run did not"):
        train(recipe, **flags)
    record = train(recipe, **flags, resume_from_checkpoint="last")
    assert record.status == "finished" and any("eval_" in name for name in record.metrics)
    assert record.save_check["largest_difference"] <= record.save_check["allowed"]

    (again,) = (tmp_path / "out").glob("*model.safetensors")
    found = load_file(again)
    assert found.keys() == saved.keys()
    assert all(torch.equal(found[name], saved[name]) for name in saved)
    assert not (tmp_path / "out" / "adapter").exists()
    assert not list((tmp_path / "out").rglob("training_args.bin"))


@pytest.mark.parametrize(
    ("owner", "method"), [(Trainer, "evaluate"), (SampleTable, "on_train_end")], ids=str
)
def test_the_last_step_is_saved_before_it_is_scored(
    owner: Any, method: str, train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Inside `train` the Trainer evaluates before it saves, and samples before it returns."""
    settings = {"eval_strategy": "steps", "eval_steps": 3, "logging_steps": 2}
    with monkeypatch.context() as broken, pytest.raises(ZeroDivisionError):
        broken.setattr(owner, method, fails)
        train("pretrain_clm", **settings)
    saved = load_file(tmp_path / "out" / "model.safetensors")

    record = train("pretrain_clm", **settings, resume_from_checkpoint="last")
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert record.status == "finished" and record.restarts[0]["step"] == 3
    assert all(torch.equal(found[name], saved[name]) for name in saved)


def test_more_steps_are_taken_from_a_checkpoint_not_from_the_end(
    train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"save_strategy": "steps", "save_steps": 2}
    with monkeypatch.context() as broken, pytest.raises(ZeroDivisionError):
        broken.setattr(Trainer, "evaluate", fails)
        train("pretrain_clm", **settings)

    longer = {"max_steps": 5, "resume_from_checkpoint": "last", "allow_changed": "max_steps"}
    record = train("pretrain_clm", **settings, **longer)
    assert record.status == "finished" and record.restarts[0]["step"] == 3
    state = json.loads((tmp_path / "out" / "trainer_state.json").read_text())
    assert state["global_step"] == 5


def test_what_was_lost_on_the_way_to_the_disk_ends_the_run(
    train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Trainer._save

    def loses(self: Trainer, *args: Any, **kwargs: Any) -> None:
        whole(self, *args, **kwargs)
        for file in tmp_path.glob("out/*.safetensors"):
            weights = load_file(file)
            weights["model.norm.weight"] *= -1
            save_file(weights, file, metadata={"format": "pt"})

    with monkeypatch.context() as broken:
        broken.setattr(Trainer, "_save", loses)
        with pytest.raises(CheckpointError, match=r"out is not what was trained: .* up to \d"):
            train("pretrain_clm")

    record = read_run(tmp_path / "out")
    assert record.status == "failed" and not record.metrics and not record.save_check
    assert (tmp_path / "out" / "model.safetensors").is_file()
