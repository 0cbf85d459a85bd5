"""Each rule of the preflight, with the fault planted and without it."""

import copy
import logging

import pytest
from transformers import PreTrainedTokenizerFast

from hfstack.errors import DataError
from hfstack.tokens.train_tokenizer import CHAT_TEMPLATE
from hfstack.training import checks

EOS = 0
MASKED = checks.IGNORED_LABEL


@pytest.fixture
def chat_tokenizer(tiny_tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.add_special_tokens(
        {"additional_special_tokens": ["<|user|>", "<|assistant|>", "<|system|>", "<|end|>"]}
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def test_preflight_logs_one_line_and_refuses_with_every_fault(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO):
        checks.preflight({"one rule": None, "another": None})
    assert [record.message for record in caplog.records] == ["checked: one rule, another"]
    caplog.clear()
    with (
        caplog.at_level(logging.INFO),
        pytest.raises(DataError, match="^first: broken; fix it; third: missing$"),
    ):
        checks.preflight({"first": "broken; fix it", "second": None, "third": "missing"})
    assert [record.message for record in caplog.records] == [
        "checked: first, second, third",
        "first: broken; fix it",
        "third: missing",
    ]


def test_pad_is_not_eos(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    assert checks.pad_is_not_eos(tiny_tokenizer) is None
    tokenizer = copy.deepcopy(tiny_tokenizer)
    assert "also ends texts" in str(
        checks.pad_is_not_eos(tokenizer, [int(tokenizer.pad_token_id or 0)])
    )
    tokenizer.pad_token = tokenizer.eos_token
    assert "'<|endoftext|>' also ends texts" in str(checks.pad_is_not_eos(tokenizer))
    tokenizer.pad_token = None
    assert "no pad token" in str(checks.pad_is_not_eos(tokenizer))


def test_labels_reach_eos() -> None:
    # one of two was cut
    assert checks.labels_reach_eos([[MASKED, 5, EOS], [MASKED, 5, 6]], [EOS]) is None
    masked = [[MASKED, 5, MASKED]] * 10
    assert "only 0 of 10 rows" in str(checks.labels_reach_eos(masked, [EOS]))
    assert checks.labels_reach_eos([*masked[1:], [5, EOS]], [EOS]) is None
    assert "only 1 of 10 rows" in str(
        checks.labels_reach_eos([*masked[1:], [5, EOS]], [EOS], share=0.5)
    )


def test_no_double_bos() -> None:
    assert checks.no_double_bos([[1, 5, 1], [1]], 1) is None
    # a tokenizer without bos has none to double
    assert checks.no_double_bos([[1, 1]], None) is None
    assert "1 rows, first row 2" in str(checks.no_double_bos([[1, 5], [1, 1, 5]], 1))


def test_some_label_is_scored() -> None:
    assert checks.some_label_is_scored([[MASKED, 3], [4]]) is None
    assert "all labels of all 2 rows" in str(
        checks.some_label_is_scored([[MASKED], [MASKED, MASKED]])
    )
    assert "1 of 2 rows, first row 2" in str(checks.some_label_is_scored([[4], [MASKED]]))
    assert checks.some_label_is_scored([]) is not None


def test_embedding_covers_tokenizer(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    assert checks.embedding_covers_tokenizer(300, tiny_tokenizer) is None
    assert "up to 299 but the embedding has 299 rows" in str(
        checks.embedding_covers_tokenizer(299, tiny_tokenizer)
    )


def test_template_marks_generation(chat_tokenizer: PreTrainedTokenizerFast) -> None:
    assert checks.template_marks_generation(chat_tokenizer) is None
    whole = str(chat_tokenizer.chat_template)
    chat_tokenizer.chat_template = whole.replace("{%- generation -%}", "").replace(
        "{%- endgeneration -%}", ""
    )
    assert "no {% generation %} markers" in str(checks.template_marks_generation(chat_tokenizer))
    chat_tokenizer.chat_template = whole.replace(
        "{{- message['content'] + '<|end|>' -}}{%- endgeneration -%}",
        "{{- message['content'] -}}{%- endgeneration -%}{{- '<|end|>' -}}",
    )
    assert "would not learn to stop" in str(checks.template_marks_generation(chat_tokenizer))
    chat_tokenizer.chat_template = None
    assert "no chat template" in str(checks.template_marks_generation(chat_tokenizer))


def test_train_and_eval_are_disjoint() -> None:
    assert checks.train_and_eval_are_disjoint(["a", "b"], ["c"]) is None
    assert "2 train rows are also eval rows" in str(
        checks.train_and_eval_are_disjoint(["a", "b", "a"], ["a"])
    )


def test_prompts_fit_context() -> None:
    assert checks.prompts_fit_context([3, 9], 10) is None
    assert "1 of 2 prompts, first row 2 with 10 tokens" in str(
        checks.prompts_fit_context([3, 10], 10)
    )


def test_labels_in_range() -> None:
    assert checks.labels_in_range([0, 1, 2], 3) is None
    assert "2 labels, first 3 in row 2, are not among 0 .. 2" in str(
        checks.labels_in_range([0, 3, -1], 3)
    )


def test_chosen_differs_from_rejected() -> None:
    turns = [{"role": "assistant", "content": "yes"}]
    assert checks.chosen_differs_from_rejected(["yes", turns], ["no", "yes"]) is None
    assert "1 pairs, first row 2" in str(
        checks.chosen_differs_from_rejected(["yes", turns], ["no", list(turns)])
    )


def test_head_is_saved() -> None:
    names = ["base_model.model.layers.0.q_proj.lora_A.weight", "base_model.model.score.weight"]
    assert checks.head_is_saved(names, ["score"]) is None
    assert "--lora_modules_to_save" in str(checks.head_is_saved(names[:1], ["score", "classifier"]))


def test_accumulation_keeps_loss() -> None:
    assert checks.accumulation_keeps_loss(2.5, 2.5001) is None
    # two halves with 3 and 1 tokens: the mean of the means weighs the single token three times as
    # much
    whole, halves = (1.0 * 3 + 5.0 * 1) / 4, (1.0 + 5.0) / 2
    assert "at once but 3 in parts" in str(checks.accumulation_keeps_loss(whole, halves))


def test_every_turn_is_rendered(chat_tokenizer: PreTrainedTokenizerFast) -> None:
    ask, answer = {"role": "user", "content": "Who?"}, {"role": "assistant", "content": "The fox."}
    rule = {"role": "developer", "content": "Answer in capitals."}
    assert checks.every_turn_is_rendered([([ask, answer], None)], chat_tokenizer) is None

    # conversations that the template refuses are counted as bad rows elsewhere
    assert checks.every_turn_is_rendered([([rule, ask], None)], chat_tokenizer) is None
    chat_tokenizer.chat_template = (
        "{% for m in messages if m.role != 'developer' %}{{ m.content }}{% endfor %}"
    )
    rows = [([ask, answer], None), ([rule, ask, answer], [])] * 80
    assert checks.every_turn_is_rendered(rows, chat_tokenizer) == (
        "the chat template leaves out parts of 50 of 100 conversations, first row 2: 50 x developer"
        " turn; give a template that renders them, or take them out of the rows"
    )
