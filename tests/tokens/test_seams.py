"""A prompt with its answer is one text, however it is encoded and decoded."""

from pathlib import Path
from unicodedata import normalize

import pytest
from tokenizers import Tokenizer, processors
from transformers import AutoTokenizer

from hfstack.errors import ConfigError
from hfstack.tokens.seams import answer_opening, decode_answer, encode_behind, encode_joined
from hfstack.tokens.special_tokens import require_eos_id
from tests.tiny_tokenizers import byte_bpe, llama2, unigram, word_piece, wrap

TOKENIZERS = {
    "byte-BPE": byte_bpe(trim_offsets=False),
    "byte-BPE, offsets trimmed": byte_bpe(trim_offsets=True),
    "byte-BPE over words, offsets trimmed": byte_bpe(trim_offsets=True, use_regex=False),
    "WordPiece": word_piece(),
    "Unigram": unigram("always"),
    "Unigram without a dummy prefix": unigram("never"),
    "Llama 2": llama2(dummy_prefix=True),
    "Llama 2 without a dummy prefix": llama2(dummy_prefix=False),
}
JOINED = [
    ("The little", " girl ran home"),
    ("The little ", "girl ran home"),  # most tokenizers read " girl" as one token
    ("The lit", "tle girl"),
    ("Human: who are you?\n\nAssistant:", " I am an owl."),
    ("The fox", "\nGood night!"),
    ("The fox:", "\n\nran"),
    ("The fox:", "  ran"),
    ("Good night!\n", "Good night!"),
    ("小狐狸跑", "回家了"),
    ("猫头鹰说：", "你好吗？"),
    ("the owl was", ", happy"),
]


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize(("prompt", "answer"), JOINED)
def test_encoded_and_decoded_they_are_the_joined_text(name: str, prompt: str, answer: str) -> None:
    tokenizer = TOKENIZERS[name]
    ids, seam = encode_joined(tokenizer, prompt, answer)
    assert ids == tokenizer(prompt + answer)["input_ids"]

    # what stands behind the prompt's tokens is the answer's text, with the token that spans both
    whole = tokenizer.decode(ids, skip_special_tokens=True)
    before = tokenizer.decode(ids[:seam], skip_special_tokens=True)
    text = decode_answer(tokenizer, ids[:seam], ids[seam:])
    assert before.rstrip("�") + text == whole  # a half character is the answer's
    assert len(before.replace(" ", "")) <= len(prompt.replace(" ", ""))

    # the seam is as late as it can be: one token more would reach into the answer
    more = tokenizer.decode(ids[: seam + 1], skip_special_tokens=True)
    if name != "WordPiece" and "�" not in before + more:
        texts = (prompt + answer, normalize("NFKC", prompt + answer))
        assert any(text.startswith(before) for text in texts) and len(more) > len(prompt)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_an_answer_decoded_behind_its_prompt_is_the_text_that_was_written(name: str) -> None:
    """As in generation: the prompt is encoded by itself, and the model goes on from there."""
    tokenizer = TOKENIZERS[name]
    for prompt, answer in (
        ("The little", " girl ran home"),
        ("Human: who", " are you"),
        ("狐狸", "回家"),
    ):
        ids = list(tokenizer(prompt)["input_ids"])
        joined, seam = encode_joined(tokenizer, prompt, answer)
        if joined[: len(ids)] == ids:
            assert seam == len(ids)
            expected = answer if name != "WordPiece" or answer[0] == " " else f" {' '.join(answer)}"
            assert decode_answer(tokenizer, ids, joined[seam:]) == expected
            assert encode_behind(tokenizer, ids, answer) == joined[seam:]


def test_an_answer_decoded_alone_would_lose_its_blank() -> None:
    tokenizer = TOKENIZERS["Llama 2"]
    ids, seam = encode_joined(tokenizer, "The little", " girl")
    assert tokenizer.decode(ids[seam:]) == "girl"
    assert decode_answer(tokenizer, ids[:seam], ids[seam:]) == " girl"
    # and encoded alone it would gain one
    apart = (
        tokenizer("The little")["input_ids"]
        + tokenizer("\nran", add_special_tokens=False)["input_ids"]
    )
    assert tokenizer.decode(apart, skip_special_tokens=True) == "The little \nran"
    assert (
        tokenizer.decode(encode_joined(tokenizer, "The little", "\nran")[0][1:])
        == "The little\nran"
    )


def test_a_token_that_spans_the_seam_is_the_answers() -> None:
    tokenizer = TOKENIZERS["byte-BPE"]
    ids, seam = encode_joined(tokenizer, "The little ", "girl")
    assert tokenizer.decode(ids[:seam]) == "The little"
    assert tokenizer.decode(ids[seam:]) == " girl"
    assert decode_answer(tokenizer, ids[:seam], ids[seam:]) == " girl"


def test_a_character_of_several_bytes_that_the_answer_completes() -> None:
    tokenizer = TOKENIZERS["Llama 2"]
    ids = tokenizer("The 猫!")["input_ids"]
    start = ids.index(tokenizer.convert_tokens_to_ids("<0xE7>"))
    assert "�" in tokenizer.decode(ids[: start + 1])
    assert decode_answer(tokenizer, ids[: start + 1], ids[start + 1 :]) == "猫!"


def test_the_end_token_that_a_tokenizer_adds_is_left_out() -> None:
    tokenizer = wrap(Tokenizer.from_str(TOKENIZERS["Unigram"].backend_tokenizer.to_str()))
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 2)]
    )
    ids, seam = encode_joined(tokenizer, "The fox", " ran")
    assert tokenizer("The fox ran")["input_ids"] == [*ids, 2] and 2 not in ids
    assert tokenizer.decode(ids[:seam]) == "The fox"


def test_a_text_that_holds_its_end_ends_once() -> None:
    tokenizer = TOKENIZERS["byte-BPE"]
    once = encode_joined(tokenizer, "The fox", " ran")
    assert encode_joined(tokenizer, "The fox", " ran</s>") == once
    tokenizer = byte_bpe(trim_offsets=False)
    assert require_eos_id(tokenizer) == 2
    tokenizer.eos_token = None
    with pytest.raises(ConfigError, match="no eos token, so that no plain text ends"):
        require_eos_id(tokenizer)


def test_without_offsets_the_prompts_own_tokens_are_compared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tokenizer = llama2(dummy_prefix=True)
    expected = encode_joined(tokenizer, "The little", " girl ran")
    monkeypatch.setattr(type(tokenizer), "is_fast", False)
    assert encode_joined(tokenizer, "The little", " girl ran") == expected
    ids, seam = encode_joined(tokenizer, "The little ", "girl")
    assert tokenizer.decode(ids[:seam], skip_special_tokens=True) == "The little"


def test_the_blank_that_a_template_writes_is_not_the_answers() -> None:
    tokenizer = llama2(dummy_prefix=True)
    assert answer_opening(tokenizer) == ""
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'user' %}Human: {{ m.content }} Assistant:"
        "{% else %} {{ m.content }}</s>{% endif %}{% endfor %}"
    )
    assert answer_opening(tokenizer) == " "
    turns = [{"role": "user", "content": "who are you?"}]
    asked = tokenizer.apply_chat_template(turns, return_dict=True)["input_ids"]
    turns.append({"role": "assistant", "content": "an owl"})
    whole = tokenizer.apply_chat_template(turns, return_dict=True)["input_ids"]
    assert whole[: len(asked)] == asked
    assert decode_answer(tokenizer, asked, whole[len(asked) :]) == " an owl"
    assert decode_answer(tokenizer, asked, whole[len(asked) :], opening=" ") == "an owl"

    # a template that asks for the answer where it begins writes nothing in between
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}</s>{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    assert answer_opening(tokenizer) == ""


@pytest.mark.shared
@pytest.mark.parametrize(("prompt", "answer"), JOINED)
def test_a_real_llama_tokenizer(shared_data: Path, prompt: str, answer: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(shared_data / "models" / "stories260k")
    ids, seam = encode_joined(tokenizer, prompt, answer)
    assert ids == tokenizer(prompt + answer)["input_ids"]
    before = tokenizer.decode(ids[:seam], skip_special_tokens=True)
    assert before + decode_answer(tokenizer, ids[:seam], ids[seam:]) == prompt + answer
    assert len(before) <= len(prompt)
