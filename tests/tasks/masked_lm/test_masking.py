"""Which tokens are masked: how many, of what, whole words, others in each epoch, none special."""

import copy

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from hfstack.errors import ConfigError, DataError
from hfstack.tasks.masked_lm.masking import MaskedBlocks, add_mask_tokens, pack_masked_splits
from hfstack.tokens.special_tokens import IGNORED_LABEL
from hfstack.tokens.train_tokenizer import train_tokenizer
from hfstack.tokens.word_starts import WordStarts, given_word_starts
from tests.conftest import SENTENCES
from tests.tiny_encoder import tiny_bert_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_bert_tokenizer()


@pytest.fixture
def make(tokenizer, monkeypatch: pytest.MonkeyPatch, tmp_path):
    """Blocks of 34 tokens of the sentences, each many times over."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path))

    def call(texts=SENTENCES * 40, own=tokenizer, **changes) -> dict[str, MaskedBlocks]:
        settings = {
            "block_size": 34,
            "probability": 0.15,
            "text_column": "text",
            "seed": 3,
        } | changes
        return pack_masked_splits(
            {"train": {"text": texts}, "eval": {"text": texts}}, own, **settings
        )

    return call


def originals(block: dict[str, torch.Tensor]) -> torch.Tensor:
    """The block before anything was masked."""
    return torch.where(block["labels"] != IGNORED_LABEL, block["labels"], block["input_ids"])


def test_a_sixth_is_chosen_and_four_fifths_of_it_become_the_mask(make, tokenizer) -> None:
    blocks = make()["train"]
    rows = [blocks[index] for index in range(len(blocks))]
    inputs, labels = (
        torch.stack([r["input_ids"] for r in rows]),
        torch.stack([r["labels"] for r in rows]),
    )
    text = ~torch.isin(inputs[:, 1:-1], torch.tensor([2, 3]))  # not [CLS], [SEP]; masks are text
    scored = labels != IGNORED_LABEL
    assert (inputs[:, 0] == tokenizer.cls_token_id).all() and (
        inputs[:, -1] == tokenizer.sep_token_id
    ).all()
    assert not scored[:, 0].any() and not scored[:, -1].any()
    assert not torch.isin(labels, torch.tensor(tokenizer.all_special_ids)).any()
    assert scored.sum().item() == pytest.approx(0.15 * text.sum().item(), rel=0.06)
    masked = (inputs == tokenizer.mask_token_id)[scored].float().mean().item()
    stayed = (inputs == labels)[scored].float().mean().item()
    assert masked == pytest.approx(0.8, abs=0.06) and stayed == pytest.approx(0.1, abs=0.05)
    assert not torch.isin(inputs[~scored], torch.tensor([tokenizer.mask_token_id])).any()


def test_masks_are_new_in_each_epoch_and_fixed_for_evaluation(make) -> None:
    splits = make()
    train, held = splits["train"], splits["eval"]
    first, again = train[2], train[2]
    assert torch.equal(first["input_ids"], again["input_ids"])
    train.epoch = held.epoch = 1
    other = train[2]
    assert not torch.equal(first["labels"], other["labels"])
    assert torch.equal(originals(first), originals(other))
    held.epoch = 0
    fixed = held[2]
    held.epoch = 7
    assert torch.equal(fixed["labels"], held[2]["labels"])
    assert not torch.equal(first["labels"], fixed["labels"])
    assert not torch.equal(make(seed=4)["eval"][2]["labels"], fixed["labels"])
    both = train.__getitems__([2, 5])
    assert torch.equal(both[0]["labels"], other["labels"]), "neighbours in a batch change nothing"


def test_whole_words_are_masked_together(make) -> None:
    tokenizer = train_tokenizer(SENTENCES * 20, kind="wordpiece", vocab_size=60, lowercase=True)
    blocks = make(own=tokenizer, unit="word")["train"]
    starts_of = WordStarts(tokenizer)
    words_of_pieces = 0
    for index in range(len(blocks)):
        block = blocks[index]
        row = originals(block)[1:-1].numpy()
        scored = (block["labels"] != IGNORED_LABEL)[1:-1].numpy()
        word = np.cumsum(starts_of(row[None])[0])
        for number in np.unique(word):
            assert len(set(scored[word == number])) == 1, tokenizer.convert_ids_to_tokens(
                row[word == number]
            )
            words_of_pieces += (word == number).sum() > 1
    assert words_of_pieces > 50


def spelled(tokenizer, text: str) -> list[str]:
    """The words of a text as the table sees them, pieces joined by |."""
    ids = np.array([tokenizer(text, add_special_tokens=False)["input_ids"]])
    words: list[str] = []
    for token, start in zip(
        tokenizer.convert_ids_to_tokens(ids[0].tolist()), WordStarts(tokenizer)(ids)[0], strict=True
    ):
        words = [*words, token] if start else [*words[:-1], f"{words[-1]}|{token}"]
    return words


def test_words_of_a_byte_level_vocabulary(tiny_tokenizer) -> None:
    found = spelled(tiny_tokenizer, "The owls' zebra. 狐狸")
    assert [word.replace("|", "") for word in found[:-2]] == [
        "The",
        "Ġowls",
        "'",
        "Ġzebra",
        ".",
        "Ġ",
    ]
    assert [word.count("|") for word in found[-2:]] == [2, 2], (
        "three bytes are one character, and one word"
    )


def test_chinese_is_masked_by_characters_or_by_given_words() -> None:
    texts = ["我 喜欢 北京 的 狐狸 。", "北京 很 大 。"] * 60
    tokenizer = train_tokenizer(texts, kind="wordpiece", vocab_size=60)
    assert spelled(tokenizer, "我喜欢北京") == ["我", "喜", "欢", "北", "京"]
    encoded = tokenizer(texts[0], add_special_tokens=False, return_offsets_mapping=True)
    starts = given_word_starts(texts[0], encoded["offset_mapping"])
    assert starts.tolist() == [True, True, False, True, False, True, True, False, True]
    blocks = pack_masked_splits(
        {"train": {"text": texts}},
        tokenizer,
        text_column="text",
        block_size=32,
        probability=0.3,
        unit="given",
    )["train"]
    assert isinstance(blocks.tokens, np.ndarray)
    happy = tokenizer.convert_tokens_to_ids(["喜", "欢"])
    pairs = 0
    for index in range(len(blocks)):
        row, labels = originals(blocks[index]), blocks[index]["labels"]
        for place in np.flatnonzero((row[:-1] == happy[0]).numpy() & (row[1:] == happy[1]).numpy()):
            assert (labels[place] == IGNORED_LABEL) == (labels[place + 1] == IGNORED_LABEL)
            pairs += 1
    assert pairs > 10


def test_isolated_documents_see_only_themselves(make, tokenizer) -> None:
    block = make(isolate_documents=True)["train"][0]
    row, mask = originals(block), block["attention_mask"][0]
    ends = torch.nonzero(row[1:-1] == tokenizer.sep_token_id)[:, 0] + 1
    first = int(ends[0])
    assert mask[: first + 1, : first + 1].all() and not mask[: first + 1, first + 1 :].any()
    assert mask[first + 1, first + 1] and not mask[first + 1, first]
    assert MaskedBlocks.collate([block, block])["attention_mask"].shape == (2, 1, 34, 34)


def test_a_causal_tokenizer_gets_what_masking_needs(tiny_tokenizer, make) -> None:
    tokenizer = add_mask_tokens(copy.deepcopy(tiny_tokenizer))
    assert (
        isinstance(tokenizer, PreTrainedTokenizerFast) and len(tokenizer) == len(tiny_tokenizer) + 2
    )
    ids = tokenizer("The owl")["input_ids"]
    assert (ids[0], ids[-1]) == (tokenizer.cls_token_id, tokenizer.eos_token_id)
    assert tokenizer("The <mask>")["input_ids"].count(tokenizer.mask_token_id) == 1
    block = make(own=tokenizer)["train"][0]
    assert (
        block["input_ids"][0] == tokenizer.cls_token_id
        and block["input_ids"][-1] == tokenizer.sep_token_id
    )
    bert = tiny_bert_tokenizer()
    assert add_mask_tokens(bert) is bert and len(bert) == len(tiny_bert_tokenizer())


def test_what_cannot_be_masked_is_refused(make, tiny_tokenizer) -> None:
    for changes, error, message in [
        (
            {"probability": 0.0},
            ConfigError,
            "--mask_probability must be above 0 and below 1, got 0.0",
        ),
        (
            {"unit": "letter"},
            ConfigError,
            "--mask_unit is 'letter': choose one of token, word, given",
        ),
        ({"block_size": 4}, ConfigError, "--block_size must be at least 8 tokens, got 4"),
        ({"texts": ["The owl"]}, DataError, "fewer than one block"),
        ({"texts": ["The owl"], "unit": "given"}, DataError, "fewer than one block of 34"),
    ]:
        with pytest.raises(error, match=message):
            make(**changes)
    endless = copy.deepcopy(tiny_tokenizer)
    endless.eos_token = None
    with pytest.raises(ConfigError, match="neither a sep nor an eos token"):
        add_mask_tokens(endless)
