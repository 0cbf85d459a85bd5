"""An engine that cannot generate as the model scores is replaced, with a line."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, BartConfig, FalconMambaConfig

from hfstack.errors import ConfigError
from hfstack.models.dropout import turn_off_dropout
from hfstack.tasks.causal_lm.decoding.draw import SamplingSettings
from hfstack.tasks.rl.ppo.actor_critic import ActorCritic
from hfstack.tasks.rl.ppo.engines.fitting import fit_engine
from hfstack.tasks.rl.ppo.engines.interface import GenerateEngine
from hfstack.tasks.rl.ppo.engines.native import NativeEngine
from tests.tiny_ppo import architecture, trainer

SETTINGS = SamplingSettings(max_new_tokens=5, stop_token_ids=(2,), pad_token_id=0)
BART = BartConfig(
    vocab_size=40,
    d_model=16,
    decoder_layers=1,
    decoder_attention_heads=2,
    decoder_ffn_dim=32,
    init_std=0.3,
)
MAMBA = FalconMambaConfig(
    vocab_size=40, hidden_size=16, num_hidden_layers=1, state_size=4, time_step_rank=4
)


def actor_of(config: Any) -> ActorCritic:
    torch.manual_seed(0)
    return without_dropout(AutoModelForCausalLM.from_config(config))


def without_dropout(model: Any) -> ActorCritic:
    actor_critic = ActorCritic(model)
    turn_off_dropout(actor_critic)
    return actor_critic


@pytest.mark.parametrize("name", ["llama", "gpt2", "gru"])
def test_the_native_engine_stays_where_it_is_exact(
    name: str, tiny_tokenizer: Any, tiny_llama: Path
) -> None:
    actor_critic = without_dropout(architecture(name, tiny_tokenizer, tiny_llama))
    engine = NativeEngine(SETTINGS)
    before = torch.random.get_rng_state()
    assert fit_engine(engine, actor_critic) is engine
    assert torch.equal(before, torch.random.get_rng_state()), "the run's random numbers are its own"


@pytest.mark.parametrize(("config", "pads"), [(MAMBA, True), (BART, False)], ids=["mamba", "bart"])
def test_others_generate_by_themselves(config: Any, pads: bool) -> None:
    actor_critic = actor_of(config).eval()
    engine = fit_engine(NativeEngine(SETTINGS), actor_critic)
    assert isinstance(engine, GenerateEngine) and engine.pads is pads

    # each completion belongs to its prompt, whatever the order of lengths
    prompts = [[5, 6, 7, 8], [9, 10], [11, 12, 13, 14], [15]]
    greedy = SamplingSettings(max_new_tokens=3, stop_token_ids=(2,), pad_token_id=0, top_k=1)
    rollout = GenerateEngine(greedy, pads=engine.pads).generate(actor_critic, prompts)
    for prompt, completion in zip(prompts, rollout.completion_ids, strict=True):
        logits = actor_critic.base(input_ids=torch.tensor([prompt])).logits[0, -1]
        assert int(completion[0]) == int(logits.argmax())


def test_what_needs_the_native_engine_is_refused_without_it(
    tmp_path: Path, tiny_tokenizer: Any
) -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "state_size": 4, "time_step_rank": 4}
    mamba = FalconMambaConfig(vocab_size=len(tiny_tokenizer), **sizes)
    model = AutoModelForCausalLM.from_config(mamba)
    with pytest.raises(ConfigError, match="--rollouts_ahead 1 needs the native engine, which"):
        trainer(tmp_path, tiny_tokenizer, model, rollouts_ahead=1)
