"""The ORPO recipe end to end on a tiny model: preferences are learned without a reference, and long
prompts go.
"""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from hfstack.errors import ConfigError, DataError
from hfstack.runs.record import read_run
from tests.one_training_step import OLD_CHECKPOINTING

pytestmark = OLD_CHECKPOINTING


@pytest.fixture
def orpo(run_recipe, tiny_llama: Path, tmp_path: Path):
    """Call the recipe from its YAML with small settings; keyword arguments override them."""
    rows = [
        {"prompt": f"Fox {i}:", "chosen": " was kind", "rejected": " ran up the hill"}
        for i in range(24)
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def call(**changes: object) -> dict[str, float]:
        settings = {
            "config": Path(__file__).parents[2] / "recipes" / "orpo.yaml",
            "model_name_or_path": tiny_llama,
            "datasets": tmp_path / "pairs.jsonl",
            "eval_fraction": 0.25,
            "output_dir": tmp_path / "out",
            "max_steps": 2,
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-2,
            "gradient_accumulation_steps": 1,
            "warmup_steps": 0,
            "bf16": "false",
            "gradient_checkpointing": "false",
            "activation_checkpointing": "false",
            "max_length": 64,
            "dataloader_pin_memory": "false",
            "save_strategy": "no",
            "eval_strategy": "no",
            "sample_tokens": 4,
        } | changes
        return run_recipe("orpo", *(f"--{key}={value}" for key, value in settings.items()))

    return call


def test_learns_answers_and_preferences_at_once(orpo, tmp_path: Path, tiny_llama: Path):
    start = orpo(learning_rate=1e-12, output_dir=tmp_path / "start")
    metrics = orpo(max_steps=15)
    assert metrics["eval_nll_loss"] < start["eval_nll_loss"] - 0.5
    assert metrics["eval_log_odds_chosen"] > start["eval_log_odds_chosen"] + 0.5
    assert metrics["eval_accuracy"] == 1.0 > metrics["eval_accuracy_low"]
    assert metrics["eval_pairs"] + metrics["train_pairs"] == 24
    before = AutoModelForCausalLM.from_pretrained(tiny_llama).state_dict()
    after = AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    assert any(not torch.equal(before[key], after[key]) for key in before)
    assert "answer lengths" in read_run(tmp_path / "out").tables


def test_accumulated_steps_train_as_whole_ones(orpo, tmp_path: Path) -> None:
    """Each chosen token counts the same, whatever micro-batch it stands in."""
    rows = [
        {"prompt": f"{i}:", "chosen": " owl" * (1 + i * i % 7), "rejected": " ran"}
        for i in range(10)
    ]
    (tmp_path / "uneven.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shared = {"datasets": tmp_path / "uneven.jsonl", "eval_fraction": 0, "optim": "sgd"}
    # 10 rows in steps of 4: the third has 2 rows, of which 3 x 1 makes two micro-batches
    shared |= {"max_steps": 3, "learning_rate": 1, "max_grad_norm": 0, "logging_steps": 1}

    found = []
    for batch, parts in ((4, 1), (1, 4), (3, 1), (1, 3)):
        out = tmp_path / f"{batch}x{parts}"
        batches = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": parts}
        orpo(**shared, **batches, output_dir=out)
        history = json.loads((out / "trainer_state.json").read_text())["log_history"]
        losses = [(entry["loss"], entry["nll_loss"]) for entry in history if "loss" in entry]
        found.append((losses, AutoModelForCausalLM.from_pretrained(out).state_dict()))

    for (losses, weights), (other_losses, others) in (found[:2], found[2:]):
        assert len(losses) == 3 and losses == [pytest.approx(one, rel=1e-4) for one in other_losses]
        assert all(torch.allclose(weights[key], others[key], atol=1e-5) for key in weights)
    assert found[0][0] != [pytest.approx(one, rel=1e-4) for one in found[2][0]]


def test_an_adapter_is_saved_alone(orpo, tmp_path: Path):
    orpo(use_peft="true", lora_r=4)
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()


def test_prompts_that_do_not_fit_are_left_out_or_refused(orpo, tmp_path: Path):
    rows = [{"prompt": f"Fox {i}:", "chosen": " was kind", "rejected": " ran"} for i in range(8)]
    rows.append({"prompt": "once upon a time " * 30, "chosen": " x", "rejected": " y"})
    (tmp_path / "long.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    skipping = {"eval_fraction": 0, "on_bad_row": "skip"}
    metrics = orpo(datasets=tmp_path / "long.jsonl", **skipping)
    assert metrics["train_pairs"] == 8
    with pytest.raises(DataError, match=r"train prompts fit: 1 of 9 prompts"):
        orpo(
            datasets=tmp_path / "long.jsonl",
            eval_fraction=0,
            on_bad_row="fail",
            output_dir=tmp_path / "b",
        )
    (tmp_path / "only.jsonl").write_text(json.dumps(rows[-1]) + "\n")
    with pytest.raises(DataError, match="all 1 train prompts have 64 tokens or more"):
        orpo(datasets=tmp_path / "only.jsonl", **skipping, output_dir=tmp_path / "c")


def test_bad_input_is_refused_in_one_line(orpo):
    with pytest.raises(
        ConfigError, match=r"--max_length 1024 is longer than the model's context"
    ) as caught:
        orpo(max_length=1024)
    assert "\n" not in str(caught.value)
