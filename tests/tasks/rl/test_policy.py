"""What TRL's online trainers would train wrongly is refused before the first step."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel, set_seed
from trl import ModelConfig

from hfstack.errors import CheckpointError, ConfigError
from hfstack.tasks.rl.policy import (
    check_reference,
    check_starting_model,
    left_padding_difference,
    prepare_policy,
)


@pytest.fixture
def llama(tiny_llama: Path) -> tuple[Any, Any]:
    return AutoModelForCausalLM.from_pretrained(tiny_llama), AutoTokenizer.from_pretrained(
        tiny_llama
    )


@pytest.fixture
def gpt2(tiny_tokenizer) -> GPT2LMHeadModel:
    """Learned absolute positions; untrained ones are small, and are still found apart from
    rounding."""
    set_seed(0)
    size = len(tiny_tokenizer)
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=size, n_positions=64, n_embd=32, n_layer=2, n_head=2)
    )


def test_left_padding_matters_to_absolute_positions_alone(
    llama: tuple[Any, Any], gpt2: GPT2LMHeadModel
) -> None:
    difference, tolerance = left_padding_difference(llama[0])
    assert difference < tolerance / 10
    difference, tolerance = left_padding_difference(gpt2)
    assert difference > tolerance
    assert gpt2.training == GPT2LMHeadModel(gpt2.config).training, (
        "the model is left in the mode it had"
    )


def test_rounding_in_16_bits_is_no_reason_to_refuse(llama: tuple[Any, Any]) -> None:
    difference, tolerance = left_padding_difference(llama[0].to(torch.bfloat16))
    assert difference < tolerance


def test_gpt2_is_refused_in_one_line(gpt2: GPT2LMHeadModel, tiny_tokenizer) -> None:
    with pytest.raises(
        ConfigError, match=r"runs/gpt2: padding on the left changes .* absolute position embeddings"
    ):
        prepare_policy(gpt2, tiny_tokenizer, "runs/gpt2")


def test_trls_log_probabilities_of_gpt2_are_wrong_under_left_padding(gpt2: GPT2LMHeadModel) -> None:
    """The reason for the refusal: the positions start at the padding, as TRL passes no
    position_ids.
    """
    gpt2.eval()
    ids, padding = torch.arange(2, 12)[None], torch.zeros((1, 6), dtype=torch.long)
    mask = torch.cat([padding, torch.ones_like(ids)], dim=1)
    bare = gpt2(input_ids=ids).logits
    padded = gpt2(input_ids=torch.cat([padding, ids], 1), attention_mask=mask)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    repaired = gpt2(
        input_ids=torch.cat([padding, ids], 1), attention_mask=mask, position_ids=positions
    )
    assert not torch.allclose(padded.logits[:, 6:], bare, atol=1e-3)
    assert torch.allclose(repaired.logits[:, 6:], bare, atol=1e-5)


def test_a_policy_without_weights_or_ending_is_refused(
    llama: tuple[Any, Any], tmp_path: Path
) -> None:
    model, tokenizer = llama
    prepare_policy(model, tokenizer, "runs/sft")
    with pytest.raises(CheckpointError, match="has no weights"):
        check_starting_model("recipes/architectures/llama-5m.json")
    (tmp_path / "adapter_config.json").write_text(
        '{"task_type": "CAUSAL_LM", "base_model_name_or_path": "runs/base"}'
    )
    policy = ModelConfig(model_name_or_path=str(tmp_path))
    with pytest.raises(CheckpointError, match="measured to its base runs/base instead of to it"):
        check_reference(policy, beta=0.05)
    check_reference(policy, beta=0.0)
    check_reference(replace(policy, use_peft=True), beta=0.05)
    tokenizer.eos_token = None
    model.generation_config.eos_token_id = None
    with pytest.raises(ConfigError, match="no answer would ever end"):
        prepare_policy(model, tokenizer, "runs/sft")
