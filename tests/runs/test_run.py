"""run.json: written whole, closed with the truth, never overwritten by another run."""

import json
import os
import signal
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import TrainingArguments

from hfstack.disk import describe_file
from hfstack.errors import AlreadyFinished, CheckpointError, ConfigError, DataError, Preempted
from hfstack.redaction import redact
from hfstack.runs.environment import refuse_wrong_world_size
from hfstack.runs.record import changed_settings, read_run
from hfstack.runs.run import Run, RunArgs


@dataclass
class Settings:
    rate: float = 0.1
    name: str = "a"
    logging_steps: int = 10


def start(folder: Path, settings: Settings | None = None, recipe: str = "clean.py") -> Run:
    return Run.start(recipe, folder, settings or Settings())


def test_a_run_is_recorded_from_start_to_end(tmp_path: Path) -> None:
    with start(tmp_path) as run:
        assert read_run(tmp_path).status == "running"
        run.add_table("reasons", ["reason", "count"], [["too short", 3]])
        run.add_artifact("samples", "samples.jsonl")
        run.finish({"documents": 3, "note": "not a number"})
    record = read_run(tmp_path)
    assert (record.status, record.recipe, record.error) == ("finished", "clean", None)
    assert record.metrics == {"documents": 3}
    assert record.settings["Settings"] == {"rate": 0.1, "name": "a", "logging_steps": 10}
    assert record.settings["Launch"] == {"world_size": 1}
    assert (
        record.versions["torch"] and record.hardware["cores"] >= 1 and record.duration_s is not None
    )
    assert record.tables == {
        "reasons": {"columns": ["reason", "count"], "rows": [["too short", 3]]}
    }
    assert record.artifacts == {"samples": "samples.jsonl"}


def test_a_text_with_the_character_nul_does_not_damage_the_record(tmp_path: Path) -> None:
    with start(tmp_path) as run:
        run.add_table("samples", ["output", "count"], [["a\0b", 0]])
        run.finish({})
    assert read_run(tmp_path).tables["samples"]["rows"] == [["a\ufffdb", 0]]


@dataclass
class Endpoint:
    """Settings in which people leave secrets."""

    url: str
    api_key: str


def test_a_secret_in_a_setting_is_neither_written_nor_shown(tmp_path: Path) -> None:
    """And a new password makes no other run of it."""

    def settings(password: str) -> Endpoint:
        return Endpoint(f"https://me:{password}@host/score?sig={password}", password)

    with Run.start("clean.py", tmp_path, settings("hunter2-old")) as run:
        run.finish({"loss": 1.0})
    written = (tmp_path / "run.json").read_text()
    assert "hunter2" not in written and written.count("<redacted>") == 3
    with pytest.raises(AlreadyFinished):
        Run.start("clean.py", tmp_path, settings("hunter2-new"))

    other = replace(settings("hunter2-new"), url="https://me:hunter2-new@other/")
    with pytest.raises(CheckpointError, match="differs in url") as refusal:
        Run.start("clean.py", tmp_path, other)
    assert "hunter2" not in str(refusal.value)


def test_a_failure_is_recorded_and_raised(tmp_path: Path) -> None:
    with pytest.raises(DataError), start(tmp_path):
        raise DataError("rows.jsonl:3: bad\nline, token hf_abcdefghijklmnopqrstuvwx")
    record = read_run(tmp_path)
    assert (record.status, record.error) == ("failed", "rows.jsonl:3: bad line, token <redacted>")


def test_ctrl_c_and_sigterm_are_preemptions(tmp_path: Path) -> None:
    with pytest.raises(Preempted), start(tmp_path / "a"):
        raise KeyboardInterrupt
    assert read_run(tmp_path / "a").status == "preempted"
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Preempted, match="SIGTERM"), start(tmp_path / "b"):
        os.kill(os.getpid(), signal.SIGTERM)
    assert read_run(tmp_path / "b").status == "preempted"
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_finished_run_is_not_done_again(tmp_path: Path) -> None:
    with start(tmp_path) as run:
        run.finish({})
    with pytest.raises(AlreadyFinished, match="already finished"):
        start(tmp_path)
    with pytest.raises(AlreadyFinished):  # how often it logs is not what it computes
        start(tmp_path, Settings(logging_steps=99))


def test_another_run_is_never_overwritten(tmp_path: Path) -> None:
    with start(tmp_path) as run:
        run.finish({})
    before = (tmp_path / "run.json").read_bytes()
    with pytest.raises(
        CheckpointError, match=r"differs in rate 0\.1 -> 0\.2; choose another --output_dir"
    ):
        start(tmp_path, Settings(rate=0.2))
    with pytest.raises(CheckpointError, match="holds a run of clean, not of report"):
        start(tmp_path, recipe="report.py")
    assert (tmp_path / "run.json").read_bytes() == before


def test_a_finished_run_on_data_that_changed_is_refused(tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text("{}\n")
    with start(tmp_path / "out") as run:
        run.record_inputs(train=[{"path": str(data), "files": [describe_file(data)]}])
        run.finish({})
    with pytest.raises(AlreadyFinished):
        start(tmp_path / "out")
    data.write_text("[]\n")
    with pytest.raises(CheckpointError, match=r"rows\.jsonl has changed since"):
        start(tmp_path / "out")


def test_a_failed_run_may_be_started_again(tmp_path: Path) -> None:
    with pytest.raises(DataError), start(tmp_path):
        raise DataError("bad")
    with start(tmp_path) as run:
        run.finish({})
    assert read_run(tmp_path).status == "finished"


def test_a_run_in_progress_is_left_alone(tmp_path: Path) -> None:
    with start(tmp_path) as run:
        run.record.process |= {"pid": os.getppid(), "started_ticks": None}
        run._write()
        with pytest.raises(CheckpointError, match=f"is being written by process {os.getppid()}"):
            start(tmp_path)


def test_a_killed_run_is_recognised(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with start(tmp_path) as run:
        ours = dict(run.record.process)
        assert ours["started_ticks"] > 0
        for change, message in [
            ({"pid": 2**22 + 1}, "which is gone: it was killed"),
            # another took its number
            ({"pid": os.getppid(), "started_ticks": 7}, "which is gone: it was killed"),
            (
                {"host": "node-7"},
                f"running by process {os.getpid()} on node-7, which cannot be asked from here",
            ),
        ]:
            run.record.process = ours | change
            run._write()
            caplog.clear()
            start(tmp_path)
            assert message in caplog.text


def test_allowed_changes_continue_and_are_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataError), start(tmp_path):
        (tmp_path / "checkpoint-1").mkdir()
        raise DataError("bad")
    assert read_run(tmp_path).error_kind == "DataError"
    with pytest.raises(
        CheckpointError,
        match=r"rate 0\.1 -> 0\.2; .* continue with the new value: --allow_changed rate$",
    ):
        start(tmp_path, Settings(rate=0.2))
    monkeypatch.setattr(
        "sys.argv", ["clean.py", "--allow_changed", "rate", "name", "--rate", "0.2"]
    )
    with start(tmp_path, Settings(rate=0.2)) as run:
        run.finish({})
    monkeypatch.setattr("sys.argv", ["clean.py", "--rate", "0.2"])  # it was allowed for one start
    with pytest.raises(AlreadyFinished):
        start(tmp_path, Settings(rate=0.2))
    with pytest.raises(CheckpointError, match=r"rate 0\.2 -> 0\.1"):
        start(tmp_path)


def test_who_trains_is_shown_how_to_resume(tmp_path: Path) -> None:
    def train(seed: int) -> Run:
        args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to=[], seed=seed)
        return Run.start("train.py", tmp_path, args)

    with train(seed=1) as run:
        run.finish({})
    with pytest.raises(
        CheckpointError,
        match="seed 1 -> 2; .* --resume_from_checkpoint last --allow_changed seed$",
    ):
        train(seed=2)


def test_unwritable_output_dir(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot be written: Not a directory; choose another"):
        start(tmp_path / "file" / "out")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"schema": 1}'])
def test_half_a_record_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(CheckpointError, match="is not a complete run record|is .., not a mapping"):
        read_run(tmp_path)


def test_a_record_from_the_future_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"schema": 99}')
    with pytest.raises(CheckpointError, match="upgrade hfstack"):
        read_run(tmp_path)
    with pytest.raises(CheckpointError, match="No such file"):
        read_run(tmp_path / "nowhere")


def test_parents_are_runs_only(tmp_path: Path) -> None:
    with start(tmp_path / "tokenizer", recipe="tokenizer.py") as parent:
        parent.finish({})
    with start(tmp_path / "model") as run:
        run.record_inputs(tmp_path / "tokenizer", tmp_path, "user/model-on-the-hub")
        run.finish({})
    assert read_run(tmp_path / "model").parents == ["../tokenizer"]


def test_a_view_of_other_runs_may_be_made_again(tmp_path: Path) -> None:
    for rate in (0.1, 0.2):
        with Run.start("report.py", tmp_path, Settings(rate=rate), replace_own=True) as run:
            run.finish({"rate": rate})
    assert read_run(tmp_path).metrics == {"rate": 0.2}
    with pytest.raises(CheckpointError, match="holds a run of report, not of clean"):
        Run.start("clean.py", tmp_path, Settings(), replace_own=True)


def test_a_run_that_failed_before_it_wrote_anything_is_replaced(tmp_path: Path) -> None:
    with pytest.raises(DataError), start(tmp_path, Settings(rate=0.1)):
        raise DataError("no rows")
    with pytest.raises(DataError), start(tmp_path, Settings(rate=0.2)) as run:
        assert run.record.restarts == []
        (tmp_path / "model.safetensors").touch()
        raise DataError("late")
    with pytest.raises(CheckpointError, match=r"rate 0\.2 -> 0\.3"):
        start(tmp_path, Settings(rate=0.3))


def test_default_directory_is_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with Run.start("generate.py", RunArgs().output_dir, RunArgs()) as run:
        run.finish({})
    assert str(run.output_dir).startswith("runs/generate-2")


def test_difference_names_what_changed() -> None:
    before = {"A": {"rate": 1e-3, "same": [1]}, "B": {"gone": 1}}
    assert changed_settings(before, {"A": {"rate": 0.01, "same": [1], "new": True}}) == {
        "gone": (1, None),
        "new": (None, True),
        "rate": (0.001, 0.01),
    }


def test_secrets_are_redacted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    token = "hf_" + "a1B2" * 8
    monkeypatch.setattr("sys.argv", ["clean.py", "--note", token])
    with start(tmp_path, Settings(name=f"see {token}")) as run:
        run.finish({})
    assert token not in (tmp_path / "run.json").read_text()
    assert (
        json.loads((tmp_path / "run.json").read_text())["settings"]["Settings"]["name"]
        == "see <redacted>"
    )
    assert redact("an eos_token <|endoftext|> and token embeddings stay") == (
        "an eos_token <|endoftext|> and token embeddings stay"
    )


def test_world_size_must_be_the_one_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", "HFSTACK_PROCESSES", "ACCELERATE_USE_CPU", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    assert refuse_wrong_world_size() == 1
    monkeypatch.setenv("HFSTACK_PROCESSES", "2")
    with pytest.raises(ConfigError, match="2 processes were asked for but 1 started"):
        refuse_wrong_world_size()
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert refuse_wrong_world_size() == 2
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.delenv("HFSTACK_PROCESSES")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with pytest.raises(ConfigError, match="started one"):
        refuse_wrong_world_size()


def test_processes_that_would_each_train_alone_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DeepSpeed without a GPU: transformers meets nobody, and each process would train on all rows
    by itself.
    """
    monkeypatch.delenv("HFSTACK_PROCESSES", raising=False)
    args = TrainingArguments(output_dir=str(tmp_path / "out"), report_to="none", use_cpu=True)
    assert args.world_size == 1
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(
        ConfigError,
        match="2 processes started, but the Trainer counts 1, so each would train alone",
    ):
        Run.start("train.py", tmp_path / "out", args)
    assert not (tmp_path / "out").exists()


def test_inputs_are_recorded_in_one_call(tmp_path: Path) -> None:
    earlier = tmp_path / "earlier"
    with Run.start("tokenizer.py", earlier) as run:
        run.finish({"tokens": 1})
    source = {"path": "rows.jsonl", "files": [], "rows": 3}
    with Run.start("train.py", tmp_path / "out") as run:
        run.record_inputs(earlier, None, "", "org/model", train=[source], eval=[])
        run.finish({"loss": 1.0})
    record = read_run(tmp_path / "out")
    assert record.parents == ["../earlier"]
    assert record.data == [{"role": "train", **source}]


def test_a_run_without_a_step_is_not_finished(tmp_path: Path) -> None:
    """-2 accumulated batches once ended "finished", with the weights that it began with."""
    trainer: Any = SimpleNamespace(state=SimpleNamespace(global_step=0, log_history=[]))
    with (
        pytest.raises(ConfigError, match="no optimizer step was taken, so nothing was trained"),
        Run.start("sft.py", tmp_path, RunArgs(str(tmp_path))) as run,
    ):
        run.finish({"train_loss": 0.0}, trainer)
    assert read_run(tmp_path).status == "failed" and read_run(tmp_path).outputs == []
