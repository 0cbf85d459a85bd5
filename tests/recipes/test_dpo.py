"""The DPO recipe end to end on a tiny model, with each loss, an adapter, and what it refuses."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from hfstack.errors import CheckpointError, ConfigError, DataError
from hfstack.runs.record import read_run
from tests.one_training_step import OLD_CHECKPOINTING

pytestmark = OLD_CHECKPOINTING


@pytest.fixture
def dpo(run_recipe, tiny_llama: Path, tmp_path: Path):
    """Call the recipe with small settings; keyword arguments override them."""
    rows = [
        {"prompt": f"Fox {i}:", "chosen": " was kind", "rejected": " ran up the hill"}
        for i in range(24)
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def call(**changes: object) -> dict[str, float]:
        settings = {
            "model_name_or_path": tiny_llama,
            "datasets": tmp_path / "pairs.jsonl",
            "eval_fraction": 0.25,
            "output_dir": tmp_path / "out",
            "max_steps": 2,
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-2,
            "report_to": "none",
            "bf16": "false",
            "activation_checkpointing": "false",
            "max_length": 64,
            "gradient_checkpointing": "false",
            "dataloader_pin_memory": "false",
            "save_strategy": "no",
            "sample_tokens": 4,
            "logging_steps": 1,
        } | changes
        return run_recipe("dpo", *(f"--{k}={v}" for k, v in settings.items() if v is not None))

    return call


def test_learns_the_preference_and_keeps_the_reference(dpo, tmp_path: Path, tiny_llama: Path):
    before = AutoModelForCausalLM.from_pretrained(tiny_llama).state_dict()
    metrics = dpo(max_steps=15)
    assert metrics["eval_rewards/margins"] > 1 and metrics["eval_accuracy"] == 1.0
    assert (
        metrics["eval_accuracy_low"] < 1.0 and metrics["eval_pairs"] + metrics["train_pairs"] == 24
    )
    assert metrics["eval_loss"] < 0.5  # ln 2 before the first step
    after = AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    assert any(not torch.equal(before[key], after[key]) for key in before)
    record = read_run(tmp_path / "out")
    samples = [
        json.loads(line)
        for line in (tmp_path / "out" / record.artifacts["samples"]).read_text().splitlines()
    ]
    assert len(samples) == 3 and "answer lengths" in record.tables


@pytest.mark.parametrize("loss", ["ipo", "hinge"])
def test_other_losses_begin_where_their_formulas_say(dpo, loss: str):
    metrics = dpo(loss_type=loss, learning_rate=1e-12, beta=0.1, max_steps=1)
    # No margin yet: the hinge is 1 - 0, IPO is (0 - 1 / (2 beta))^2 = 25.
    assert metrics["eval_loss"] == pytest.approx({"hinge": 1.0, "ipo": 25.0}[loss], rel=1e-3)


def test_an_adapter_is_saved_alone(dpo, tmp_path: Path):
    metrics = dpo(use_peft="true", lora_r=4, max_steps=2)
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file() and metrics["eval_pairs"] > 0


@pytest.mark.parametrize("goes_on", [True, False])
def test_an_adapter_is_trained_further_or_merged(
    dpo, tmp_path: Path, tiny_llama: Path, goes_on: bool
):
    dpo(use_peft="true", lora_r=4, max_steps=2)
    out = tmp_path / "second"
    changes = {"model_name_or_path": tmp_path / "out", "output_dir": out, "max_steps": 1}
    # nothing is learned: the reference is the adapter that it starts from, so the loss is ln 2
    metrics = dpo(use_peft=str(goes_on).lower(), learning_rate=1e-12, **changes)
    assert metrics["eval_loss"] == pytest.approx(0.6931, abs=1e-3)
    assert (out / "adapter_model.safetensors").is_file() == goes_on
    assert (out / "model.safetensors").is_file() != goes_on

    tokens = torch.arange(20, 40)[None]
    first, second, base = (
        AutoModelForCausalLM.from_pretrained(folder)(tokens).logits
        for folder in (tmp_path / "out", out, tiny_llama)
    )
    assert torch.allclose(first, second, atol=1e-4) and not torch.allclose(first, base, atol=1e-3)


def test_bad_input_is_refused_in_one_line(dpo, tmp_path: Path, tiny_llama: Path):
    with pytest.raises(
        ConfigError,
        match=r"--max_length 1024 is longer than the model's context: use --max_length 128",
    ):
        dpo(max_length=1024, output_dir=tmp_path / "a")
    with pytest.raises(ConfigError, match=r"llama-1m.json is an architecture"):
        dpo(model_name_or_path="recipes/architectures/llama-1m.json", output_dir=tmp_path / "b")
    row = {"prompt": "once upon a time " * 30, "chosen": " x", "rejected": " y"}
    (tmp_path / "long.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(DataError, match=r"train prompts fit: 1 of 1 prompts"):
        dpo(datasets=tmp_path / "long.jsonl", eval_fraction=0, output_dir=tmp_path / "c")
    with pytest.raises(ConfigError, match=r"no chat template"):
        dpo(conversational="true", output_dir=tmp_path / "d")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"names no base model"):
        dpo(model_name_or_path=tmp_path / "adapter", output_dir=tmp_path / "e")
