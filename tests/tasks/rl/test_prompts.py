"""Prompts of online reinforcement learning are loaded, checked and truncated."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForSequenceClassification,
)

from hfstack.data.sources import DataArgs, Source
from hfstack.errors import ConfigError, DataError
from hfstack.tasks.rewards.reward_model import RewardModel
from hfstack.tasks.rl.prompts import (
    load_prompts,
    prompt_problems,
    tokenize_prompt,
    truncate_prompt,
)
from hfstack.tokens.turns import read_tools
from hfstack.training.preflight import NO_SHARED_ROW


@pytest.fixture
def llama(tiny_llama: Path) -> tuple[Any, Any]:
    return AutoModelForCausalLM.from_pretrained(tiny_llama), AutoTokenizer.from_pretrained(
        tiny_llama
    )


@pytest.fixture
def load(tmp_path: Path):
    """Write rows and load them as prompts; keyword arguments go to DataArgs."""

    def call(
        rows: list[dict[str, Any]],
        *,
        as_chat: bool = False,
        recipe: str = "rloo",
        **settings: Any,
    ) -> dict[str, Any]:
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        args = DataArgs(datasets=[Source(str(path))], **{"eval_fraction": 0, **settings})
        return load_prompts(
            args, recipe=recipe, as_chat=as_chat, quarantine_file=tmp_path / "bad.jsonl"
        )

    return call


def test_prompts_keep_their_columns_and_become_turns(load) -> None:
    rows = [{"prompt": f"Tell {index}.", "answer": str(index)} for index in range(20)]
    splits = load(rows, as_chat=True, eval_fraction=0.2)
    assert splits["train"][0]["prompt"][0]["role"] == "user"
    assert set(splits["train"].column_names) == {"prompt", "answer"}
    found = {name: {row["prompt"][0]["content"] for row in split} for name, split in splits.items()}
    assert not found["train"] & found["eval"] and len(found["train"] | found["eval"]) == 20
    assert (
        load([{"question": "Why?", "prompt": "x"}], text_column="question")["train"]["prompt"][0]
        == "Why?"
    )


def test_conversations_are_read_as_public_data_writes_them(
    load, caplog: pytest.LogCaptureFixture
) -> None:
    parts = [{"type": "text", "text": "Who "}, {"type": "text", "text": "is it?"}]
    asked = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yes?"}]
    tools = [{"name": "find_fox", "parameters": {}}]
    row = {"prompt": [*asked, {"role": "user", "content": parts}], "system": "Be brief."}
    asked_with = load([row | {"tools": tools}], recipe="win_rate")
    assert asked_with["train"]["prompt"][0] == [
        {"role": "system", "content": "Be brief.", "tools": read_tools(tools)},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": "Who is it?"},
    ]
    plain = load([{"prompt": "Hi", "system": "Be brief."}])["train"]["prompt"][0]
    assert plain == "Hi" and "the columns 'system' are not read" in caplog.text


TOOLS_TEMPLATE = (
    "{% for tool in tools or [] %}<{{ tool['function']['name'] }}>{% endfor %}"
    "{% for turn in messages %}[{{ turn['role'] }}]{{ turn['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def test_the_tools_of_a_prompt_are_rendered_for_policy_and_reward(
    load, llama, tmp_path: Path
) -> None:
    model, tokenizer = llama[0], copy.deepcopy(llama[1])
    tokenizer.chat_template = TOOLS_TEMPLATE
    rows = [
        {"prompt": "Hi", "tools": json.dumps([{"name": "find_fox", "parameters": {}}])},
        {"prompt": "Ho", "tools": None},
    ]
    prompts = load(rows, as_chat=True, recipe="ppo")["train"]["prompt"][:]
    texts = [tokenizer.decode(tokenize_prompt(prompt, tokenizer)) for prompt in prompts]
    assert texts == ["<find_fox>[user]Hi[assistant]", "[user]Ho[assistant]"]
    assert prompts[1] == [{"role": "user", "content": "Ho"}]

    # what the policy is checked by, and what a reward model reads
    splits = load(rows, as_chat=True, recipe="ppo")
    assert not any(prompt_problems(splits, tokenizer, model, max_completion_length=4).values())
    tokenizer.chat_template = TOOLS_TEMPLATE.replace("<{{ tool['function']['name'] }}>", "")
    lost = prompt_problems(splits, tokenizer, model, max_completion_length=4)
    assert "tool" in (lost["every train turn is rendered"] or "")

    config = LlamaConfig(**model.config.to_dict() | {"num_labels": 1})
    LlamaForSequenceClassification(config).save_pretrained(tmp_path / "rm")
    tokenizer.chat_template = TOOLS_TEMPLATE
    tokenizer.save_pretrained(tmp_path / "rm")
    answer = [{"role": "assistant", "content": "Ha"}]
    read = RewardModel(str(tmp_path / "rm")).encode(prompts[0], answer)
    assert tokenizer.decode(read) == "<find_fox>[user]Hi[assistant]Ha"
    turns = load([{"prompt": "Hi", "system": "Be brief."}], as_chat=True)["train"][0]["prompt"]
    assert [turn["role"] for turn in turns] == ["system", "user"]


def test_turns_that_the_template_drops_are_a_problem(llama: tuple[Any, Any]) -> None:
    model, tokenizer = llama
    tokenizer.chat_template = (
        "{% for m in messages if m.role != 'developer' %}{{ m.content }}{% endfor %}"
    )
    turns = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    rows = Dataset.from_dict({"prompt": [turns]})
    found = prompt_problems({"train": rows}, tokenizer, model, max_completion_length=4)
    assert "1 x developer turn" in str(found["every train turn is rendered"])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "Why?"}, r"rloo needs the columns prompt; found: question; .*--text_column"),
        ({"prompt": " "}, "rows.jsonl line 1: column 'prompt': the prompt is empty"),
        (
            {"prompt": [{"role": "assistant", "content": "hi"}]},
            "the conversation ends with an answer",
        ),
        (
            {"prompt": [{"role": "user", "content": [{"type": "image"}]}]},
            "rows.jsonl line 1: column 'prompt': a part of content is 'image'",
        ),
        ({"prompt": 3}, r"a prompt is text or a list of messages \{role, content\}, got '3'"),
    ],
)
def test_rows_that_hold_no_prompt_are_refused(load, row: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load([row])


def test_prompts_that_leave_no_room_are_a_problem(
    llama: tuple[Any, Any], caplog: pytest.LogCaptureFixture
) -> None:
    model, tokenizer = llama
    rows = Dataset.from_dict({"prompt": ["The fox", "z" * 80]})
    rule = "prompts and completions fit the context"

    found = prompt_problems({"train": rows}, tokenizer, model, max_completion_length=40)
    assert found == {"no doubled bos": None, NO_SHARED_ROW: None, rule: None}

    found = prompt_problems({"train": rows}, tokenizer, model, max_completion_length=60)
    assert str(found[rule]).startswith(
        "1 of 2 prompts, first row 2 with 80 tokens, leave less than --max_completion_length 60 of "
        "the context of 128 tokens"
    )

    truncated = prompt_problems(
        {"train": rows}, tokenizer, model, max_completion_length=60, max_prompt_length=68
    )
    assert truncated[rule] is None
    assert "1 of 2 prompts are longer than --max_prompt_length 68 and lose their be" in caplog.text


def test_held_out_prompts_that_are_trained_on_are_a_problem(llama: tuple[Any, Any]) -> None:
    rows = Dataset.from_dict({"prompt": ["The fox", "The owl"]})
    splits = {"train": rows, "eval": rows}
    found = prompt_problems(splits, llama[1], llama[0], max_completion_length=8)
    assert found[NO_SHARED_ROW] is not None


@pytest.mark.parametrize(
    ("token_ids", "longest", "bos", "kept"),
    [
        ([1, 5, 6, 7], None, 1, [1, 5, 6, 7]),
        ([1, 5, 6, 7], 4, 1, [1, 5, 6, 7]),
        ([1, 5, 6, 7], 3, 1, [1, 6, 7]),
        ([1, 5, 6, 7], 1, 1, [1]),
        ([4, 5, 6, 7], 3, 1, [5, 6, 7]),
        ([4, 5, 6, 7], 2, None, [6, 7]),
        ([], 2, 1, []),
    ],
)
def test_a_prompt_is_truncated_at_its_start_but_keeps_its_bos(
    token_ids: list[int], longest: int | None, bos: int | None, kept: list[int]
) -> None:
    assert truncate_prompt(token_ids, longest, bos) == kept


def test_conversations_need_a_template(llama: tuple[Any, Any]) -> None:
    with pytest.raises(
        ConfigError, match="no chat template; for plain prompts set --as_chat false"
    ):
        tokenize_prompt([{"role": "user", "content": "hi"}], llama[1])
