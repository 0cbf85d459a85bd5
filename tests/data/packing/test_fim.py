"""Fill in the middle: texts are recovered exactly, and no part leaves its document."""

import random
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from hfstack.data.packing.blocks import pack
from hfstack.data.packing.fim import (
    FimTexts,
    FimTokens,
    check_fim_settings,
    fill_in_middle,
    find_fim_tokens,
    rearrange,
    restore,
)
from hfstack.errors import ConfigError
from hfstack.tokens.train_tokenizer import train_tokenizer

TOKENS = FimTokens("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")
# a letter of each document's own, so that a part that strays is seen
DOCUMENTS = [f"{chr(97 + n % 26)}{n}" * (1 + n % 17) for n in range(200)]


class Fixed(random.Random):
    """Draws 2 and then 5."""

    def __init__(self) -> None:
        super().__init__(0)
        self.left = [5, 2]

    def randint(self, a: int, b: int) -> int:
        return self.left.pop()


def test_both_orders_of_a_hand_worked_text() -> None:
    psm = rearrange("abcdefg", TOKENS, Fixed(), spm=False)
    assert psm == "<|fim_prefix|>ab<|fim_suffix|>fg<|fim_middle|>cde"
    spm = rearrange("abcdefg", TOKENS, Fixed(), spm=True)
    assert spm == "<|fim_prefix|><|fim_suffix|>fg<|fim_middle|>abcde"
    assert restore(psm, TOKENS) == restore(spm, TOKENS) == "abcdefg"


@pytest.mark.parametrize("spm_rate", [0.0, 0.5, 1.0])
def test_texts_are_recovered_exactly_and_the_rates_are_kept(spm_rate: float) -> None:
    texts = FimTexts(DOCUMENTS, TOKENS, 0.7, spm_rate, seed=3)
    made = list(texts)
    assert made == list(texts)  # read twice: for its hash, and to be packed
    assert [restore(text, TOKENS) for text in made] == DOCUMENTS
    moved = [text for text in made if text.startswith(TOKENS.prefix)]
    assert 0.6 < len(moved) / len(made) < 0.8
    spm = sum(text.startswith(TOKENS.prefix + TOKENS.suffix) for text in moved)
    assert abs(spm / len(moved) - spm_rate) < 0.15  # an empty prefix looks like SPM
    assert made != list(FimTexts(DOCUMENTS, TOKENS, 0.7, spm_rate, seed=4))


def test_no_part_crosses_documents_in_packed_blocks(tmp_path: Path) -> None:
    names = [TOKENS.prefix, TOKENS.suffix, TOKENS.middle]
    tokenizer = train_tokenizer(DOCUMENTS, kind="bpe", vocab_size=330, extra_special_tokens=names)
    turn = fill_in_middle(tokenizer, 1.0, 0.5, seed=0)
    assert turn is not None
    blocks = pack(
        turn(DOCUMENTS),
        tokenizer,
        block_size=64,
        cache_dir=tmp_path,
        data_hash="a",
        drop_last=False,
    )
    ids = [token for n in range(len(blocks)) for token in blocks[n]["input_ids"].tolist()]
    marks = [tokenizer.get_vocab()[name] for name in names]
    found, kinds = [], set()
    for document in split_at(ids[: blocks.token_count], blocks.counts.eos_id):
        assert [document.count(mark) for mark in marks] == [1] * 3
        text = restore(str(tokenizer.decode(document)), TOKENS)
        kinds.add(text[0])
        found.append(text)
    assert found == DOCUMENTS and len(kinds) == 26


def split_at(ids: list[int], end: int) -> list[list[int]]:
    parts: list[list[int]] = [[]]
    for token in ids:
        if token == end:
            parts.append([])
        else:
            parts[-1].append(token)
    return [part for part in parts if part]


def test_a_text_that_has_the_tokens_itself_stays_as_it_is() -> None:
    text = f"a text about {TOKENS.suffix}"
    assert list(FimTexts([text, ""], TOKENS, 1.0, 0.5, seed=0)) == [text, ""]


def test_what_does_nothing_or_has_no_tokens_is_refused(
    tiny_tokenizer: PreTrainedTokenizerFast,
) -> None:
    with pytest.raises(ConfigError, match="--fim_rate is a share of the documents"):
        check_fim_settings(1.5, 0.5)
    with pytest.raises(ConfigError, match=r"--fim_spm_rate 1\.0 is a share.*and that is 0"):
        check_fim_settings(0.0, 1.0)
    with pytest.raises(ConfigError, match="has none: train one with --extra_special_tokens"):
        find_fim_tokens(tiny_tokenizer)
    assert fill_in_middle(tiny_tokenizer, 0.0, 0.5, seed=0) is None
