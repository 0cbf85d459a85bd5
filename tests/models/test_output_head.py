"""The head is found on the model itself: transform, bias, scale and soft cap."""

from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    CohereConfig,
    Gemma2Config,
    GPT2Config,
    GraniteConfig,
    LlamaConfig,
    MiniCPM3Config,
    ModernBertDecoderConfig,
    PreTrainedModel,
    RobertaConfig,
)

from hfstack.models.dropout import training_noise, turn_off_dropout
from hfstack.models.gru import GRUConfig
from hfstack.models.output_head import OutputHead, body_of, find_output_head

SIZES = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
KEYS = {"num_key_value_heads": 2}
LATENT = {
    "kv_lora_rank": 4,
    "q_lora_rank": 4,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 4,
}

# what stands between hidden states and logits in a family
PLAIN = OutputHead(("lm_head",))
HEADS: list[tuple[Any, OutputHead]] = [
    (LlamaConfig(**SIZES, **KEYS), PLAIN),
    (GPT2Config(vocab_size=40, n_embd=16, n_layer=1, n_head=2), PLAIN),
    (CohereConfig(**SIZES, **KEYS, logit_scale=0.25), OutputHead(("lm_head",), 0.25)),
    (GraniteConfig(**SIZES, **KEYS, logits_scaling=8.0), OutputHead(("lm_head",), 0.125)),
    (
        Gemma2Config(**SIZES, **KEYS, head_dim=8, final_logit_softcapping=5.0),
        OutputHead(("lm_head",), 1.0, 5.0),
    ),
    # with modules before the embedding
    (ModernBertDecoderConfig(**SIZES), OutputHead(("lm_head", "decoder"))),
    (
        BertConfig(**SIZES, is_decoder=True),
        OutputHead(("cls.predictions.transform", "cls.predictions.decoder")),
    ),
    (RobertaConfig(**SIZES, is_decoder=True), OutputHead(("lm_head",))),
    (
        GRUConfig(vocab_size=40, hidden_size=16, num_hidden_layers=1, embedding_size=8),
        OutputHead(("head_projection", "lm_head")),
    ),
    (
        MiniCPM3Config(**SIZES, **KEYS, **LATENT, dim_model_base=8),
        OutputHead(("lm_head",), 0.5),
    ),
]


def small(config: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)  # biases are not 0
    return model.eval()


@pytest.mark.parametrize(("config", "expected"), HEADS, ids=[c.model_type for c, _ in HEADS])
def test_heads_are_found_and_give_the_models_logits(config: Any, expected: OutputHead) -> None:
    model = small(config)
    head = find_output_head(model)
    assert head is not None and head.modules == expected.modules
    assert head.scale == pytest.approx(expected.scale, rel=1e-5)
    assert head.cap == (None if expected.cap is None else pytest.approx(expected.cap, rel=1e-5))

    ids = torch.tensor([[5, 6, 7, 8, 9]])
    with torch.no_grad():
        logits = model(input_ids=ids).logits
        hidden = body_of(model)(input_ids=ids).last_hidden_state
        found = head.logits(model, hidden)
    torch.testing.assert_close(found, logits, atol=1e-5, rtol=1e-5)


def test_logits_that_no_head_makes_are_not_claimed() -> None:
    model = small(LlamaConfig(**SIZES, **KEYS))
    plain = model.forward

    def shifted(**inputs: Any) -> Any:
        outputs = plain(**inputs)
        outputs.logits = outputs.logits + outputs.logits.roll(1, dims=-1)
        return outputs

    model.forward = shifted
    assert find_output_head(model) is None


def test_all_dropout_is_switched_off_whatever_its_name() -> None:
    from transformers import BartConfig

    names = ("dropout", "attention_dropout", "activation_dropout", "decoder_layerdrop")
    sizes = {"decoder_layers": 2, "decoder_attention_heads": 2, "decoder_ffn_dim": 32}
    config = BartConfig(
        vocab_size=40, d_model=16, **sizes, **dict.fromkeys(names, 0.4), pad_token_id=0
    )
    model = small(config)
    assert not training_noise(model).holds
    turn_off_dropout(model)
    assert training_noise(model).holds
    assert model.config.dropout == 0.4, "what is saved is as it was"
