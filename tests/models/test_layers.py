"""Some layers of a model make a smaller one, whose weights are theirs."""

from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    PreTrainedConfig,
    Qwen2Config,
    T5Config,
    T5ForConditionalGeneration,
)

from hfstack.errors import ConfigError
from hfstack.models.layers import keep_layers

SIZES: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}
TOKENS = torch.arange(12)[None]


def make(config: PreTrainedConfig) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen2"])
def test_a_model_of_some_layers_is_the_model_without_the_others(kind: str) -> None:
    config = {
        "llama": LlamaConfig(**SIZES),
        "gpt2": GPT2Config(vocab_size=40, n_embd=8, n_layer=4, n_head=2),
        "qwen2": Qwen2Config(
            **SIZES, use_sliding_window=True, max_window_layers=2, sliding_window=4
        ),
    }[kind]
    model = make(config)
    smaller: Any = keep_layers(model, [1, 3], "--student_layers").eval()
    assert smaller.config.num_hidden_layers == 2 and model.config.num_hidden_layers == 4

    # the other layers taken out by hand give the same logits
    with torch.no_grad():
        found = smaller(TOKENS).logits
        body = model.transformer if kind == "gpt2" else model.model
        name = "h" if kind == "gpt2" else "layers"
        blocks = getattr(body, name)
        setattr(body, name, torch.nn.ModuleList([blocks[1], blocks[3]]))
        model.config.num_hidden_layers = 2
        if kind == "qwen2":
            assert smaller.config.layer_types == ["full_attention", "sliding_attention"]
            model.config.layer_types = [config.layer_types[1], config.layer_types[3]]
        assert torch.allclose(found, model(TOKENS, use_cache=False).logits, atol=1e-6)

    # and it generates by a cache as it reads without one
    cached = smaller.generate(TOKENS, max_new_tokens=4, do_sample=False)
    whole = smaller.generate(TOKENS, max_new_tokens=4, do_sample=False, use_cache=False)
    assert torch.equal(cached, whole)


def test_numbers_that_are_no_layers_and_models_of_two_stacks_are_refused() -> None:
    model = make(LlamaConfig(**SIZES))
    for kept in ([4], [-1, 0], [2, 1], [1, 1]):
        with pytest.raises(ConfigError, match="numbers from 0 to 3, each once and ascending"):
            keep_layers(model, kept, "--student_layers")
    two: Any = T5ForConditionalGeneration(
        T5Config(vocab_size=40, d_model=8, d_kv=4, d_ff=16, num_layers=2, num_heads=2)
    )
    with pytest.raises(ConfigError, match="no single stack of layers"):
        keep_layers(two, [0], "--student_layers")
