"""Trackers see one run with each step once, also when it was stopped between checkpoints and resumed."""

import json
import os
from pathlib import Path

import pytest
from transformers import TrainerCallback, TrainingArguments

from hfstack.run_record import read_run
from hfstack.tracking import forget_later_steps, tracked
from hfstack.training.callbacks import Throughput
from tests.conftest import SENTENCES


@pytest.fixture
def stopped_and_resumed(run_recipe, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Pretrain 6 steps under a tracker: die after the fifth, go on from the checkpoint of the fourth."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": f"{i} {SENTENCES[i % 4]}"}) + "\n" for i in range(40)))

    def call(tracker: str) -> Path:
        folder = tmp_path / "stories"
        settings = {
            "model_name_or_path": tiny_llama, "datasets": rows, "eval_fraction": 0, "block_size": 16, "max_steps": 6,
            "save_steps": 2, "save_strategy": "steps", "output_dir": folder, "report_to": tracker, "logging_steps": 1,
            "bf16": "false", "sample_tokens": 2, "dataloader_pin_memory": "false", "project": "tiny-stories",
        }  # fmt: skip
        flags = [f"--{name}={value}" for name, value in settings.items()]

        def die(self: TrainerCallback, args: object, state: object, control: object, **kwargs: object) -> None:
            if state.global_step == 5:  # pyright: ignore[reportAttributeAccessIssue]
                raise RuntimeError("killed")

        with monkeypatch.context() as patch:
            patch.setattr(Throughput, "on_step_begin", die)
            patch.setattr(Throughput, "on_step_end", lambda *args, **kwargs: None)
            with pytest.raises(RuntimeError, match="killed"):
                run_recipe("pretrain_clm", *flags)
        identity = read_run(folder).run_id
        run_recipe("pretrain_clm", *flags, "--resume_from_checkpoint", "last")
        assert read_run(folder).run_id == identity and len(identity) == 8
        steps = [entry["step"] for entry in json.loads((folder / "trainer_state.json").read_text())["log_history"]]
        assert sorted(set(steps)) == list(range(1, 7)), "what the report reads"
        return folder

    return call


def test_tensorboard_has_each_step_once(stopped_and_resumed):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    folder = stopped_and_resumed("tensorboard")
    files = list((folder / "tensorboard").glob("events.*"))
    assert len(files) >= 3, "one a process, and the mark between them"
    events = accumulator.EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3, 4, 5, 6]
    assert "TENSORBOARD_LOGGING_DIR" not in os.environ


@pytest.mark.slow
def test_wandb_offline_keeps_one_id(stopped_and_resumed, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    folder = stopped_and_resumed("wandb")
    identity = read_run(folder).run_id
    offline = [path.name for path in (folder / "wandb").glob("offline-run-*")]
    assert offline and all(name.endswith(f"-{identity}") for name in offline)


@pytest.mark.slow
def test_trackio_keeps_one_run_with_every_step(stopped_and_resumed, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    trackio = pytest.importorskip("trackio")
    storage = pytest.importorskip("trackio.sqlite_storage")
    monkeypatch.setattr(trackio.utils, "TRACKIO_DIR", tmp_path / "trackio")
    monkeypatch.setattr(storage, "TRACKIO_DIR", tmp_path / "trackio")
    folder = stopped_and_resumed("trackio")
    (name,) = storage.SQLiteStorage.get_runs("tiny-stories")
    assert name == f"stories-{read_run(folder).run_id}"
    logs = storage.SQLiteStorage.get_logs("tiny-stories", name)
    assert {log["train/global_step"] for log in logs if "train/loss" in log} == set(range(1, 7))


def test_the_users_own_names_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WANDB_RUN_ID", "mine")
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to=["wandb"], run_name="my run")
    with tracked(args, tmp_path, "abcd1234"):
        assert os.environ["WANDB_RUN_ID"] == "mine" and os.environ["WANDB_RESUME"] == "allow"
        assert args.run_name == "my run"
        forget_later_steps(args, 4)
    assert os.environ["WANDB_RUN_ID"] == "mine" and "WANDB_RESUME" not in os.environ
    assert not (tmp_path / "tensorboard").exists()
    quiet = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    with tracked(quiet, tmp_path, "abcd1234"), tracked(None, tmp_path, "abcd1234"):
        assert "TENSORBOARD_LOGGING_DIR" not in os.environ and quiet.run_name is None
