"""The checks before preference training find the faults that are planted."""

import copy
import json
from pathlib import Path

import pytest
from datasets import Dataset
from transformers import AutoModelForCausalLM
from trl import ModelConfig

from hfstack.errors import ConfigError, DataError
from hfstack.tasks.preferences.checks import (
    check_starting_policy,
    pair_problems,
    preference_problems,
    prompts_to_show,
    reward_problems,
)
from hfstack.tasks.preferences.data import to_pairs
from hfstack.tasks.preferences.encode import encode_answer, encode_sides
from hfstack.training.checks import preflight

PAIRS = [{"prompt": f"Fox {i}", "chosen": " was kind", "rejected": " ran"} for i in range(4)]


@pytest.fixture
def model(tiny_llama: Path):
    return AutoModelForCausalLM.from_pretrained(tiny_llama)


def test_good_pairs_pass_and_held_out_prompts_are_shown(model, tiny_tokenizer):
    rows = {"train": Dataset.from_list(PAIRS[:3]), "eval": Dataset.from_list(PAIRS[3:])}
    found = preference_problems(rows, tiny_tokenizer, model, max_length=64, on_bad_row="fail")
    assert found and not any(found.values())
    assert prompts_to_show([], rows, tiny_tokenizer, longest=100) == [
        tiny_tokenizer("Fox 3")["input_ids"]
    ]
    assert (
        prompts_to_show(["a", "b"], rows, tiny_tokenizer, longest=100)[1]
        == tiny_tokenizer("b")["input_ids"]
    )


def test_tools_and_turns_are_rendered_or_a_problem(model, tiny_tokenizer):
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = (
        "{{ tools | tojson }}{% for m in messages %}{{ m.role }}:{{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    ask, good, bad = (
        [{"role": role, "content": text}]
        for role, text in (("user", "Where?"), ("assistant", "Home."), ("assistant", "No idea."))
    )
    row = {"prompt": ask, "chosen": good, "rejected": bad, "tools": [{"name": "find_fox"}]}
    pairs = Dataset.from_list(to_pairs([row]))
    how = {"max_length": 96, "on_bad_row": "fail"}
    assert not any(preference_problems({"train": pairs}, tokenizer, model, **how).values())

    # as dpo renders it, as reward encodes it, as orpo's trainer gets it, as it is sampled
    schema = '[{"type": "function", "function": {"name": "find_fox"}}]'
    text = schema + "user:Where?\nassistant:Home.\n"
    tools = json.loads(pairs[0]["tools"])
    assert tokenizer.apply_chat_template(ask + good, tools=tools, tokenize=False) == text
    assert tokenizer.decode(encode_answer(tokenizer, ask, good, tools)[0]) == text
    encoded = encode_sides({"train": pairs}, tokenizer)["train"][0]
    assert tokenizer.decode(encoded["chosen_tokens"]) == text
    asked = schema + "user:Where?\nassistant:"
    assert tokenizer.decode(encoded["chosen_tokens"][: encoded["prompt_tokens"]]) == asked
    shown = prompts_to_show([], {"train": pairs}, tokenizer, longest=None)
    assert tokenizer.decode(shown[0]) == schema + "user:Where?\nassistant:"

    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}:{{ m.content }}{% endfor %}"
    problems = preference_problems({"train": pairs}, tokenizer, model, **how)
    assert "2 of 2 conversations, first row 1: 2 x tool schema" in str(
        problems["every train turn is rendered"]
    )


def test_a_prompt_on_both_sides_is_found(model, tiny_tokenizer):
    rows = {"train": Dataset.from_list(PAIRS), "eval": Dataset.from_list(PAIRS[:1])}
    with pytest.raises(DataError, match="no row in train and eval: 1 train rows"):
        preflight(
            preference_problems(rows, tiny_tokenizer, model, max_length=64, on_bad_row="fail")
        )
    with pytest.raises(DataError, match="no row in train and eval: 1 train rows"):
        preflight(reward_problems(rows, {}, tiny_tokenizer, model=model, new_modules=[]))


def test_equal_answers_and_long_prompts_are_found(model, tiny_tokenizer):
    rows = {
        "train": Dataset.from_list(
            [PAIRS[0] | {"rejected": " was kind"}, PAIRS[1] | {"prompt": "fox " * 100}]
        )
    }
    with pytest.raises(
        DataError, match=r"train prompts fit: 1 of 2.*train answers differ: 1 pairs"
    ):
        preflight(
            preference_problems(rows, tiny_tokenizer, model, max_length=64, on_bad_row="fail")
            | pair_problems(rows)
        )
    with pytest.raises(ConfigError, match=r"--max_length None is longer than the model's context"):
        preference_problems(rows, tiny_tokenizer, model, max_length=None, on_bad_row="fail")


def test_an_untrained_head_is_found(model, tiny_tokenizer):
    model.requires_grad_(False)
    encoded = {"train": Dataset.from_list([{"chosen_ids": [1, 2], "rejected_ids": [1, 3]}])}
    rows = {"train": Dataset.from_list(PAIRS)}
    with pytest.raises(DataError, match="the head is trained and saved: no tensor of the head"):
        preflight(
            reward_problems(rows, encoded, tiny_tokenizer, model=model, new_modules=["score"])
        )
    encoded = {"train": Dataset.from_list([{"chosen_ids": [1, 2], "rejected_ids": [1, 2]}])}
    with pytest.raises(DataError, match="train answers differ"):
        preflight(reward_problems(rows, encoded, tiny_tokenizer, model=model, new_modules=[]))


def test_a_policy_needs_weights_of_its_own():
    with pytest.raises(ConfigError, match="is an architecture"):
        check_starting_policy(
            ModelConfig(model_name_or_path="recipes/architectures/llama-1m.json"), sharded=False
        )
    with pytest.raises(ConfigError, match="--use_peft"):
        check_starting_policy(ModelConfig(model_name_or_path="x", load_in_4bit=True), sharded=False)
