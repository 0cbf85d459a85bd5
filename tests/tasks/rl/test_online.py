"""Rewards read completions as they stand behind their prompts."""

from typing import Any

import pytest
import torch

from hfstack.errors import ConfigError
from hfstack.tasks.causal_lm.generate import Completion
from hfstack.tasks.rewards.prepare import prepare_rewards
from hfstack.tasks.rl.online import OnlineArgs, load_rewards, reward_answers
from hfstack.tasks.rl.prompts import decode_completions, tokenize_prompt
from hfstack.tokens.seams import encode_joined
from tests.tiny_tokenizers import llama2

TOKENIZER = llama2(dummy_prefix=True)
TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'user' %}Human: {{ m.content }} Assistant:"
    "{% else %} {{ m.content }}</s>{% endif %}{% endfor %}"
)


def test_the_blank_that_a_completion_begins_with_reaches_the_reward() -> None:
    prompts, answers = ["The little", "Human: who", "The fox"], [" girl", " are you", "\nran"]
    ids, asked = [], []
    for prompt, answer in zip(prompts, answers, strict=True):
        joined, seam = encode_joined(TOKENIZER, prompt, answer)
        asked.append(joined[:seam])
        ids.append([*joined[seam:], TOKENIZER.eos_token_id])
    alone = TOKENIZER.batch_decode(ids, skip_special_tokens=True)
    assert alone[:2] == ["girl", "are you"]
    assert decode_completions(TOKENIZER, prompts, asked, ids) == answers


def test_a_turn_is_what_the_template_would_write_again(monkeypatch: Any) -> None:
    monkeypatch.setattr(TOKENIZER, "chat_template", TEMPLATE)
    prompt = [{"role": "user", "content": "who are you?"}]
    answer = [{"role": "assistant", "content": "I am an owl."}]
    whole = TOKENIZER.apply_chat_template([*prompt, *answer], return_dict=True)["input_ids"]
    asked = tokenize_prompt(prompt, TOKENIZER)
    texts = decode_completions(TOKENIZER, [prompt], [asked], [whole[len(asked) :]])
    assert texts == ["I am an owl."]


def test_a_number_type_that_there_is_not_is_refused() -> None:
    asked = OnlineArgs(reward_model="runs/reward", reward_dtype="fp8")
    with pytest.raises(ConfigError, match="--reward_dtype must be one of float32, .*, got 'fp8'"):
        load_rewards(asked, [], TOKENIZER, device=torch.device("cpu"), weights=None)


def test_a_reward_is_asked_before_and_after_as_it_is_while_training() -> None:
    def reward(
        prompts: Any, completions: Any, answer: Any, completion_ids: Any, trainer_state: Any
    ) -> list[float]:
        return [len(ids) + trainer_state.global_step + len(answer) for ids in completion_ids]

    judge = reward_answers(prepare_rewards([reward]), None)
    answers = [Completion("p", " a", 2, True, (5, 1)), Completion("p", " b", 1, False, (6,))]
    assert judge([{"prompt": "p", "answer": "x"}] * 2, answers) == [4.0, 3.0]
