"""Actor and critic in one module: padding changes nothing, adapters stay apart, checkpointing
recomputes the same.
"""

from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    BertConfig,
    BertLMHeadModel,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    OPTConfig,
    set_seed,
)

from hfstack.errors import ConfigError
from hfstack.tasks.rl.ppo.actor_critic import ActorCritic, use_adapter
from hfstack.tasks.rl.ppo.batching import Sequences, score_completions
from tests.tiny_ppo import architecture, lora

CPU = torch.device("cpu")


def some_sequences() -> Sequences:
    generator = torch.Generator().manual_seed(0)

    def tokens(count: int) -> torch.Tensor:
        return torch.randint(2, 250, (count,), generator=generator)

    lengths = [(3, 5), (9, 2), (1, 7), (6, 1), (12, 4)]
    pairs = [(tokens(prompt), tokens(completion)) for prompt, completion in lengths]
    return Sequences.join(
        [prompt.tolist() for prompt, _ in pairs], [completion for _, completion in pairs], 1
    )


def tables(
    actor_critic: ActorCritic,
    sequences: Sequences,
    *,
    reference: bool = False,
    max_tokens: int | None = None,
):
    wanted = ("log_probs",) if reference else ("log_probs", "values", "entropies")
    with torch.no_grad():
        return score_completions(
            lambda batch: actor_critic(*batch, wanted=wanted, reference=reference),
            sequences,
            device=CPU,
            max_tokens=max_tokens,
        )


@pytest.mark.parametrize("name", ["llama", "gpt2", "gru"])
def test_padding_and_chunks_change_nothing(name: str, tiny_tokenizer, tiny_llama: Path):
    model = architecture(name, tiny_tokenizer, tiny_llama)
    actor_critic = ActorCritic(model, head_init_std=0.3).eval()
    sequences = some_sequences()
    found = tables(actor_critic, sequences)
    for row, tokens in enumerate(sequences.tokens):
        count, first = int(sequences.completion_lengths[row]), int(sequences.prompt_lengths[row])
        with torch.no_grad():
            logits = model(input_ids=tokens[None]).logits[0]  # alone, no padding at all
        expected = logits[first - 1 : -1].log_softmax(-1).gather(1, tokens[first:, None])[:, 0]
        assert torch.allclose(found["log_probs"][row, :count], expected, atol=2e-5)
    for max_tokens in (8, 24, 10_000):
        again = tables(actor_critic, sequences, max_tokens=max_tokens)
        for one, values in found.items():
            assert torch.allclose(again[one], values, atol=2e-5), one


@pytest.mark.parametrize("critic", ["shared", "separate"])
def test_states_that_are_projected_have_values(critic: str):
    """OPT's last hidden states are as wide as its embeddings, not as its layers."""
    config = OPTConfig(
        vocab_size=250,
        hidden_size=32,
        word_embed_proj_dim=16,
        ffn_dim=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=32,
    )
    backbone = AutoModel.from_config(config) if critic == "separate" else None
    policy = AutoModelForCausalLM.from_config(config)
    actor_critic = ActorCritic(policy, critic=critic, backbone=backbone, head_init_std=0.3).eval()
    found = tables(actor_critic, some_sequences())
    assert found["values"].std() > 0


@pytest.mark.parametrize("critic", ["shared", "separate"])
def test_gradients_reach_what_they_should(critic: str, tiny_llama: Path):
    policy = AutoModelForCausalLM.from_pretrained(tiny_llama)
    backbone = AutoModel.from_pretrained(tiny_llama) if critic == "separate" else None
    actor_critic = ActorCritic(policy, critic=critic, backbone=backbone, head_init_std=0.3)
    batch = some_sequences().pack([0, 1], CPU)

    def trunk_moves(**settings: bool) -> bool:
        actor_critic.zero_grad()
        actor_critic(*batch, wanted=("values",), **settings).values.sum().backward()
        return any(
            p.grad is not None and p.grad.abs().sum() > 0 for p in actor_critic.policy.parameters()
        )

    assert trunk_moves() == (critic == "shared")
    assert not trunk_moves(detach_value=True)
    assert actor_critic.v_head.weight.grad is not None


def test_adapters_stay_apart_and_the_reference_is_the_bare_model(tiny_llama: Path):
    set_seed(0)
    bare = ActorCritic(AutoModelForCausalLM.from_pretrained(tiny_llama)).eval()
    policy = get_peft_model(
        AutoModelForCausalLM.from_pretrained(tiny_llama), lora(init_lora_weights=False)
    )
    policy.add_adapter("critic", lora(init_lora_weights=False))
    actor_critic = ActorCritic(policy, critic="adapter", head_init_std=0.3).eval()
    trained = {name: parameter.requires_grad for name, parameter in actor_critic.named_parameters()}
    sequences = some_sequences()
    expected = tables(bare, sequences, reference=False)["log_probs"]
    assert torch.equal(tables(actor_critic, sequences, reference=True)["log_probs"], expected)
    assert not torch.allclose(tables(actor_critic, sequences)["log_probs"], expected, atol=1e-3)
    with torch.no_grad(), use_adapter(policy, "critic"):
        hidden = (
            policy.get_base_model().model(input_ids=sequences.tokens[0][None]).last_hidden_state[0]
        )
        first = int(sequences.prompt_lengths[0])
        values = actor_critic.v_head(hidden[first - 1 : -1])[:, 0]
    assert torch.allclose(
        tables(actor_critic, sequences)["values"][0, : len(values)], values, atol=1e-5
    )
    assert trained == {
        name: parameter.requires_grad for name, parameter in actor_critic.named_parameters()
    }


@pytest.mark.parametrize("critic", ["adapter", "separate", "shared"])
def test_activation_checkpointing_changes_no_gradient(critic: str, tiny_llama: Path):
    batch = some_sequences().pack([0, 1, 2], CPU)
    found = []
    for checkpoints in (False, True):
        set_seed(0)
        policy = AutoModelForCausalLM.from_pretrained(tiny_llama)
        if critic == "adapter":
            policy = get_peft_model(policy, lora(init_lora_weights=False))
            policy.add_adapter("critic", lora(init_lora_weights=False))
            for name, parameter in policy.named_parameters():
                parameter.requires_grad_("lora" in name)
        backbone = AutoModel.from_pretrained(tiny_llama) if critic == "separate" else None
        actor_critic = ActorCritic(
            policy, critic=critic, backbone=backbone, head_init_std=0.3
        ).train()
        if checkpoints:
            actor_critic.activation_checkpointing_enable()
        scores = actor_critic(*batch)
        (scores.log_probs.sum() + (scores.values**2).sum()).backward()
        found.append(
            {name: p.grad for name, p in actor_critic.named_parameters() if p.grad is not None}
        )
    assert found[0].keys() == found[1].keys() and len(found[0]) > 4
    assert all(torch.allclose(found[0][name], found[1][name], atol=1e-6) for name in found[0])
    with pytest.raises(ConfigError, match="use_reentrant true does not work"):
        actor_critic.activation_checkpointing_enable({"use_reentrant": True})


def test_capped_logits_are_the_models_own():
    set_seed(0)
    config = Gemma2Config(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        final_logit_softcapping=0.05,
    )
    actor_critic = ActorCritic(Gemma2ForCausalLM(config))
    actor_critic.check_head()
    hidden = torch.randn(3, 16)
    assert (
        actor_critic._logits(hidden).abs().max()
        <= 0.05
        < actor_critic.base.lm_head(hidden).abs().max()
    )


def test_models_that_cannot_generate_are_refused(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ConfigError, match="LlamaModel has no language-model head"):
        ActorCritic(AutoModel.from_pretrained(tiny_llama))
    actor_critic = ActorCritic(AutoModelForCausalLM.from_pretrained(tiny_llama))
    actor_critic.check_head()
    set_seed(0)
    sizes = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
    }
    encoder = BertLMHeadModel(BertConfig(vocab_size=64, initializer_range=0.5, **sizes))
    with pytest.raises(
        ConfigError, match="BertLMHeadModel attends in both directions, so it cannot generate"
    ):
        ActorCritic(encoder).check_head()
    dropped = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=2)).train()
    ActorCritic(dropped).check_head()
    assert dropped.training
    policy = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_llama), lora())
    policy.add_adapter("second", lora())
    policy.base_model.set_adapter(["default", "second"])
    with pytest.raises(ConfigError, match="PPO trains one adapter of weights"):
        ActorCritic(policy)
