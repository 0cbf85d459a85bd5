"""A causal model is trained on the loss of the next token, by its own logits."""

from typing import Any

import pytest
import torch
from datasets import Dataset
from torch.nn.functional import cross_entropy
from transformers import (
    AutoModelForCausalLM,
    BartConfig,
    BertConfig,
    GitConfig,
    GPT2Config,
    Llama4TextConfig,
    LlamaConfig,
    RemBertConfig,
    Trainer,
    TrainingArguments,
    XLNetConfig,
)
from trl.trainer.utils import add_fused_lm_head

from hfstack.errors import ConfigError
from hfstack.models.gru import GRUConfig
from hfstack.training.next_token import settle_next_token_loss, use_own_logits

SIZES: Any = {
    "vocab_size": 60,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
FAMILIES = {
    "gpt2": GPT2Config(**SIZES, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0),
    "bert": BertConfig(
        **SIZES, is_decoder=True, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    ),
    "llama": LlamaConfig(**SIZES),
    "rembert": RemBertConfig(
        **SIZES,
        is_decoder=True,
        input_embedding_size=16,
        output_embedding_size=24,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    ),
    "llama4": Llama4TextConfig(
        **SIZES, num_key_value_heads=2, head_dim=8, num_local_experts=2, intermediate_size_mlp=32
    ),
    # upstream knows the name of neither its class nor its loss
    "gru": GRUConfig(vocab_size=60, hidden_size=16, num_hidden_layers=1, dropout=0.0),
    # its loss scores each token at the place where it was read
    "bart": BartConfig(
        **SIZES,
        d_model=16,
        decoder_layers=1,
        decoder_ffn_dim=32,
        decoder_attention_heads=2,
        dropout=0.0,
        is_encoder_decoder=False,
        is_decoder=True,
    ),
}


def model_of(family: str) -> Any:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(FAMILIES[family])
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:
                weight.normal_(std=0.3)
    return model.eval()


def collate(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    """Pad rows (B, T): the first label is scored, as it is where nothing masks a prompt."""
    width = max(len(row["input_ids"]) for row in rows)
    ids = torch.tensor([row["input_ids"] + [0] * (width - len(row["input_ids"])) for row in rows])
    return {
        "input_ids": ids,
        "attention_mask": (ids != 0).long(),
        "labels": ids.masked_fill(ids == 0, -100),
    }


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_logged_loss_is_the_mean_over_what_follows(
    family: str, smoothing: float, tmp_path
) -> None:
    lengths = (5, 9, 3, 12)  # unequal rows, in parts of two
    generator = torch.Generator().manual_seed(1)
    rows = [
        {"input_ids": torch.randint(3, 60, (length,), generator=generator).tolist()}
        for length in lengths
    ]
    model = model_of(family)
    total = 0.0
    for row in rows:
        ids = torch.tensor(row["input_ids"])
        with torch.no_grad():
            logits = model(input_ids=ids[None], use_cache=False).logits[0]
        kind: dict[str, Any] = {"reduction": "sum", "label_smoothing": smoothing}
        total += float(cross_entropy(logits[:-1], ids[1:], **kind))
    expected = total / sum(length - 1 for length in lengths)

    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(tmp_path),
            max_steps=1,
            logging_steps=1,
            save_strategy="no",
            per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
            label_smoothing_factor=smoothing,
            use_cpu=True,
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False,
        ),
        train_dataset=Dataset.from_list(rows),
        eval_dataset=Dataset.from_list(rows[:1]),
        data_collator=collate,
    )
    settle_next_token_loss(trainer)
    held_out = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(expected, rel=1e-5)

    # evaluation is of the same loss
    ids = torch.tensor(rows[0]["input_ids"])
    with torch.no_grad():
        logits = model_of(family)(input_ids=ids[None], use_cache=False).logits[0]
    expected = float(cross_entropy(logits[:-1], ids[1:], label_smoothing=smoothing))
    assert held_out == pytest.approx(expected, rel=1e-5)


def test_a_model_that_reads_ahead_is_refused(tmp_path) -> None:
    torch.manual_seed(0)
    config = XLNetConfig(vocab_size=60, d_model=16, n_layer=1, n_head=2, d_inner=32)
    trainer = Trainer(
        model=AutoModelForCausalLM.from_config(config),
        args=TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none"),
    )
    with pytest.raises(ConfigError, match="XLNetLMHeadModel reads what follows a position"):
        settle_next_token_loss(trainer)


def test_a_model_that_scores_tokens_only_behind_pictures_is_refused(tmp_path) -> None:
    torch.manual_seed(0)
    vision = SIZES | {"image_size": 8, "patch_size": 4}
    trainer = Trainer(
        model=AutoModelForCausalLM.from_config(GitConfig(**SIZES, vision_config=vision)),
        args=TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none"),
    )
    with pytest.raises(ConfigError, match="GitForCausalLM computes no loss of tokens") as refusal:
        settle_next_token_loss(trainer)
    assert "\n" not in str(refusal.value) and "name another model" in str(refusal.value)


def test_trls_head_is_kept_where_it_gives_the_models_logits() -> None:
    model = model_of("llama")
    add_fused_lm_head(model)
    assert not use_own_logits(model)
    assert use_own_logits(model, temperature=0.5), "the head divides by another temperature"


def test_bert_is_scored_by_its_own_logits() -> None:
    model, temperature = model_of("bert"), 0.7
    fields = ("log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1")
    add_fused_lm_head(model, temperature=temperature, outputs=fields)
    ids = torch.tensor([[5, 6, 7, 8, 9], [9, 8, 7, 6, 5]])
    labels = ids.clone()
    labels[0, :3] = -100
    with torch.no_grad():
        before = model(input_ids=ids, labels=labels, fused_lm_head=True).log_probs
        logits = model(input_ids=ids).logits[:, :-1] / temperature  # (B, T - 1, V)
        assert use_own_logits(model, temperature=temperature)
        found = model(input_ids=ids, labels=labels, fused_lm_head=True, num_items_in_batch=5)

    targets, scored = labels[:, 1:].clamp_min(0), labels[:, 1:] != -100
    shares = logits.softmax(dim=-1)
    expected = shares.gather(-1, targets[..., None])[..., 0].log() * scored
    assert (before - expected).abs().max() > 0.1, "TRL's head leaves BERT's transform out"
    torch.testing.assert_close(found.log_probs, expected)
    torch.testing.assert_close(found.loss, -expected.sum() / 5)
    torch.testing.assert_close(found.entropy, -(shares * shares.log()).sum(-1) * scored)
    torch.testing.assert_close(found.log_sum_sq_probs, (shares**2).sum(-1).log() * scored)
    torch.testing.assert_close(found.mean_logits, logits.mean(-1) * scored)
    assert torch.equal(found.is_top1, (logits.argmax(-1) == targets) & scored)
    assert torch.equal(found.label_mask, scored)


@pytest.mark.parametrize("family", ["llama4", "rembert"])
def test_a_model_that_trls_head_does_not_fit_is_scored_by_its_own_logits(family: str) -> None:
    model = model_of(family)
    add_fused_lm_head(model)
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    assert use_own_logits(model)
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0, :-1]  # (T - 1, V)
        found = model(input_ids=ids, labels=ids, fused_lm_head=True)
    torch.testing.assert_close(found.loss, cross_entropy(logits, ids[0, 1:]))


def test_the_fields_are_those_of_trls_head() -> None:
    fields = ("log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1")
    theirs, ours = model_of("gpt2"), model_of("gpt2")
    add_fused_lm_head(theirs, outputs=fields)
    add_fused_lm_head(ours, temperature=3.0)
    assert use_own_logits(ours)

    ids = torch.tensor([[5, 6, 7, 8, 9], [9, 8, 7, 6, 5]])
    labels = ids.masked_fill(ids == 8, -100)
    expected = theirs(input_ids=ids, labels=labels, fused_lm_head=True)
    found = ours(input_ids=ids, labels=labels, fused_lm_head=True)
    for name in ("loss", *fields, "label_mask"):
        torch.testing.assert_close(found[name], expected[name])

    # and so are the gradients
    for outputs in (expected, found):
        (outputs.log_probs.sum() + outputs.entropy.sum()).backward()
    for one, other in zip(theirs.parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-4)
