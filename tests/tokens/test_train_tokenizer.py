"""Tokenizers: trained, wrapped for AutoTokenizer, measured, and refused where the request cannot be
met.
"""

import gzip
import json
import logging
import math
import random

import pytest
from transformers import AutoTokenizer, BertTokenizer, GPT2Config, LlamaConfig

from hfstack.errors import ConfigError, DataError
from hfstack.tokens.train_tokenizer import (
    CHAT_TOKENS,
    END_OF_TEXT,
    PAD,
    UNKNOWN,
    measure_tokenizer,
    train_tokenizer,
)

ENGLISH = [
    f"One day {who} {did} a {what}, and {who} was very {how}.\nThe end."
    for who in ("the fox", "an owl", "Tom's cat", "a brave rabbit")
    for did in ("found", "lost", "painted", "carried")
    for what in ("red ball", "small boat", "golden leaf", "lantern")
    for how in ("happy", "tired", "surprised", "quiet")
]
CHINESE = [
    f"{where}有一只小{who}，{who}和{friend}是好朋友，它们{did}。"
    for where in ("森林里", "山坡上", "小河边", "从前")
    for who in ("狐狸", "兔子", "松鼠", "猫头鹰")
    for friend in ("熊猫", "大象", "乌龟")
    for did in ("一起唱歌", "一起回家", "种了一棵树")
]
KINDS = ["bpe", "unigram", "wordpiece"]


@pytest.fixture(scope="module", params=KINDS)
def trained(request):
    """A tokenizer of each kind, trained on English and Chinese."""
    return train_tokenizer(
        ENGLISH + CHINESE, kind=request.param, vocab_size=480, model_max_length=64
    )


def test_it_loads_through_auto_tokenizer_with_the_same_ids(trained, tmp_path):
    texts = [ENGLISH[0], CHINESE[0], "A <|user|> unseen: zebra! [MASK]"]
    for config in (None, GPT2Config(), LlamaConfig()):  # next to a model's config, too
        trained.save_pretrained(tmp_path)
        if config is not None:
            config.save_pretrained(tmp_path)
        loaded = AutoTokenizer.from_pretrained(tmp_path)
        assert loaded.is_fast
        assert loaded(texts)["input_ids"] == trained(texts)["input_ids"]
        assert loaded.get_vocab() == trained.get_vocab()
        assert loaded.model_max_length == 64
        assert loaded.padding_side == "right"
        assert loaded.special_tokens_map == trained.special_tokens_map
        assert loaded.chat_template == trained.chat_template
        assert loaded.pad_token_id is not None
        assert loaded.pad_token_id != loaded.eos_token_id


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_language_model_tokenizers_have_the_tokens_and_add_none(kind):
    tokenizer = train_tokenizer(
        ENGLISH,
        kind=kind,
        vocab_size=330 if kind == "bpe" else 200,
        extra_special_tokens=["<|tool|>"],
    )
    assert (tokenizer.eos_token, tokenizer.pad_token, tokenizer.bos_token) == (
        END_OF_TEXT,
        PAD,
        None,
    )
    assert tokenizer.unk_token == (UNKNOWN if kind == "unigram" else None)
    for token in (END_OF_TEXT, PAD, *CHAT_TOKENS, "<|tool|>"):
        assert token in tokenizer.all_special_tokens
        assert tokenizer.encode(token) == [tokenizer.convert_tokens_to_ids(token)]
    ids = tokenizer(ENGLISH[0])["input_ids"]
    assert not set(ids) & set(tokenizer.all_special_ids)
    assert tokenizer.decode(ids) == ENGLISH[0]


@pytest.mark.parametrize(
    "text",
    ["  two  spaces ", "\n\nlines\r\n\ttab ", "unseen ☃ ünïcode 鲸鱼 😀", "can 't , we n't ."],
)
def test_byte_level_bpe_round_trips_any_text(text):
    tokenizer = train_tokenizer(ENGLISH, kind="bpe", vocab_size=300)
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_unigram_keeps_spaces_and_marks_unknown_characters():
    tokenizer = train_tokenizer(ENGLISH, kind="unigram", vocab_size=200)
    for text in (" the  fox ", "the fox\n\n found \n", "fox"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.decode(tokenizer("the ☃ fox")["input_ids"]) == f"the {UNKNOWN} fox"
    assert all("\n" not in token.strip("\n") for token in tokenizer.get_vocab())


def test_wordpiece_is_berts(tmp_path):
    tokenizer = train_tokenizer(ENGLISH + CHINESE, kind="wordpiece", vocab_size=400, lowercase=True)
    assert [
        tokenizer.convert_tokens_to_ids(token)
        for token in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    ] == [*range(5)]
    pair = tokenizer("THE Fóx", "狐狸")
    assert tokenizer.convert_ids_to_tokens(pair["input_ids"]) == [
        "[CLS]",
        "the",
        "fox",
        "[SEP]",
        "狐",
        "狸",
        "[SEP]",
    ]
    assert pair["token_type_ids"] == [0, 0, 0, 0, 1, 1, 1]
    tokenizer.save_pretrained(tmp_path)
    bert = BertTokenizer.from_pretrained(tmp_path)
    assert isinstance(bert, BertTokenizer)
    assert bert("THE Fóx", "狐狸")["input_ids"] == pair["input_ids"]
    cased = train_tokenizer(ENGLISH, kind="wordpiece", vocab_size=300)
    assert cased.convert_ids_to_tokens(cased("One day one")["input_ids"])[1:3] == ["One", "day"]


def test_chinese_words_are_learnt_without_spaces():
    generator = random.Random(0)
    words = (
        "狐狸 兔子 松鼠 猫头鹰 森林 山坡 小河 朋友 唱歌 回家 种树 月亮 星星 故事 秋天 早晨".split()
    )
    texts = ["".join(generator.choices(words, k=12)) + "。" for _ in range(300)]
    bpe = train_tokenizer(texts, kind="bpe", vocab_size=360)
    unigram = train_tokenizer(texts, kind="unigram", vocab_size=80)
    for tokenizer in (bpe, unigram):
        ids = tokenizer("猫头鹰狐狸故事星星")["input_ids"]
        assert [tokenizer.decode([token]) for token in ids] == ["猫头鹰", "狐狸", "故事", "星星"]
    wordpiece = train_tokenizer(CHINESE, kind="wordpiece", vocab_size=120)
    assert wordpiece.tokenize("猫头鹰") == ["猫", "头", "鹰"]  # as in bert-base-chinese


@pytest.mark.parametrize("kind", ["bpe", "wordpiece"])
def test_training_is_repeatable(kind):
    one, other = (
        train_tokenizer(
            (text for text in ENGLISH + CHINESE), kind=kind, vocab_size=420
        ).backend_tokenizer.to_str()
        for _ in range(2)
    )
    assert one == other


def test_chat_template_writes_turns_and_marks_the_assistants_own():
    tokenizer = train_tokenizer(ENGLISH, kind="bpe", vocab_size=320)
    chat = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "More"},
        {"role": "assistant", "content": " A fox.\n"},
    ]
    text = tokenizer.apply_chat_template(chat, tokenize=False)
    assert text == (
        "<|system|>Be kind.<|end|><|user|>Hi<|end|><|assistant|>Hello<|end|>"
        "<|user|>More<|end|><|assistant|> A fox.\n<|end|>"
    )
    encoded = tokenizer.apply_chat_template(
        chat, return_dict=True, return_assistant_tokens_mask=True
    )
    assert encoded["input_ids"] == tokenizer(text)["input_ids"]
    own = [
        token
        for token, mask in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True)
        if mask
    ]
    assert tokenizer.decode(own) == "Hello<|end|> A fox.\n<|end|>"
    prompt = tokenizer.apply_chat_template(chat[:2], tokenize=False, add_generation_prompt=True)
    assert prompt == "<|system|>Be kind.<|end|><|user|>Hi<|end|><|assistant|>"
    assert text.startswith(prompt)
    with pytest.raises(Exception, match="role must be system, user or assistant, not tool"):
        tokenizer.apply_chat_template([{"role": "tool", "content": "x"}], tokenize=False)


def test_measures_are_what_they_say():
    tokenizer = train_tokenizer(ENGLISH, kind="unigram", vocab_size=200)
    texts = ["the fox ☃☃", "鲸 the fox", "the fox"]
    report, counts = measure_tokenizer(tokenizer, iter(texts))
    ids = [tokenizer(text)["input_ids"] for text in texts]
    tokens = sum(map(len, ids))
    assert report.document_count == 3
    assert report.byte_count == sum(len(text.encode()) for text in texts)
    assert report.token_count == counts.total() == tokens
    assert report.bytes_per_token == report.byte_count / tokens
    assert report.characters_per_token == sum(map(len, texts)) / tokens
    assert report.tokens_per_word == tokens / 8
    assert report.compression == pytest.approx(
        8 * report.bytes_per_token / math.log2(len(tokenizer))
    )
    unknown = sum(row.count(tokenizer.unk_token_id) for row in ids)
    assert unknown >= 2
    assert report.unknown_rate == unknown / tokens
    assert report.round_trip_rate == pytest.approx(1 / 3)
    with pytest.raises(DataError, match="no held-out text in 1 documents"):
        measure_tokenizer(tokenizer, [""])


def test_a_vocabulary_that_the_text_does_not_yield_is_logged(caplog):
    with caplog.at_level(logging.WARNING, logger="hfstack"):
        tokenizer = train_tokenizer(["so little text"] * 3, kind="bpe", vocab_size=5000)
    assert len(tokenizer) < 300
    assert f"yields only {len(tokenizer)} of the 5000 tokens asked for" in caplog.text


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("texts", "problem"),
    [
        ([], "no text to train a tokenizer on: 0 documents"),
        (["", " \n"], "no text to train a tokenizer on: 2 documents"),
        (["a", 3], "document 1 is int, not text"),
    ],
)
def test_a_corpus_without_text_is_refused(kind, texts, problem):
    with pytest.raises(DataError, match=problem):
        train_tokenizer(texts, kind=kind, vocab_size=300)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (
            {"kind": "bpe", "vocab_size": 261},
            "vocab_size is 261: bpe needs at least 262, 6 special tokens",
        ),
        (
            {"kind": "unigram", "vocab_size": 30},
            r"vocab_size is 30, but unigram .* needs at least \d+: it has",
        ),
        (
            {"kind": "wordpiece", "vocab_size": 30},
            r"vocab_size is 30, but wordpiece .* needs at least \d+: it has",
        ),
        ({"kind": "wordpiece", "vocab_size": 3}, "wordpiece needs at least 6, 5 special tokens"),
        (
            {"kind": "sentencepiece", "vocab_size": 300},
            "kind is 'sentencepiece': choose one of bpe, wordpiece, unigram",
        ),
        (
            {"kind": "bpe", "vocab_size": 300, "lowercase": True},
            "lowercase goes with kind wordpiece, not bpe",
        ),
        (
            {"kind": "bpe", "vocab_size": 300, "extra_special_tokens": ["<|pad|>"]},
            r"'<\|pad\|>', which is empty or",
        ),
        ({"kind": "bpe", "vocab_size": 300, "extra_special_tokens": [""]}, "'', which is empty or"),
    ],
)
def test_impossible_requests_are_refused_in_one_line(options, problem):
    with pytest.raises(ConfigError, match=problem) as caught:
        train_tokenizer(ENGLISH, **options)
    assert "\n" not in str(caught.value)


def test_the_size_that_an_error_names_is_enough():
    for kind in ("unigram", "wordpiece"):
        with pytest.raises(ConfigError) as caught:
            train_tokenizer(ENGLISH, kind=kind, vocab_size=30)
        needed = int(str(caught.value).split("at least ")[1].split(":")[0])
        assert len(train_tokenizer(ENGLISH, kind=kind, vocab_size=needed)) == needed


@pytest.mark.shared
def test_real_stories_take_about_a_quarter_of_their_bytes(shared_data):
    with gzip.open(
        shared_data / "lm" / "tinystories_lower.jsonl.gz", "rt", encoding="utf-8"
    ) as lines:
        texts = [json.loads(line)["text"] for line in lines]
    tokenizer = train_tokenizer((text for text in texts[200:]), kind="bpe", vocab_size=4096)
    report, _ = measure_tokenizer(tokenizer, texts[:200])
    assert len(tokenizer) == 4096
    assert report.bytes_per_token > 3.8
    assert (report.unknown_rate, report.round_trip_rate) == (0, 1)


def test_runs_of_blanks_are_single_tokens_and_code_comes_back_exactly() -> None:
    code = ["def f(x):\n    if x:\n        return  [x]\n\treturn x\n"] * 20
    tokenizer = train_tokenizer(code, kind="bpe", vocab_size=340, blank_runs=8)
    assert len(tokenizer) <= 340
    for length in range(2, 9):
        run = " " * length
        assert tokenizer.tokenize(f"{run}x") == [run, "x"]
    assert tokenizer.tokenize(" " * 12 + "x") == [" " * 8, " " * 4, "x"]
    odd = "  a   b\n\n" + "".join(f"{' ' * n}x = {n}\n" for n in range(20)) + "\t  \tend   "
    for text in (*code, odd):
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.decode(ids) == text
    plain = train_tokenizer(code, kind="bpe", vocab_size=340)
    assert len(tokenizer(odd)["input_ids"]) < len(plain(odd)["input_ids"])
    for kind, runs in (("wordpiece", 4), ("bpe", 1)):
        with pytest.raises(ConfigError, match="at least 2"):
            train_tokenizer(code, kind=kind, vocab_size=340, blank_runs=runs)
