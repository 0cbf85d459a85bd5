"""A model answers a conversation as it would in training: template, ends, context, sampling."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, set_seed

from hfstack.errors import CheckpointError, DataError
from hfstack.models.gru import GRUConfig, GRUForCausalLM
from hfstack.tasks.causal_lm.chat_model import ChatModel, answer, fit_prompt, load_chat_model
from hfstack.tasks.causal_lm.generate import Completion, generate_from_ids
from hfstack.tasks.causal_lm.sampling import SamplingArgs
from hfstack.tokens.special_tokens import end_token_ids
from tests.tiny_chat import save_tiny_chat
from tests.tiny_encoder import save_tiny_bert


@pytest.fixture(scope="module")
def chat_folder(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_chat(tiny_llama, tmp_path_factory.mktemp("chat"))


@pytest.fixture(scope="module")
def chat_model(chat_folder: Path) -> ChatModel:
    return load_chat_model(str(chat_folder))


def ask(model: ChatModel, text: str, *, tokens: int = 12, **settings: Any) -> Completion:
    """Return the answer to one message; what is shown on the way is the same text."""
    shown: list[str] = []
    turns = [{"role": "user", "content": text}]
    prompt = fit_prompt(model, turns, max_new_tokens=tokens)
    completion = answer(
        model,
        prompt,
        SamplingArgs(**settings),
        max_new_tokens=tokens,
        show=shown.append,
        should_stop=lambda: False,
    )
    assert "".join(shown) == completion.completion
    return completion


def test_the_answer_is_that_of_generate_on_the_rendered_template(chat_model: ChatModel) -> None:
    assert chat_model.uses_template and chat_model.context == 128
    ids = chat_model.tokenizer("<|user|>The fox<|end|><|assistant|>")["input_ids"]
    expected = generate_from_ids(
        chat_model.model, chat_model.tokenizer, [ids], max_new_tokens=12, temperature=0
    )[0]
    assert ask(chat_model, "The fox", temperature=0) == expected


def test_what_is_shown_is_the_answer_even_where_characters_break(chat_model: ChatModel) -> None:
    torch.manual_seed(0)
    answers = [ask(chat_model, "The owl", tokens=40, temperature=2.0) for _ in range(5)]
    assert any("\ufffd" in one.completion for one in answers), "a random model breaks some"


def test_an_answer_stops_at_the_end_of_its_turn(
    chat_model: ChatModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    end = chat_model.tokenizer.convert_tokens_to_ids("<|end|>")
    assert end in end_token_ids(chat_model.model, chat_model.tokenizer)
    stock = type(chat_model.model).forward

    def ending(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = stock(self, *args, **kwargs)
        output.logits[..., end] = 1e4
        return output

    monkeypatch.setattr(type(chat_model.model), "forward", ending)
    completion = ask(chat_model, "The fox", temperature=0)
    assert completion.finished and completion.tokens == 1 and completion.completion == ""


def test_nothing_is_taken_from_the_models_own_sampling(chat_folder: Path, tmp_path: Path) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(chat_folder)
    model.generation_config.update(do_sample=True, top_k=1, temperature=1.0)
    model.save_pretrained(tmp_path)
    for file in chat_folder.glob("*token*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "chat_template.jinja").write_text((chat_folder / "chat_template.jinja").read_text())

    loaded = load_chat_model(str(tmp_path))
    torch.manual_seed(0)
    answers = {ask(loaded, "The fox", temperature=1.0).completion for _ in range(4)}
    assert len(answers) == 4, "the folder's top_k of 1 would give one and the same"


def test_old_turns_are_left_out_in_pairs_where_the_context_ends(chat_model: ChatModel) -> None:
    turns: list[dict[str, Any]] = [{"role": "system", "content": "be kind"}]
    for _ in range(8):
        turns += [
            {"role": "user", "content": "The fox ran"},
            {"role": "assistant", "content": "up the hill"},
        ]
    turns.append({"role": "user", "content": "and then"})

    prompt = fit_prompt(chat_model, turns, max_new_tokens=500)
    text = str(chat_model.tokenizer.decode(prompt.token_ids))
    assert prompt.left_out >= 2 and prompt.left_out % 2 == 0
    assert text.startswith("<|system|>be kind<|end|><|user|>The fox ran<|end|>")
    assert text.endswith("<|user|>and then<|end|><|assistant|>")
    assert prompt.room == 128 - len(prompt.token_ids) >= 128 // 4

    # With a short answer more of the conversation fits.
    assert fit_prompt(chat_model, turns, max_new_tokens=4).left_out < prompt.left_out
    with pytest.raises(DataError, match="leaves no room for an answer in the context of 128"):
        fit_prompt(chat_model, [{"role": "user", "content": "xyz " * 100}], max_new_tokens=9)


def test_an_answer_ends_with_the_context(chat_model: ChatModel) -> None:
    completion = ask(chat_model, "xyz " * 25, tokens=500, temperature=0)
    assert not completion.finished and completion.tokens < 128


def test_asking_it_to_stop_ends_the_answer(chat_model: ChatModel) -> None:
    prompt = fit_prompt(chat_model, [{"role": "user", "content": "a"}], max_new_tokens=50)
    shown: list[str] = []
    completion = answer(
        chat_model,
        prompt,
        SamplingArgs(temperature=0),
        max_new_tokens=50,
        show=shown.append,
        should_stop=lambda: len(shown) >= 3,
    )
    assert completion.tokens < 50 and not completion.finished


def test_recurrent_models_answer_too_and_have_no_bound(tmp_path: Path, tiny_tokenizer: Any) -> None:
    set_seed(0)
    config = GRUConfig(
        vocab_size=len(tiny_tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        eos_token_id=tiny_tokenizer.eos_token_id,
    )
    GRUForCausalLM(config).save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)

    model = load_chat_model(str(tmp_path))
    assert model.context is None and model.prompt_format.kind == "document"
    expected = generate_from_ids(
        model.model,
        tiny_tokenizer,
        [[tiny_tokenizer.eos_token_id, *tiny_tokenizer("The")["input_ids"]]],
        max_new_tokens=12,
        temperature=0,
    )[0]
    assert ask(model, "The", temperature=0) == expected


def test_an_adapter_is_loaded_onto_its_base(chat_folder: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    base: Any = AutoModelForCausalLM.from_pretrained(chat_folder)
    set_seed(3)
    settings = LoraConfig(task_type="CAUSAL_LM", r=2, init_lora_weights=False)
    get_peft_model(base, settings).save_pretrained(tmp_path)
    plain = load_chat_model(str(chat_folder))
    plain.tokenizer.save_pretrained(tmp_path)
    adapted = load_chat_model(str(tmp_path))
    assert adapted.uses_template
    assert ask(adapted, "The fox", temperature=0) != ask(plain, "The fox", temperature=0)


def test_an_encoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is a masked language model"):
        load_chat_model(str(save_tiny_bert(tmp_path)))
