"""Find where words begin among token ids, from the vocabulary alone.

Whole-word masking needs to know it.

A token's spelling says whether it can continue the word before it: `##ing` of WordPiece does,
`Ġthe` of a byte-level BPE and `▁the` of SentencePiece do not, and `ing` does where there are
letters or digits on both sides of the boundary. A character of Chinese, Japanese or Korean script
is a word of its own; where the text comes with word boundaries, use `given_word_starts` instead.

Legend: B rows, T tokens a row, V vocabulary, n tokens of one text.
"""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from hfstack.errors import ConfigError
from hfstack.tokens.fast_encoding import CHARACTER_TO_BYTE

# Han with its extensions, kana, hangul syllables: scripts of which a character is about a word or a
# syllable.
_OWN_WORD = re.compile(
    r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff]"
)


class WordStarts:
    """Find which tokens of a row begin a word, by tables over the vocabulary."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Build the tables from the spelling of each token.

        Raises:
            ConfigError: the tokenizer has no vocabulary of spellings that say where words begin.
        """
        vocabulary = tokenizer.get_vocab()
        rows = max(vocabulary.values()) + 1
        self.always = np.ones(rows, dtype=bool)  # (V,): begins a word whatever is before it
        self.joins = np.zeros(rows, dtype=bool)  # (V,): the next token can continue its word
        special = {*tokenizer.all_special_ids}

        backend: Any = getattr(tokenizer, "backend_tokenizer", None)
        kind = type(backend.model).__name__ if backend is not None else None
        if kind not in ("WordPiece", "BPE", "Unigram"):
            raise ConfigError(
                f"no words can be found with {type(tokenizer).__name__}: use --mask_unit token, "
                "or a fast tokenizer"
            )

        bytes_level = kind == "BPE" and all(
            character in vocabulary for character in CHARACTER_TO_BYTE
        )

        for token, index in vocabulary.items():
            if index in special:
                continue

            if kind == "WordPiece":
                self.always[index] = not token.startswith("##") or bool(_OWN_WORD.match(token[2:3]))
                self.joins[index] = not _OWN_WORD.match(token[-1:])
            elif bytes_level:
                self.always[index], self.joins[index] = _byte_token(token)
            else:
                self.always[index] = not token[:1].isalnum() or bool(_OWN_WORD.match(token[:1]))
                self.joins[index] = token[-1:].isalnum() and not _OWN_WORD.match(token[-1:])

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """Return (B, T) bool, true where a token of `rows` (B, T) begins a word.

        The first of a row always does.
        """
        starts = self.always[rows]  # (B, T)
        starts[:, 1:] |= ~self.joins[rows[:, :-1]]
        starts[:, 0] = True
        return starts


def _byte_token(token: str) -> tuple[bool, bool]:
    """Return whether a byte-level token begins a word, and whether it may continue."""
    spelled = bytes(CHARACTER_TO_BYTE.get(character, 0x20) for character in token)
    text = spelled.decode(errors="ignore")
    inside_character = 0x80 <= spelled[0] < 0xC0  # a continuation byte of UTF-8
    begins = not inside_character and (not text[:1].isalnum() or bool(_OWN_WORD.match(text[:1])))

    # The next token may complete the last character.
    unfinished = spelled.decode(errors="replace").endswith("\ufffd")
    joins = unfinished or text == " " or (text[-1:].isalnum() and not _OWN_WORD.match(text[-1:]))

    # the first bytes of a character of some other script
    if not inside_character and not text:
        begins = True
    return begins, joins


def given_word_starts(text: str, offsets: Sequence[tuple[int, int]]) -> np.ndarray:
    """Return (n,) bool, true where a token begins a word separated by white space.

    Chinese text that a segmenter has separated with spaces keeps its words this way, although
    WordPiece drops the spaces and makes each character a token.

    Args:
        offsets: begin and end of each token in `text`, in characters.
    """
    starts = np.ones(len(offsets), dtype=bool)
    for index in range(1, len(offsets)):
        end_before = offsets[index - 1][1]
        begin, end = offsets[index]

        # white space between the two, or at the beginning of this one, where tokens include it
        gap = text[end_before : max(begin, end_before)]
        starts[index] = any(map(str.isspace, gap)) or text[begin:end][:1].isspace()
    return starts
