"""Trackers see one run with each step once, also when it was stopped between checkpoints and
resumed.
"""

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import WandbCallback, integration_utils

from hfstack.errors import ConfigError, Preempted
from hfstack.runs.record import read_run
from hfstack.runs.trackers import LoggedSteps, forget_later_steps, tracked
from hfstack.training.callbacks import Throughput
from tests.conftest import SENTENCES


@pytest.fixture
def stopped_and_resumed(
    run_recipe, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Pretrain 6 steps under a tracker: die after the fifth, resume from the checkpoint of the
    fourth.
    """
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        "".join(json.dumps({"text": f"{i} {SENTENCES[i % 4]}"}) + "\n" for i in range(40))
    )

    def call(tracker: str) -> Path:
        folder = tmp_path / "stories"
        settings = {
            "model_name_or_path": tiny_llama,
            "datasets": rows,
            "eval_fraction": 0,
            "block_size": 16,
            "max_steps": 6,
            "save_steps": 2,
            "save_strategy": "steps",
            "output_dir": folder,
            "report_to": tracker,
            "logging_steps": 1,
            "bf16": "false",
            "sample_tokens": 2,
            "dataloader_pin_memory": "false",
            "project": "tiny-stories",
        }
        flags = [f"--{name}={value}" for name, value in settings.items()]

        def die(
            self: TrainerCallback, args: object, state: object, control: object, **kwargs: object
        ) -> None:
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
        steps = [
            entry["step"]
            for entry in json.loads((folder / "trainer_state.json").read_text())["log_history"]
        ]
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


def test_tensorboard_forgets_a_run_that_starts_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    from torch.utils.tensorboard import SummaryWriter

    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to=["tensorboard"])
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    for attempt in (1, 2):
        with tracked(args, tmp_path, "abcd1234"):
            forget_later_steps(args, -1)
            with SummaryWriter(os.environ["TENSORBOARD_LOGGING_DIR"]) as writer:
                for step in range(3):
                    writer.add_scalar("train/loss", attempt, step)
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [
        (0, 2.0),
        (1, 2.0),
        (2, 2.0),
    ]


def wandb_steps(folder: Path) -> list[int]:
    """The global steps of every loss in an offline run of wandb: a log of LevelDB's format after 7
    bytes of its own.
    """
    pb2 = pytest.importorskip("wandb.proto.wandb_internal_pb2")
    (path,) = folder.glob("run-*.wandb")
    data, place, parts, steps = path.read_bytes(), 7, b"", []
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:  # too little of the block is left for a header
            place += 32768 - place % 32768
            continue
        size, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        parts += data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # whole, or the last part
            record = pb2.Record()
            record.ParseFromString(parts)
            values = {
                "/".join(one.nested_key) or one.key: json.loads(one.value_json)
                for one in record.history.item
            }
            steps += [values["train/global_step"]] if "train/loss" in values else []
            parts = b""
    return steps


@pytest.mark.slow
def test_wandb_offline_has_one_id_and_each_step_once(
    stopped_and_resumed, monkeypatch: pytest.MonkeyPatch
):
    """Two processes are two files of one run, which `wandb sync` puts together."""
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    folder = stopped_and_resumed("wandb")
    identity = read_run(folder).run_id
    offline = sorted((folder / "wandb").glob("offline-run-*"))
    assert len(offline) == 2 and all(path.name.endswith(f"-{identity}") for path in offline)
    assert [wandb_steps(path) for path in offline] == [[1, 2, 3, 4, 5], [6]]


@pytest.mark.slow
def test_trackio_keeps_one_run_with_each_step_once(
    stopped_and_resumed, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    trackio = pytest.importorskip("trackio")
    storage = pytest.importorskip("trackio.sqlite_storage")
    monkeypatch.setattr(trackio.utils, "TRACKIO_DIR", tmp_path / "trackio")
    monkeypatch.setattr(storage, "TRACKIO_DIR", tmp_path / "trackio")
    folder = stopped_and_resumed("trackio")
    (name,) = storage.SQLiteStorage.get_runs("tiny-stories")
    assert name == f"stories-{read_run(folder).run_id}"
    logs = storage.SQLiteStorage.get_logs("tiny-stories", name)
    assert [log["train/global_step"] for log in logs if "train/loss" in log] == [1, 2, 3, 4, 5, 6]


def test_what_was_logged_is_recorded_once_it_has_arrived(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A process that is killed takes the tracker's last seconds with it: those are logged again."""
    clock = [0.0]
    monkeypatch.setattr("hfstack.runs.trackers.time", SimpleNamespace(monotonic=lambda: clock[0]))

    def logged(run_id: str = "abcd1234") -> LoggedSteps:
        one = LoggedSteps(tmp_path / ".tracked.json", run_id)
        one.load()
        return one

    first = logged()
    for step in (1, 2, 2, 3):
        clock[0] += 15
        first.add(step, {"loss"} if step != 2 or clock[0] < 40 else {"eval_loss"})
    killed = logged()
    assert killed.knows(1, {"loss"}) and killed.knows(2, {"loss"}) and not killed.knows(3, {"loss"})
    assert not killed.knows(2, {"eval_loss"}), "it was logged 15 s before the kill"
    first.save(everything=True)
    ended = logged()
    assert (
        ended.knows(2, {"eval_loss"})
        and ended.knows(3, {"loss"})
        and not ended.knows(3, {"eval_loss"})
    )
    assert not logged("another1").knows(1, {"loss"}) and not first.knows(1, {"loss"})
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to=["wandb"])
    forget_later_steps(args, 2, changed=True)
    assert not logged().knows(1, {"loss"}), "other settings give other numbers"


def test_a_run_inside_another_is_tracked_as_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for name in ("WANDB_RUN_ID", "WANDB_RESUME", "TENSORBOARD_LOGGING_DIR"):
        monkeypatch.delenv(name, raising=False)
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to=["wandb"])
    with tracked(args, tmp_path / "ladder", "aaaa1111"):
        rung = TrainingArguments(
            output_dir=str(tmp_path), use_cpu=True, report_to=["wandb"], run_name=args.run_name
        )
        with tracked(rung, tmp_path / "rung", "bbbb2222"):
            assert rung.run_name == "rung-bbbb2222" and os.environ["WANDB_RUN_ID"] == "bbbb2222"
            inner = integration_utils.INTEGRATION_TO_CALLBACK["wandb"]
            assert inner.upstream is WandbCallback and inner.__mro__[2] is WandbCallback
        assert args.run_name == "ladder-aaaa1111" and os.environ["WANDB_RUN_ID"] == "aaaa1111"
    assert "WANDB_RUN_ID" not in os.environ and "WANDB_RESUME" not in os.environ
    assert integration_utils.INTEGRATION_TO_CALLBACK["wandb"] is WandbCallback


@pytest.mark.parametrize("name", ["wandb", "tensorboard"])
def test_a_tracker_that_cannot_start_is_named_in_one_line(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    class Unreachable(TrainerCallback):
        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            raise OSError("no API key\nlog in")

    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, name, Unreachable)
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to=[name])
    state, control = TrainerState(), TrainerControl()
    with tracked(args, tmp_path, "abcd1234"):
        callback: Any = integration_utils.INTEGRATION_TO_CALLBACK[name]()
        message = f"--report_to {name} cannot start: OSError: no API key log in; set it up"
        with pytest.raises(ConfigError, match=message):
            callback.on_train_begin(args, state, control)
    assert integration_utils.INTEGRATION_TO_CALLBACK[name] is Unreachable


def test_a_tracker_that_dies_later_is_left_out_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    calls: list[str] = []

    class Dying(TrainerCallback):
        def on_log(self, *args: Any, **kwargs: Any) -> None:
            calls.append("on_log")
            raise BrokenPipeError("the server\nwent away")

        def on_save(self, *args: Any, **kwargs: Any) -> None:
            calls.append("on_save")
            raise Preempted("stopped by SIGTERM")

    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "tensorboard", Dying)
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to=["tensorboard"])
    state, control = TrainerState(), TrainerControl()
    with tracked(args, tmp_path, "abcd1234"):
        stopped, callback = (
            integration_utils.INTEGRATION_TO_CALLBACK["tensorboard"]() for _ in range(2)
        )
        with pytest.raises(Preempted):
            stopped.on_save(args, state, control)
        for _ in range(2):
            callback.on_log(args, state, control, logs={"loss": 1.0})
        callback.on_save(args, state, control)
    assert calls == ["on_save", "on_log"]
    assert (
        caplog.text.count("--report_to tensorboard failed: BrokenPipeError: the server went") == 1
    )


def test_the_users_own_names_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WANDB_RUN_ID", "mine")
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    args = TrainingArguments(
        output_dir=str(tmp_path), use_cpu=True, report_to=["wandb"], run_name="my run"
    )
    with tracked(args, tmp_path, "abcd1234"):
        assert os.environ["WANDB_RUN_ID"] == "mine" and os.environ["WANDB_RESUME"] == "allow"
        assert args.run_name == "my run"
        forget_later_steps(args, 4)
    assert os.environ["WANDB_RUN_ID"] == "mine" and "WANDB_RESUME" not in os.environ
    monkeypatch.delenv("WANDB_RUN_ID")
    monkeypatch.setenv("WANDB_RESUME_FROM", "mine?_step=4")  # wandb takes one of the two
    with tracked(args, tmp_path, "abcd1234"):
        assert "WANDB_RESUME" not in os.environ and "WANDB_RUN_ID" not in os.environ
    assert not (tmp_path / "tensorboard").exists()
    quiet = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    with tracked(quiet, tmp_path, "abcd1234"), tracked(None, tmp_path, "abcd1234"):
        assert "TENSORBOARD_LOGGING_DIR" not in os.environ and quiet.run_name is None
