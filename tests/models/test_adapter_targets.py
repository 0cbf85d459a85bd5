"""Adapters are put on what PEFT takes in a family, or refused in one line."""

import pytest
import torch
from peft import LoraConfig
from transformers import (
    AutoModelForCausalLM,
    FalconMambaConfig,
    LlamaConfig,
    MixtralConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

from hfstack.errors import ConfigError
from hfstack.models.adapter_targets import fit_adapter, linear_layers

SIZES = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 1, "intermediate_size": 32}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 2}


def model_of(config: PreTrainedConfig) -> PreTrainedModel:
    return AutoModelForCausalLM.from_config(config)


def all_linear(dropout: float = 0.05) -> LoraConfig:
    return LoraConfig(target_modules="all-linear", lora_dropout=dropout, task_type="CAUSAL_LM")


def test_what_fits_is_left_as_it_was_asked_for() -> None:
    llama = model_of(LlamaConfig(**SIZES, **HEADS))
    config = all_linear()
    assert fit_adapter(config, llama) is config
    assert "lm_head" not in linear_layers(llama) and len(linear_layers(llama)) == 7


def test_experts_are_left_out_where_dropout_cannot_be_on_them() -> None:
    mixtral = model_of(MixtralConfig(**SIZES, **HEADS, num_local_experts=2, num_experts_per_tok=1))
    narrowed = fit_adapter(all_linear(), mixtral)
    kept = {f"model.layers.0.self_attn.{part}_proj" for part in "qkvo"}
    assert narrowed.target_modules == kept
    without_dropout = all_linear(dropout=0.0)
    assert fit_adapter(without_dropout, mixtral) is without_dropout


def test_a_state_space_keeps_its_output_projection_to_itself() -> None:
    mamba = model_of(FalconMambaConfig(**SIZES, state_size=4, time_step_rank=4))
    targets = fit_adapter(all_linear(), mamba).target_modules
    assert {name.rpartition(".")[2] for name in targets} == {"in_proj", "x_proj", "dt_proj"}
    with pytest.raises(ConfigError, match="PEFT cannot put this adapter on FalconMamba"):
        fit_adapter(LoraConfig(target_modules=["out_proj"]), mamba)


def test_layers_that_compute_in_their_own_way_are_left_out() -> None:
    """DeepSeek-V4's grouped projection is a `Linear` whose output has another shape."""

    class Grouped(torch.nn.Linear):
        __module__ = "transformers.models.some_family"

        def forward(self, states: torch.Tensor, /) -> torch.Tensor:
            return super().forward(states).relu()

    llama = model_of(LlamaConfig(**SIZES, **HEADS))
    llama.get_submodule("model.layers.0.self_attn").o_proj = Grouped(16, 16)
    targets = fit_adapter(all_linear(), llama).target_modules
    assert len(targets) == 6 and not any(name.endswith("o_proj") for name in targets)
