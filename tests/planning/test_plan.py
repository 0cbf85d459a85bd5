"""What a recipe's settings amount to, and what is advised when they do not fit."""

import logging
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import TrainingArguments
from trl import DPOConfig, ModelConfig, RewardConfig, SFTConfig

from hfstack.errors import CheckpointError, ConfigError
from hfstack.planning import plan as planning
from hfstack.planning.measure import MeasuredStep
from hfstack.planning.memory import trained_parameters
from hfstack.planning.plan import (
    CPU_RESIDENT_FACTOR,
    CUDA_CONTEXT,
    Device,
    _smaller_batch,
    change_rows,
    changes_that_fit,
    checkpointing_peaks,
    correct_needs,
    cost_of_run,
    disk_bytes,
    find_device,
    memory_rows,
    read_law,
    recipe_metrics,
)
from hfstack.planning.workload import Workload, assess, read_workload
from hfstack.scaling.budget import CHINCHILLA
from hfstack.tasks.rl.online import OnlineArgs
from hfstack.tasks.rl.ppo.config import PPOConfig
from hfstack.tasks.rl.ppo.group_config import RLOOConfig

FAST = Device("test", "cpu", 2**40, 1e12)


@pytest.fixture
def read(tiny_llama: Path, tmp_path: Path) -> Any:
    """The workload of settings of TRL's for the tiny Llama."""

    def make(
        recipe: str,
        kind: type,
        *,
        lora_r: int | None = None,
        rows: int | None = None,
        beside: Any = None,
        **settings: Any,
    ) -> Workload:
        settings |= {
            "output_dir": str(tmp_path),
            "use_cpu": True,
            "bf16": False,
            "report_to": "none",
        }
        arguments = kind(per_device_train_batch_size=4, **settings)
        adapter = {"use_peft": True, "lora_r": lora_r} if lora_r else {}
        model_args = ModelConfig(model_name_or_path=str(tiny_llama), **adapter)
        given = (model_args, arguments) if beside is None else (model_args, beside, arguments)
        return read_workload(recipe, given, rows=rows, prompt_tokens=8)

    return make


def test_sft_trains_one_model_on_rows_of_max_length(read: Any) -> None:
    work = read("sft", SFTConfig, max_length=32, max_steps=10, gradient_accumulation_steps=2)
    assert [part.name for part in work.parts] == ["model"]
    assert work.tokens_per_step == 4 * 32 * 2 and work.steps == 10


def test_epochs_take_the_rows_of_the_data(read: Any) -> None:
    assert read("sft", SFTConfig, max_length=32, num_train_epochs=3).steps is None
    assert read("sft", SFTConfig, max_length=32, num_train_epochs=3, rows=100).steps == 75


def test_rows_are_no_longer_than_the_context(read: Any) -> None:
    assert read("sft", SFTConfig, max_length=4096).trained.step.sequence_length == 128


def test_a_pair_is_two_rows(read: Any) -> None:
    reward = read("reward", RewardConfig, max_length=32).trained.step
    assert (reward.batch_size, reward.task) == (8, "sequence_classification")
    dpo = read("dpo", DPOConfig, max_length=32)
    assert [(part.name, part.step.batch_size, part.step.trains) for part in dpo.parts] == [
        ("policy", 8, True),
        ("reference", 8, False),
    ]


def test_a_reference_that_is_the_policy_without_its_adapter_holds_no_weights(read: Any) -> None:
    needs = assess(read("dpo", DPOConfig, max_length=32, lora_r=2))
    assert needs.memory["reference"].weights == 0 < needs.memory["policy"].weights


def test_rloo_generates_before_it_trains(read: Any) -> None:
    work = read("rloo", RLOOConfig, max_completion_length=24, num_generations=2, max_steps=5)
    assert [part.name for part in work.parts] == ["policy", "reference"]
    assert work.trained.step.sequence_length == 8 + 24
    needs = assess(work)
    # keys and values of 2 layers, 2 heads of 16, in fp32, and 32 bytes a token of the rollout
    assert needs.generation == 4 * 32 * (2 * 2 * 2 * 16 * 4 + 32)
    without = assess(
        read(
            "rloo",
            RLOOConfig,
            max_completion_length=24,
            num_generations=2,
            kl_coef=0.0,
            max_steps=5,
        )
    )
    assert needs.flops_per_step > without.flops_per_step


def test_a_reward_model_takes_the_memory_of_its_own_number_type(
    read: Any, tiny_llama: Path
) -> None:
    def weights(dtype: str) -> int:
        online = OnlineArgs(reward_model=str(tiny_llama), reward_dtype=dtype)
        work = read("rloo", RLOOConfig, num_generations=2, max_completion_length=24, beside=online)
        return assess(work).memory["reward model"].weights

    # but for what rotary positions keep in fp32
    assert weights("float32") == pytest.approx(2 * weights("bfloat16"), rel=1e-3)


def test_ppo_has_a_critic_unless_it_shares(read: Any) -> None:
    def parts(**settings: Any) -> list[str]:
        work = read("ppo", PPOConfig, max_completion_length=24, num_mini_batches=2, **settings)
        return [part.name for part in work.parts]

    assert parts() == ["policy", "critic", "reference"]
    assert parts(critic="shared") == ["policy", "reference"]
    assert parts(critic="shared", kl_coef=0.0) == ["policy"]
    assert parts(advantage="rloo", num_generations=2) == ["policy", "reference"]
    ahead = parts(advantage="rloo", num_generations=2, rollouts_ahead=1)
    assert ahead == ["policy", "reference", "policy of the rollout ahead"]
    separate = assess(read("ppo", PPOConfig, max_completion_length=24, num_mini_batches=2))
    shared = assess(
        read("ppo", PPOConfig, max_completion_length=24, num_mini_batches=2, critic="shared")
    )
    assert separate.peak > shared.peak


def test_a_recipe_that_trains_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="--recipe clean trains no model"):
        read_workload("clean", (), rows=None, prompt_tokens=8)


def test_a_task_of_ones_own_is_refused_by_name(read: Any) -> None:
    with pytest.raises(ConfigError, match="--recipe mine: plan does not know its task"):
        read("mine", TrainingArguments)


def test_a_model_that_is_not_there_is_named(tmp_path: Path) -> None:
    settings = (
        ModelConfig(model_name_or_path=str(tmp_path)),
        SFTConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False),
    )
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        read_workload("sft", settings, rows=None, prompt_tokens=8)


def test_what_does_not_fit_gets_changes_that_do(read: Any) -> None:
    work = read(
        "sft",
        SFTConfig,
        max_length=128,
        activation_checkpointing=False,
        gradient_checkpointing=False,
    )
    needs = assess(work)
    changes = list(changes_that_fit(work, int(needs.peak * 0.7)))
    assert changes and all(change.peak <= needs.peak * 0.7 for change in changes)
    assert any(
        "--per_device_train_batch_size 2 --gradient_accumulation_steps 2" in change.options
        for change in changes
    )
    assert change_rows(work, 1000) == [["none: take a smaller model or shorter rows", "", ""]]


def test_the_rows_of_a_pair_are_not_torn_apart(read: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    work = read("reward", RewardConfig, max_length=32)  # 4 pairs are 8 rows
    assert work.rows_per_example == 2
    monkeypatch.setattr(
        planning, "assess", lambda w: SimpleNamespace(peak=w.trained.step.batch_size)
    )
    assert _smaller_batch(work, 3) == (
        "--per_device_train_batch_size 1 --gradient_accumulation_steps 4",
        2,
    )
    assert _smaller_batch(work, 1) is None


def test_an_adapter_may_need_smaller_batches_too(
    read: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = read("sft", SFTConfig, max_length=32)

    def needs(workload: Workload) -> SimpleNamespace:
        step = workload.trained.step
        return SimpleNamespace(peak=step.batch_size + (0 if step.lora_rank else 100), memory={})

    monkeypatch.setattr(planning, "assess", needs)
    (change,) = changes_that_fit(work, 3)
    assert change.what == "train an adapter, in smaller micro-batches" and change.peak == 2
    assert change.options.startswith("--use_peft true --lora_r 16")
    assert change.options.endswith(
        "--per_device_train_batch_size 2 --gradient_accumulation_steps 2"
    )


def test_the_tables_add_up(read: Any) -> None:
    work = read("rloo", RLOOConfig, max_completion_length=24, num_generations=2, max_steps=5)
    needs = assess(work)
    rows = memory_rows(work, needs)
    assert [row[0] for row in rows] == ["policy", "reference", "KV cache and rollout"]
    peaks = checkpointing_peaks(work, assess(work))
    assert peaks["peak_mib_with_checkpointing"] <= peaks["peak_mib_without_checkpointing"]


def test_times_and_disk_follow_from_the_numbers(read: Any) -> None:
    work = read("sft", SFTConfig, max_length=32, max_steps=100, save_steps=10, save_total_limit=3)
    needs = assess(work)
    metrics = recipe_metrics(work, needs, FAST, devices=1, utilization=0.5)
    assert metrics["seconds_per_step"] == pytest.approx(needs.flops_per_step / 0.5e12)
    assert metrics["hours"] == pytest.approx(100 * metrics["seconds_per_step"] / 3600)
    assert metrics["fits"] == 1

    two = recipe_metrics(work, needs, FAST, devices=2, utilization=0.5)
    assert two["tokens_per_s"] == pytest.approx(2 * metrics["tokens_per_s"])

    weights, _ = trained_parameters(work.trained.config, work.trained.step)
    assert needs.checkpoint == 12 * weights
    assert disk_bytes(work, needs) == 5 * needs.checkpoint
    unsaved = read("sft", SFTConfig, max_length=32, save_strategy="no")
    assert disk_bytes(unsaved, needs) == needs.checkpoint
    kept = read("sft", SFTConfig, max_length=32, max_steps=100, save_steps=10)
    assert disk_bytes(kept, needs) == 12 * needs.checkpoint


def test_a_run_costs_its_hours_on_each_device() -> None:
    assert cost_of_run(2.5, 3.0, devices=4) == {"money": 30.0}
    with pytest.raises(ConfigError, match="--price_per_device_hour must be above 0, got -3"):
        cost_of_run(2.5, -3.0, devices=1)
    with pytest.raises(ConfigError, match="--price_per_device_hour 3: .* give --train_rows"):
        cost_of_run(None, 3.0, devices=1)


def test_real_steps_correct_the_plan(read: Any) -> None:
    work = read("sft", SFTConfig, max_length=32)
    needs = assess(work)
    measured = MeasuredStep(seconds=0.5, peak_bytes=needs.memory["model"].total + 1000)
    better, utilization = correct_needs(work, needs, measured, FAST)
    assert better.peak == needs.peak + 1000 and better.allocator == 1000 and better.measured
    assert memory_rows(work, better)[-1] == [
        "allocator, measured",
        0.0,
        0.0,
        0.0,
        round(1000 / 2**20, 1),
    ]
    assert utilization == pytest.approx(needs.flops_per_step / 0.5 / 1e12)
    unseen, _ = correct_needs(work, needs, MeasuredStep(0.5, None), FAST)
    assert unseen.peak == needs.peak and not unseen.measured


def test_a_cpu_process_holds_more_than_its_tensors(read: Any) -> None:
    work = read("sft", SFTConfig, max_length=32)
    tensors, needs = assess(work), assess(FAST.with_allocator(work))
    assert needs.peak == pytest.approx(CPU_RESIDENT_FACTOR * tensors.peak, abs=1)
    assert needs.allocator == needs.peak - tensors.peak > 0
    allocated = round(needs.allocator / 2**20, 1)
    assert memory_rows(work, needs)[-1] == ["allocator, estimated", 0.0, 0.0, 0.0, allocated]

    measured = MeasuredStep(seconds=0.5, peak_bytes=needs.memory["model"].total + 1000)
    better, _ = correct_needs(FAST.with_allocator(work), needs, measured, FAST)
    assert better.peak == tensors.peak + 1000

    assert replace(FAST, kind="mps").with_allocator(work) is work and assess(work).allocator == 0


def test_a_gpu_holds_its_context_and_whole_blocks_beside_the_tensors(read: Any) -> None:
    work = read("sft", SFTConfig, max_length=32)
    tensors, needs = assess(work), assess(replace(FAST, kind="cuda").with_allocator(work))
    rounding = needs.memory["model"].rounding
    assert 0 < rounding < 512 * 2000  # half a block of each tensor, and none is above 10 MiB
    assert needs.peak == tensors.peak + CUDA_CONTEXT + rounding
    assert memory_rows(work, needs)[-2:] == [
        ["CUDA context, estimated", 0.0, 0.0, 0.0, 512.0],
        ["allocator rounding, estimated", 0.0, 0.0, 0.0, round(rounding / 2**20, 1)],
    ]

    # what the allocator reserved was measured, and the context is beyond its sight
    measured = MeasuredStep(seconds=0.5, peak_bytes=needs.memory["model"].total + 1000)
    better, _ = correct_needs(work, needs, measured, FAST)
    assert better.peak == tensors.peak + CUDA_CONTEXT + 1000


def test_a_plan_for_a_cpu_says_how_exact_it_is(read: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="hfstack")
    work = FAST.with_allocator(read("sft", SFTConfig, max_length=32))
    needs = assess(work)
    recipe_metrics(work, replace(needs, measured=True), FAST, devices=1, utilization=0.5)
    assert not caplog.text
    recipe_metrics(work, needs, FAST, devices=1, utilization=0.5)
    assert "peak_mib is what tensors hold x 1.28" in caplog.text and "+-20 %" in caplog.text


def test_a_named_device_needs_its_memory() -> None:
    device = find_device("NVIDIA H200", memory_gib=141, bf16=True)
    assert device.peak_flops_per_s == pytest.approx(989.5e12) and device.memory_bytes == 141 * 2**30
    with pytest.raises(ConfigError, match="needs --memory_gib"):
        find_device("NVIDIA H200", memory_gib=None, bf16=True)
    with pytest.raises(ConfigError, match="'Abacus': its peak is not known"):
        find_device("Abacus", memory_gib=1, bf16=True)
    here = find_device(None, memory_gib=3, bf16=False)
    assert here.memory_bytes == 3 * 2**30 and here.peak_flops_per_s > 0
    assert here.kind == ("cuda" if torch.cuda.is_available() else "cpu")


def test_the_published_law_stands_in_for_a_fit(tmp_path: Path) -> None:
    law, draws, _ = read_law(None, "llama")
    assert law.alpha == pytest.approx(0.3478) and not draws
    with pytest.raises(CheckpointError):
        read_law(str(tmp_path), "llama")


def test_a_fit_gives_its_law_and_its_draws(run_recipe: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [(n, d) for n in np.geomspace(1e6, 1e8, 5) for d in np.geomspace(1e8, 1e10, 5)]
    table = tmp_path / "table.csv"
    lines = [f"{n},{d},{CHINCHILLA.loss(n, d) * np.exp(0.003 * rng.normal())}" for n, d in rows]
    table.write_text("\n".join(["N,D,loss", *lines]) + "\n", encoding="utf-8")
    fit = str(tmp_path / "fit")
    metrics = run_recipe(
        "scaling_fit", "--datasets", str(table), "--draws", "50", "--output_dir", fit
    )
    law, draws, freedom = read_law(fit, "llama")
    assert metrics["E"] == law.E and len(draws) == 50 and freedom == 20
    assert min(draw.loss(1e9, 1e11) for draw in draws) < CHINCHILLA.loss(1e9, 1e11) * 1.02
