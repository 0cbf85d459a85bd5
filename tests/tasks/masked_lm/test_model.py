"""The head at masked positions alone: equal losses and gradients, right means, and what is
refused."""

import copy

import pytest
import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    DistilBertConfig,
    DistilBertForMaskedLM,
    ModernBertConfig,
    ModernBertForMaskedLM,
    RobertaConfig,
    RobertaForMaskedLM,
    set_seed,
)

from hfstack.errors import ConfigError
from hfstack.models.context import context_length
from hfstack.models.counting import measure_forward_flops
from hfstack.tasks.masked_lm.model import (
    check_masked_model,
    score_only_masked,
    training_flops_per_token,
)
from hfstack.tokens.special_tokens import IGNORED_LABEL

SIZES = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 34,
    "pad_token_id": 1,
}
QUIET = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def build(kind: str):
    set_seed(0)
    match kind:
        case "bert":
            return BertForMaskedLM(BertConfig(**SIZES, **QUIET))
        case "roberta":
            return RobertaForMaskedLM(RobertaConfig(**SIZES, **QUIET))
        case "distilbert":
            return DistilBertForMaskedLM(
                DistilBertConfig(
                    vocab_size=50,
                    dim=16,
                    hidden_dim=32,
                    n_layers=1,
                    n_heads=2,
                    dropout=0.0,
                    attention_dropout=0.0,
                )
            )
        case _:
            return ModernBertForMaskedLM(
                ModernBertConfig(
                    **SIZES, cls_token_id=2, sep_token_id=3, bos_token_id=2, eos_token_id=3
                )
            )


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(4, 50, (3, 20), generator=generator)
    scored = torch.rand(3, 20, generator=generator) < 0.2
    return {"input_ids": tokens, "labels": torch.where(scored, tokens, IGNORED_LABEL)}


@pytest.mark.parametrize(
    ("kind", "sparse"),
    [("bert", True), ("roberta", True), ("modernbert", True), ("distilbert", False)],
)
def test_loss_and_gradients_equal_the_stock_models(kind: str, sparse: bool, batch) -> None:
    stock = build(kind).train()
    ours = copy.deepcopy(stock)
    assert score_only_masked(ours) is sparse
    losses = [model(**batch).loss for model in (stock, ours)]
    torch.testing.assert_close(losses[1], losses[0])
    for loss in losses:
        loss.backward()
    expected = dict(stock.named_parameters())
    for name, parameter in ours.named_parameters():
        if (wanted := expected[name].grad) is not None:
            torch.testing.assert_close(parameter.grad, wanted, atol=1e-6, rtol=1e-4)
    assert ours(**batch).counts is None
    torch.testing.assert_close(
        ours(input_ids=batch["input_ids"]).logits, stock(input_ids=batch["input_ids"]).logits
    )


def test_evaluation_counts_by_hand(batch) -> None:
    model = build("bert").eval()
    logits = model(input_ids=batch["input_ids"]).logits
    score_only_masked(model)
    counts = model(**batch).counts
    for row in range(3):
        here = batch["labels"][row] != IGNORED_LABEL
        targets = batch["labels"][row][here]
        expected = torch.nn.functional.cross_entropy(logits[row][here], targets, reduction="sum")
        right = (logits[row][here].argmax(-1) == targets).sum()
        assert counts[row].tolist() == pytest.approx(
            [expected.item(), right.item(), here.sum().item()], rel=1e-5
        )


def test_parts_of_a_step_add_up_to_the_mean_over_its_tokens(batch) -> None:
    model = build("bert").train()
    score_only_masked(model)
    whole = model(**batch).loss
    total = (batch["labels"] != IGNORED_LABEL).sum()
    parts = [
        model(**{k: v[i : i + 1] for k, v in batch.items()}, num_items_in_batch=total).loss
        for i in range(3)
    ]
    torch.testing.assert_close(sum(parts), whole)


def test_flops_of_the_whole_head_are_what_torch_counts() -> None:
    model = build("bert")
    counted = 3 * measure_forward_flops(model.config, 20) / 20
    assert training_flops_per_token(model, 20, scored_share=1.0) == pytest.approx(counted)
    assert training_flops_per_token(model, 20, scored_share=0.15) < counted
    assert model.num_parameters() == sum(p.numel() for p in model.parameters())


def test_what_an_encoder_can_read() -> None:
    bert, roberta = build("bert"), build("roberta")
    assert (context_length(bert.config), context_length(roberta.config)) == (34, 32)
    roberta(input_ids=torch.full((1, 32), 5))
    with pytest.raises(
        ConfigError, match="--block_size 33 is longer than the model's context of 32 tokens"
    ):
        check_masked_model(roberta, block_size=33, isolate_documents=False)
    bert.config._attn_implementation = "eager"
    with pytest.raises(ConfigError, match="--isolate_documents needs attention sdpa, not eager"):
        check_masked_model(bert, block_size=8, isolate_documents=True)
    with pytest.raises(ConfigError, match="would replace the local attention of modernbert"):
        check_masked_model(build("modernbert"), block_size=8, isolate_documents=True)


def test_an_isolated_document_is_read_as_if_alone() -> None:
    model = build("bert").eval()
    tokens = torch.randint(4, 50, (1, 12), generator=torch.Generator().manual_seed(0))
    document = torch.tensor([0] * 5 + [1] * 7)
    mask = (document[:, None] == document[None, :])[None, None]
    alone = model(input_ids=tokens[:, :5]).logits
    torch.testing.assert_close(model(input_ids=tokens, attention_mask=mask).logits[:, :5], alone)
