"""A prompt is encoded as training encoded it, which the runs behind a model recorded."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from hfstack.errors import ConfigError, DataError
from hfstack.tasks.causal_lm.prompt_format import encode_prompt, find_prompt_format
from tests.tiny_chat import save_tiny_chat
from tests.tiny_tokenizers import llama2


@pytest.fixture(scope="module")
def chat_tokenizer(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory):
    return AutoTokenizer.from_pretrained(save_tiny_chat(tiny_llama, tmp_path_factory.mktemp("c")))


def record(folder: Path, recipe: str, parents: list[str], **settings: dict[str, Any]) -> str:
    """Write the run.json of a finished run, as far as it is read here."""
    folder.mkdir(parents=True)
    texts = dict.fromkeys(["command", "output_dir", "python", "config_hash"], "")
    values = {**texts, "schema": 1, "recipe": recipe, "parents": parents, "commit": None}
    values |= {"versions": {}, "hardware": {}, "world_size": 1, "started": "2026-01-01T00:00:00"}
    (folder / "run.json").write_text(json.dumps(values | {"settings": settings}))
    return str(folder)


def test_the_template_counts_where_a_run_trained_with_it(
    tmp_path: Path, chat_tokenizer: PreTrainedTokenizerBase
) -> None:
    pretrained = record(tmp_path / "pretrain", "pretrain_clm", [])
    tuned = record(tmp_path / "sft", "sft", ["../pretrain"], SftArgs={"as_chat": True})
    plain = record(tmp_path / "plain", "sft", ["../pretrain"], SftArgs={"as_chat": False})
    refined = record(tmp_path / "dpo", "dpo", ["../sft"], PreferenceArgs={"conversational": False})
    below = record(tmp_path / "kto", "kto", ["../plain"], PreferenceArgs={"conversational": False})

    def kind(name: str, as_chat: bool | None = None) -> str:
        return find_prompt_format(name, chat_tokenizer, as_chat=as_chat).kind

    assert kind(pretrained) == "document", "its tokenizer has the template already"
    assert [kind(tuned), kind(refined), kind(f"{tuned}/checkpoint-10")] == ["chat"] * 3
    assert [kind(plain), kind(below)] == ["prompt", "prompt"]
    assert kind("somebody/model") == "chat", "of a model that is not ours the template is learned"
    assert [kind(pretrained, True), kind(tuned, False), kind(plain, False)] == [
        "chat",
        "document",
        "prompt",
    ]


def test_without_a_template_text_is_continued(
    tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerBase
) -> None:
    assert find_prompt_format("somebody/model", tiny_tokenizer).kind == "document"
    tuned = record(tmp_path / "sft", "sft", [], SftArgs={"as_chat": False})
    assert find_prompt_format(tuned, tiny_tokenizer).kind == "prompt"
    with pytest.raises(ConfigError, match="--as_chat: the tokenizer of .* has no chat template"):
        find_prompt_format(tuned, tiny_tokenizer, as_chat=True)


def test_each_kind_of_prompt_is_encoded_in_its_own_way(
    chat_tokenizer: PreTrainedTokenizerBase,
) -> None:
    def decode(ids: list[int]) -> str:
        return str(chat_tokenizer.decode(ids))

    assert decode(encode_prompt(chat_tokenizer, "The fox", "chat")) == (
        "<|user|>The fox<|end|><|assistant|>"
    )
    turns = [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]
    assert decode(encode_prompt(chat_tokenizer, turns, "chat")) == (
        "<|system|>a<|end|><|user|>b<|end|><|assistant|>"
    )
    begun = [turns[1], {"role": "assistant", "content": "The"}]
    assert (
        decode(encode_prompt(chat_tokenizer, begun, "chat")) == "<|user|>b<|end|><|assistant|>The"
    )
    assert decode(encode_prompt(chat_tokenizer, "The fox", "prompt")) == "The fox"
    assert decode(encode_prompt(chat_tokenizer, "The fox", "document")) == "<|endoftext|>The fox"
    with pytest.raises(DataError, match="this model reads plain text alone"):
        encode_prompt(chat_tokenizer, turns, "document")
    # what was rendered already begins as it says
    assert decode(encode_prompt(chat_tokenizer, "<|user|>The", "document")) == "<|user|>The"


@pytest.mark.parametrize("kind", ["prompt", "document"])
def test_a_prompt_with_its_bos_gets_no_second_one(kind: Any) -> None:
    tokenizer = llama2(dummy_prefix=False)
    expected = [1, *tokenizer("The fox", add_special_tokens=False)["input_ids"]]
    for prompt in ("The fox", "<s>The fox"):
        assert encode_prompt(tokenizer, prompt, kind) == expected
