"""Which checkpoint a run goes on from, and what a resumed run adds up to."""

import json
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import TrainingArguments

from hfstack.errors import CheckpointError
from hfstack.runs.manifest import write_manifest
from hfstack.runs.resume import (
    choose_checkpoint,
    clear_full_disk,
    count_every_step,
    drop_repeated_evaluations,
    whole_train_loss,
)
from hfstack.runs.run import Run


def record(directory: Path, **changes: Any) -> Any:
    settings = {"Args": {"rate": 0.1}}
    values = {
        "output_dir": str(directory),
        "recipe": "sft",
        "verified_checkpoints": True,
        "settings": settings,
        "models": [],
    }
    return SimpleNamespace(**values | {"config_hash": "a"} | changes)


def checkpoint(folder: Path, step: int, *, manifest: bool = True) -> Path:
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        with zipfile.ZipFile(path / name, "w") as archive:
            archive.writestr("data.pkl", b"x")
    (path / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    if manifest:
        write_manifest(path, step=step)
    return path


def test_last_starts_over_where_nothing_is_whole(tmp_path: Path) -> None:
    assert choose_checkpoint(record(tmp_path), "last", ()) is None
    checkpoint(tmp_path, 2, manifest=False)
    assert choose_checkpoint(record(tmp_path), "last", ()) is None
    assert [path.name for path in tmp_path.iterdir()] == ["broken-2"]


@pytest.mark.parametrize(
    "torn", [None, "config.json", "1_Pooling/config.json", "model.safetensors"]
)
def test_trained_weights_that_a_failed_save_tore_are_not_gone_on_from(
    tmp_path: Path, torn: str | None
) -> None:
    """A second save over them, on a disk that failed: the checkpoint before is whole."""
    whole = checkpoint(tmp_path, 6)
    (tmp_path / "trainer_state.json").write_text('{"global_step": 8}')
    (tmp_path / "1_Pooling").mkdir()
    for name in ("config.json", "1_Pooling/config.json"):
        (tmp_path / name).write_text("{}")
    header = b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}'
    weights = len(header).to_bytes(8, "little") + header + bytes(4)
    (tmp_path / "model.safetensors").write_bytes(weights)
    if torn is not None:
        (tmp_path / torn).write_bytes(b"")

    before = record(tmp_path, status="failed")
    chosen = choose_checkpoint(record(tmp_path), "last", (), before=before)
    assert chosen is not None and chosen[:2] == ((tmp_path, 8) if torn is None else (whole, 6))


def test_a_start_that_asks_for_nothing_resumes_nothing(tmp_path: Path) -> None:
    checkpoint(tmp_path, 2, manifest=False)
    assert choose_checkpoint(record(tmp_path), None, ()) is None, (
        "a torn one does not stand in the way"
    )
    whole = checkpoint(tmp_path, 4)
    with pytest.raises(
        CheckpointError,
        match="already holds checkpoint-4; continue it with --resume_from_checkpoint",
    ):
        choose_checkpoint(record(tmp_path), None, ())
    assert choose_checkpoint(record(tmp_path), "last", ()) == (whole, 4, {})


def test_a_checkpoint_of_another_run_is_compared_with_that_run(tmp_path: Path) -> None:
    other = checkpoint(tmp_path / "other", 4, manifest=False)
    (tmp_path / "out").mkdir()
    mine = record(tmp_path / "out", config_hash="b", settings={"Args": {"rate": 0.2}})
    assert choose_checkpoint(mine, str(other), ()) == (other, 4, {}), (
        "a checkpoint of another tool is nobody's run"
    )
    known = {
        "recipe": "sft",
        "command": "",
        "output_dir": "",
        "commit": None,
        "versions": {},
        "python": "",
        "hardware": {},
        "world_size": 1,
        "started": "2026-01-01T00:00:00+00:00",
        "config_hash": "a",
        "settings": {"Args": {"rate": 0.1}},
        "schema": 1,
    }
    (tmp_path / "other" / "run.json").write_text(json.dumps(known))
    with pytest.raises(
        CheckpointError, match=r"differs in rate 0\.1 -> 0\.2; .*--allow_changed rate"
    ):
        choose_checkpoint(mine, str(other), ())
    assert choose_checkpoint(mine, str(other), {"rate"}) == (other, 4, {"rate": (0.1, 0.2)})
    (tmp_path / "other" / "run.json").write_text(json.dumps(known | {"recipe": "dpo"}))
    with pytest.raises(
        CheckpointError, match="is a checkpoint of dpo, not of sft; to start from its weights"
    ):
        choose_checkpoint(mine, str(other), {"rate"})


def test_a_full_disk_loses_the_half_written_one_only(tmp_path: Path) -> None:
    checkpoint(tmp_path, 2)
    checkpoint(tmp_path, 4, manifest=False)
    error = clear_full_disk(record(tmp_path), OSError(28, "No space left on device"))
    assert (
        "the unfinished checkpoint-4 was removed; checkpoint-2 is whole: make room, then --resume"
        in str(error)
    )
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-2"]


def test_the_loss_of_a_resumed_run_counts_every_step() -> None:
    history = [
        {"loss": 4.0, "step": 2},
        {"eval_loss": 9.0, "step": 2},
        {"loss": 1.0, "step": 3},
        {"loss": 7, "step": 5},
    ]
    assert whole_train_loss(history, 3, 5, 7.0) == (4 * 2 + 1 * 1 + 7 * 2) / 5
    assert whole_train_loss(history, 5, 5, 1e9) == (4 * 2 + 1 * 1 + 7 * 2) / 5, (
        "no step was left to take"
    )
    assert whole_train_loss(history, 4, 5, 7.0) == 7.0, "the logs do not reach the checkpoint"
    assert whole_train_loss(history, 6, 6, 0.0) is None, "and there is no other mean"
    ended = [*history, {"train_loss": 3.0, "step": 6}]
    assert whole_train_loss(ended, 6, 6, 0.0) == 3.0


@pytest.mark.parametrize(("first", "expected"), [([], None), ([{"train_loss": 3.0}], 3.0)])
def test_the_log_of_a_run_with_no_step_left_says_no_other_loss(
    first: list[dict[str, float]], expected: float | None
) -> None:
    state: Any = SimpleNamespace(global_step=6, log_history=[*first, {"train_loss": 3075.0}])
    metrics = {"train_loss": 3075.0, "eval_loss": 1.0}
    count_every_step(metrics, state, 6)
    assert metrics.get("train_loss") == expected
    assert state.log_history[-1].get("train_loss") == expected


def test_the_resume_point_is_chosen_once(tmp_path: Path) -> None:
    """Asking again neither sets more aside nor records a second restart."""
    args = TrainingArguments(output_dir=str(tmp_path), resume_from_checkpoint="last", use_cpu=True)
    with Run.start("train.py", tmp_path, args) as run:
        checkpoint(tmp_path, 2, manifest=False)
        checkpoint(tmp_path, 4, manifest=False)
        (tmp_path / "checkpoint-4" / "optimizer.pt").write_text("torn")
        first = run.resume_point()
        written = (tmp_path / "run.json").read_text()
        assert first == str(tmp_path / "checkpoint-2") and (tmp_path / "broken-4").is_dir()

        checkpoint(tmp_path, 6, manifest=False)
        assert run.resume_point() == first
        assert (tmp_path / "run.json").read_text() == written and len(run.record.restarts) == 1
        run.finish({"loss": 1.0})


def test_an_evaluation_that_was_done_again_is_in_the_log_once() -> None:
    """Where its result is the same; that of the best checkpoint is another one."""
    loss = {"step": 8, "loss": 2.0}
    first, again = ({"step": 8, "eval_loss": 1.0, "eval_runtime": clock} for clock in (0.1, 0.2))
    best = {"step": 8, "eval_loss": 0.5, "eval_runtime": 0.1}
    earlier = {"step": 4, "eval_loss": 1.0, "eval_runtime": 0.1}
    state: Any = SimpleNamespace(log_history=[earlier, loss, loss, first, best, again, dict(best)])
    drop_repeated_evaluations(state)
    assert state.log_history == [earlier, loss, loss, first, best]
