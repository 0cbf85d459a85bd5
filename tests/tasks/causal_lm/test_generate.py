"""Completions do not depend on their batch."""

import copy
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from hfstack.errors import ConfigError
from hfstack.tasks.causal_lm.generate import generate_from_texts, sample_pairs


@pytest.fixture(scope="module")
def model(tiny_llama: Path):
    return AutoModelForCausalLM.from_pretrained(tiny_llama).eval()


def test_greedy_completions_do_not_depend_on_the_batch(model, tiny_tokenizer) -> None:
    prompts = ["Once", "The owl was kind, so she gave", ""]
    together = generate_from_texts(model, tiny_tokenizer, prompts, max_new_tokens=12, temperature=0)
    alone = [
        generate_from_texts(model, tiny_tokenizer, [p], max_new_tokens=12, temperature=0)[0]
        for p in prompts
    ]
    assert together == alone
    assert [one.prompt for one in together] == prompts


def test_sampling_follows_the_seed(model, tiny_tokenizer) -> None:
    def draw(seed: int) -> list[str]:
        torch.manual_seed(seed)
        return [
            c.completion
            for c in generate_from_texts(
                model, tiny_tokenizer, ["The"] * 3, max_new_tokens=8, temperature=1.0, batch_size=2
            )
        ]

    assert draw(1) == draw(1) != draw(2)
    assert len(set(draw(1))) == 3


def test_an_end_token_of_the_model_ends_the_text(
    model, tiny_tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = tiny_tokenizer(
        generate_from_texts(model, tiny_tokenizer, ["The"], max_new_tokens=9, temperature=0)[
            0
        ].completion
    )
    # as in stories260k, which ends a story by a token that is not the tokenizer's eos
    third = ids["input_ids"][2]
    monkeypatch.setattr(
        model.generation_config, "eos_token_id", [tiny_tokenizer.eos_token_id, third]
    )
    ended = generate_from_texts(model, tiny_tokenizer, ["The"], max_new_tokens=9, temperature=0)[0]
    assert ended.finished and ended.tokens == ids["input_ids"].index(third) + 1
    assert ended.completion == tiny_tokenizer.decode(ids["input_ids"][: ended.tokens - 1])


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"max_new_tokens": 0}, "--max_new_tokens must be at least 1"),
        ({"temperature": -1}, "--temperature must be 0"),
        ({"top_p": 0}, r"--top_p must be in \(0, 1\]"),
        ({"top_k": -1}, "--top_k must be 0"),
    ],
)
def test_wrong_sampling_settings(model, tiny_tokenizer, setting: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        generate_from_texts(
            model, tiny_tokenizer, ["a"], **({"max_new_tokens": 3, "temperature": 1.0} | setting)
        )


def test_samples_of_a_training_are_at_its_temperature(model, tiny_tokenizer) -> None:
    settings = {"tokenizer": tiny_tokenizer, "max_new_tokens": 4}
    greedy = sample_pairs(model, prompts=["The", "A", "The"], temperature=0.0, **settings)
    assert [prompt for prompt, _ in greedy] == ["The", "A", "The"] and greedy[0] == greedy[2]

    # over all tokens: more than the 50 that transformers would keep
    uniform = copy.deepcopy(model)
    uniform.lm_head.weight.data.zero_()
    texts = [f"{number}" for number in range(300)]
    drawn = sample_pairs(
        uniform, prompts=texts, temperature=1.0, **settings | {"max_new_tokens": 1}
    )
    assert len({text for _, text in drawn}) > 50


def test_top_k_zero_keeps_all_tokens(
    model, tiny_tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[object] = []
    stock = type(model).generate

    def spy(self, **kwargs):
        seen.append(kwargs["generation_config"].top_k)
        return stock(self, **kwargs)

    monkeypatch.setattr(type(model), "generate", spy)
    generate_from_texts(model, tiny_tokenizer, ["The"], max_new_tokens=2, temperature=1.0, top_k=0)
    assert seen == [0]  # None would be upstream's default of 50
