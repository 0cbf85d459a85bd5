"""What is seen of training: a line a minute or a bar, and the numbers that a person follows."""

import logging
import time
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from hfstack.training.progress import ShowProgress, show_progress


class Watched:
    """Sends a ShowProgress the events of a Trainer whose clock is moved by hand."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, bar: bool) -> None:
        self.args = TrainingArguments(
            str(tmp_path), report_to="none", use_cpu=True, disable_tqdm=not bar
        )
        self.state = TrainerState(is_world_process_zero=True, max_steps=2000)
        self.shown, self.seconds = ShowProgress(), 0.0
        monkeypatch.setattr(time, "monotonic", lambda: self.seconds)

    def send(self, event: str, **kwargs: Any) -> None:
        getattr(self.shown, event)(self.args, self.state, TrainerControl(), **kwargs)

    def step(self, number: int, **logs: float) -> None:
        self.seconds += 10
        self.state.global_step = number
        self.send("on_step_end")
        if logs:
            self.send("on_log", logs=logs)


def test_a_log_has_a_line_a_minute_and_one_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    watched = Watched(tmp_path, monkeypatch, bar=False)
    with caplog.at_level(logging.INFO, logger="hfstack"):
        watched.send("on_train_begin")
        for step in range(20, 201, 20):
            watched.step(step, loss=4 - step / 100, tokens_per_s=12345.0, grad_norm=1.0)
        watched.send("on_train_end")
        watched.send("on_train_end")

    assert caplog.messages == [
        "step 20 of 2,000 (1 %), loss 3.8, 12.3k tokens/s, about 16 minutes left",
        "step 140 of 2,000 (7 %), loss 2.8, 12.3k tokens/s, about 16 minutes left",
        "step 200 of 2,000 (10 %), loss 2, 12.3k tokens/s, about 15 minutes left",
    ]


def test_of_ppo_the_terminal_has_four_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    watched = Watched(tmp_path, monkeypatch, bar=False)
    logs = {"loss": 0.01, "reward": 0.3125, "kl": 2.5, "completions/mean_length": 80.0}
    many = {f"policy/number_{index}": 1.0 for index in range(30)}
    with caplog.at_level(logging.INFO, logger="hfstack"):
        watched.send("on_train_begin")
        watched.step(100, **logs, entropy=1.5, **many)
    (line,) = caplog.messages
    assert "reward 0.3125, KL 2.5, length 80, entropy 1.5, 80 rows/s" in line
    assert "policy/" not in line and "loss" not in line


def test_an_evaluation_says_its_most_telling_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    watched = Watched(tmp_path, monkeypatch, bar=False)
    with caplog.at_level(logging.INFO, logger="hfstack"):
        watched.state.global_step = 500
        watched.send("on_log", logs={"eval_runtime": 1.0, "eval_accuracy": 0.75, "eval_f1": 0.5})
    assert caplog.messages == ["evaluated at step 500: accuracy 75.0 %, F1 0.5000"]


def test_a_terminal_has_a_bar_and_one_for_an_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    watched = Watched(tmp_path, monkeypatch, bar=True)
    watched.send("on_train_begin")
    watched.step(1000, loss=2.5, num_tokens=5000.0)
    watched.send("on_prediction_step", eval_dataloader=[1, 2])
    watched.send("on_evaluate")
    watched.send("on_train_end")
    shown = capsys.readouterr().err
    assert "1000/2000" in shown and "loss 2.5, 500 tokens/s" in shown
    assert "evaluating" in shown and "/2 " in shown


def test_upstream_prints_nothing_beside_it() -> None:
    class Trainer:
        def __init__(self) -> None:
            self.callbacks: list[Any] = [PrinterCallback, ProgressCallback]

        def remove_callback(self, callback: Any) -> None:
            self.callbacks.remove(callback)

        def add_callback(self, callback: Any) -> None:
            self.callbacks.append(callback)

    trainer = Trainer()
    show_progress(trainer)  # type: ignore[arg-type]
    assert [type(callback) for callback in trainer.callbacks] == [ShowProgress]
