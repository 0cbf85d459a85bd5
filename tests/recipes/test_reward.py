"""The reward recipe end to end: from a causal model and an encoder, with an adapter, and what it
refuses.
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer
from trl import ModelConfig

from hfstack.errors import ConfigError, DataError
from hfstack.runs.record import read_run
from hfstack.tasks.preferences.encode import encode_pairs
from hfstack.tasks.preferences.reward_model import load_reward_model, score_sequences
from tests.tiny_encoder import save_tiny_bert

# peft 0.21 asks a model for the old name of activation checkpointing, and transformers 5.23 warns
# of it.
pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    rows = [
        {
            "prompt": f"Tell of fox {i}: ",
            "chosen": "a kind fox was happy",
            "rejected": "the red ball ran and ran"[: 9 + i % 9],
        }
        for i in range(40)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def reward(run_recipe, pairs: Path, tiny_llama: Path, tmp_path: Path):
    """Call the recipe with small settings; keyword arguments override them."""

    def call(**changes: object) -> dict[str, float]:
        settings = {
            "model_name_or_path": tiny_llama,
            "datasets": pairs,
            "eval_fraction": 0.3,
            "output_dir": tmp_path / "out",
            "max_steps": 2,
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-2,
            "report_to": "none",
            "bf16": "false",
            "activation_checkpointing": "false",
            "dataloader_pin_memory": "false",
            "save_strategy": "no",
            "gradient_checkpointing": "false",
            "logging_steps": 1,
            "center_rewards_coefficient": 0.01,
        } | changes
        return run_recipe("reward", *(f"--{k}={v}" for k, v in settings.items() if v is not None))

    return call


def test_learns_measures_and_draws(reward, tmp_path: Path):
    metrics = reward(max_steps=25)
    assert metrics["eval_accuracy"] == 1.0 and metrics["eval_accuracy_low"] < 1.0
    assert metrics["eval_length_accuracy"] == 1.0 and metrics["eval_gain_over_length"] == 0.0
    assert (
        0 <= metrics["eval_calibration_error"] <= 0.5
        and metrics["eval_pairs"] + metrics["train_pairs"] == 40
    )
    assert abs(metrics["eval_reward_mean"]) < 5
    record = read_run(tmp_path / "out")
    assert (tmp_path / "out" / record.artifacts["rewards"]).read_text().startswith("<svg")
    assert set(record.tables) == {"answer lengths", "accuracy by margin", "calibration"}
    rows = [
        json.loads(line) for line in (tmp_path / "out" / "pairs.jsonl").read_text().splitlines()
    ]
    assert len(rows) == metrics["eval_pairs"]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    model = load_reward_model(ModelConfig(model_name_or_path=str(tmp_path / "out")), tokenizer)
    encoded, _ = encode_pairs(rows, tokenizer, max_length=128)
    again = score_sequences(
        model, encoded["chosen_ids"][:], pad_token_id=tokenizer.pad_token_id, batch_size=8
    )
    assert again == pytest.approx([row["reward_chosen"] for row in rows], abs=1e-6)


@pytest.mark.parametrize("adapter", [False, True])
def test_an_encoder_without_eos_learns_and_reloads_with_identical_scores(
    reward, tmp_path: Path, adapter: bool
):
    folder = save_tiny_bert(tmp_path / "bert")
    settings = {"use_peft": "true", "lora_r": 4} if adapter else {}
    metrics = reward(model_name_or_path=folder, max_steps=3, **settings)
    assert metrics["eval_pairs"] > 5
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.eos_token_id is None
    model = load_reward_model(ModelConfig(model_name_or_path=str(tmp_path / "out")), tokenizer)
    rows = [
        json.loads(line) for line in (tmp_path / "out" / "pairs.jsonl").read_text().splitlines()
    ]
    encoded, _ = encode_pairs(rows, tokenizer, max_length=64)
    again = score_sequences(
        model, encoded["chosen_ids"][:], pad_token_id=tokenizer.pad_token_id, batch_size=8
    )
    assert again == pytest.approx([row["reward_chosen"] for row in rows], abs=1e-6)
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file() == adapter


def test_beside_an_adapter_on_16_bits_the_new_head_is_trained_in_fp32(reward, tmp_path: Path):
    metrics = reward(use_peft="true", lora_r=4, dtype="bfloat16", max_steps=25, learning_rate=1e-3)
    saved = load_file(tmp_path / "out" / "adapter_model.safetensors")
    (head,) = (weight for name, weight in saved.items() if ".score" in name)
    assert head.dtype == torch.float32 and not torch.equal(head, head.bfloat16().float())
    assert metrics["eval_accuracy"] > 0.8


def test_ratings_are_taken_too(reward, tmp_path: Path):
    rows = [
        {"prompt": f"p{i}", "completion": text, "rating": score}
        for i in range(10)
        for text, score in (("good fox", 2), ("bad ball", 1))
    ]
    (tmp_path / "ratings.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    metrics = reward(datasets=tmp_path / "ratings.jsonl", eval_fraction=0.2)
    assert (metrics["train_pairs"], metrics["eval_pairs"]) == (8, 2)


def test_bad_input_is_refused_in_one_line(reward, tiny_llama: Path, tmp_path: Path):
    row = {"prompt": "a", "chosen": "x", "rejected": "x"}
    (tmp_path / "same.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(DataError, match=r"same\.jsonl line 1: chosen and rejected are the same"):
        reward(datasets=tmp_path / "same.jsonl", output_dir=tmp_path / "a")
    (tmp_path / "empty.jsonl").write_text(json.dumps(row | {"chosen": ""}) + "\n")
    with pytest.raises(DataError, match=r"jsonl line 1: chosen is empty"):
        reward(datasets=tmp_path / "empty.jsonl", output_dir=tmp_path / "b")
    (tmp_path / "names.jsonl").write_text(
        json.dumps({"question": "a", "good": "x", "bad": "y"}) + "\n"
    )
    with pytest.raises(DataError, match=r"question, good, bad; map them with .*--chosen_column"):
        reward(datasets=tmp_path / "names.jsonl", output_dir=tmp_path / "c")
    long = {"prompt": "once upon a time " * 100, "chosen": "x", "rejected": "y"}
    (tmp_path / "long.jsonl").write_text(json.dumps(long) + "\n")
    with pytest.raises(DataError, match=r"1 of 1 pairs are longer than 128 tokens"):
        reward(datasets=tmp_path / "long.jsonl", eval_fraction=0, output_dir=tmp_path / "d")
    bert = save_tiny_bert(tmp_path / "bert")
    with pytest.raises(ConfigError, match=r"the tokenizer has 300 tokens but the embedding"):
        reward(
            model_name_or_path=bert, tokenizer_name_or_path=tiny_llama, output_dir=tmp_path / "e"
        )


@pytest.mark.parametrize("goes_on", ["true", "false"])
def test_an_adapter_with_its_head_is_trained_further_or_merged(
    reward, tmp_path: Path, goes_on: str
):
    reward(use_peft="true", lora_r=4, max_steps=2)
    first = json.loads((tmp_path / "out" / "pairs.jsonl").read_text().splitlines()[0])
    out = tmp_path / "more"
    changes = {"model_name_or_path": tmp_path / "out", "output_dir": out}
    reward(use_peft=goes_on, learning_rate=1e-12, max_steps=1, **changes)
    again = json.loads((out / "pairs.jsonl").read_text().splitlines()[0])
    assert again["reward_chosen"] == pytest.approx(first["reward_chosen"], abs=1e-5)
    assert (out / "adapter_model.safetensors").is_file() == (goes_on == "true")
    metrics = reward(use_peft=goes_on, max_steps=4, **changes | {"output_dir": tmp_path / "on"})
    assert metrics["eval_loss"] != pytest.approx(0.6931, abs=1e-4)
