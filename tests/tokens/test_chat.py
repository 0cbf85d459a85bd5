"""Which token ends an answer is read from the chat template."""

import copy
import time
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from hfstack.errors import DataError
from hfstack.tokens import template_limits
from hfstack.tokens.chat import end_of_turn_id, render_chat, stop_at_end_of_turn
from hfstack.tokens.train_tokenizer import CHAT_TEMPLATE, CHAT_TOKENS


@pytest.fixture
def chat_tokenizer(tiny_llama: Path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    tokenizer.add_special_tokens({"additional_special_tokens": list(CHAT_TOKENS)})
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (
            "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}"
            "{% endfor %}{% endfor %}{% endfor %}",
            "took more than 0.3 s for one conversation",
        ),
        (
            "{% set ns = namespace(x='aaaa') %}{% for a in range(99) %}"
            "{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}",
            "took more than (64 MiB|0.3 s) for one conversation|the chat template fails: ",
        ),
        ("{{ 'a' * 10000 }}", r"has the operator \* in line 1"),
        ("\n{{ 9 ** 9 }}", r"has the operator \*\* in line 2"),
        ("{{ 'a'.ljust(99999999999) }}", "has the number 99999999999 in line 1"),
        ("{{ '%99999999999d' | format(1) }}", "has the number in '%99999999999d' in line 1"),
        ("{{ 'a'.ljust('99999999999' | int) }}", "has the number in '99999999999' in line 1"),
        ("{{ 'a' * (9 * 9 * 9 * 9) }}", r"has the operator \* in line 1"),
        ("{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}", "the chat template fails: "),
        ("{{ messages[0].content.nothing.at_all }}", "the chat template fails: "),
    ],
)
def test_a_template_without_end_is_one_line_soon(
    tiny_tokenizer, template: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(template_limits, "LONGEST_S", 0.3)
    monkeypatch.setattr(template_limits, "MOST_GROWTH_BYTES", 64 << 20)
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = template
    began = time.process_time()
    with pytest.raises(DataError, match=message) as caught:
        render_chat(tokenizer, [{"role": "user", "content": "hello"}], tokenize=False)
    assert "\n" not in str(caught.value) and time.process_time() - began < 5


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
