"""The loss of routers is trained where a model has one, and not asked of generate."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    DeepseekV4Config,
    DogeConfig,
    GraniteMoeConfig,
    MixtralConfig,
)

from hfstack.errors import ConfigError
from hfstack.training.experts import name_experts, settle_router_loss

SIZES = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}


def trainer_of(config: Any, weight: float | None = None) -> Any:
    """What TRL's trainers leave behind: the request is in the model's configuration."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    model.config.output_router_logits = True
    return SimpleNamespace(
        model=model,
        accelerator=SimpleNamespace(unwrap_model=lambda model: model),
        args=SimpleNamespace(router_aux_loss_coef=weight),
        aux_loss_enabled=True,
        router_aux_loss_coef=0.001,
        is_fsdp_enabled=False,
        is_deepspeed_enabled=False,
    )


def test_a_mixture_keeps_its_loss_and_can_generate() -> None:
    trainer = trainer_of(MixtralConfig(**SIZES, num_local_experts=2, num_experts_per_tok=1))
    ids = torch.tensor([[5, 6, 7]])
    settle_router_loss(trainer)
    assert trainer.aux_loss_enabled
    assert not trainer.model.config.output_router_logits
    assert trainer.model.generate(ids, max_new_tokens=3, do_sample=False).shape == (1, 6)
    # TRL asks with each batch, and gets the loss
    outputs = trainer.model(ids, attention_mask=torch.ones_like(ids), output_router_logits=True)
    assert outputs.aux_loss.item() > 0


def test_trl_finds_the_number_of_experts_and_the_family_saves_its_own_name() -> None:
    trainer = trainer_of(GraniteMoeConfig(**SIZES, num_local_experts=2, num_experts_per_tok=1))
    settle_router_loss(trainer)
    assert trainer.aux_loss_enabled and trainer.model.config.num_experts == 2
    saved = trainer.model.config.to_dict()
    assert saved["num_local_experts"] == 2 and "num_experts" not in saved


def test_a_model_without_such_a_loss_is_trained_without_it() -> None:
    trainer = trainer_of(DogeConfig(**SIZES))  # its layers are dense by default
    settle_router_loss(trainer)
    assert not trainer.aux_loss_enabled and not trainer.model.config.output_router_logits

    asked = trainer_of(DogeConfig(**SIZES), weight=0.01)
    with pytest.raises(ConfigError, match="--router_aux_loss_coef 0.01: DogeForCausalLM computes"):
        settle_router_loss(asked)


def test_the_number_of_experts_is_found_behind_an_alias() -> None:
    config = DeepseekV4Config(n_routed_experts=4)
    name_experts(config)
    assert getattr(config, "num_experts") == config.num_local_experts == 4  # noqa: B009
