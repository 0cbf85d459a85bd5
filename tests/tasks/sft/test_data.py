"""Rows of every form to ids and labels: what is learned, what is refused, and how rows are
packed."""

import copy
import json
import logging
from typing import Any

import pytest
from datasets import Dataset
from transformers import PreTrainedTokenizerFast

from hfstack.errors import ConfigError, DataError
from hfstack.logs import setup_logging
from hfstack.tasks.sft.data import (
    Columns,
    encode_row,
    encode_split,
    kind_of_rows,
    normalise,
    pack,
    questions,
)
from hfstack.tokens.chat import prompt_ids, read_template
from hfstack.tokens.train_tokenizer import CHAT_TEMPLATE
from hfstack.training.checks import IGNORED_LABEL

TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Who?"},
    {"role": "assistant", "content": "The fox."},
    {"role": "user", "content": "Where?"},
    {"role": "assistant", "content": "Home."},
]


@pytest.fixture(autouse=True)
def logs_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let caplog see hfstack's log lines, whatever has set them up before."""
    setup_logging()
    monkeypatch.setattr(logging.getLogger("hfstack"), "propagate", True)


@pytest.fixture
def tokenizer(tiny_tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    chat = copy.deepcopy(tiny_tokenizer)
    chat.add_special_tokens(
        {"additional_special_tokens": ["<|user|>", "<|assistant|>", "<|system|>", "<|end|>"]}
    )
    chat.chat_template = CHAT_TEMPLATE
    return chat


def normal(row: dict[str, Any], *, as_chat: bool = True, **columns: str) -> dict[str, Any]:
    return normalise(Dataset.from_list([row]), Columns(**columns), as_chat=as_chat)[0]


def learned(
    tokenizer: PreTrainedTokenizerFast, row: dict[str, Any], **flags: bool
) -> tuple[str, str]:
    """The whole text, and what is learned of it."""
    ids, labels, fault = encode_row(
        row, tokenizer, **{"assistant_only": True, "completion_only": True} | flags
    )
    assert fault is None and len(ids) == len(labels)
    return str(tokenizer.decode(ids)), str(
        tokenizer.decode([label for label in labels if label != IGNORED_LABEL])
    )


def test_the_assistants_turns_are_learnt_with_their_ends(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    text, answers = learned(tokenizer, normal({"messages": TALK}))
    assert text == "<|system|>Be brief.<|end|><|user|>Who?<|end|><|assistant|>The fox.<|end|>" + (
        "<|user|>Where?<|end|><|assistant|>Home.<|end|>"
    )
    assert answers == "The fox.<|end|>Home.<|end|>"
    assert learned(tokenizer, normal({"messages": TALK}), assistant_only=False) == (text, text)
    shared = [
        {
            "from": {"user": "human", "assistant": "gpt"}.get(t["role"], t["role"]),
            "value": t["content"],
        }
        for t in TALK
    ]
    assert learned(tokenizer, normal({"conversations": shared}, text="conversations")) == (
        text,
        answers,
    )


def test_of_prompt_and_completion_the_completion_is_learnt(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    row = normal({"prompt": TALK[:4], "completion": TALK[4:]})
    text, answers = learned(tokenizer, row)
    assert text.count("<|assistant|>") == 2 and answers == "Home.<|end|>"
    assert learned(tokenizer, row, assistant_only=False)[1] == "Home.<|end|>"
    assert learned(tokenizer, row, completion_only=False)[1] == "The fox.<|end|>Home.<|end|>"
    plain = normal({"prompt": "Who?", "completion": " The fox."}, as_chat=False)
    assert learned(tokenizer, plain) == ("Who? The fox.<|endoftext|>", " The fox.<|endoftext|>")
    assert learned(tokenizer, plain, completion_only=False)[1] == "Who? The fox.<|endoftext|>"
    # one eos, not two
    assert learned(tokenizer, normal({"text": "Who?<|endoftext|>"}))[1] == "Who?<|endoftext|>"


def test_columns_are_mapped_or_named(caplog: pytest.LogCaptureFixture) -> None:
    row = {"instruction": "Add", "input": "1 2", "output": "3"}
    mapped = normal(row, prompt="instruction", context="input", completion="output", as_chat=False)
    assert mapped == {"prompt": "Add\n\n1 2", "completion": "3"}
    normal(row, prompt="instruction", completion="output")
    assert (
        "1 rows have text in the column 'input', which is not read: --context_column input"
        in caplog.text
    )
    empty = normal(
        row | {"input": ""},
        prompt="instruction",
        context="input",
        completion="output",
        as_chat=False,
    )
    assert empty["prompt"] == "Add"
    for found, hint in {
        ("question", "answer"): "--prompt_column question --completion_column answer",
        ("prompt", "response"): "--completion_column response",
        ("conversations",): "--text_column conversations",
        ("x", "y"): "--prompt_column and --completion_column",
    }.items():
        with pytest.raises(
            DataError, match=f"found the columns {', '.join(found)}; map them with {hint}"
        ):
            kind_of_rows(Dataset.from_list([dict.fromkeys(found, "a")]), Columns())


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ({"messages": TALK[:2]}, "no assistant turn"),
        ({"messages": []}, "no assistant turn"),
        ({"messages": [*TALK[:4], {"role": "assistant", "content": " "}]}, "empty completion"),
        (
            {"messages": [{"role": "tool", "content": "x"}, *TALK]},
            "the chat template fails: a turn's role must be",
        ),
        ({"prompt": "Who?", "completion": ""}, "empty completion"),
    ],
)
def test_faults_of_a_row(
    tokenizer: PreTrainedTokenizerFast, row: dict[str, Any], fault: str
) -> None:
    found = encode_row(normal(row), tokenizer, assistant_only=True, completion_only=True)[2]
    assert found is not None and found.startswith(fault)


def test_faults_of_plain_rows(tokenizer: PreTrainedTokenizerFast) -> None:
    for row, fault in (
        ({"prompt": "Who?", "completion": " "}, "empty completion"),
        ({"prompt": "", "completion": "x"}, "empty prompt"),
        ({"text": ""}, "empty text"),
    ):
        assert encode_row(row, tokenizer, assistant_only=False, completion_only=True)[2] == fault


def test_long_rows_are_cut_or_refused(
    tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [
        {"prompt": "Who?", "completion": "The fox. " * 9},
        {"prompt": "Who? " * 9, "completion": "A fox."},
    ]
    split = normalise(Dataset.from_list(rows[:1] * 2), Columns(), as_chat=True)
    limits = {"name": "train", "assistant_only": True, "completion_only": True}
    encoded = encode_split(split, tokenizer, max_length=12, **limits)
    assert [len(ids) for ids in encoded["input_ids"]] == [12, 12]
    assert "2 of 2 train rows are longer than --max_length 12 and lose the end" in caplog.text
    assert (
        len(encode_split(split, tokenizer, max_length=12, cut=False, **limits)[0]["input_ids"]) > 12
    )
    both = normalise(Dataset.from_list(rows), Columns(), as_chat=True)
    with pytest.raises(
        DataError,
        match=r"1 of 2 train rows .* row 2 .*leave none of --max_length 12 for the answer",
    ):
        encode_split(both, tokenizer, max_length=12, **limits)
    assert len(encode_split(both, tokenizer, max_length=12, on_bad_row="skip", **limits)) == 1
    with pytest.raises(DataError, match="no train row is left of 1"):
        encode_split(both.select([1]), tokenizer, max_length=12, on_bad_row="skip", **limits)


def test_packing_keeps_documents_whole() -> None:
    rows = Dataset.from_list([{"input_ids": [n] * n, "labels": [n] * n} for n in (3, 5, 2, 6, 4)])
    packed = pack(rows, max_length=8, strategy="bfd")
    assert sorted(map(sorted, packed["seq_lengths"])) == [[2, 6], [3, 5], [4]]
    for row in packed:
        assert row["input_ids"] == [length for length in row["seq_lengths"] for _ in range(length)]
    with pytest.raises(ConfigError, match="wrapped lets packed documents read each other"):
        pack(rows, max_length=8, strategy="wrapped")


def test_questions(tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [{"messages": TALK}, {"messages": TALK[:2]}, {"messages": TALK[1:3]}]
    asked = questions(
        normalise(Dataset.from_list(rows), Columns(), as_chat=True), tokenizer, limit=5
    )
    assert [reference for _, reference in asked] == ["Home.", "The fox."]
    assert str(tokenizer.decode(asked[1][0])) == "<|user|>Who?<|end|><|assistant|>"
    assert (
        len(
            questions(Dataset.from_list([{"text": "once upon a time " * 5}]), tokenizer, limit=5)[
                0
            ][0]
        )
        == 8
    )
    longest = len(asked[1][0])
    only = questions(
        normalise(Dataset.from_list(rows), Columns(), as_chat=True),
        tokenizer,
        limit=5,
        longest=longest,
    )
    assert [reference for _, reference in only] == ["The fox."]


def test_the_shipped_template_marks_the_answer_and_its_eos(
    tiny_tokenizer: PreTrainedTokenizerFast,
) -> None:
    plain = copy.deepcopy(tiny_tokenizer)
    plain.chat_template = read_template("plain.jinja")
    text, answers = learned(plain, {"messages": json.dumps(TALK[1:3]), "prompt_turns": 0})
    assert (
        text == "### user\nWho?\n\n### assistant\nThe fox.<|endoftext|>\n"
        and answers == "The fox.<|endoftext|>"
    )
    assert str(plain.decode(prompt_ids(plain, TALK[1:2]))) == "### user\nWho?\n\n### assistant\n"
