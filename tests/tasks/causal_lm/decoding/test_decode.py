"""A completion is the same whichever others are decoded beside it, before it or after it."""

from functools import partial
from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GemmaConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
)

from hfstack.tasks.causal_lm.decoding import decode, slots
from hfstack.tasks.causal_lm.decoding.decode import Completions, Decoder
from hfstack.tasks.causal_lm.decoding.draw import SamplingSettings
from hfstack.tasks.causal_lm.decoding.slots import layers_of_keys_and_values
from hfstack.tasks.rl.ppo.actor_critic import ActorCritic

VOCABULARY, STOPS, LONGEST = 60, (0, 3), 24
SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
}
WINDOW = 5
CONFIGS = {
    "rotary": lambda: LlamaConfig(**SMALL),
    "learned positions": lambda: GPT2Config(
        vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=2, n_positions=64
    ),
    "a sliding window": lambda: MistralConfig(**SMALL, sliding_window=WINDOW),
    "some layers with a window": lambda: AutoConfig.for_model(
        "gemma2", **SMALL, sliding_window=WINDOW, query_pre_attn_scalar=8
    ),
}


def policy(name: str) -> ActorCritic:
    """Untrained, and sure enough of itself that wrong keys would change its tokens."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[name]())
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return ActorCritic(model, head_init_std=0.3).eval()


def prompts(count: int = 30) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(1, 14, (count // 2,), generator=generator).tolist()
    each = [torch.randint(4, 60, (length,), generator=generator).tolist() for length in lengths]
    return [one for one in each for _ in range(2)]  # groups of two


def run(
    actor_critic: ActorCritic, asked: list[list[int]], **changes: Any
) -> tuple[Completions, list]:
    """Decode with the same seed; return the shapes of the steps as well."""
    shapes: list[tuple[int, ...]] = []
    plain = partial(actor_critic.decode_step, with_values=True)

    def step(tokens: torch.Tensor, *given: Any, **named: Any) -> Any:
        shapes.append(tuple(tokens.shape))
        return plain(tokens, *given, **named)

    chosen = {"max_new_tokens": LONGEST, "stop_token_ids": STOPS, "pad_token_id": 1} | changes
    torch.manual_seed(0)
    decoder = Decoder(
        step,
        SamplingSettings(**chosen),
        config=actor_critic.base.config,
        device=torch.device("cpu"),
    )
    order = sorted(range(len(asked)), key=lambda row: len(asked[row]))
    size = chosen.get("batch_size") or 6
    chunks = [order[first : first + size] for first in range(0, len(order), size)]
    with torch.no_grad():
        return decoder.decode(asked, chunks), shapes


@pytest.mark.parametrize("name", CONFIGS)
def test_completions_do_not_depend_on_the_slots(name: str, monkeypatch: pytest.MonkeyPatch):
    """With few slots others take those of what is finished, and columns are dropped and grown;
    each completion is the one that it is when it is decoded alone.
    """
    for module in (slots, decode):
        monkeypatch.setattr(module, "BUCKET", 4)
    dropped: list[int] = []
    plain = slots.SlotCache.drop_columns
    monkeypatch.setattr(
        slots.SlotCache,
        "drop_columns",
        lambda self, count: (dropped.append(count), plain(self, count))[1],
    )
    actor_critic, asked = policy(name), prompts(60)
    whole, _ = run(actor_critic, asked)
    few, shapes = run(actor_critic, asked, batch_size=4)
    assert max(rows for rows, _ in shapes) == 4 and max(dropped) >= 4 and 0 in dropped
    assert int(whole.lengths.min()) < 4 and int(whole.lengths.max()) == LONGEST

    assert torch.equal(few.lengths, whole.lengths) and torch.equal(few.finished, whole.finished)
    for row, length in enumerate(whole.lengths.tolist()):
        assert torch.equal(few.tokens[row, :length], whole.tokens[row, :length])
        ids = torch.tensor([asked[row] + whole.tokens[row, :length].tolist()])
        with torch.no_grad():
            logits = actor_critic.base(ids).logits[0, -length - 1 : -1].log_softmax(-1)
        expected = logits.gather(1, ids[0, -length:, None])[:, 0]
        for found in (whole, few):
            assert torch.allclose(found.log_probs[row, :length], expected, atol=3e-5)


def test_slots_are_given_to_those_that_wait():
    """Batch after batch would take a step for each token of the longest of each batch."""
    actor_critic, asked = policy("rotary"), prompts()
    found, shapes = run(actor_critic, asked, batch_size=4)
    order = sorted(range(len(asked)), key=lambda row: -len(asked[row]))
    batches = [found.lengths[order[first : first + 4]].max() for first in range(0, len(order), 4)]
    steps = sum(1 for _, columns in shapes if columns == 1)
    assert steps < 0.8 * sum(int(longest) for longest in batches)


@pytest.mark.parametrize("steps", [2, 8])
def test_looking_seldom_for_what_is_finished_changes_nothing(
    steps: int, monkeypatch: pytest.MonkeyPatch
):
    """As on an accelerator, where each look waits for it."""
    actor_critic, asked = policy("rotary"), prompts()
    often, _ = run(actor_critic, asked, batch_size=6)
    monkeypatch.setitem(decode._STEPS_PER_LOOK, "cpu", steps)
    seldom, _ = run(actor_critic, asked, batch_size=6)
    assert torch.equal(often.lengths, seldom.lengths)
    assert torch.equal(often.finished, seldom.finished)
    for row, length in enumerate(often.lengths.tolist()):
        assert torch.equal(often.tokens[row, :length], seldom.tokens[row, :length])
        assert torch.allclose(often.values[row, :length], seldom.values[row, :length], atol=1e-5)


def test_greedy_is_that_of_generate():
    actor_critic, asked = policy("rotary"), prompts(8)
    found, _ = run(actor_critic, asked, temperature=0.0, batch_size=3)
    for row, prompt in enumerate(asked):
        expected = actor_critic.base.generate(
            torch.tensor([prompt]),
            max_new_tokens=LONGEST,
            do_sample=False,
            eos_token_id=list(STOPS),
        )[0, len(prompt) :]
        assert found.tokens[row, : found.lengths[row]].tolist() == expected.tolist()


def test_caches_with_another_state_take_no_one_in():
    config = AutoConfig.for_model("mamba", vocab_size=60, hidden_size=16, num_hidden_layers=2)
    assert layers_of_keys_and_values(config) is None
    assert layers_of_keys_and_values(GemmaConfig(**SMALL)) == 2
