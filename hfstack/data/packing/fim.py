"""Rearrange documents so that a causal model learns to fill in the middle.

A document is split at two characters into prefix, middle and suffix, and written in another order,
with a token before each part (Bavarian et al. 2022, arXiv:2207.14255, section 3):

    PSM   <prefix> prefix <suffix> suffix <middle> middle
    SPM   <prefix> <suffix> suffix <middle> prefix middle

The second is the variant of that section whose prefix and middle are one text, as they are when
tokens are generated behind the prefix. Documents are rearranged whole, before they are packed, so
no part comes of another document, and the text is recovered exactly (`restore`).
"""

import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from hfstack.errors import ConfigError

_KNOWN_FIM_TOKENS = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    ("<|fim_begin|>", "<|fim_hole|>", "<|fim_end|>"),
    ("<PRE>", "<SUF>", "<MID>"),
)


@dataclass(frozen=True)
class FimTokens:
    """The tokens before the parts of a document."""

    prefix: str
    suffix: str
    middle: str

    def are_in(self, text: str) -> bool:
        """Return whether a text has one of them itself, and cannot be rearranged."""
        return any(token in text for token in (self.prefix, self.suffix, self.middle))


def find_fim_tokens(tokenizer: PreTrainedTokenizerBase) -> FimTokens:
    """Return the tokens that a tokenizer has for the parts.

    Raises:
        ConfigError: it has none.
    """
    vocabulary = tokenizer.get_vocab()
    for names in _KNOWN_FIM_TOKENS:
        if all(name in vocabulary for name in names):
            return FimTokens(*names)
    wanted = " ".join(f"'{name}'" for name in _KNOWN_FIM_TOKENS[0])
    raise ConfigError(
        "--fim_rate needs tokens that mark prefix, suffix and middle, and the tokenizer has none: "
        f"train one with --extra_special_tokens {wanted}"
    )


@dataclass(frozen=True)
class FimTexts:
    """Documents, a share of them rearranged, the same ones at each reading.

    Args:
        texts: documents, read from the beginning each time.
        tokens: of the tokenizer.
        rate: share of the documents that is rearranged.
        spm_rate: share of these that is written as SPM, the rest as PSM.
        seed: of which, and where.
    """

    texts: Iterable[str]
    tokens: FimTokens
    rate: float
    spm_rate: float
    seed: int

    def __iter__(self) -> Iterator[str]:
        """Yield the documents in order."""
        for index, text in enumerate(self.texts):
            draw = random.Random(f"{self.seed} {index}")
            chosen = isinstance(text, str) and text and draw.random() < self.rate
            if not chosen or self.tokens.are_in(text):
                yield text
                continue
            yield rearrange(text, self.tokens, draw, spm=draw.random() < self.spm_rate)


def fill_in_middle(
    tokenizer: PreTrainedTokenizerBase, rate: float, spm_rate: float, *, seed: int
) -> Callable[[Iterable[str]], Iterable[str]] | None:
    """Return what rearranges a share of documents, or None where none is to be.

    Raises:
        ConfigError: the tokenizer has no tokens for the parts.
    """
    if not rate:
        return None
    tokens = find_fim_tokens(tokenizer)
    return lambda texts: FimTexts(texts, tokens, rate, spm_rate, seed)


def rearrange(text: str, tokens: FimTokens, draw: random.Random, *, spm: bool) -> str:
    """Return a document split at two drawn characters, in the other order."""
    first, second = sorted(draw.randint(0, len(text)) for _ in range(2))
    prefix, middle, suffix = text[:first], text[first:second], text[second:]
    if spm:
        return f"{tokens.prefix}{tokens.suffix}{suffix}{tokens.middle}{prefix}{middle}"
    return f"{tokens.prefix}{prefix}{tokens.suffix}{suffix}{tokens.middle}{middle}"


def restore(text: str, tokens: FimTokens) -> str:
    """Return the document that `rearrange` was given; one that it left alone stays."""
    if not text.startswith(tokens.prefix):
        return text
    prefix, _, rest = text.removeprefix(tokens.prefix).partition(tokens.suffix)
    suffix, _, middle = rest.partition(tokens.middle)
    return prefix + middle + suffix


def check_fim_settings(rate: float, spm_rate: float) -> None:
    """Refuse shares that are none, or that do nothing.

    Raises:
        ConfigError: naming the option.
    """
    for name, value in (("fim_rate", rate), ("fim_spm_rate", spm_rate)):
        if not 0 <= value <= 1:
            raise ConfigError(f"--{name} is a share of the documents, in [0, 1]; got {value}")
    if spm_rate != 0.5 and not rate:
        raise ConfigError(
            f"--fim_spm_rate {spm_rate} is a share of the documents that --fim_rate rearranges, "
            "and that is 0: set --fim_rate, such as 0.5"
        )
