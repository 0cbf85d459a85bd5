"""Decoding many prompts in slots gives what `generate` gives, where a model can."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from transformers import AutoModelForCausalLM

from hfstack.tasks.causal_lm import generate
from hfstack.tasks.causal_lm.decoding.in_slots import find_step
from tests.tiny_ppo import architecture, lora


def prompts(count: int) -> list[list[int]]:
    """Of 1 to 9 tokens; every third is the one before it."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 10, (count,), generator=generator).tolist()
    drawn = [torch.randint(5, 200, (length,), generator=generator).tolist() for length in lengths]
    return [drawn[row - 1] if row % 3 == 2 else drawn[row] for row in range(count)]


def answers(model: Any, tokenizer: Any, asked: list[list[int]], **settings: Any) -> list[Any]:
    torch.manual_seed(1)
    given = {"max_new_tokens": 12, "batch_size": 4} | settings
    return [one.token_ids for one in generate.generate_from_ids(model, tokenizer, asked, **given)]


@pytest.mark.parametrize("name", ["llama", "gpt2", "lora"])
def test_greedy_answers_are_those_of_generate(
    name: str, tiny_llama: Path, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
):
    model: Any = architecture(name.replace("lora", "llama"), tiny_tokenizer, tiny_llama).eval()
    if name == "lora":
        model = get_peft_model(model, lora(init_lora_weights=False)).eval()
    # an end that some answers reach: the likeliest first token of one prompt
    asked = prompts(30)
    with torch.no_grad():
        tiny_end = int(model(input_ids=torch.tensor([asked[3]])).logits[0, -1].argmax())
    monkeypatch.setattr(generate, "end_token_ids", lambda *_: [tiny_end])

    in_slots = answers(model, tiny_tokenizer, asked, temperature=0.0)
    monkeypatch.setattr(generate, "find_step", lambda model: None)
    by_generate = answers(model, tiny_tokenizer, asked, temperature=0.0)
    assert in_slots == by_generate
    assert len({len(ids) for ids in in_slots}) > 1, "some end before others"


def test_samples_do_not_depend_on_how_many_are_decoded_at_once(
    tiny_llama: Path, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
):
    model = AutoModelForCausalLM.from_pretrained(tiny_llama).eval()
    asked = prompts(20)
    calls: list[int] = []
    monkeypatch.setattr(type(model), "generate", lambda *_, **__: calls.append(1))
    found = [
        answers(model, tiny_tokenizer, asked, temperature=1.0, batch_size=size) for size in (3, 20)
    ]
    assert found[0] == found[1] and not calls
    assert len(set(found[0])) == 20, "equal prompts have answers of their own"


def test_samples_follow_the_filtered_distribution(tiny_llama: Path, tiny_tokenizer: Any):
    model = AutoModelForCausalLM.from_pretrained(tiny_llama).eval()
    prompt = prompts(1)[0]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt])).logits[0, -1] / 0.05
    kept = logits.topk(4)
    settings: Any = {"temperature": 0.05, "top_k": 4, "max_new_tokens": 1, "batch_size": 500}
    drawn = torch.tensor(answers(model, tiny_tokenizer, [prompt] * 4000, **settings))[:, 0]
    shares = (drawn[:, None] == kept.indices).float().mean(0)
    assert torch.allclose(shares, kept.values.softmax(-1), atol=0.03) and shares.sum() == 1


def test_what_decodes_otherwise_generates_by_itself(
    tiny_llama: Path, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
):
    gru = architecture("gru", tiny_tokenizer, tiny_llama).eval()
    assert find_step(gru) is None
    assert len(answers(gru, tiny_tokenizer, prompts(9), temperature=0.0)) == 9

    llama: Any = AutoModelForCausalLM.from_pretrained(tiny_llama).eval()
    assert find_step(llama) is not None
    inner = llama.model.forward

    def with_another_state(*args: Any, **inputs: Any) -> Any:
        outputs = inner(*args, **inputs)
        if outputs.last_hidden_state.shape[1] == 1:  # one new token, behind a cache
            outputs.last_hidden_state = outputs.last_hidden_state * 1.5
        return outputs

    monkeypatch.setattr(llama.model, "forward", with_another_state)
    assert find_step(llama) is None
