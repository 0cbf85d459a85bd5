"""What is sampled is the softmax of the logits, whatever the model's generation_config says."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from hfstack.errors import ConfigError
from hfstack.tasks.causal_lm import generate
from hfstack.tasks.causal_lm.generate import generate_from_ids
from hfstack.tasks.causal_lm.sampling import (
    SamplingArgs,
    describe_settings,
    generation_settings,
    set_aside_settings,
)

PROMPT = [50, 60, 70, 80]
DRAWS = 3000
HOSTILE: dict[str, dict[str, Any]] = {
    "filters": {"do_sample": True, "top_k": 1, "top_p": 0.1, "min_p": 0.9, "typical_p": 0.2},
    "temperature": {"do_sample": True, "temperature": 0.01, "epsilon_cutoff": 0.003},
    "penalties": {"repetition_penalty": 5.0, "no_repeat_ngram_size": 1},
    "suppressed": {"suppress_tokens": list(range(2, 200)), "begin_suppress_tokens": [250]},
    "bad words": {"bad_words_ids": [[token] for token in range(200, 290)]},
    "forced": {"forced_eos_token_id": 3, "exponential_decay_length_penalty": (0, 9.0)},
    "lengths": {"min_new_tokens": 1, "min_length": 20, "max_length": 5},
    "beams": {"num_beams": 3, "length_penalty": 0.1, "early_stopping": True},
    "form": {"return_dict_in_generate": True, "output_scores": True, "num_return_sequences": 1},
    "bias": {"sequence_bias": [[[40], 9.0]], "renormalize_logits": True},
}


@pytest.fixture
def model(tiny_llama: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_llama).eval()


def surprise(model: Any, tokens: torch.Tensor) -> float:
    """Pearson's chi-square of drawn tokens against the softmax, in its standard deviations."""
    with torch.no_grad():
        expected = model(torch.tensor([PROMPT])).logits[0, -1].softmax(-1) * len(tokens)  # (V,)
    seen = torch.bincount(tokens, minlength=len(expected))  # (V,)
    free = len(expected) - 1
    return float((((seen - expected) ** 2 / expected).sum() - free) / (2 * free) ** 0.5)


@pytest.mark.parametrize("hostile", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("way", ["decode_in_slots", "_by_generate"])
def test_draws_are_those_of_multinomial(
    model, tiny_tokenizer, hostile: dict[str, Any], way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in hostile.items():
        setattr(model.generation_config, name, value)
    if way == "_by_generate":
        monkeypatch.setattr(generate, "find_step", lambda _: None)
    drawn: list[int] = []
    stock = getattr(generate, way)

    def noted(*args: Any, **given: Any) -> list[list[int]]:
        found = stock(*args, **given)
        drawn.extend(tokens[0] for tokens in found)
        return found

    monkeypatch.setattr(generate, way, noted)

    torch.manual_seed(0)
    generate_from_ids(
        model,
        tiny_tokenizer,
        [PROMPT] * DRAWS,
        max_new_tokens=1,
        temperature=1.0,
        batch_size=DRAWS,
    )
    assert len(drawn) == DRAWS and abs(surprise(model, torch.tensor(drawn))) < 4
    for name, value in hostile.items():
        assert getattr(model.generation_config, name) == value  # and they are saved with the model


def test_the_measure_finds_the_filters_of_the_library(model) -> None:
    """Top-k 50 of upstream's defaults is seen by it, and multinomial passes."""
    torch.manual_seed(0)
    with torch.no_grad():
        softmax = model(torch.tensor([PROMPT])).logits[0, -1].softmax(-1)
        assert abs(surprise(model, torch.multinomial(softmax, DRAWS, replacement=True))) < 4
        found = model.generate(
            torch.tensor([PROMPT] * DRAWS),
            generation_config=GenerationConfig(max_new_tokens=1, do_sample=True, pad_token_id=1),
        )
    assert surprise(model, found[:, -1]) > 50


def test_filters_that_are_asked_for_are_used(model, tiny_tokenizer) -> None:
    def different(**sampling: Any) -> int:
        torch.manual_seed(0)
        many = [PROMPT] * 200
        answers = generate_from_ids(model, tiny_tokenizer, many, max_new_tokens=1, **sampling)
        return len({one.completion for one in answers})

    assert different(temperature=1.0, top_k=3) == 3
    assert different(temperature=1.0, min_p=1.0) == 1
    assert different(temperature=1.0, top_p=1e-6) == 1
    assert different(temperature=1e-3) <= 2
    assert different(temperature=0.0) == 1


def test_as_trls_trainers_generate(model) -> None:
    """They leave out what they do not know, so the model's own would be used there."""
    settings = GenerationConfig(
        max_new_tokens=1, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, pad_token_id=1
    )
    for name, value in (HOSTILE["suppressed"] | {"min_p": 0.9}).items():
        setattr(model.generation_config, name, value)
    torch.manual_seed(0)
    batch = torch.tensor([PROMPT] * DRAWS)
    assert surprise(model, model.generate(batch, generation_config=settings)[:, -1]) > 50
    with set_aside_settings(model):
        assert abs(surprise(model, model.generate(batch, generation_config=settings)[:, -1])) < 4


def test_token_ids_stay_and_what_is_not_used_is_logged(
    model, caplog: pytest.LogCaptureFixture
) -> None:
    own = model.generation_config
    own.eos_token_id, own.top_k = [0, 9], 7
    with caplog.at_level(logging.INFO, "hfstack"), set_aside_settings(model):
        assert model.generation_config.eos_token_id == [0, 9]
        assert describe_settings(model.generation_config) == ""
        model.generation_config.pad_token_id = 5  # as Trainer aligns it
    with set_aside_settings(model):
        pass
    assert model.generation_config is own and own.pad_token_id == 5
    lines = [line for line in caplog.messages if "generation settings are not used" in line]
    assert len(lines) == 1 and "top_k 7" in lines[0]

    own.output_attentions, own.top_k = False, None  # what is returned is no choice of how to sample
    assert describe_settings(own) == ""


def test_greedy_decoding_ignores_penalties_too(model, tiny_tokenizer) -> None:
    def greedy() -> str:
        return generate_from_ids(model, tiny_tokenizer, [PROMPT], max_new_tokens=8)[0].completion

    plain = greedy()
    model.generation_config.repetition_penalty = 5.0
    model.generation_config.suppress_tokens = list(range(100))
    assert greedy() == plain
    assert (
        generation_settings(max_new_tokens=3, temperature=0.0, end_ids=[], pad_id=0).top_p is None
    )


@pytest.mark.parametrize(
    ("setting", "message"),
    [({"min_p": 2.0}, "--min_p must be in"), ({"temperature": -1.0}, "--temperature must be 0")],
)
def test_options_out_of_range(setting: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SamplingArgs(**setting)
    assert SamplingArgs().sampling() == {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0}
