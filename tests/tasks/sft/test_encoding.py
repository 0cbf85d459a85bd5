"""Rows of every form to ids and labels: what is learned, and what is refused."""

import copy
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import trl
from datasets import Dataset
from transformers import PreTrainedTokenizerFast
from trl.chat_template_utils import (
    gptoss_training_chat_template,
    phi3_training_chat_template,
    qwen3_training_chat_template,
)

from hfstack.errors import DataError
from hfstack.tasks.preferences.encode import encode_answer
from hfstack.tasks.sft.columns import Columns, convert_rows
from hfstack.tasks.sft.encoding import encode_row, encode_usable_rows, prompts_with_references
from hfstack.tokens.chat import encode_for_generation, read_chat_template
from hfstack.tokens.special_tokens import IGNORED_LABEL
from hfstack.tokens.train_tokenizer import CHAT_TEMPLATE
from tests.tiny_tokenizers import llama2

TRL_TEMPLATES = Path(trl.__file__).parent / "chat_templates"
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Who?"},
    {"role": "assistant", "content": "The fox."},
    {"role": "user", "content": "Where?"},
    {"role": "assistant", "content": "Home."},
]


@pytest.fixture
def tokenizer(tiny_tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    chat = copy.deepcopy(tiny_tokenizer)
    chat.add_special_tokens(
        {"additional_special_tokens": ["<|user|>", "<|assistant|>", "<|system|>", "<|end|>"]}
    )
    chat.chat_template = CHAT_TEMPLATE
    return chat


def converted(row: dict[str, Any], *, as_chat: bool = True, **columns: str) -> dict[str, Any]:
    return convert_rows(Dataset.from_list([row]), Columns(**columns), as_chat=as_chat)[0]


def learned(
    tokenizer: PreTrainedTokenizerFast, row: dict[str, Any], **flags: bool
) -> tuple[str, str]:
    """The whole text, and what is learned of it."""
    ids, labels, problem = encode_row(
        row, tokenizer, **{"assistant_only": True, "completion_only": True} | flags
    )
    assert problem is None and len(ids) == len(labels)
    return str(tokenizer.decode(ids)), str(
        tokenizer.decode([label for label in labels if label != IGNORED_LABEL])
    )


def test_the_assistants_turns_are_learned_with_their_ends(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    text, answers = learned(tokenizer, converted({"messages": TALK}))
    assert text == "<|system|>Be brief.<|end|><|user|>Who?<|end|><|assistant|>The fox.<|end|>" + (
        "<|user|>Where?<|end|><|assistant|>Home.<|end|>"
    )
    assert answers == "The fox.<|end|>Home.<|end|>"
    assert learned(tokenizer, converted({"messages": TALK}), assistant_only=False) == (text, text)
    shared = [
        {
            "from": {"user": "human", "assistant": "gpt"}.get(t["role"], t["role"]),
            "value": t["content"],
        }
        for t in TALK
    ]
    assert learned(tokenizer, converted({"conversations": shared}, text="conversations")) == (
        text,
        answers,
    )


def test_of_prompt_and_completion_the_completion_is_learned(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    row = converted({"prompt": TALK[:4], "completion": TALK[4:]})
    text, answers = learned(tokenizer, row)
    assert text.count("<|assistant|>") == 2 and answers == "Home.<|end|>"
    assert learned(tokenizer, row, assistant_only=False)[1] == "Home.<|end|>"
    assert learned(tokenizer, row, completion_only=False)[1] == "The fox.<|end|>Home.<|end|>"
    plain = converted({"prompt": "Who?", "completion": " The fox."}, as_chat=False)
    assert learned(tokenizer, plain) == ("Who? The fox.<|endoftext|>", " The fox.<|endoftext|>")
    assert learned(tokenizer, plain, completion_only=False)[1] == "Who? The fox.<|endoftext|>"
    # one eos, not two
    assert learned(tokenizer, converted({"text": "Who?<|endoftext|>"}))[1] == "Who?<|endoftext|>"


@pytest.fixture
def qwen(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """The tokenizer with a template that renders tools and thoughts, and keeps all of them."""
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = qwen3_training_chat_template
    return tokenizer


def test_tools_calls_and_thoughts_reach_the_template(qwen: PreTrainedTokenizerFast) -> None:
    schema = {"name": "find_fox", "parameters": {"type": "object", "properties": {}}}
    call = {"id": "1", "function": {"name": "find_fox", "arguments": '{"den": "north"}'}}
    turns = [
        {"role": "user", "content": "Where?"},
        {"role": "assistant", "reasoning": "I look.", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "den 4"},
        {"role": "assistant", "content": "In den 4."},
    ]
    row = converted({"messages": turns, "tools": json.dumps([schema]), "system": "Be brief."})
    text, answers = learned(qwen, row)
    assert '{"type": "function", "function": {"name": "find_fox", "parameters"' in text
    assert "system\nBe brief.\n\n# Tools" in text and "<tool_response>\nden 4" in text
    assert answers == (
        '<think>\nI look.\n</think>\n\n<tool_call>\n{"name": "find_fox", "arguments": '
        '{"den": "north"}}\n</tool_call><|im_end|>\n'
        "<think>\n\n</think>\n\nIn den 4.<|im_end|>\n"
    )

    # what is asked while training holds the tools too
    rows = Dataset.from_list([row])
    asked, reference = prompts_with_references(rows, qwen, limit=1)[0]
    assert "find_fox" in str(qwen.decode(asked)) and reference == "In den 4."


@pytest.mark.parametrize("assistant_only", [True, False])
@pytest.mark.parametrize(
    "template", [CHAT_TEMPLATE, gptoss_training_chat_template, phi3_training_chat_template]
)
def test_a_turn_of_weight_0_is_read_and_not_learned(
    tokenizer: PreTrainedTokenizerFast, template: str, *, assistant_only: bool
) -> None:
    tokenizer.chat_template = template
    tokenizer.add_special_tokens(
        {"additional_special_tokens": ["<|start|>", "<|message|>", "<|channel|>", "<|return|>"]}
    )
    everything = learned(tokenizer, converted({"messages": TALK}), assistant_only=assistant_only)
    for switch in ({"weight": 0}, {"train": False}, {"loss": False}):
        turns = [*TALK[:2], TALK[2] | switch, *TALK[3:]]
        row = converted({"messages": turns})
        text, answers = learned(tokenizer, row, assistant_only=assistant_only)
        assert text == everything[0] and "The fox." not in answers and "Home." in answers
        assert ("Where?" in answers) == (not assistant_only)

    last = [*TALK[:4], TALK[4] | {"weight": 0}]
    answers = learned(tokenizer, converted({"messages": last}), assistant_only=assistant_only)[1]
    assert "The fox." in answers and "Home." not in answers
    assert prompts_with_references(
        Dataset.from_list([converted({"messages": last})]), tokenizer, limit=1
    ) == prompts_with_references(
        Dataset.from_list([converted({"messages": TALK[:3]})]), tokenizer, limit=1
    )


def test_a_history_is_a_conversation_whose_answers_are_learned(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    row = {"instruction": "Where?", "output": "Home.", "system": "Be brief."}
    row |= {"history": [["Who?", "The fox."]]}
    names = {"prompt": "instruction", "completion": "output"}
    whole = learned(tokenizer, converted({"messages": TALK}))
    assert learned(tokenizer, converted(row, **names)) == whole
    only = learned(tokenizer, converted(row, **names), assistant_only=False)
    assert only == (whole[0], "Home.<|end|>")


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"messages": TALK[:2]}, "no assistant turn"),
        ({"messages": []}, "no assistant turn"),
        ({"messages": [*TALK[:4], {"role": "assistant", "content": " "}]}, "empty completion"),
        (
            {"messages": [{"role": "tool", "content": "x"}, *TALK]},
            "the chat template fails: a turn's role must be",
        ),
        ({"prompt": "Who?", "completion": ""}, "empty completion"),
        ({"messages": [TALK[1], TALK[2] | {"weight": 0}]}, "every assistant turn has weight 0"),
        ({"messages": [TALK[1], TALK[2] | {"weight": 2}]}, "weight 2 of a turn: only 0 and 1"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "a part of content"),
        ({"messages": TALK, "system": "Be long."}, "a system turn and another text"),
        ({"prompt": "a", "completion": "b", "history": ["c"]}, r"history is a list of [question,"),
    ],
)
def test_problems_of_a_row(
    tokenizer: PreTrainedTokenizerFast, row: dict[str, Any], problem: str
) -> None:
    found = encode_row(converted(row), tokenizer, assistant_only=True, completion_only=True)[2]
    assert found is not None and found.startswith(problem)


def test_problems_of_plain_rows(tokenizer: PreTrainedTokenizerFast) -> None:
    for row, problem in (
        ({"prompt": "Who?", "completion": " "}, "empty completion"),
        ({"prompt": "", "completion": "x"}, "empty prompt"),
        ({"text": ""}, "empty text"),
        ({"prompt": "2 + 2", "completion": 4}, "completion is 4, not text; write numbers as text"),
        ({"prompt": 1.5, "completion": "x"}, "prompt is 1.5, not text; write numbers as text"),
    ):
        found = encode_row(row, tokenizer, assistant_only=False, completion_only=True)[2]
        assert found is not None and found.startswith(problem)


def test_a_conversation_is_split_where_the_model_is_asked_with_other_tokens(
    tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    own = (TRL_TEMPLATES / "qwen3.jinja").read_text(encoding="utf-8")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = qwen3_training_chat_template
    rows = [{"messages": TALK}, {"messages": TALK[:3]}, {"messages": [*TALK[:3], TALK[3]]}]
    split = convert_rows(Dataset.from_list(rows), Columns(), as_chat=True)
    flags = {"name": "train", "max_length": None, "assistant_only": True, "completion_only": True}
    caplog.set_level(logging.INFO)
    encoded = encode_usable_rows(split, tokenizer, own_template=own, **flags)

    # the last row ends with a question, behind which its answer has no thought: it is cut
    assert encoded["row"][:] == [0, 0, 1, 2]
    assert "3 train conversations become 4 rows" in caplog.text
    thought = "<think>\n\n</think>\n\n"
    for place, upto, answer in ((0, 3, "The fox."), (1, 5, "Home."), (3, 3, "The fox.")):
        ids, labels = encoded[place]["input_ids"], encoded[place]["labels"]
        asked = tokenizer.apply_chat_template(TALK[:upto], chat_template=own, return_dict=True)
        assert ids == asked["input_ids"]
        learned_ids = [label for label in labels if label != IGNORED_LABEL]
        assert tokenizer.decode(learned_ids) == f"{thought}{answer}<|im_end|>\n"

    # without the model's own template beside it, the variant is what is learned
    plain = encode_usable_rows(split, tokenizer, **flags)
    assert len(plain) == 3
    assert str(tokenizer.decode(plain[0]["input_ids"])).count(thought) == 2

    # answers of weight 0 are no rows, and one part that is too long makes the row a bad row
    light = [*TALK[:2], TALK[2] | {"weight": 0}, *TALK[3:]]
    split = convert_rows(Dataset.from_list([{"messages": light}]), Columns(), as_chat=True)
    assert encode_usable_rows(split, tokenizer, own_template=own, **flags)["row"][:] == [0]
    split = convert_rows(Dataset.from_list(rows[:2]), Columns(), as_chat=True)
    room = len(encoded[0]["input_ids"]) + 2
    kept = encode_usable_rows(
        split, tokenizer, own_template=own, on_bad_row="skip", **flags | {"max_length": room}
    )
    assert kept["row"][:] == [1]


def test_long_rows_are_truncated_or_refused(
    tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [
        {"prompt": "Who?", "completion": "The fox. " * 9},
        {"prompt": "Who? " * 9, "completion": "A fox."},
    ]
    split = convert_rows(Dataset.from_list(rows[:1] * 2), Columns(), as_chat=True)
    limits = {"name": "train", "assistant_only": True, "completion_only": True}
    encoded = encode_usable_rows(split, tokenizer, max_length=12, **limits)
    assert [len(ids) for ids in encoded["input_ids"]] == [12, 12]
    assert "2 of 2 train rows are longer than --max_length 12 and lose the end" in caplog.text
    assert (
        len(
            encode_usable_rows(split, tokenizer, max_length=12, truncate=False, **limits)[0][
                "input_ids"
            ]
        )
        > 12
    )
    both = convert_rows(Dataset.from_list(rows), Columns(), as_chat=True)
    with pytest.raises(
        DataError,
        match=r"^train row 2: .*leave none of --max_length 12 for the answer",
    ):
        encode_usable_rows(both, tokenizer, max_length=12, **limits)
    assert len(encode_usable_rows(both, tokenizer, max_length=12, on_bad_row="skip", **limits)) == 1
    with pytest.raises(DataError, match="no train row is left of 1"):
        encode_usable_rows(both.select([1]), tokenizer, max_length=12, on_bad_row="skip", **limits)


def test_prompts_come_with_their_references(tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [{"messages": TALK}, {"messages": TALK[:2]}, {"messages": TALK[1:3]}]
    asked = prompts_with_references(
        convert_rows(Dataset.from_list(rows), Columns(), as_chat=True), tokenizer, limit=5
    )
    assert [reference for _, reference in asked] == ["Home.", "The fox."]
    assert str(tokenizer.decode(asked[1][0])) == "<|user|>Who?<|end|><|assistant|>"
    assert (
        len(
            prompts_with_references(
                Dataset.from_list([{"text": "once upon a time " * 5}]), tokenizer, limit=5
            )[0][0]
        )
        == 8
    )
    longest = len(asked[1][0])
    only = prompts_with_references(
        convert_rows(Dataset.from_list(rows), Columns(), as_chat=True),
        tokenizer,
        limit=5,
        longest=longest,
    )
    assert [reference for _, reference in only] == ["The fox."]


def test_the_shipped_template_marks_the_answer_and_its_eos(
    tiny_tokenizer: PreTrainedTokenizerFast,
) -> None:
    plain = copy.deepcopy(tiny_tokenizer)
    plain.chat_template = read_chat_template("plain.jinja")
    text, answers = learned(plain, converted({"messages": TALK[1:3]}))
    assert (
        text == "### user\nWho?\n\n### assistant\nThe fox.<|endoftext|>\n"
        and answers == "The fox.<|endoftext|>"
    )
    assert (
        str(plain.decode(encode_for_generation(plain, TALK[1:2])))
        == "### user\nWho?\n\n### assistant\n"
    )


def test_plain_rows_are_trained_as_the_text_that_reward_and_dpo_read() -> None:
    """A tokenizer that puts a blank in front of every text: none comes in between."""
    llama = llama2(dummy_prefix=True)
    for prompt, completion in (("The little", " girl"), ("The fox", "\nran"), ("The ", "girl")):
        row = {"prompt": prompt, "completion": completion}
        ids, labels, _ = encode_row(row, llama, assistant_only=False, completion_only=True)
        assert ids == [*llama(prompt + completion)["input_ids"], llama.eos_token_id]
        assert ids == encode_answer(llama, prompt, completion)[0]

        # a token that spans both is learned with the completion
        masked = labels.count(IGNORED_LABEL)
        assert labels == [IGNORED_LABEL] * masked + ids[masked:]
        assert masked == encode_answer(llama, prompt, completion)[2]
        before = llama.decode(ids[:masked], skip_special_tokens=True)
        assert prompt in (before, before + " ")


def test_tokens_that_span_prompt_and_completion_are_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    rows = [{"prompt": "The", "completion": " girl"}, {"prompt": "The ", "completion": "girl"}]
    split = convert_rows(Dataset.from_list(rows), Columns(), as_chat=False)
    caplog.clear()
    limits: Any = {"max_length": 32, "assistant_only": False, "completion_only": True}
    with caplog.at_level(logging.WARNING, "hfstack"):
        encode_usable_rows(split.select([0]), llama2(dummy_prefix=True), name="train", **limits)
        assert not caplog.messages
        encode_usable_rows(split, llama2(dummy_prefix=True), name="train", **limits)
    expected = "1 of the first 2 train rows: one token spans the end of the prompt"
    assert len(caplog.messages) == 1 and caplog.messages[0].startswith(expected)
    assert "such as 'The ' + 'girl'" in caplog.messages[0]
