"""Tokens are drawn from the model's distribution, by blocks of the vocabulary."""

import pytest
import torch
from transformers import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from hfstack.tasks.causal_lm.decoding.draw import (
    SamplingSettings,
    find_filtered_tokens,
    sample_tokens,
)


def settings(**changes) -> SamplingSettings:
    return SamplingSettings(
        **({"max_new_tokens": 12, "stop_token_ids": (0,), "pad_token_id": 1} | changes)
    )


def test_samples_follow_the_distribution():
    torch.manual_seed(0)
    logits = torch.randn(1, 40) * 1.5
    tokens, log_probs = sample_tokens(
        logits.expand(20_000, 40), settings(temperature=1.3), torch.rand(20_000).double()
    )
    expected = (logits[0] / 1.3).softmax(-1)
    assert -(expected * expected.log()).sum() > 2
    sampled = torch.bincount(tokens, minlength=40) / 20_000
    assert (sampled - expected).abs().sum() / 2 < 0.02
    assert torch.allclose(log_probs, expected.log()[tokens], atol=1e-5)


def test_a_token_of_probability_zero_is_never_drawn():
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]]).expand(4, 5)
    draws = torch.tensor([0.0, 0.4999999, 0.5, 1.0], dtype=torch.float64)
    tokens, log_probs = sample_tokens(logits, settings(), draws)
    assert tokens.tolist() == [1, 1, 3, 3] and log_probs.tolist() == pytest.approx([-0.693147] * 4)


@pytest.mark.parametrize(
    "chosen",
    [
        {"top_k": 5},
        {"top_p": 0.6},
        {"min_p": 0.2},
        {"top_k": 8, "top_p": 0.7, "min_p": 0.1},
        {"top_k": 99},
    ],
)
def test_filters_are_those_of_transformers(chosen: dict[str, float]):
    torch.manual_seed(0)
    logits = torch.randn(50, 30) * 2
    expected = logits.clone()
    if "top_k" in chosen:
        expected = TopKLogitsWarper(min(30, int(chosen["top_k"])))(None, expected)
    if "top_p" in chosen:
        expected = TopPLogitsWarper(chosen["top_p"])(None, expected)
    if "min_p" in chosen:
        expected = MinPLogitsWarper(chosen["min_p"])(None, expected)
    dropped = find_filtered_tokens(logits, settings(**chosen))
    assert torch.equal(dropped, expected.isinf())
    tokens, log_probs = sample_tokens(logits, settings(**chosen), torch.rand(50).double())
    assert not dropped[torch.arange(50), tokens].any()
    assert torch.allclose(log_probs, logits.log_softmax(-1)[torch.arange(50), tokens], atol=1e-5), (
        "before the filter"
    )


@pytest.mark.parametrize("vocabulary", [5, 64, 65, 1000])
def test_each_uniform_number_gives_the_token_whose_share_it_falls_in(vocabulary: int):
    """Held to a sum over all tokens in sequence, in float64, with blocks of no weight between."""
    torch.manual_seed(0)
    logits = torch.randn(1, vocabulary) * 3
    logits[0, torch.rand(vocabulary) < 0.5] = -torch.inf
    logits[0, 128:256] = -torch.inf
    logits[0, 3] = 0.0
    uniform = torch.cat([torch.linspace(0, 1, 4001).double()[:-1], torch.tensor([1 - 2**-53])])
    tokens, log_probs = sample_tokens(logits.expand(4001, -1), settings(), uniform)

    exact = logits[0].double().softmax(-1)
    after = exact.cumsum(0)[tokens]
    assert bool((uniform < after + 1e-6).all()) and bool(
        (uniform > after - exact[tokens] - 1e-6).all()
    )
    assert bool((exact[tokens] > 0).all())
    assert torch.allclose(log_probs.double(), exact[tokens].log(), atol=1e-5)


def test_rare_tokens_of_a_large_vocabulary_are_drawn_as_often_as_they_should_be():
    logits = torch.full((1, 50_000), -12.0)
    logits[0, 7] = 0.0  # the others share 0.235
    uniform = torch.linspace(0, 1, 100_001).double()[:-1]
    counts = torch.zeros(50_000)
    for part in uniform.split(2_000):
        tokens, _ = sample_tokens(logits.expand(len(part), -1), settings(), part)
        counts += torch.bincount(tokens, minlength=50_000)
    rare = 50_000 * torch.exp(torch.tensor(-12.0)) / (1 + 50_000 * torch.exp(torch.tensor(-12.0)))
    assert float(counts[8:].sum() / 100_000) == pytest.approx(float(rare), abs=1e-3)
    assert float(counts[25_000:].sum() / 100_000) == pytest.approx(float(rare) / 2, abs=1e-3)


def test_greedy_takes_the_likeliest_with_its_log_probability_at_temperature_one():
    torch.manual_seed(0)
    logits = torch.randn(6, 90)
    tokens, log_probs = sample_tokens(logits, settings(temperature=0.0), None)
    assert torch.equal(tokens, logits.argmax(-1))
    assert torch.allclose(log_probs, logits.log_softmax(-1).amax(-1), atol=1e-6)
