"""Families without a classifier of transformers get a head of ours."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BartConfig,
    CohereConfig,
    FalconMambaConfig,
    Llama4TextConfig,
    LlamaConfig,
    LlamaForSequenceClassification,
    T5Config,
    T5ForQuestionAnswering,
    T5ForSequenceClassification,
)
from trl import ModelConfig

from hfstack.errors import CheckpointError, ConfigError
from hfstack.models.contents import refuse_lost_layers
from hfstack.models.heads import refuse_unreadable_rows, require_equal_ends
from hfstack.models.sequence_head import is_own_classifier, register_classifier
from hfstack.tasks.preferences.reward_model import load_reward_model, score_sequences

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 32}
KINDS = {
    "falcon_mamba": lambda rows: FalconMambaConfig(vocab_size=rows, state_size=4, **SIZES),
    "cohere": lambda rows: CohereConfig(
        vocab_size=rows, num_attention_heads=2, num_key_value_heads=2, **SIZES
    ),
    # its parent has no name for the transformer below a head
    "llama4_text": lambda rows: Llama4TextConfig(
        vocab_size=rows,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        num_local_experts=2,
        intermediate_size_mlp=32,
        pad_token_id=0,
        **SIZES,
    ),
}


@pytest.mark.parametrize("family", KINDS)
def test_a_language_model_without_a_classifier_gives_rewards(
    family: str, tmp_path: Path, tiny_tokenizer: Any
) -> None:
    torch.manual_seed(0)
    causal = AutoModelForCausalLM.from_config(KINDS[family](len(tiny_tokenizer)))
    causal.save_pretrained(tmp_path / "lm")
    new_modules: list[str] = []
    named = ModelConfig(str(tmp_path / "lm"))
    model: Any = load_reward_model(named, tiny_tokenizer, new_modules=new_modules)
    assert new_modules == ["score"] and is_own_classifier(family)

    # the transformer is that of the language model, read at the last token that is no padding
    rows = [[5, 6, 7, 8, 9], [10, 11]]
    rewards = score_sequences(model, rows, pad_token_id=0, batch_size=2)
    transformer = causal.model if family == "llama4_text" else causal.base_model
    with torch.no_grad():
        hidden = [transformer(torch.tensor([row]))[0][0, -1] for row in rows]  # (d,) each
        expected = [model.score(state).item() for state in hidden]
    assert rewards == pytest.approx(expected, abs=1e-5) and rewards[0] != rewards[1]

    # saved, it is read by our loader, and by plain transformers with one product
    model.save_pretrained(tmp_path / "reward")
    assert model.config.architectures[0].endswith("ForSequenceClassification")
    loaded = load_reward_model(ModelConfig(str(tmp_path / "reward")), tiny_tokenizer)
    assert score_sequences(loaded, rows, pad_token_id=0) == pytest.approx(rewards, abs=1e-5)
    body = AutoModel.from_pretrained(tmp_path / "reward").eval()
    score = load_file(tmp_path / "reward" / "model.safetensors")["score.weight"]
    with torch.no_grad():
        plain = body(torch.tensor([rows[0]]))[0][0, -1] @ score.T
    assert plain.item() == pytest.approx(rewards[0], abs=1e-5)


def test_families_of_transformers_keep_their_own_classifier() -> None:
    config = LlamaConfig(vocab_size=30, num_attention_heads=2, **SIZES)
    register_classifier(config)
    made = AutoModelForSequenceClassification.from_config(config)
    assert type(made) is LlamaForSequenceClassification and not is_own_classifier("llama")


def test_an_encoder_decoder_needs_one_end_token_a_text() -> None:
    bart = BartConfig(eos_token_id=2)
    require_equal_ends(bart, [[5, 2], [6, 7, 2]])
    require_equal_ends(LlamaConfig(eos_token_id=2), [[5], [6, 2]])
    with pytest.raises(ConfigError, match="of which these texts hold 0"):
        require_equal_ends(BartConfig(eos_token_id=2, is_encoder_decoder=False), [[5], [6]])
    with pytest.raises(ConfigError, match=r"\(id 2\) of each text, of which these texts hold 0, 1"):
        require_equal_ends(bart, [[5, 2], [6]])


@pytest.mark.parametrize(
    ("start", "options", "words"),
    [(None, {}, "decoder_start_token_id"), (0, {"use_cache": False}, None)],
)
def test_an_encoder_decoder_that_cannot_read_rows_is_refused(
    start: int | None, options: dict, words: str | None
) -> None:
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_heads": 2, "num_layers": 1}
    config = T5Config(vocab_size=40, num_decoder_layers=1, num_labels=1, pad_token_id=0, **sizes)
    if start is not None:
        config.decoder_start_token_id = start
    model = T5ForSequenceClassification(config)

    if words is None:
        refuse_unreadable_rows(model, purpose="give rewards", **options)
        return
    with pytest.raises(ConfigError, match="T5ForSequenceClassification cannot give") as said:
        refuse_unreadable_rows(model, purpose="give rewards", **options)
    assert words in str(said.value) and "\n" not in str(said.value)


def test_a_head_beside_the_layers_of_t5_is_new_and_a_lost_layer_is_not(tmp_path: Path) -> None:
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_heads": 2, "num_layers": 1}
    model = T5ForQuestionAnswering(T5Config(vocab_size=40, num_decoder_layers=1, **sizes))
    refuse_lost_layers(model, ["qa_outputs.weight", "qa_outputs.bias"], "t5")
    with pytest.raises(CheckpointError, match=r"t5 lacks 1 weights, such as encoder\.block\.0"):
        refuse_lost_layers(model, ["qa_outputs.bias", "encoder.block.0.layer.0.weight"], "t5")
