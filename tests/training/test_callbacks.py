"""What a run reports while it trains: rates, derived metrics, samples, and a stop at the first
NaN."""

import json
import logging
import math
from pathlib import Path

import pytest
import torch
from transformers import TrainerControl, TrainerState, TrainingArguments

from hfstack.errors import DivergedError, Preempted
from hfstack.training import callbacks
from hfstack.training.callbacks import (
    DerivedMetrics,
    SampleTable,
    StopOnDivergence,
    Throughput,
    WarnOfLongWarmup,
)


class Bench:
    """Sends a callback the Trainer's events in the Trainer's order."""

    def __init__(self, callback: object, tmp_path: Path, **settings: object) -> None:
        self.callback = callback
        self.args = TrainingArguments(
            output_dir=str(tmp_path), report_to="none", use_cpu=True, **settings
        )  # pyright: ignore
        self.state = TrainerState(is_world_process_zero=True)
        self.control = TrainerControl()

    def send(self, event: str, **kwargs: object) -> None:
        getattr(self.callback, event)(self.args, self.state, self.control, **kwargs)

    def log(self, **logs: float) -> dict[str, float]:
        self.state.log_history.append({**logs, "step": self.state.global_step})
        self.send("on_log", logs=logs)
        # trackers see what history keeps
        assert {**logs, "step": self.state.global_step} == self.state.log_history[-1]
        return logs


def test_throughput_counts_steps_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # the first step warms up, evaluation runs before the third
    clock = iter([0.0, 4.0, 10.0, 12.0, 50.0, 52.0])
    monkeypatch.setattr(callbacks.time, "perf_counter", lambda: next(clock))
    throughput = Throughput(tokens_per_step=100, flops_per_token=2, peak_flops_per_s=2000)
    bench = Bench(throughput, tmp_path)
    for step in (1, 2, 3):
        bench.send("on_step_begin")
        bench.state.global_step = step
        bench.send("on_step_end")
    # 300 tokens in 8 s
    assert bench.log(loss=1.0) == {"loss": 1.0, "tokens_per_s": 37.5, "mfu": 0.0375}
    assert bench.log(eval_loss=1.0) == {"eval_loss": 1.0}
    assert throughput.metrics() == {"tokens_per_s": 50.0, "mfu": 0.05}  # 200 tokens in 4 s


def test_no_utilisation_above_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A peak that was measured on a busy machine is below what training reaches later."""
    clock = iter([0.0, 1.0, 1.0, 2.0])
    monkeypatch.setattr(callbacks.time, "perf_counter", lambda: next(clock))
    throughput = Throughput(tokens_per_step=100, flops_per_token=28, peak_flops_per_s=2000)
    bench = Bench(throughput, tmp_path)
    with caplog.at_level(logging.WARNING, logger="hfstack"):
        for step in (1, 2):
            bench.send("on_step_begin")
            bench.state.global_step = step
            bench.send("on_step_end")
            assert bench.log(loss=1.0) == {"loss": 1.0, "tokens_per_s": 100.0}
    assert caplog.text.count("no mfu: training is 1.4 times as fast as the peak") == 1
    assert throughput.metrics() == {"tokens_per_s": 100.0}


def test_throughput_of_no_step() -> None:
    assert Throughput(tokens_per_step=100, flops_per_token=2, peak_flops_per_s=2000).metrics() == {}


def test_derived_metrics_stand_beside_the_loss(tmp_path: Path) -> None:
    bench = Bench(DerivedMetrics(lambda loss: {"perplexity": math.exp(loss)}), tmp_path)
    assert bench.log(eval_loss=0.0) == {"eval_loss": 0.0, "perplexity": 1.0}
    assert bench.log(loss=3.0) == {"loss": 3.0}


@pytest.mark.parametrize(
    "logs", [{"loss": math.nan}, {"loss": 1.0, "grad_norm": math.inf}, {"eval_loss": math.nan}]
)
def test_stops_at_the_first_number_that_is_none(tmp_path: Path, logs: dict[str, float]) -> None:
    bench = Bench(StopOnDivergence(), tmp_path)
    bench.log(loss=1.0, grad_norm=2.0)
    bench.state.global_step = 7
    with pytest.raises(
        DivergedError, match=r"(loss|grad_norm) is (nan|inf) at step 7; .* lower --learning_rate"
    ):
        bench.log(**logs)


def test_samples_leave_training_untouched(tmp_path: Path) -> None:
    model = torch.nn.Linear(1, 1).train()
    seen: list[bool] = []

    def sample(given: torch.nn.Module) -> list[tuple[str, str]]:
        seen.append(given.training)
        return [("a", f"{torch.rand(1).item():.4f} 狐狸")]

    table = SampleTable(tmp_path / "samples.jsonl", sample)
    bench = Bench(table, tmp_path)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    bench.send("on_train_begin")
    # the final evaluation of a run may fall on a step that was sampled already
    for step in (10, 20, 20):
        bench.state.global_step = step
        bench.send("on_evaluate", model=model)
    assert torch.equal(torch.rand(1), expected)
    assert model.training and seen == [False, False]
    rows = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [10, 20]
    # one seed, one sample
    assert rows[0]["completion"] == rows[1]["completion"] and "狐狸" in rows[0]["completion"]


def test_a_model_that_does_not_generate_is_trained_without_samples(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def sample(given: torch.nn.Module) -> list[tuple[str, str]]:
        torch.rand(3)
        if bench.state.global_step == 10:
            raise RuntimeError("The size of tensor a (30) must match\nthe size of tensor b (15)")
        return [("a", "b")]

    model = torch.nn.Dropout()
    bench = Bench(SampleTable(tmp_path / "samples.jsonl", sample), tmp_path)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    bench.send("on_train_begin")
    for step in (10, 20):
        bench.state.global_step = step
        bench.send("on_evaluate", model=model)

    assert torch.equal(torch.rand(1), expected) and model.training
    lines = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert lines == [
        "no samples of step 10: Dropout does not generate (RuntimeError: The size of tensor a (30) "
        "must match the size of tensor b (15)); training goes on"
    ]
    rows = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [20]


def test_a_second_signal_while_sampling_stops_the_run(tmp_path: Path) -> None:
    def sample(given: torch.nn.Module) -> list[tuple[str, str]]:
        raise Preempted("stopped")

    bench = Bench(SampleTable(tmp_path / "samples.jsonl", sample), tmp_path)
    bench.send("on_train_begin")
    with pytest.raises(Preempted):
        bench.send("on_evaluate", model=torch.nn.Dropout())


def test_a_model_in_shards_is_not_sampled_by_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # all that `accelerate launch` leaves of fsdp2.yaml
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    bench = Bench(
        SampleTable(tmp_path / "samples.jsonl", lambda model: pytest.fail("the others would wait")),
        tmp_path,
    )
    bench.send("on_train_begin")
    bench.send("on_evaluate", model=torch.nn.Dropout())
    assert bench.args.fsdp is None
    assert (tmp_path / "samples.jsonl").read_text() == "", (
        "run.json lists the file, so that readers must find it"
    )


def test_samples_of_steps_taken_again_are_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    path.write_text(
        "".join(
            json.dumps({"step": step, "prompt": "a", "completion": "b"}) + "\n"
            for step in (5, 10, 15)
        )
    )
    bench = Bench(SampleTable(path, lambda model: [("a", "c")]), tmp_path)
    bench.state.global_step = 10
    bench.send("on_train_begin")
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [5, 10]


def test_a_warm_up_longer_than_half_of_the_steps_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state, control = TrainerState(max_steps=13), TrainerControl()
    for warmup_steps, warned in [(50, True), (7, True), (6, False), (0.05, False)]:
        caplog.clear()
        args = TrainingArguments(str(tmp_path), warmup_steps=warmup_steps, use_cpu=True)
        WarnOfLongWarmup().on_train_begin(args, state, control)
        assert ("of 13 steps" in caplog.text) == warned, warmup_steps
