"""Every chat template that TRL ships, tried as sft uses it: the table of docs/chat_templates.md.

`python -m tests.tokens.test_trl_templates` writes the table again, after an upgrade of TRL.
"""

import copy
import json
import re
import tempfile
from pathlib import Path
from typing import Any

import pytest
import trl
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.cli.serving.utils import BaseHandler, Modality
from trl.chat_template_utils import has_generation_markers, is_chat_template_stop_token_trained

from hfstack.errors import DataError
from hfstack.tasks.causal_lm.chat_model import ChatModel, fit_prompt
from hfstack.tasks.causal_lm.prompt_format import PromptFormat, encode_prompt
from hfstack.tasks.sft.encoding import encode_as_asked, encode_row
from hfstack.tasks.sft.setup import training_template
from hfstack.tokens.chat import (
    encode_for_generation,
    end_of_turn_id,
    refuse_dropped_text,
    render_chat,
    render_with_answers,
)
from hfstack.tokens.rendering import find_missing
from hfstack.tokens.special_tokens import IGNORED_LABEL
from hfstack.tokens.turns import read_tools, read_turns
from tests.conftest import ROOT
from tests.tiny_tokenizers import byte_bpe

PAGE = ROOT / "docs" / "chat_templates.md"
FOLDER = Path(trl.__file__).parent / "chat_templates"
NAMES = sorted(path.stem for path in FOLDER.glob("*.jinja") if not path.stem.endswith("_training"))
COLUMNS = (
    "template",
    "marks",
    "learned",
    "prompt",
    "ends",
    "system",
    "developer",
    "tools",
    "thoughts",
    "differences",
)

# `<|im_end|>`, `<end_of_turn>`, `<turn|>`, `<｜User｜>`: what is one token in the models' own
SPECIAL = re.compile(r"<(?:[|｜][^\s<>'\"]+?[|｜]?|\w+_of_\w+|\w+[|｜])>")

ASK = {"role": "user", "content": "Where does the small fox live?"}
ANSWER = {"role": "assistant", "content": "It lives near the red river."}
AGAIN = [{"role": "user", "content": "Who else is there?"}, ANSWER | {"content": "An old owl."}]
CALL = {"function": {"name": "find_fox", "arguments": {"place": "north den"}}}
TOOLS = [{"name": "find_fox", "description": "Finds a fox.", "parameters": {"type": "object"}}]
TALKS: dict[str, list[dict[str, Any]]] = {
    "system": [{"role": "system", "content": "Be kind and brief."}, ASK, ANSWER, *AGAIN],
    "developer": [{"role": "developer", "content": "Be kind and brief."}, ASK, ANSWER],
    "tools": [
        ASK,
        {"role": "assistant", "tool_calls": [CALL]},
        {"role": "tool", "name": "find_fox", "content": "den number four"},
        ANSWER,
    ],
    "thoughts": [ASK, ANSWER | {"reasoning_content": "I remember a den."}, *AGAIN],
}


@pytest.fixture(scope="module")
def base() -> PreTrainedTokenizerFast:
    return byte_bpe(use_regex=False)


def tokenizer_of(name: str, base: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """Return the tiny tokenizer with a template of TRL's and the tokens that it writes."""
    tokenizer = copy.deepcopy(base)
    tokenizer.chat_template = (FOLDER / f"{name}.jinja").read_text(encoding="utf-8")
    special: Any = sorted(set(SPECIAL.findall(tokenizer.chat_template)))
    tokenizer.add_special_tokens({"additional_special_tokens": special})
    return tokenizer


def outcome(tokenizer: PreTrainedTokenizerFast, talk: str, *, marked: bool) -> str:
    """Return whether a template renders all of a conversation, and marks its answers."""
    turns = read_turns(TALKS[talk], "user")
    tools = read_tools(TOOLS if talk == "tools" else None)
    try:
        missing = find_missing(tokenizer, turns, tools, assistant_only=marked)
    except DataError:
        return "refused"
    return "dropped" if missing else "yes"


def learned_text(tokenizer: PreTrainedTokenizerFast, turns: list[dict[str, Any]]) -> str:
    row = {"messages": json.dumps(turns), "prompt_turns": 0, "history": False}
    row |= {"tools": "", "problem": ""}
    _, labels, problem = encode_row(row, tokenizer, assistant_only=True, completion_only=True)
    assert problem is None
    return str(tokenizer.decode([label for label in labels if label != IGNORED_LABEL]))


def try_template(name: str, base: PreTrainedTokenizerFast) -> list[str]:
    """Return a row of the table."""
    tokenizer = tokenizer_of(name, base)
    own = has_generation_markers(str(tokenizer.chat_template))
    ask = read_turns([ASK], "user")

    try:
        refuse_dropped_text(tokenizer)
        prompt = str(render_chat(tokenizer, ask, tokenize=False, add_generation_prompt=True))
        end = end_of_turn_id(tokenizer)
    except DataError:
        return [name, *["refused"] * (len(COLUMNS) - 1)]

    with training_template(tokenizer, assistant_only=True):
        marked = has_generation_markers(str(tokenizer.chat_template))
        whole, answer = render_with_answers(tokenizer, [*ask, ANSWER])
        talks = {talk: outcome(tokenizer, talk, marked=marked) for talk in TALKS}
        ends = marked and is_chat_template_stop_token_trained(tokenizer)
        plain = find_missing(tokenizer, [ASK, ANSWER, *AGAIN], assistant_only=marked)

    learned = ("yes" if ends else "no end") if marked else "whole text"
    start = whole.find(answer)
    if marked and whole.startswith(prompt) and prompt[start:].strip():
        learned += ", with the header"
    return [
        name,
        "itself" if own else "TRL's variant" if marked else "no",
        "dropped" if plain else learned,
        "yes" if whole.startswith(prompt) else "no",
        "none" if end is None else f"`{tokenizer.decode([end])}`".replace("|", "\\|"),
        *talks.values(),
        str(len(find_differences(name, base))),
    ]


def find_differences(name: str, base: PreTrainedTokenizerFast) -> list[str]:
    """Return who reads other ids of a conversation than chat: nobody should.

    Readers of a prompt are chat and generate, the prompts of online training, the tokenizer that
    was saved and loaded again, and the server of transformers. What training learns of a whole
    conversation is compared answer by answer: with what the saved tokenizer makes of the turns up
    to it, and with the prompt that chat asks it with, where the template agrees with itself.
    """
    tokenizer = tokenizer_of(name, base)
    turns = [ASK, ANSWER, AGAIN[0]]
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        saved: Any = AutoTokenizer.from_pretrained(folder)

    chat_model: Any = ChatModel("m", None, tokenizer, PromptFormat("chat", ""), None, "")  # type: ignore[arg-type]
    chat = fit_prompt(chat_model, turns, max_new_tokens=1).token_ids
    messages = BaseHandler.get_processor_inputs_from_messages(turns, Modality.LLM)
    options: Any = {"add_generation_prompt": True, "return_dict": True, "tokenize": True}
    readers = {
        "generate": encode_prompt(tokenizer, turns, "chat"),
        "online training": encode_for_generation(tokenizer, turns),
        "saved": saved.apply_chat_template(turns, **options)["input_ids"],
        "served": saved.apply_chat_template(messages, tools=None, **options)["input_ids"],
    }
    different = [reader for reader, ids in readers.items() if ids != chat]

    for talk in ([*turns, AGAIN[1]], TALKS["tools"], TALKS["thoughts"]):
        different += [f"training: {reader}" for reader in differences_of_training(tokenizer, talk)]
    return different


def differences_of_training(
    tokenizer: PreTrainedTokenizerFast, talk: list[dict[str, Any]]
) -> list[str]:
    """Return which answers of a conversation are learned behind other ids than they are asked for.

    Conversations that training refuses are left out.
    """
    tools = read_tools(TOOLS) if talk is TALKS["tools"] else None
    turns = read_turns(talk, "user")
    row = {"messages": json.dumps(turns), "prompt_turns": 0, "history": False}
    row |= {"tools": json.dumps(tools) if tools else "", "problem": ""}
    with training_template(tokenizer, assistant_only=True) as own:
        marked = has_generation_markers(str(tokenizer.chat_template))
        try:
            if find_missing(tokenizer, turns, tools, assistant_only=marked):
                return []
        except DataError:
            return []
        parts = encode_as_asked(row, tokenizer, own, assistant_only=marked, completion_only=True)

    different = []
    for place, turn in enumerate(turns):
        if turn["role"] != "assistant":
            continue

        options: Any = {"tools": tools, "return_dict": True}
        upto = tokenizer.apply_chat_template(turns[: place + 1], **options)["input_ids"]
        asked = encode_for_generation(tokenizer, turns[:place], tools)
        # a prompt that opens a thought is none of its own template's: log_other_prompts says so
        start = len(asked) if upto[: len(asked)] == asked else 0

        # what ends the last answer may be another token than what ends an earlier one (phi3)
        answer = len(upto)
        while answer > start and upto[answer - 1] in tokenizer.added_tokens_decoder:
            answer -= 1
        if not any(
            ids[:answer] == upto[:answer] and set(labels[start:answer]) - {IGNORED_LABEL}
            for ids, labels, _ in parts
        ):
            different.append(f"turn {place}")
    return different


def make_table(base: PreTrainedTokenizerFast) -> str:
    rows = [COLUMNS, ["---"] * len(COLUMNS), *(try_template(name, base) for name in NAMES)]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def test_the_table_of_the_docs_is_what_the_templates_do(base: PreTrainedTokenizerFast) -> None:
    assert make_table(base) in PAGE.read_text(encoding="utf-8"), (
        "write docs/chat_templates.md again: python -m tests.tokens.test_trl_templates"
    )


def test_nobody_gets_other_ids_of_a_conversation() -> None:
    """The column is made by find_differences, and the test above holds it to the templates.

    Refused are templates that read content in parts alone, and that fail on plain text.
    """
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")]
    found = {row[0]: row[-1] for row in rows if row[0] in NAMES}
    assert set(found) == set(NAMES)
    refused = dict.fromkeys(("llava_next", "idefics3", "smolvlm"), "refused")
    assert {name: count for name, count in found.items() if count != "0"} == refused


@pytest.mark.parametrize("name", ["qwen2_5", "qwen3", "llama3", "gemma", "phi3", "gptoss", "lfm2"])
def test_answers_and_their_ends_are_learned_and_nothing_else(
    base: PreTrainedTokenizerFast, name: str
) -> None:
    tokenizer = tokenizer_of(name, base)
    with training_template(tokenizer, assistant_only=True):
        text = learned_text(tokenizer, [ASK, ANSWER, *AGAIN])
    for turn in (ANSWER, AGAIN[1]):
        assert text.count(turn["content"]) == 1
    assert ASK["content"] not in text and AGAIN[0]["content"] not in text
    end = end_of_turn_id(tokenizer)
    assert end is not None
    assert text.rstrip().endswith((str(tokenizer.decode([end])), "</s>"))
    # TRL's variant of gpt-oss marks the header of the turn too
    header = "<|start|>assistant<|channel|>final<|message|>"
    assert text.lstrip().startswith(("It lives", "<think>", header + "It lives"))


if __name__ == "__main__":
    page = PAGE.read_text(encoding="utf-8")
    start = page.index("| template |")
    end = page.index("\n\n", start) + 1
    PAGE.write_text(page[:start] + make_table(byte_bpe(use_regex=False)) + page[end:], "utf-8")
