"""Pad tokens, and settings of adapters that contradict each other."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import ModelConfig

from hfstack.errors import ConfigError, MissingExtraError
from hfstack.models.adapters import check_adapter_settings, give_pad_token
from hfstack.tokens.special_tokens import end_token_ids


@pytest.fixture
def loaded(tiny_llama: Path):
    return AutoTokenizer.from_pretrained(tiny_llama), AutoModelForCausalLM.from_pretrained(
        tiny_llama
    )


def test_a_pad_of_its_own_is_kept(loaded) -> None:
    tokenizer, model = loaded
    assert give_pad_token(tokenizer, model) == "<|pad|>" and len(tokenizer) == 300
    assert model.config.pad_token_id == model.generation_config.pad_token_id == 1


def test_a_pad_that_ends_texts_is_replaced_from_the_vocabulary(loaded) -> None:
    tokenizer, model = loaded
    tokenizer.pad_token = tokenizer.eos_token
    assert give_pad_token(tokenizer, model, may_grow=False) == "<|pad|>"
    assert tokenizer.pad_token_id == 1 and len(model.get_input_embeddings().weight) == 300


def test_a_missing_pad_grows_the_embedding(loaded, tiny_llama: Path) -> None:
    tokenizer, model = loaded
    # the token that was meant for padding ends texts here
    model.generation_config.eos_token_id = [0, 1]
    tokens = torch.arange(20, 30)[None]
    before = model(tokens).logits
    with pytest.raises(ConfigError, match="sft adds one, with --merge_adapter or where"):
        give_pad_token(AutoTokenizer.from_pretrained(tiny_llama), model, may_grow=False)

    # the unknown token of most older models pads where the embedding may not grow
    other = AutoTokenizer.from_pretrained(tiny_llama, unk_token="a")
    assert give_pad_token(other, model, may_grow=False) == "a" and len(other) == 300
    assert give_pad_token(tokenizer, model) == "<pad>"
    assert tokenizer.pad_token_id == model.config.pad_token_id == 300
    assert len(model.get_input_embeddings().weight) == model.config.vocab_size == 301
    assert torch.equal(model(tokens).logits[..., :300], before)
    assert end_token_ids(model, tokenizer) == [0, 1]


def settings(**changes) -> ModelConfig:
    return ModelConfig("model", **changes)


@pytest.mark.parametrize(
    ("changes", "flags", "message"),
    [
        (
            {"load_in_8bit": True},
            {},
            "--load_in_8bit: quantised weights cannot be trained; add --use_peft",
        ),
        ({"use_dora": True}, {}, "--use_dora is a kind of adapter; add --use_peft"),
        ({}, {"merge_adapter": True}, "there is no adapter to merge"),
        ({"use_peft": True}, {"merge_adapter": True, "sharded": True}, "weights that are sharded"),
    ],
)
def test_settings_that_contradict(changes, flags, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_adapter_settings(settings(**changes), **flags)


def test_settings_that_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    check_adapter_settings(settings())
    check_adapter_settings(settings(use_peft=True, use_dora=True))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="bitsandbytes"):
        check_adapter_settings(settings(use_peft=True, load_in_4bit=True))
