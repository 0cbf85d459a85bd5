"""Which token ends an answer is read from the chat template."""

from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from hfstack.errors import DataError
from hfstack.tokens.chat import end_of_turn_id, stop_at_end_of_turn
from hfstack.tokens.train_tokenizer import CHAT_TEMPLATE, CHAT_TOKENS


@pytest.fixture
def chat_tokenizer(tiny_llama: Path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    tokenizer.add_special_tokens({"additional_special_tokens": list(CHAT_TOKENS)})
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def test_the_end_of_a_turn_is_what_the_template_writes_after_an_answer(
    chat_tokenizer, tiny_llama: Path
) -> None:
    assert end_of_turn_id(chat_tokenizer) == chat_tokenizer.convert_tokens_to_ids("<|end|>")
    assert end_of_turn_id(AutoTokenizer.from_pretrained(tiny_llama)) is None
    chat_tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} done {% endfor %}"
    assert end_of_turn_id(chat_tokenizer) is None, "a word is no token that ends"


def test_generation_stops_there_and_at_what_it_stopped_at_before(
    chat_tokenizer, tiny_llama: Path
) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    eos, end = chat_tokenizer.eos_token_id, chat_tokenizer.convert_tokens_to_ids("<|end|>")
    assert stop_at_end_of_turn(model, chat_tokenizer) == [eos, end]
    assert model.generation_config.eos_token_id == [eos, end]
    assert stop_at_end_of_turn(model, chat_tokenizer) == [eos, end], "a second call changes nothing"


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ raise_exception('only one turn') }}", "only one turn"),
        ("{% for %}", "Expected"),
        ("{{ 1 + 'a' }}", "unsupported"),
    ],
)
def test_a_template_that_fails_is_one_line(chat_tokenizer, template: str, reason: str) -> None:
    chat_tokenizer.chat_template = template
    with pytest.raises(
        DataError, match=rf"the chat template fails: .*{reason}.*chat_template\.jinja"
    ):
        end_of_turn_id(chat_tokenizer)
