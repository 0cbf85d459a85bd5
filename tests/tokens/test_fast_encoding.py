"""Fast encoding: tiktoken gives the tokenizer's own ids, or is not used and the log says why."""

import logging
import random

import numpy as np
import pytest
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from hfstack.tokens.fast_encoding import _LLAMA3_SPLIT, _QWEN2_SPLIT, DocumentEncoder, mirror_reason

TEXT = [
    "Once upon a time there was a small fox, and the fox wasn't afraid: it'd seen 1234 owls in "
    "2023!",
    "从前有一只小狐狸,它住在森林里。森林里还有猫头鹰。狐狸和猫头鹰是好朋友。",
    "Der Fuchs läuft über die Brücke … naïve café — l'été.\n\n\tdef f(x):\n        return x**2  # "
    "ok   \n",
    "😀 fox 👩‍👩‍👧 FOX'S we'll I'M they've   \u00a0\u3000 \u2028 ١٢٣ Ⅷ ½ x\u0301",
]


def train(pre_tokenizer: pre_tokenizers.PreTokenizer, **options) -> PreTrainedTokenizerFast:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizer
    core.decoder = decoders.ByteLevel()
    options = {"vocab_size": 400, "special_tokens": ["<|endoftext|>", "<|user|>"]} | options
    trainer = trainers.BpeTrainer(
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False, **options
    )
    core.train_from_iterator(TEXT * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|endoftext|>")


def byte_level() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False)


def split_by(pattern: str) -> pre_tokenizers.PreTokenizer:
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), bytes_only])


PRE_TOKENIZERS = {
    "gpt2": byte_level,
    "llama3": lambda: split_by(_LLAMA3_SPLIT),
    "qwen2": lambda: split_by(_QWEN2_SPLIT),
}


def random_documents(count: int) -> list[str]:
    """Short strings from a jumble of scripts, spaces, digits and signs."""
    generator = random.Random(0)
    characters = "aesst 'dlm  \n\t\r019!.,-_狐狸森林éü😀\u200d\u00a0\u2028ſK½Ⅷ١\u0301\x1e<>|"
    return [
        "".join(generator.choices(characters, k=generator.randrange(1, 30))) for _ in range(count)
    ]


def assert_same_ids(
    encoder: DocumentEncoder, tokenizer: PreTrainedTokenizerFast, documents: list[str]
) -> None:
    ids, ends = encoder.encode(documents)
    starts = [0, *ends[:-1].tolist()]
    for document, start, end in zip(documents, starts, ends.tolist(), strict=True):
        expected = tokenizer(document, add_special_tokens=False)["input_ids"]
        assert ids[start:end].tolist() == [*expected, tokenizer.eos_token_id], document
    assert len(ids) == ends[-1]
    assert ids.dtype == np.uint32


@pytest.mark.parametrize("split", PRE_TOKENIZERS)
def test_tiktoken_gives_the_tokenizers_ids(split):
    tokenizer = train(PRE_TOKENIZERS[split]())
    encoder = DocumentEncoder(tokenizer, sample=TEXT)
    assert encoder.engine == "tiktoken"
    assert_same_ids(encoder, tokenizer, [*TEXT, *random_documents(2000)])


def test_special_tokens_in_the_text_are_what_the_tokenizer_makes_of_them():
    tokenizer = train(byte_level())
    tokenizer.add_tokens([AddedToken("fox", single_word=True), AddedToken("<mask>", lstrip=True)])
    documents = [
        "a fox foxes",
        "say <|user|>hello <|endoftext|>",
        "plain",
        "  <mask>x",
        "\x1e<end of document>\x1e",
        "x\x1e<end of document>",
        "",
    ]
    for split_special_tokens in (False, True):
        tokenizer.split_special_tokens = split_special_tokens
        encoder = DocumentEncoder(tokenizer)
        assert encoder.engine == "tiktoken"
        assert_same_ids(encoder, tokenizer, documents)
        assert_same_ids(encoder, tokenizer, documents[:1])
    assert tokenizer.convert_tokens_to_ids("<|user|>") not in encoder.encode(documents)[0]


def test_llama3_style_files_with_ignored_merges_are_mirrored():
    tokenizer = train(PRE_TOKENIZERS["llama3"]())
    tokenizer.backend_tokenizer.model.ignore_merges = True
    encoder = DocumentEncoder(tokenizer, sample=TEXT)
    assert encoder.engine == "tiktoken"
    assert_same_ids(encoder, tokenizer, [*TEXT, *random_documents(200)])


def test_documents_that_tiktokens_regex_gives_up_on_are_encoded_all_the_same():
    tokenizer = train(byte_level())
    documents = ["before", " " * 300_000 + "x", "<|user|>", "after"]
    encoder = DocumentEncoder(tokenizer)
    assert_same_ids(encoder, tokenizer, [documents[0], documents[1], documents[3]])
    assert_same_ids(encoder, tokenizer, documents)
    assert_same_ids(encoder, tokenizer, ["a" * 300_000, "狐狸" * 100_000])


def changed(**options) -> Tokenizer:
    """A tokenizer with one thing that tiktoken has no equal of."""
    core = train(
        options.pop("pre_tokenizer", byte_level()), **options.pop("trainer", {})
    ).backend_tokenizer
    for name, value in options.items():
        setattr(core if name == "normalizer" else core.model, name, value)
    return core


def by_hand(vocab: list[str], merges: list[tuple[str, str]]) -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(
        models.BPE({token: index for index, token in enumerate([*alphabet, *vocab])}, merges)
    )
    core.pre_tokenizer = byte_level()
    return core


@pytest.mark.parametrize(
    ("core", "reason"),
    [
        (lambda: changed(normalizer=normalizers.NFC()), "normalises text (NFC)"),
        (lambda: changed(dropout=0.1), "dropout=0.1"),
        (lambda: changed(unk_token="<|user|>"), "unk_token"),
        (
            lambda: changed(pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=True)),
            "pre-tokenizer",
        ),
        (lambda: changed(pre_tokenizer=split_by(r"\s+")), "pre-tokenizer"),
        (lambda: Tokenizer(models.WordLevel({"a": 0}, unk_token="a")), "WordLevel, not BPE"),
        (
            lambda: by_hand(
                ["ab", "abc", "bc"], [("a", "b"), ("ab", "c"), ("b", "c"), ("a", "bc")]
            ),
            "two merges",
        ),
        (
            lambda: by_hand(["bc", "ab", "abc"], [("b", "c"), ("a", "b"), ("ab", "c")]),
            "own token 'abc'",
        ),
    ],
)
def test_what_tiktoken_cannot_mirror_is_named(core, reason):
    assert reason in (mirror_reason(core()) or "mirrored")


def test_missing_bytes_are_named():
    core = Tokenizer(models.BPE({"a": 0, "b": 1}, []))
    core.pre_tokenizer = byte_level()
    assert mirror_reason(core) == "its vocabulary lacks 254 of the 256 bytes"


def test_a_token_without_a_merge_is_out_of_tiktokens_reach():
    core = by_hand(["ab", "xyz"], [("a", "b")])
    assert mirror_reason(core) is None  # nothing builds "xyz", in either engine
    core.model.ignore_merges = True
    assert mirror_reason(core) == "the token 'xyz' has no merge"


def test_the_slow_engine_gives_the_same_shape_and_says_why(caplog):
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=changed(normalizer=normalizers.Lowercase()), eos_token="<|user|>"
    )
    with caplog.at_level(logging.WARNING, logger="hfstack"):
        encoder = DocumentEncoder(tokenizer, sample=TEXT)
    assert encoder.engine == "tokenizers"
    assert "not with tiktoken: it normalises text (Lowercase)" in caplog.text
    assert_same_ids(encoder, tokenizer, [*TEXT, "", "A"])


def test_a_disagreement_on_real_text_is_found_and_logged(caplog, monkeypatch):
    # as if the libraries' Unicode differed
    monkeypatch.setattr("hfstack.tokens.fast_encoding._GPT2_SPLIT", r"\S+|\s+")
    tokenizer = train(byte_level())
    with caplog.at_level(logging.WARNING, logger="hfstack"):
        encoder = DocumentEncoder(tokenizer, sample=TEXT)
    assert encoder.engine == "tokenizers"
    assert "tiktoken gives other ids for the document that begins 'Once upon" in caplog.text
    assert_same_ids(encoder, tokenizer, TEXT)


@pytest.mark.shared
@pytest.mark.parametrize("name", ["tinystories_lower", "zh_poetry", "c4_en"])
def test_real_text_has_identical_ids(shared_data, name):
    import gzip
    import json

    with gzip.open(shared_data / "lm" / f"{name}.jsonl.gz", "rt", encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for _, line in zip(range(150), lines, strict=False)]
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = byte_level()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=2000,
            special_tokens=["<eos>"],
            initial_alphabet=alphabet,
            show_progress=False,
        ),
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>")
    encoder = DocumentEncoder(tokenizer, sample=texts[:5])
    assert encoder.engine == "tiktoken"
    assert_same_ids(encoder, tokenizer, texts)
