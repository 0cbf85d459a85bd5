"""Compiling in the middle of a run: when it pays, what is said, and that the losses stay."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.exc import TorchDynamoException
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from hfstack.models.fused_loss import use_fused_loss
from hfstack.training import auto_compile
from hfstack.training.auto_compile import MEASURED_STEPS, AutoCompile, seconds_that_pay
from hfstack.training.callbacks import StopOnDivergence

STEPS = 2 * MEASURED_STEPS + 4


def train(folder: Path, *callbacks: Any, steps: int = STEPS, **settings: Any) -> Trainer:
    """Train a tiny model on 11 rows in batches of 2, so that each epoch ends in a batch of 1."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=16,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=32,
    )
    model = LlamaForCausalLM(config)
    use_fused_loss(model)

    ids = torch.randint(0, 16, (11, 16))  # (N, T)
    arguments = TrainingArguments(
        output_dir=str(folder),
        use_cpu=True,
        max_steps=steps,
        per_device_train_batch_size=2,
        learning_rate=1e-2,
        logging_steps=1,
        report_to="none",
        disable_tqdm=True,
        **{"save_strategy": "no"} | settings,
    )
    rows: Any = [{"input_ids": row, "labels": row} for row in ids]
    trainer = Trainer(
        model=model, args=arguments, train_dataset=rows, callbacks=[StopOnDivergence(), *callbacks]
    )
    trainer.train(resume_from_checkpoint=settings.get("resume_from_checkpoint"))
    return trainer


def losses(trainer: Trainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.fixture
def shapes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Stand in for torch.compile, and let any run pay; gives the shapes that it was called with."""
    seen: list[tuple[int, ...]] = []

    def compile_nothing(forward: Callable[..., Any]) -> Callable[..., Any]:
        def compiled(*args: Any, **inputs: Any) -> Any:
            seen.append(tuple(inputs["input_ids"].shape))
            return forward(*args, **inputs)

        return compiled

    monkeypatch.setattr(torch, "compile", compile_nothing)
    monkeypatch.setattr(auto_compile, "seconds_that_pay", lambda layers, core_share: 0.0)
    # what is faster is chance in a model so small
    monkeypatch.setattr(AutoCompile, "_compare", lambda self, seconds: None)
    return seen


def callback() -> AutoCompile:
    return AutoCompile(tokens_per_step=32, layers=1)


def test_compiles_batches_of_one_shape_after_the_measured_steps(tmp_path: Path, shapes) -> None:
    trainer = train(tmp_path, callback())
    # 24 steps are left; the sixth of each epoch has one row
    assert set(shapes) == {(2, 16)}
    assert len(shapes) == STEPS - MEASURED_STEPS - sum(
        step % 6 == 0 for step in range(MEASURED_STEPS + 1, STEPS + 1)
    )
    # between the steps, the model is as it was
    assert trainer.model is not None
    assert trainer.model.forward.__name__ == "forward"
    assert losses(trainer) == losses(train(tmp_path / "eager"))


def test_the_time_that_pays_grows_with_layers_and_with_other_work() -> None:
    # twice the estimate over the share of time that is saved, by hand
    estimate = auto_compile.COMPILE_SECONDS + 8 * auto_compile.COMPILE_SECONDS_PER_LAYER
    assert seconds_that_pay(8) == pytest.approx(2 * estimate / 0.2)
    assert seconds_that_pay(8, core_share=0.25) == pytest.approx(4 * seconds_that_pay(8))


def test_a_short_run_stays_eager_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch, "compile", lambda forward: pytest.fail("compiled"))
    compiling = callback()
    with caplog.at_level(logging.INFO):
        train(tmp_path, compiling)
        train(tmp_path, callback(), steps=3)
    assert "training is not compiled: the 24 steps left take 0 s, and it pays from" in caplog.text
    assert "3 steps are too few" in caplog.text
    assert compiling.metrics() == {}


def test_a_machine_without_a_compiler_stays_eager(
    tmp_path: Path, shapes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with caplog.at_level(logging.INFO):
        train(tmp_path, callback())
    assert "no C++ compiler is found (no-such-compiler); install g++" in caplog.text
    assert not shapes


def test_equal_numbers_in_each_run_are_left_alone(
    tmp_path: Path, shapes, caplog: pytest.LogCaptureFixture
) -> None:
    compiling = callback()
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    arguments.full_determinism = True  # given to the class, it would set the tests' own seeds
    state, control = TrainerState(max_steps=STEPS), TrainerControl()
    with caplog.at_level(logging.INFO):
        compiling.on_train_begin(arguments, state, control)
    assert "not compiled: --full_determinism asks" in caplog.text


def test_what_fails_to_compile_goes_on_eager(
    tmp_path: Path, shapes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def compile_badly(forward: Callable[..., Any]) -> Callable[..., Any]:
        def compiled(*args: Any, **inputs: Any) -> Any:
            raise TorchDynamoException("no Python.h")

        return compiled

    monkeypatch.setattr(torch, "compile", compile_badly)
    trainer = train(tmp_path, callback())
    assert "goes on without torch.compile: it failed: no Python.h" in caplog.text
    assert losses(trainer) == losses(train(tmp_path / "eager"))


def test_goes_back_when_compiling_did_not_help(caplog: pytest.LogCaptureFixture) -> None:
    compiling = callback()
    compiling.rates = {"eager_tokens_per_s": 100.0, "compile_seconds": 3.0}
    compiling._compiled = lambda: None
    compiling._compare(seconds=0.5)  # 64 tokens/s
    assert "it is not faster (64 tokens/s, 100 before)" in caplog.text
    assert compiling._compiled is None
    assert compiling.metrics()["compiled_tokens_per_s"] == 64.0


def test_a_resumed_run_measures_again(tmp_path: Path, shapes) -> None:
    whole = train(tmp_path, callback(), save_strategy="steps", save_steps=22)
    taken = len(shapes)
    resumed = train(
        tmp_path,
        callback(),
        save_strategy="steps",
        save_steps=100,
        resume_from_checkpoint=str(tmp_path / "checkpoint-22"),
    )
    # 22 steps are left: 20 are measured, and two compiled, of which step 44 has two rows
    assert len(shapes) - taken == 2
    assert losses(resumed)[-1] == losses(whole)[-1]
    state = json.loads((tmp_path / "checkpoint-22" / "trainer_state.json").read_text())
    assert state["global_step"] == 22


# torch 2.13 warns of its own functions while it imports its compiler (torch/jit/_script.py)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.slow
def test_losses_of_the_compiled_step_are_the_eager_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(auto_compile, "seconds_that_pay", lambda layers, core_share: 0.0)
    compiling = callback()
    with caplog.at_level(logging.INFO):
        compiled = train(tmp_path, compiling)
    eager = train(tmp_path / "eager")
    assert compiling.metrics()["compile_seconds"] > 0
    assert compiling.metrics()["compiled_tokens_per_s"] > 0
    torch.testing.assert_close(
        torch.tensor(losses(compiled)), torch.tensor(losses(eager)), atol=2e-4, rtol=1e-4
    )
