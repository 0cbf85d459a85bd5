"""Every way to lose a run, planted in a real Trainer: what is kept and refused, and that a resume
changes nothing.
"""

import json
import math
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import (
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    default_data_collator,
)

from hfstack.errors import (
    CheckpointError,
    ConfigError,
    DivergedError,
    MachineError,
    Preempted,
)
from hfstack.runs.checkpoint_files import find_damage
from hfstack.runs.manifest import MANIFEST
from hfstack.runs.record import read_run
from hfstack.runs.run import Run
from hfstack.training import checkpointing
from hfstack.training.callbacks import StopWhenAsked
from hfstack.training.checkpointing import KeepCheckpoints, protect
from hfstack.training.divergence import SkipSpikes
from hfstack.training.saving import save_trained

TOKENS = 12


class At(TrainerCallback):
    """Do something at one event of one step."""

    def __init__(self, event: str, step: int, act: Callable[..., Any]) -> None:
        self.step, self.act = step, act
        setattr(self, event, self._once)

    def _once(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            self.act(**kwargs)


class Poisoned(torch.utils.data.Dataset):
    """Rows of ids; one of them is marked, and its loss is multiplied."""

    def __init__(self, size: int = 24) -> None:
        self.rows = torch.randint(
            2, 300, (size, TOKENS), generator=torch.Generator().manual_seed(3)
        )

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.rows[index], "labels": self.rows[index]}


class PoisonableLlama(LlamaForCausalLM):
    """Multiplies its loss by `poison` when a batch begins with the poisonous id."""

    poison: tuple[int, float] | None = None

    def forward(self, input_ids: Any = None, labels: Any = None, **kwargs: Any) -> Any:  # pyright: ignore
        output = super().forward(input_ids=input_ids, labels=labels, **kwargs)
        if self.poison and self.training and self.poison[0] in input_ids[:, 0].tolist():
            output["loss"] = output["loss"] * self.poison[1]
        return output


@pytest.fixture
def train(
    tmp_path: Path,
    tiny_llama: Path,
    tiny_tokenizer: PreTrainedTokenizerFast,
    monkeypatch: pytest.MonkeyPatch,
):
    """Train a tiny model for six steps under `protect`; keyword arguments override settings."""
    monkeypatch.setattr("sys.argv", ["pretrain.py"])
    return trainer_of(tmp_path, tiny_llama, tiny_tokenizer)


@pytest.fixture(scope="module")
def whole(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_llama: Path,
    tiny_tokenizer: PreTrainedTokenizerFast,
) -> Path:
    """The folder of a run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    trainer_of(folder, tiny_llama, tiny_tokenizer)("whole")
    return folder / "whole"


def trainer_of(
    folder: Path, model_path: Path, tokenizer: PreTrainedTokenizerFast
) -> Callable[..., Trainer]:
    """Return a function that trains into a folder under `folder`."""

    def call(
        out: str = "out",
        *callbacks: TrainerCallback,
        poison: tuple[int, float] | None = None,
        push: Any = (),
        after: Callable[[], None] = lambda: None,
        allow: tuple[str, ...] = (),
        **changes: Any,
    ) -> Trainer:
        settings: dict[str, Any] = {
            "output_dir": str(folder / out),
            "max_steps": 6,
            "per_device_train_batch_size": 2,
            "save_steps": 2,
            "save_strategy": "steps",
            "logging_steps": 1,
            "learning_rate": 1e-2,
            "report_to": "none",
            "use_cpu": True,
            "disable_tqdm": True,
            "lr_scheduler_type": "linear",
            "dataloader_pin_memory": False,
            "eval_strategy": "steps",
            "eval_steps": 3,
        } | changes
        args = TrainingArguments(**settings)
        with Run.start("pretrain.py", args.output_dir, args, allow_changed=allow) as run:
            checkpoint = run.resume_point()
            model = PoisonableLlama.from_pretrained(model_path, attention_dropout=0.1)
            model.poison = poison
            rows = Poisoned()
            spikes = next((one for one in callbacks if isinstance(one, SkipSpikes)), None)
            others = [one for one in callbacks if one is not spikes]
            trainer = Trainer(
                model=model,
                args=args,
                data_collator=default_data_collator,
                train_dataset=rows,
                eval_dataset=torch.utils.data.Subset(rows, range(4)),
                processing_class=tokenizer,
                callbacks=[*others, *protect(run, push, spikes=spikes)],
            )
            trained = trainer.train(resume_from_checkpoint=checkpoint)
            save_trained(run, trainer, lambda saved: LlamaForCausalLM.from_pretrained(folder / out))
            after()
            run.finish({"train_loss": trained.training_loss}, trainer)
        return trainer

    return call


def crash(**kwargs: Any) -> None:
    raise RuntimeError("the machine went away")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return LlamaForCausalLM.from_pretrained(folder).state_dict()


def same(one: Path, two: Path) -> None:
    """Final weights equal in every bit, and the same log, each step once."""
    found = weights(two)
    for name, value in weights(one).items():
        assert torch.equal(value, found[name]), name
    assert curve(one) == curve(two)
    assert read_run(one).metrics["train_loss"] == pytest.approx(
        read_run(two).metrics["train_loss"], rel=1e-6
    )


def curve(folder: Path) -> list[tuple[float | None, ...]]:
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [
        (
            entry["step"],
            entry["epoch"],
            entry.get("loss"),
            entry.get("grad_norm"),
            entry.get("eval_loss"),
        )
        for entry in history
        if "train_runtime" not in entry
    ]


def names(folder: Path, pattern: str = "checkpoint-*") -> list[str]:
    return sorted(path.name for path in folder.glob(pattern))


def test_checkpoints_are_verified_rotated_and_handed_on(train, tmp_path: Path) -> None:
    handed: list[tuple[str, list[str], bool]] = []

    def push(path: Path) -> None:
        handed.append((path.name, names(path.parent), (path / MANIFEST).is_file()))
        raise ConnectionError("the hub is away")

    trainer = train(save_total_limit=1, push=[push])
    assert [(name, verified) for name, _, verified in handed] == [
        (f"checkpoint-{step}", True) for step in (2, 4, 6)
    ]
    assert "checkpoint-2" not in handed[1][1] and "checkpoint-4" not in handed[2][1], (
        "rotated first, then pushed"
    )
    assert names(tmp_path / "out") == ["checkpoint-6"] and trainer.args.save_total_limit == 1
    assert find_damage(tmp_path / "out" / "checkpoint-6", needs_manifest=True) is None
    assert not list(tmp_path.glob("**/training_args.bin"))
    assert read_run(tmp_path / "out").verified_checkpoints


def test_the_best_checkpoint_stays_and_is_loaded(train, tmp_path: Path) -> None:
    trainer = train(
        save_total_limit=1,
        load_best_model_at_end=True,
        eval_strategy="steps",
        eval_steps=2,
        max_steps=8,
        metric_for_best_model="loss",
        learning_rate=0.3,
    )
    best = Path(trainer.state.best_model_checkpoint or "")
    assert names(tmp_path / "out") == sorted({best.name, "checkpoint-8"})
    if best.name != "checkpoint-8":
        assert torch.equal(
            weights(best)["model.norm.weight"], weights(tmp_path / "out")["model.norm.weight"]
        )


def test_a_crash_between_two_logs_and_a_resume_change_nothing(train, tmp_path: Path) -> None:
    train("whole", logging_steps=3)
    with pytest.raises(RuntimeError, match="went away"):
        train("out", At("on_step_begin", 5, crash), logging_steps=3)
    assert read_run(tmp_path / "out").error_kind == "RuntimeError"
    train("out", logging_steps=3, resume_from_checkpoint="last")
    same(tmp_path / "whole", tmp_path / "out")
    assert [restart["step"] for restart in read_run(tmp_path / "out").restarts] == [4]


def plant_flip(path: Path) -> None:
    content = bytearray((path / "model.safetensors").read_bytes())
    content[-5] ^= 4
    (path / "model.safetensors").write_bytes(bytes(content))


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a flipped byte": (plant_flip, "model.safetensors is not what was written"),
    "killed while it was written": (
        lambda path: (path / MANIFEST).unlink(),
        "which is written last, is missing",
    ),
    "half a state": (
        lambda path: (path / "trainer_state.json").write_text('{"ep'),
        "trainer_state.json has 4 bytes",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_torn_checkpoint_costs_two_steps_and_no_more(
    train, tmp_path: Path, fault: str, caplog: pytest.LogCaptureFixture, whole: Path
) -> None:
    with pytest.raises(RuntimeError):
        train("out", At("on_step_begin", 5, crash))
    plant, message = FAULTS[fault]
    plant(tmp_path / "out" / "checkpoint-4")
    train("out", resume_from_checkpoint="last")
    assert message in caplog.text and "it is set aside as broken-4" in caplog.text
    assert [restart["step"] for restart in read_run(tmp_path / "out").restarts] == [2]
    same(whole, tmp_path / "out")


def test_a_full_disk_is_one_line_and_keeps_the_last_good_one(
    train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Path
) -> None:
    real = Trainer._save_optimizer_and_scheduler

    def full(self: Trainer, output_dir: str) -> None:
        if self.state.global_step == 4:
            raise OSError(28, "No space left on device", f"{output_dir}/optimizer.pt")
        real(self, output_dir)

    monkeypatch.setattr(Trainer, "_save_optimizer_and_scheduler", full)
    message = (
        r"the disk of .*out is full \(.*No space left.*\); "
        r"the unfinished checkpoint-4 was removed; checkpoint-2 is "
        "whole: make room, then --resume_from_checkpoint last"
    )
    with pytest.raises(CheckpointError, match=message):
        train("out")
    record = read_run(tmp_path / "out")
    assert (record.status, record.error_kind) == ("failed", "CheckpointError") and names(
        tmp_path / "out"
    ) == ["checkpoint-2"]
    monkeypatch.undo()
    monkeypatch.setattr("sys.argv", ["pretrain.py"])
    train("out", resume_from_checkpoint="last")
    same(whole, tmp_path / "out")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MB, where this process may mount one."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    if (
        shutil.which("mount") is None
        or subprocess.run(mount, capture_output=True, check=False).returncode != 0
    ):
        pytest.skip("a tmpfs cannot be mounted here: run as root, or with CAP_SYS_ADMIN")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)  # weights may still be mapped


@pytest.mark.parametrize(
    "room_bytes", [300_000, 10_000, 0], ids=["optimizer", "weights", "nothing fits"]
)
def test_a_disk_that_really_fills_up(train, small_disk: Path, room_bytes: int, whole: Path) -> None:
    def fill(**kwargs: Any) -> None:
        # The manifest is written beside training: on a busy machine the disk would be full before
        # it.
        manifest = small_disk / "out" / "checkpoint-2" / MANIFEST
        for _ in range(200):
            if manifest.is_file():
                break
            time.sleep(0.05)

        free = shutil.disk_usage(small_disk).free
        (small_disk / "filler").write_bytes(bytes(free - room_bytes))

    with pytest.raises(
        CheckpointError,
        match=r"the disk of .*small/out is full \(.*checkpoint-2 is whole: make room",
    ) as e:
        train("small/out", At("on_step_begin", 3, fill))
    assert "\n" not in str(e.value) and names(small_disk / "out") == ["checkpoint-2"]
    (small_disk / "filler").unlink()
    train("small/out", resume_from_checkpoint="last")
    same(whole, small_disk / "out")


def test_a_manifest_that_cannot_be_written_ends_the_run(
    train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path, **kwargs: Any) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(checkpointing, "write_manifest", fail)
    with pytest.raises(
        MachineError,
        match="a checkpoint was saved but could not be verified: .*Input/output error; look at",
    ):
        train()


@pytest.mark.parametrize("lost", ["optimizer.pt", "scheduler.pt"])
def test_weights_alone_are_refused(train, tmp_path: Path, lost: str) -> None:
    with pytest.raises(RuntimeError):
        train("out", At("on_step_begin", 3, crash), save_only_model=lost == "optimizer.pt")
    path = tmp_path / "out" / "checkpoint-2"
    if lost == "scheduler.pt":
        (path / lost).unlink()
        (path / MANIFEST).unlink()
        checkpointing.write_manifest(path, step=2)
    with pytest.raises(
        CheckpointError, match=r"no .*scheduler state to continue from; .*--model_name_or_path"
    ):
        train("out", resume_from_checkpoint="last", save_only_model=lost == "optimizer.pt")


def test_changed_settings_are_shown_and_accepted_by_name(train, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError):
        train("out", At("on_step_begin", 3, crash))
    with pytest.raises(
        CheckpointError,
        match=(
            r"differs in learning_rate 0\.01 -> 0\.02; seed 42 -> 7; .*--allow_changed "
            r"learning_rate seed"
        ),
    ):
        train("out", learning_rate=0.02, seed=7, resume_from_checkpoint="last")
    with pytest.raises(CheckpointError, match=r"differs in seed 42 -> 7; "):
        train(
            "out",
            learning_rate=0.02,
            seed=7,
            resume_from_checkpoint="last",
            allow=("learning_rate",),
        )
    with pytest.raises(
        ConfigError, match=r"'learning_rat' is no setting of pretrain, and no file; did you mean"
    ):
        train("out", resume_from_checkpoint="last", allow=("learning_rat",))
    trainer = train(
        "out", learning_rate=0.02, resume_from_checkpoint="last", allow=("learning_rate",)
    )
    rates = [entry["learning_rate"] for entry in trainer.state.log_history if "loss" in entry]
    assert rates == pytest.approx(
        [0.01, 0.01 * 5 / 6, 0.02 * 4 / 6, 0.02 * 3 / 6, 0.02 * 2 / 6, 0.02 * 1 / 6]
    )
    restart = read_run(tmp_path / "out").restarts[0]
    assert restart["step"] == 2 and restart["changed"] == {"learning_rate": [0.01, 0.02]}


def test_a_run_whose_last_step_was_taken_takes_no_other(train, tmp_path: Path, whole: Path) -> None:
    with pytest.raises(RuntimeError):
        train("out", after=crash)
    for resume in range(2):
        if resume == 0:
            with pytest.raises(RuntimeError):
                train("out", after=crash, resume_from_checkpoint="last")
        else:
            trainer = train("out", resume_from_checkpoint="last")
            assert (trainer.state.global_step, trainer.state.epoch) == (6, 0.5)
        assert names(tmp_path / "out") == ["checkpoint-2", "checkpoint-4", "checkpoint-6"]
    same(whole, tmp_path / "out")


def test_an_older_checkpoint_by_name_sets_the_newer_ones_aside(
    train, tmp_path: Path, whole: Path
) -> None:
    with pytest.raises(RuntimeError):
        train("out", At("on_step_begin", 5, crash))
    train("out", resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))
    assert names(tmp_path / "out", "abandoned-*") == ["abandoned-4"]
    same(whole, tmp_path / "out")


@pytest.mark.parametrize(
    ("signum", "event"),
    [
        (signal.SIGTERM, "on_step_begin"),
        (signal.SIGINT, "on_prediction_step"),
        (signal.SIGTERM, "on_log"),
    ],
)
def test_a_signal_saves_and_the_run_goes_on_where_it_stood(
    train, tmp_path: Path, signum: int, event: str, whole: Path
) -> None:
    step = 3 if event == "on_prediction_step" else 2
    sent: list[int] = []

    def ask(**kwargs: Any) -> None:
        if not sent:
            sent.append(signum)
            os.kill(os.getpid(), signum)

    with pytest.raises(
        Preempted, match=r"stopped at step 3; continue with --resume_from_checkpoint last"
    ):
        train("out", At(event, step, ask))
    assert read_run(tmp_path / "out").status == "preempted"
    assert find_damage(tmp_path / "out" / "checkpoint-3", needs_manifest=True) is None
    train("out", resume_from_checkpoint="last")
    same(whole, tmp_path / "out")


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_stops_at_once(
    train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, second: signal.Signals
) -> None:
    def twice(**kwargs: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), second)

    if second == signal.SIGTERM:
        monkeypatch.setattr("hfstack.runs.stop_signals._SAME_STOP_S", 0.0)
    with pytest.raises(Preempted, match=f"stopped by {second.name}"):
        train("out", At("on_step_begin", 3, twice))
    assert (
        read_run(tmp_path / "out").status == "preempted"
        and names(tmp_path / "out")[-1] == "checkpoint-2"
    )


def test_one_sigterm_that_a_launcher_repeats_still_saves(
    train, tmp_path: Path, whole: Path
) -> None:
    """As under Slurm with proctrack/linuxproc, which signals the launcher and the training
    process."""

    def repeated(**kwargs: Any) -> None:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(
        Preempted, match=r"stopped at step 3; continue with --resume_from_checkpoint last"
    ):
        train("out", At("on_step_begin", 2, repeated))
    train("out", resume_from_checkpoint="last")
    same(whole, tmp_path / "out")


def test_a_signal_after_training_stops_at_once_and_loses_nothing(
    train, tmp_path: Path, whole: Path
) -> None:
    with pytest.raises(Preempted, match="stopped by SIGTERM"):
        train("out", after=lambda: os.kill(os.getpid(), signal.SIGTERM))
    train("out", resume_from_checkpoint="last")
    same(whole, tmp_path / "out")


@pytest.mark.parametrize(
    ("factor", "settings"),
    [
        (math.nan, {}),
        (math.inf, {"gradient_accumulation_steps": 2}),
        (math.nan, {"bf16": True}),
        (math.nan, {"max_grad_norm": 0.0}),
    ],
)
def test_a_loss_that_is_no_number_stops_that_step(
    train, tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast, factor: float, settings: dict
) -> None:
    rows = Poisoned().rows
    guilty = 5
    with pytest.raises(DivergedError) as caught:
        train(
            poison=(int(rows[guilty][0]), factor),
            max_steps=12,
            logging_steps=100,
            save_steps=1,
            **settings,
        )
    text = str(caught.value)
    step = int(text.partition("at step ")[2].partition(",")[0])
    assert (
        text.startswith("loss is ") and "before the optimizer took it" in text and "\n" not in text
    )
    beginning = tiny_tokenizer.decode(rows[guilty].tolist(), skip_special_tokens=True)[:20]
    assert repr(beginning)[1:-1] in text, "the row is named by how it begins"
    assert text.count(" of micro-batch ") == 2, "only the rows of the micro-batch that went wrong"
    assert f", row {guilty} of the training data: {beginning!r}"[:-1] in text, "and by its number"
    assert names(tmp_path / "out") == sorted(f"checkpoint-{n}" for n in range(1, step))
    for name in names(tmp_path / "out"):
        assert all(value.isfinite().all() for value in weights(tmp_path / "out" / name).values())


def test_a_gradient_that_is_no_number_stops_that_step(train) -> None:
    def spoil(model: torch.nn.Module, **kwargs: Any) -> None:
        next(
            parameter for parameter in model.parameters() if parameter.grad is not None
        ).grad.fill_(math.inf)  # pyright: ignore

    with pytest.raises(
        DivergedError, match="grad_norm is inf at step 4, before the optimizer took it"
    ):
        train("out", At("on_pre_optimizer_step", 3, spoil), logging_steps=100)


def test_a_spike_is_skipped_when_asked(
    train, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    poison = (int(Poisoned().rows[5][0]), 50.0)
    trainer = train(
        "out",
        SkipSpikes(sigmas=6, window=6),
        poison=poison,
        max_steps=24,
        save_steps=12,
        learning_rate=1e-3,
    )
    skipped = max(entry.get("skipped_steps", 0) for entry in trainer.state.log_history)
    assert skipped >= 1 and caplog.text.count("is skipped: its loss") == skipped
    with pytest.raises(RuntimeError):
        train(
            "again",
            SkipSpikes(sigmas=6, window=6),
            At("on_step_begin", 20, crash),
            poison=poison,
            max_steps=24,
            save_steps=12,
            learning_rate=1e-3,
        )
    train(
        "again",
        SkipSpikes(sigmas=6, window=6),
        poison=poison,
        max_steps=24,
        save_steps=12,
        learning_rate=1e-3,
        resume_from_checkpoint="last",
    )
    same(tmp_path / "out", tmp_path / "again")


def test_pushing_needs_somebody_who_pushes(tmp_path: Path) -> None:
    args = TrainingArguments(
        output_dir=str(tmp_path / "out"), push_to_hub=True, report_to="none", use_cpu=True
    )
    with Run.start("pretrain.py", args.output_dir, args) as run:
        with pytest.raises(
            ConfigError, match="--push_to_hub: this recipe does not push while it trains"
        ):
            KeepCheckpoints(run)
        assert KeepCheckpoints(run, [print]).push == [print]
        run.finish({})


def test_too_little_disk_is_refused_before_the_first_step(
    train, monkeypatch: pytest.MonkeyPatch
) -> None:
    import collections

    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(
        "hfstack.runs.checkpoint_files.shutil.disk_usage", lambda path: usage(0, 0, 1000)
    )
    with pytest.raises(CheckpointError, match="two checkpoints need 1 MiB but"):
        train("out", At("on_step_begin", 0, crash))
    train("none", save_strategy="no")


def test_training_does_not_wait_while_a_checkpoint_is_verified(
    train, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, steps = threading.Event(), []
    real = checkpointing.write_manifest

    def slow(path: Path, **kwargs: Any) -> None:
        assert gate.wait(timeout=30), "training must go on meanwhile"
        real(path, **kwargs)

    monkeypatch.setattr(checkpointing, "write_manifest", slow)
    go_on = At("on_step_begin", 3, lambda **kwargs: (steps.append(3), gate.set()))
    train("out", go_on)
    assert steps == [3]


@pytest.mark.parametrize("same_seed", [True, False])
def test_one_seed_is_one_curve(train, tmp_path: Path, same_seed: bool) -> None:
    train("one", full_determinism=True)
    train("two", full_determinism=True, seed=42 if same_seed else 43)
    assert (curve(tmp_path / "one") == curve(tmp_path / "two")) is same_seed
    torch.use_deterministic_algorithms(False)


def test_a_count_that_begins_at_0_again_is_continued() -> None:
    for tokens_at, counted in (
        ({3: 20.0, 4: 40.0}, {3: 120.0, 4: 140.0}),
        ({2: 70.0}, {2: 100.0}),
        ({3: 120.0}, {3: 120.0}),
    ):
        count = checkpointing.ContinueCounts()
        state = TrainerState(
            global_step=2,
            log_history=[{"num_tokens": 40.0, "step": 1}, {"num_tokens": 100.0, "step": 2}],
        )
        arguments: Any = (None, state, None)
        count.on_train_begin(*arguments)
        for step, tokens in tokens_at.items():
            state.global_step = step
            logs = {"num_tokens": tokens, "eval_num_tokens": tokens}
            state.log_history.append({**logs, "step": step})
            count.on_log(*arguments, logs=logs)
            assert logs == {"num_tokens": counted[step], "eval_num_tokens": counted[step]}
            assert state.log_history[-1] == {**logs, "step": step}


def test_processes_agree_on_a_stop_and_lose_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def agree(asked: torch.Tensor, op: Any) -> None:
        if during:
            os.kill(os.getpid(), during.pop())  # after this process has said what it knew
        asked.fill_(max(int(asked), int(others)))

    monkeypatch.setattr(torch.distributed, "all_reduce", agree)
    arguments: Any = SimpleNamespace(
        world_size=2, device="cpu", save_strategy="steps", logging_strategy="steps"
    )

    def step() -> bool:
        control = TrainerControl()
        stops.on_step_end(arguments, TrainerState(), control)
        return control.should_training_stop

    settings = TrainingArguments(output_dir=str(tmp_path / "a"), use_cpu=True, report_to=[])
    with Run.start("toy.py", settings.output_dir, settings) as run:
        run.defer_stop(True)
        stops = StopWhenAsked(run)
        during, others = [signal.SIGTERM], False
        assert not step() and run.stop_asked  # the others did not know, so they all go on
        assert step()
    settings = TrainingArguments(output_dir=str(tmp_path / "b"), use_cpu=True, report_to=[])
    with Run.start("toy.py", settings.output_dir, settings) as run:
        run.defer_stop(True)
        stops, others = StopWhenAsked(run), True
        assert step()
        # the same stop reaches this process a moment later: it is saving
        os.kill(os.getpid(), signal.SIGTERM)


def test_every_process_has_its_part_where_the_first_can_see_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(checkpointing, "_VISIBLE_S", 0.2)
    shards = [
        "model.safetensors",
        "optimizer_0/__0_0.distcp",
        "optimizer_0/__1_0.distcp",
        "rng_state_1.pth",
    ]
    for name in [*shards, "training_args.bin"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    of_rank_1: list[str] = list(shards)

    def gather(found: list[Any], own: list[str]) -> None:
        found[:] = [own, of_rank_1]
        assert not {"training_args.bin", ".tmpNRiOfu"} & set(own)

    def barrier() -> None:  # whoever was still writing has finished when all have met
        (tmp_path / ".tmpNRiOfu").unlink(missing_ok=True)

    (tmp_path / ".tmpNRiOfu").touch()
    monkeypatch.setattr(checkpointing.torch.distributed, "barrier", barrier)
    monkeypatch.setattr(checkpointing.torch.distributed, "all_gather_object", gather)
    arguments: Any = SimpleNamespace(world_size=2, save_on_each_node=False, process_index=0)
    checkpointing._see_every_part(tmp_path, arguments)
    (tmp_path / "rng_state_1.pth").unlink()
    checkpointing._see_every_part(tmp_path, arguments)
    assert (
        "rng_state_1.pth lies on another node's disk: a resume will not be identical" in caplog.text
    )
    of_rank_1.append("optimizer_0/__2_0.distcp")
    with pytest.raises(
        CheckpointError,
        match=r"optimizer_0/__2_0\.distcp of .* is where the first process cannot see",
    ):
        checkpointing._see_every_part(tmp_path, arguments)
