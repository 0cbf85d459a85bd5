"""The fused loss equals the stock one in value and gradient, and leaves every other use of a model
alone.
"""

import inspect

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    CohereConfig,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    PreTrainedModel,
    set_seed,
)

import hfstack.models.gru
from hfstack.models.fused_loss import LinearCrossEntropy, use_fused_loss

SIZES = {
    "vocab_size": 61,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}

CONFIGS = {
    "gemma2": Gemma2Config(**SIZES, num_key_value_heads=2, head_dim=8, final_logit_softcapping=0.5),
    "cohere": CohereConfig(**SIZES, num_key_value_heads=2, logit_scale=0.3),
    "gpt_neox": GPTNeoXConfig(**SIZES),
    "bert": BertConfig(**SIZES, **NO_DROPOUT, is_decoder=True),
    "llama-tied": LlamaConfig(
        vocab_size=61,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=32,
        tie_word_embeddings=True,
    ),
    "llama-untied": LlamaConfig(
        vocab_size=61,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=32,
        tie_word_embeddings=False,
    ),
    "gpt2": GPT2Config(
        vocab_size=61,
        n_embd=16,
        n_layer=2,
        n_head=2,
        n_positions=32,
        resid_pdrop=0,
        embd_pdrop=0,
        attn_pdrop=0,
    ),
    "gru": hfstack.models.gru.GRUConfig(vocab_size=61, hidden_size=16, num_hidden_layers=1),
    "lstm-projected": hfstack.models.gru.LSTMConfig(
        vocab_size=61, hidden_size=16, embedding_size=8, num_hidden_layers=1
    ),
}


def build(name: str) -> tuple[PreTrainedModel, PreTrainedModel]:
    set_seed(0)
    stock = AutoModelForCausalLM.from_config(CONFIGS[name])
    fused = AutoModelForCausalLM.from_config(CONFIGS[name])
    fused.load_state_dict(stock.state_dict())
    assert use_fused_loss(fused, chunk=7)
    return stock.train(), fused.train()


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("num_items", [None, 50])
def test_equals_the_stock_loss_and_gradients(name: str, num_items: int | None) -> None:
    stock, fused = build(name)
    tokens = torch.randint(0, 61, (3, 20))
    labels = tokens.clone()
    labels[1, 5:9] = -100
    counted = {} if num_items is None else {"num_items_in_batch": torch.tensor(num_items)}
    expected = stock(input_ids=tokens, labels=labels, **counted).loss
    found = fused(input_ids=tokens, labels=labels, **counted)
    torch.testing.assert_close(found.loss, expected, rtol=1e-5, atol=1e-6)
    assert found.logits is None
    expected.backward()
    found.loss.backward()
    for (parameter, wanted), (_, got) in zip(
        stock.named_parameters(), fused.named_parameters(), strict=True
    ):
        torch.testing.assert_close(got.grad, wanted.grad, rtol=1e-4, atol=1e-6, msg=parameter)


def test_hand_worked_number() -> None:
    # Two tokens, equal logits: the loss of each scored position is ln 2, its gradient +-1/2.
    hidden = torch.zeros(3, 4, requires_grad=True)
    weight = torch.ones(2, 4, requires_grad=True)
    loss = LinearCrossEntropy.apply(hidden, weight, torch.tensor([0, 1, -100]), 2, True)
    assert loss.item() == pytest.approx(2 * 0.6931472)
    loss.backward()
    # both tokens have the same vector
    assert hidden.grad is not None and hidden.grad.abs().max() == 0


def test_nothing_is_scored() -> None:
    _, fused = build("llama-tied")
    loss = fused(
        input_ids=torch.zeros(1, 4, dtype=torch.long),
        labels=torch.full((1, 4), -100),
        num_items_in_batch=1,
    ).loss
    assert loss.item() == 0


def test_evaluation_takes_no_gradient() -> None:
    stock, fused = build("llama-tied")
    tokens = torch.randint(0, 61, (2, 9))
    with torch.no_grad():
        expected = stock.eval()(input_ids=tokens, labels=tokens).loss
        found = fused.eval()(input_ids=tokens, labels=tokens).loss
    torch.testing.assert_close(found, expected)
    assert not found.requires_grad


@pytest.mark.parametrize("trains", [True, False])
def test_a_frozen_head_gets_no_gradient_of_its_size(trains: bool) -> None:
    """Below an adapter only the hidden states have a gradient, the same as with a trained head."""
    set_seed(0)
    hidden, weight = torch.randn(9, 4, requires_grad=True), torch.randn(50, 4)
    weight.requires_grad_(trains)
    targets = torch.randint(50, (9,))

    sizes: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: sizes.append(tensor.numel()) or tensor, lambda tensor: tensor
    ):
        loss = LinearCrossEntropy.apply(hidden, weight, targets, 4, True)
    loss.backward()
    assert sizes == ([36, 200] if trains else [36])
    assert (weight.grad is not None) == trains

    stock = torch.nn.functional.cross_entropy(hidden @ weight.T, targets, reduction="sum")
    (expected,) = torch.autograd.grad(stock, hidden)
    torch.testing.assert_close(hidden.grad, expected)


def test_other_uses_are_untouched() -> None:
    stock, fused = build("llama-tied")
    stock.eval(), fused.eval()
    tokens = torch.randint(3, 61, (2, 9))
    torch.testing.assert_close(fused(input_ids=tokens).logits, stock(input_ids=tokens).logits)
    settings = {
        "max_new_tokens": 5,
        "do_sample": False,
        "pad_token_id": 0,
        "attention_mask": torch.ones_like(tokens),
    }
    assert torch.equal(fused.generate(tokens, **settings), stock.generate(tokens, **settings))


def test_trainer_sees_the_stock_signature() -> None:
    stock, fused = build("llama-tied")
    assert "position_ids" in inspect.signature(fused.forward).parameters
    assert list(inspect.signature(fused.forward).parameters) == list(
        inspect.signature(stock.forward).parameters
    )


def test_bf16_autocast_is_close() -> None:
    stock, fused = build("llama-tied")
    tokens = torch.randint(0, 61, (2, 16))
    with torch.autocast("cpu", torch.bfloat16):
        found = fused(input_ids=tokens, labels=tokens).loss
    assert found.dtype == torch.float32
    torch.testing.assert_close(
        found, stock(input_ids=tokens, labels=tokens).loss, rtol=2e-2, atol=2e-2
    )
    found.backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in fused.parameters())


def test_models_whose_loss_is_more_are_left_alone() -> None:
    from transformers import MixtralConfig

    config = MixtralConfig(
        **SIZES, num_key_value_heads=2, num_local_experts=2, output_router_logits=True
    )
    model = AutoModelForCausalLM.from_config(config)
    ids = torch.tensor([[3, 4, 5]])
    assert not use_fused_loss(model)
    assert model(input_ids=ids, labels=ids).logits is not None
    config.output_router_logits = False
    assert use_fused_loss(AutoModelForCausalLM.from_config(config))
