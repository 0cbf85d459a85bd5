"""Packed documents are kept apart by positions, or by a mask, or are refused."""

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    FalconMambaConfig,
    GptOssConfig,
    LlamaConfig,
    OPTConfig,
    PreTrainedConfig,
    PreTrainedModel,
)
from trl.trainer.utils import add_fused_lm_head

from hfstack.errors import ConfigError
from hfstack.models.fused_loss import use_fused_loss
from hfstack.models.gru import GRUConfig
from hfstack.models.isolation import document_mask, isolate_documents, keep_documents_apart
from hfstack.tasks.sft.packing import PackedCollator
from tests.packed_rows import FIRST, SECOND, packed_row

SIZES = {
    "vocab_size": 60,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def small(config: PreTrainedConfig, **loading: Any) -> PreTrainedModel:
    """A model with large weights, so that a document shows in the next one's logits."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, **loading)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:
                weight.normal_(std=0.3)
    return model.eval()


def opt() -> PreTrainedModel:
    return small(OPTConfig(**SIZES, ffn_dim=32, word_embed_proj_dim=16))


def gpt_oss() -> PreTrainedModel:
    experts = {"num_local_experts": 2, "num_experts_per_tok": 1, "intermediate_size": 16}
    return small(
        GptOssConfig(**SIZES, **experts, num_key_value_heads=2, head_dim=8, sliding_window=4)
    )


def apart(model: PreTrainedModel) -> tuple[torch.Tensor, torch.Tensor]:
    """The logits of a document alone, and in a packed row as training reads it."""
    collate = PackedCollator(pad_id=0)
    alone, packed = collate([packed_row(SECOND)]), collate([packed_row(FIRST, SECOND)])
    with torch.no_grad():
        after = model(**packed, use_cache=False).logits[0, len(FIRST) :]
        return model(**alone, use_cache=False).logits[0], after


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_most_decoders_read_restarting_positions(attention: str) -> None:
    llama = small(LlamaConfig(**SIZES, intermediate_size=32), attn_implementation=attention)
    assert keep_documents_apart(llama, "--packing", longest=64) == "positions"
    torch.testing.assert_close(*apart(llama), atol=1e-5, rtol=0)

    # an attention mask of ones undoes it
    batch = PackedCollator(pad_id=0)([packed_row(FIRST, SECOND)])
    ones = torch.ones_like(batch["input_ids"])
    leaking = llama(**batch, attention_mask=ones, use_cache=False).logits[0, len(FIRST) :]
    assert (leaking - apart(llama)[0]).abs().max() > 0.1


def test_a_recurrent_model_forgets_at_a_restart() -> None:
    gru = small(GRUConfig(vocab_size=40, hidden_size=16, num_hidden_layers=1))
    assert keep_documents_apart(gru, "--packing", longest=64) == "positions"
    torch.testing.assert_close(*apart(gru), atol=1e-6, rtol=0)
    carried = gru(input_ids=torch.tensor([FIRST + SECOND])).logits[0, len(FIRST) :]
    assert (carried - apart(gru)[0]).abs().max() > 1e-3


@pytest.mark.parametrize("build", [opt, gpt_oss])
def test_others_get_a_mask_between_documents(build: Any) -> None:
    model = build()
    before = (apart(model)[0] - apart(model)[1]).abs().max()
    assert before > 0.01, "documents read each other"
    assert keep_documents_apart(model, "--packing", longest=64) == "mask"
    torch.testing.assert_close(*apart(model), atol=1e-5, rtol=0)


def test_the_mask_is_in_the_loss_under_an_adapter_and_in_16_bits() -> None:
    adapted = get_peft_model(opt(), LoraConfig(target_modules=["q_proj"])).eval()
    assert keep_documents_apart(adapted, "--packing", longest=64) == "mask"
    torch.testing.assert_close(*apart(adapted), atol=1e-5, rtol=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        alone, packed = apart(adapted)
    assert (alone - packed).abs().max() < 0.02 * alone.abs().max()


@pytest.mark.parametrize("build", [opt, gpt_oss])
def test_a_packed_rows_loss_is_that_of_its_documents(build: Any) -> None:
    # by our head, and by the one that TRL's trainers put on a model
    ours, theirs = build(), build()
    use_fused_loss(ours)
    isolate_documents(ours, block_size=64)
    keep_documents_apart(theirs, "--packing", longest=64)
    add_fused_lm_head(theirs)

    for model, options in ((ours, {}), (theirs, {"fused_lm_head": True})):
        losses = []
        for first in (FIRST, FIRST[::-1]):
            batch = PackedCollator(pad_id=0)([packed_row(first, SECOND)])
            batch["labels"][:, : len(first)] = -100
            losses.append(model(**batch, **options).loss.item())
        assert losses[0] == pytest.approx(losses[1], abs=1e-6)


def test_a_state_that_runs_on_is_refused() -> None:
    sizes = {"state_size": 4, "time_step_rank": 4, "intermediate_size": 32}
    model = small(FalconMambaConfig(**{**SIZES, **sizes}))
    with pytest.raises(ConfigError, match="--packing; in a packed row of FalconMambaForCausalLM"):
        keep_documents_apart(model, "--packing", longest=64)
    assert "forward" not in vars(model), "the model is left as it was"


def test_flash_attention_reads_positions_in_batches_of_one() -> None:
    llama = small(LlamaConfig(**SIZES, intermediate_size=32))
    isolate_documents(llama, block_size=64)
    llama.config._attn_implementation_internal = "flash_attention_2"
    with pytest.raises(
        ConfigError, match="does not hold with --attn_implementation flash_attention_2; use sdpa"
    ):
        isolate_documents(llama, block_size=64)


def test_the_mask_of_two_documents() -> None:
    kept = document_mask(torch.tensor([[0, 1, 0, 1]]))[0, 0]
    assert kept.int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]
