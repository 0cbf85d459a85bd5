"""Reward models from language models, encoders, architectures and adapters, and what is refused."""

import json
from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    T5Config,
)
from trl import ModelConfig

from hfstack.errors import CheckpointError, ConfigError
from hfstack.models.heads import load_with_config, lora_beside_head
from hfstack.tasks.preferences.reward_model import load_reward_model, score_sequences
from tests.tiny_encoder import save_tiny_bert

# peft 0.21 asks a model for the old name of activation checkpointing, and transformers 5.23 warns
# of it.
pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)

SEQUENCES = [[5, 6, 7, 8], [9, 10], [11, 12, 13, 14, 15, 16, 17], [18]]


@pytest.fixture(scope="module")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_bert(tmp_path_factory.mktemp("tiny-bert"))


def load(folder: Path | str, tokenizer, **settings) -> tuple[torch.nn.Module, list[str]]:
    new_modules: list[str] = []
    torch.manual_seed(0)
    args = ModelConfig(model_name_or_path=str(folder), **settings)
    return load_reward_model(args, tokenizer, new_modules=new_modules), new_modules


def test_a_language_model_keeps_its_body_and_gets_a_head(tiny_llama: Path, tiny_tokenizer):
    model, new_modules = load(tiny_llama, tiny_tokenizer)
    assert new_modules == ["score"] and model.config.num_labels == 1
    body = load_file(tiny_llama / "model.safetensors")["model.layers.0.mlp.up_proj.weight"]
    assert torch.equal(model.model.layers[0].mlp.up_proj.weight, body)


def test_a_new_head_reads_the_end_of_an_answer(tiny_llama: Path):
    """Where the end also pads, the reward is read before it, finished or not."""
    args = ModelConfig(model_name_or_path=str(tiny_llama))

    def scores(*, training: bool) -> tuple[str, list[float]]:
        tokenizer = AutoTokenizer.from_pretrained(tiny_llama, pad_token="<|endoftext|>")
        torch.manual_seed(0)
        model = load_reward_model(args, tokenizer, new_modules=[], training=training)
        pad, end = tokenizer.pad_token_id, tokenizer.eos_token_id
        found = score_sequences(model, [[5, 6, 7], [5, 6, 7, end]], pad_token_id=pad)
        return tokenizer.pad_token, found

    pad, (begun, ended) = scores(training=True)
    assert pad == "<|pad|>" and begun != pytest.approx(ended)
    pad, (begun, ended) = scores(training=False)  # a trained one is read as it was trained
    assert pad == "<|endoftext|>" and begun == pytest.approx(ended)


def test_padding_and_order_do_not_change_a_score(tiny_llama: Path, tiny_tokenizer):
    model, _ = load(tiny_llama, tiny_tokenizer)
    pad = tiny_tokenizer.pad_token_id
    model.train()
    together = score_sequences(model, SEQUENCES, pad_token_id=pad, batch_size=3)
    alone = [score_sequences(model, [sequence], pad_token_id=pad)[0] for sequence in SEQUENCES]
    assert together == pytest.approx(alone, abs=1e-6) and len(set(together)) == 4
    assert model.training, "the mode is given back"


def test_an_encoder_gets_its_pooler_too(tiny_bert: Path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    model, new_modules = load(tiny_bert, tokenizer)
    assert new_modules == ["bert.pooler.dense", "classifier"]
    together = score_sequences(model, SEQUENCES, pad_token_id=tokenizer.pad_token_id)
    alone = [
        score_sequences(model, [sequence], pad_token_id=tokenizer.pad_token_id)[0]
        for sequence in SEQUENCES
    ]
    assert together == pytest.approx(alone, abs=1e-6)


def test_an_architecture_is_drawn_anew(tiny_tokenizer):
    model, new_modules = load("recipes/architectures/llama-1m.json", tiny_tokenizer)
    assert model.config.num_labels == 1 and "score" in new_modules and len(new_modules) > 10
    assert model.config.pad_token_id == tiny_tokenizer.pad_token_id
    recurrent, _ = load("recipes/architectures/gru-1m.json", tiny_tokenizer)
    assert len(set(score_sequences(recurrent, SEQUENCES, pad_token_id=0))) == 4
    with pytest.raises(ConfigError, match=r"t5-5m.json cannot classify"):
        load_with_config(
            AutoModelForCausalLM,
            ModelConfig("recipes/architectures/t5-5m.json"),
            T5Config(),
            Path("recipes/architectures/t5-5m.json"),
            purpose="classify",
        )


@pytest.mark.parametrize("kind", ["causal", "encoder"])
def test_an_adapter_comes_back_with_identical_scores(
    kind: str, tiny_llama: Path, tiny_bert: Path, tmp_path: Path
):
    folder = tiny_llama if kind == "causal" else tiny_bert
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model, new_modules = load(folder, tokenizer)
    args = ModelConfig(model_name_or_path=str(folder), use_peft=True, lora_r=4)
    config = lora_beside_head(args, new_modules)
    assert (
        config is not None
        and config.task_type == "SEQ_CLS"
        and set(new_modules) <= set(config.modules_to_save or [])
    )
    adapted = get_peft_model(model, config)  # pyright: ignore
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    scores = score_sequences(adapted, SEQUENCES, pad_token_id=tokenizer.pad_token_id)
    adapted.save_pretrained(tmp_path / "adapter")
    torch.manual_seed(123)  # another seed: a head that was not saved would be another one
    again = load_reward_model(ModelConfig(model_name_or_path=str(tmp_path / "adapter")), tokenizer)
    assert score_sequences(again, SEQUENCES, pad_token_id=tokenizer.pad_token_id) == scores


def test_an_adapter_without_its_head_is_refused(tiny_llama: Path, tiny_tokenizer, tmp_path: Path):
    model, new_modules = load(tiny_llama, tiny_tokenizer)
    config = lora_beside_head(
        ModelConfig(model_name_or_path=str(tiny_llama), use_peft=True), new_modules
    )
    get_peft_model(model, config).save_pretrained(tmp_path)  # pyright: ignore
    file = tmp_path / "adapter_model.safetensors"
    save_file({key: value for key, value in load_file(file).items() if "score" not in key}, file)
    with pytest.raises(CheckpointError, match=r"was saved without score"):
        load(tmp_path, tiny_tokenizer)
    settings = json.loads((tmp_path / "adapter_config.json").read_text()) | {
        "task_type": "TOKEN_CLS"
    }
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(
        CheckpointError,
        match=r"adapter of a token classifier .*, not of a reward",
    ):
        load(tmp_path, tiny_tokenizer)


def test_a_saved_reward_model_has_nothing_new(tiny_llama: Path, tiny_tokenizer, tmp_path: Path):
    model, _ = load(tiny_llama, tiny_tokenizer)
    model.save_pretrained(tmp_path)  # pyright: ignore
    scores = score_sequences(model, SEQUENCES, pad_token_id=tiny_tokenizer.pad_token_id)
    again, new_modules = load(tmp_path, tiny_tokenizer)
    assert (
        new_modules == []
        and score_sequences(again, SEQUENCES, pad_token_id=tiny_tokenizer.pad_token_id) == scores
    )


def test_what_is_no_reward_model_is_refused(
    tiny_llama: Path, tiny_bert: Path, tiny_tokenizer, tmp_path: Path
):
    two = AutoModelForSequenceClassification.from_pretrained(tiny_llama, num_labels=2)
    two.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"classifier of 2 labels"):
        load(tmp_path, tiny_tokenizer)
    with pytest.raises(
        ConfigError, match=r"the tokenizer has 300 tokens but the embedding .* rows"
    ):
        load(tiny_bert, tiny_tokenizer)
    with pytest.raises(CheckpointError, match=r"no model at .*nowhere: no such directory"):
        load(tmp_path / "nowhere", tiny_tokenizer)
    with pytest.raises(ConfigError, match=r"--use_peft needs trained weights"):
        lora_beside_head(ModelConfig(model_name_or_path="llama-1m.json", use_peft=True), ["score"])
    with pytest.raises(ConfigError, match=r"--model_name_or_path is required"):
        load_reward_model(ModelConfig(), tiny_tokenizer)
