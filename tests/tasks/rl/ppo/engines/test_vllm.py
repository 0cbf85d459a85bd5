"""The vLLM engine on TRL's own VLLMGeneration, with a vLLM that records its inputs and answers
from a script.
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM
from trl.generation import vllm_generation

from hfstack.errors import ConfigError, DataError, MissingExtraError
from hfstack.tasks.causal_lm.decoding.draw import SamplingSettings
from hfstack.tasks.rl.ppo.actor_critic import ActorCritic
from hfstack.tasks.rl.ppo.config import PPOConfig
from hfstack.tasks.rl.ppo.engines import vllm as vllm_rollout
from hfstack.tasks.rl.ppo.engines.interface import check_rollout
from hfstack.tasks.rl.ppo.engines.vllm import VLLMEngine
from hfstack.tasks.rl.ppo.setup import build_engine

SETTINGS = SamplingSettings(max_new_tokens=4, stop_token_ids=(0,), pad_token_id=1, temperature=0.7)
# what the fake answers to the first, second and third prompt
SCRIPT = [[5, 6, 0], [7, 8, 9, 10], [0]]
PROMPTS = [[11, 12], [13], [14, 15, 16]]


class FakeLLM:
    """Takes the place of vllm.LLM."""

    def __init__(self, script: list[list[int]] = SCRIPT) -> None:
        self.script = script
        self.events: list[str] = []
        self.weights: dict[str, torch.Tensor] = {}
        self.asked: list[list[int]] = []
        self.sampling: dict[str, Any] = {}
        model = SimpleNamespace(load_weights=self.load_weights)
        worker = SimpleNamespace(model_runner=SimpleNamespace(model=model))
        self.llm_engine = SimpleNamespace(model_executor=SimpleNamespace(driver_worker=worker))

    def load_weights(self, pairs: list[tuple[str, torch.Tensor]]) -> None:
        self.events.append("weights")
        self.weights |= {name: value.detach().clone() for name, value in pairs}

    def reset_prefix_cache(self) -> None:
        self.events.append("reset")

    def generate(
        self, prompts: list[dict[str, Any]], sampling_params: dict[str, Any], use_tqdm: bool
    ) -> list[Any]:
        self.events.append("generate")
        self.asked = [prompt["prompt_token_ids"] for prompt in prompts]
        self.sampling = sampling_params
        outputs = []
        for prompt, tokens in zip(self.asked, self.script, strict=True):
            log_probs = [{token: SimpleNamespace(rank=1, logprob=-0.1 * token)} for token in tokens]
            outputs.append(
                SimpleNamespace(
                    prompt_token_ids=prompt,
                    outputs=[SimpleNamespace(token_ids=tuple(tokens), logprobs=log_probs)],
                )
            )
        return outputs


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeLLM:
    """vLLM as if installed, started by `VLLMGeneration` into this fake."""
    llm = FakeLLM()

    def start(generation: Any) -> None:
        llm.events.append("start")
        generation.llm = llm

    monkeypatch.setattr(vllm_rollout, "is_vllm_available", lambda: True)
    monkeypatch.setattr(vllm_generation.VLLMGeneration, "_init_vllm", start)
    monkeypatch.setattr(vllm_generation, "SamplingParams", dict, raising=False)
    return llm


@pytest.fixture
def policy(tiny_llama: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_llama)


def with_adapters(policy: Any, *, critic: bool, **settings: Any) -> ActorCritic:
    """A policy whose adapter `default` changes its weights, and another one that must never reach
    vLLM.
    """
    config = LoraConfig(
        r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights=False, **settings
    )
    tuned = get_peft_model(policy, config)
    if critic:
        tuned.add_adapter("critic", config)
    return ActorCritic(tuned, critic="adapter" if critic else "shared")


def test_a_rollout_is_what_vllm_sampled(fake: FakeLLM, policy: Any, tiny_tokenizer: Any) -> None:
    engine = VLLMEngine(SETTINGS, tiny_tokenizer)
    rollout = engine.generate(ActorCritic(policy), PROMPTS)
    check_rollout(rollout, PROMPTS)
    assert fake.asked == PROMPTS
    assert [row.tolist() for row in rollout.completion_ids] == SCRIPT
    assert rollout.finished.tolist() == [True, False, True]
    assert rollout.log_probs is not None and rollout.values is None and not engine.exact_log_probs
    for row, tokens in zip(rollout.log_probs, SCRIPT, strict=True):
        torch.testing.assert_close(row, torch.tensor([-0.1 * token for token in tokens]))


def test_vllm_samples_as_the_settings_say(fake: FakeLLM, policy: Any, tiny_tokenizer: Any) -> None:
    VLLMEngine(SETTINGS, tiny_tokenizer).generate(ActorCritic(policy), PROMPTS)
    expected = {
        "temperature": 0.7,
        "max_tokens": 4,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "n": 1,
        "logprobs": 0,
    }
    assert {name: fake.sampling[name] for name in expected} == expected
    assert fake.sampling["stop_token_ids"] == [0] and fake.sampling["ignore_eos"] is True


def test_weights_go_over_once_a_rollout_before_it_is_sampled(
    fake: FakeLLM, policy: Any, tiny_tokenizer: Any
) -> None:
    engine, actor_critic = VLLMEngine(SETTINGS, tiny_tokenizer), ActorCritic(policy)
    engine.generate(actor_critic, PROMPTS)
    names = [name for name, _ in policy.named_parameters()]
    assert fake.events == ["start", *["weights"] * len(names), "reset", "generate"]
    assert set(fake.weights) == set(names), "the policy's own names: neither value head nor critic"
    with torch.no_grad():
        policy.get_input_embeddings().weight.add_(1.0)
    engine.generate(actor_critic, PROMPTS)
    assert fake.events.count("start") == 1 and fake.events.count("reset") == 2
    torch.testing.assert_close(
        fake.weights["model.embed_tokens.weight"], policy.get_input_embeddings().weight.detach()
    )


def test_a_separate_critic_stays_here(
    fake: FakeLLM, policy: Any, tiny_llama: Path, tiny_tokenizer: Any
) -> None:
    backbone = AutoModelForCausalLM.from_pretrained(tiny_llama).base_model
    actor_critic = ActorCritic(policy, critic="separate", backbone=backbone)
    VLLMEngine(SETTINGS, tiny_tokenizer).generate(actor_critic, PROMPTS)
    assert set(fake.weights) == {name for name, _ in policy.named_parameters()}


@pytest.mark.parametrize("active", ["default", "critic"])
def test_the_policys_adapter_is_merged_and_no_other(
    fake: FakeLLM, policy: Any, tiny_tokenizer: Any, active: str
) -> None:
    """Even when something left the critic's adapter active."""
    name = "model.layers.0.self_attn.q_proj"
    plain = policy.get_submodule(name).weight.detach().clone()
    actor_critic = with_adapters(policy, critic=True)
    layer = actor_critic.base.get_submodule(name)
    delta = layer.get_delta_weight("default").detach().clone()
    layer._active_adapter = [active]
    VLLMEngine(SETTINGS, tiny_tokenizer).generate(actor_critic, PROMPTS)
    torch.testing.assert_close(fake.weights[f"{name}.weight"], plain + delta)
    assert delta.abs().max() > 1e-4 and not any("lora" in name for name in fake.weights)
    torch.testing.assert_close(layer.base_layer.weight.detach(), plain)  # unmerged again
    assert layer._active_adapter == [active] and not layer.merged


def test_a_base_in_16_bits_stays_as_it_is(fake: FakeLLM, policy: Any, tiny_tokenizer: Any) -> None:
    """Merged and unmerged in place, it would be rounded twice a rollout."""
    actor_critic = with_adapters(policy.to(torch.bfloat16), critic=False)
    before = {name: value.clone() for name, value in actor_critic.policy.state_dict().items()}
    engine = VLLMEngine(SETTINGS, tiny_tokenizer)
    for _ in range(3):
        engine.generate(actor_critic, PROMPTS)
    after = actor_critic.policy.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    plain = "model.layers.0.self_attn.q_proj"
    layer = actor_critic.base.get_submodule(plain)
    base, delta = layer.base_layer.weight.detach().float(), layer.get_delta_weight("default")
    sent = fake.weights[f"{plain}.weight"].float()
    torch.testing.assert_close(sent, base + delta.detach().float(), rtol=2**-7, atol=1e-3)
    assert (sent - base).abs().max() > 1e-2


def test_sizes_and_sleep_reach_vllm(fake: FakeLLM, policy: Any, tiny_tokenizer: Any) -> None:
    asked = {"vllm_tensor_parallel_size": 1, "vllm_max_model_length": 64}
    args = PPOConfig(
        rollout_engine="vllm", vllm_enable_sleep_mode=True, use_cpu=True, bf16=False, **asked
    )
    made: Any = build_engine(args, SETTINGS, tiny_tokenizer, Accelerator(), max_over_processes=None)
    started = made._start(ActorCritic(policy))
    assert (started.tensor_parallel_size, started.max_model_length) == (1, 64)
    assert started.enable_sleep_mode is True


def test_whole_modules_of_two_adapters_are_refused(
    fake: FakeLLM, policy: Any, tiny_tokenizer: Any
) -> None:
    actor_critic = with_adapters(policy, critic=True, modules_to_save=["norm"])
    with pytest.raises(ConfigError, match="modules_to_save"):
        VLLMEngine(SETTINGS, tiny_tokenizer).generate(actor_critic, PROMPTS)
    assert not fake.events


def test_a_policy_without_a_folder_is_refused(
    fake: FakeLLM, policy: Any, tiny_tokenizer: Any
) -> None:
    in_memory = AutoModelForCausalLM.from_config(policy.config)
    in_memory.name_or_path = ""
    with pytest.raises(ConfigError, match="made in memory"):
        VLLMEngine(SETTINGS, tiny_tokenizer).generate(ActorCritic(in_memory), PROMPTS)
    server = VLLMEngine(
        SETTINGS, tiny_tokenizer, mode="server", server_base_url="http://localhost:8000"
    )
    assert server._start(ActorCritic(in_memory)).server_base_url == "http://localhost:8000"


def test_a_token_without_a_log_probability_is_refused(
    fake: FakeLLM, policy: Any, tiny_tokenizer: Any
) -> None:
    fake.script = [[5], [6, 7], [8]]
    plain = fake.generate

    def with_nan(*args: Any, **kwargs: Any) -> list[Any]:
        outputs = plain(*args, **kwargs)
        outputs[1].outputs[0].logprobs[1][7].logprob = float("nan")
        return outputs

    fake.generate = with_nan
    with pytest.raises(
        DataError, match=r"no log-probability for token 2 of completion 2.*token id 7"
    ):
        VLLMEngine(SETTINGS, tiny_tokenizer).generate(ActorCritic(policy), PROMPTS)


@pytest.mark.parametrize("change", [{"top_k": 5}, {"top_p": 0.9}, {"min_p": 0.1}], ids=str)
def test_filters_are_refused(fake: FakeLLM, tiny_tokenizer: Any, change: dict[str, Any]) -> None:
    settings = SamplingSettings(max_new_tokens=4, stop_token_ids=(0,), pad_token_id=1, **change)
    with pytest.raises(ConfigError, match="--rollout_engine vllm with"):
        VLLMEngine(settings, tiny_tokenizer)


def test_without_vllm_the_extra_is_named(
    tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm_rollout, "is_vllm_available", lambda: False)
    with pytest.raises(MissingExtraError, match=r"pip install 'hfstack\[vllm\]'"):
        VLLMEngine(SETTINGS, tiny_tokenizer)
