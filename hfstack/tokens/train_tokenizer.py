"""Train a byte-level BPE, WordPiece or Unigram tokenizer, and measure it.

    bpe        the choice for language models: any text round-trips, nothing is ever unknown
               (GPT-2, Llama 3)
    unigram    SentencePiece's algorithm (Kudo 2018); characters never seen in training become
               `<|unk|>`
    wordpiece  BERT's: splits words and Chinese characters apart, loses spacing; for masked
               language models

Apart from WordPiece's [CLS] and [SEP], no tokenizer trained here adds a token by itself at the
beginning or end of a text: packing ends a document, and the chat template separates turns.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, cast, get_args

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import BertTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from hfstack.errors import ConfigError, DataError
from hfstack.logs import get_logger

logger = get_logger(__name__)

TokenizerKind = Literal["bpe", "wordpiece", "unigram"]

END_OF_TEXT = "<|endoftext|>"
PAD = "<|pad|>"  # a token of its own: padding with the eos would hide the eos from the loss
UNKNOWN = "<|unk|>"
CHAT_TOKENS = ("<|user|>", "<|assistant|>", "<|system|>", "<|end|>")
BERT_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

_REPEATS_A_TEXT = 10_000

# The generation markers show `apply_chat_template(return_assistant_tokens_mask=True)`, and with it
# TRL's assistant-only loss, which tokens are the assistant's own: the answer and the <|end|> that
# stops it, not the <|assistant|> before it.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- if message['role'] not in ['system', 'user', 'assistant'] -%}
{{- raise_exception("a turn's role must be system, user or assistant, not " + message['role']) -}}
{%- endif -%}
{{- '<|' + message['role'] + '|>' -}}
{%- if message['role'] == 'assistant' -%}
{%- generation -%}{{- message['content'] + '<|end|>' -}}{%- endgeneration -%}
{%- else -%}
{{- message['content'] + '<|end|>' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}
"""


@dataclass(frozen=True)
class TokenizerReport:
    """How a tokenizer does on text that it was not trained on."""

    document_count: int
    byte_count: int
    token_count: int
    bytes_per_token: float
    """UTF-8 bytes of text a token stands for; higher means shorter sequences"""
    characters_per_token: float
    tokens_per_word: float
    """fertility; words are what white space separates, so it says little about Chinese"""
    compression: float
    """bits of the text over bits of its ids at log2(vocabulary) each; comparable between vocabulary
    sizes
    """
    unknown_rate: float
    """share of the tokens that are the unk token"""
    round_trip_rate: float
    """share of the documents that decode to exactly what was encoded"""


def train_tokenizer(
    texts: Iterable[str],
    *,
    kind: TokenizerKind,
    vocab_size: int,
    extra_special_tokens: Sequence[str] = (),
    lowercase: bool = False,
    min_frequency: int = 2,
    blank_runs: int = 0,
    model_max_length: int | None = None,
) -> PreTrainedTokenizerFast:
    """Train a tokenizer.

    The same texts give the same BPE or WordPiece tokenizer, byte for byte. Unigram is not
    repeatable: the library's trainer sums in the order of a random hash, so scores differ in the
    last digits and a few tokens with them.

    Args:
        texts: documents, read once and in order.
        kind: `bpe`, `wordpiece` or `unigram`.
        vocab_size: tokens in all, special ones included; fewer when the text does not yield as many
            (logged).
        extra_special_tokens: more strings that are always one token.
        lowercase: WordPiece only: fold case and strip accents, as `do_lower_case` of BERT does.
        min_frequency: pairs seen less often are not merged (bpe, wordpiece).
        blank_runs: bpe only: each run of 2 to this many blanks is one token, as in GPT-NeoX-20B
            (Black et al. 2022, arXiv:2204.06745, section 3.2); 0 for none.
        model_max_length: the model's context in tokens, saved with the tokenizer.

    Raises:
        ConfigError: unknown `kind`, or `vocab_size` below special tokens and alphabet.
        DataError: the texts are empty, or one of them is not text.
    """
    if kind not in get_args(TokenizerKind):
        raise ConfigError(f"kind is {kind!r}: choose one of {', '.join(get_args(TokenizerKind))}")

    if lowercase and kind != "wordpiece":
        raise ConfigError(
            f"lowercase goes with kind wordpiece, not {kind}: lower-case the text itself, or drop "
            "the flag"
        )

    if blank_runs and (kind != "bpe" or blank_runs < 2):
        raise ConfigError(
            f"blank_runs is {blank_runs} for kind {kind}: it is 0, or for bpe the longest run of "
            "blanks that is one token, at least 2"
        )

    runs = [" " * length for length in range(2, blank_runs + 1)]
    specials = _special_tokens(kind, extra_special_tokens)
    alphabet = 256 if kind == "bpe" else 1
    if vocab_size < len(specials) + len(runs) + alphabet:
        raise ConfigError(
            f"vocab_size is {vocab_size}: {kind} needs at least {len(specials) + alphabet},"
            f" {len(specials)} special tokens and an alphabet of "
            f"{alphabet}{' bytes' if kind == 'bpe' else ''}"
        )

    # The libraries' trainers go past vocab_size for a large alphabet, and stay below it for a small
    # text: a model built for the number asked for would then fail, or carry rows never trained.
    counted = _CountedTexts(texts)
    core = _TRAIN[kind](counted, vocab_size - len(runs), specials, min_frequency, lowercase)
    counted.require_text()
    # longest first in a text: the library matches added tokens before it splits words
    core.add_tokens([AddedToken(run, normalized=False) for run in runs])

    if core.get_vocab_size() > vocab_size:
        raise _alphabet_too_large(kind, vocab_size, core.get_vocab_size(), len(counted.characters))

    _warn_of_fewer(core.get_vocab_size(), vocab_size)
    return _wrap(
        core,
        kind,
        list(extra_special_tokens),
        lowercase=lowercase,
        model_max_length=model_max_length,
    )


def _warn_of_fewer(size: int, asked: int) -> None:
    """Warn where a text yields fewer tokens than were asked for."""
    if size < asked:
        logger.warning(
            "the text yields only %d of the %d tokens asked for: set vocab_size to %d, or give "
            "more text",
            size,
            asked,
            size,
        )


def measure_tokenizer(
    tokenizer: PreTrainedTokenizerBase, texts: Iterable[str]
) -> tuple[TokenizerReport, Counter[int]]:
    """Return a report on held-out documents, and how often each id occurs in them.

    Raises:
        DataError: there is no text.
    """
    counts: Counter[int] = Counter()
    documents = byte_count = characters = words = same = 0
    for text in texts:
        ids = cast(list[int], tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
        counts.update(ids)
        documents += 1
        byte_count += len(text.encode())
        characters += len(text)
        words += len(text.split())
        same += tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text

    tokens = counts.total()
    if not tokens:
        raise DataError(
            f"no held-out text in {documents} documents: name eval_datasets, or hold out a larger "
            "eval_fraction"
        )

    # compression: bits of the text over bits of its ids, if every id cost log2 of the vocabulary
    unknown = 0 if tokenizer.unk_token_id is None else counts[cast(int, tokenizer.unk_token_id)]
    report = TokenizerReport(
        document_count=documents,
        byte_count=byte_count,
        token_count=tokens,
        bytes_per_token=byte_count / tokens,
        characters_per_token=characters / tokens,
        tokens_per_word=tokens / max(words, 1),
        compression=8 * byte_count / (tokens * math.log2(len(tokenizer))),
        unknown_rate=unknown / tokens,
        round_trip_rate=same / documents,
    )

    return report, counts


class _CountedTexts:
    """Iterates over texts, and counts them and their different characters."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts = texts
        self.document_count = 0
        self.characters: set[str] = set()

    def __iter__(self) -> Iterator[str]:
        for text in self._texts:
            if not isinstance(text, str):
                place = f"document {self.document_count}"
                raise DataError(
                    f"{place} is {type(text).__name__}, not text: check the text column of the data"
                )

            self.document_count += 1
            self.characters.update(text)
            yield text

    def require_text(self) -> None:
        """Raise DataError unless there was something besides white space."""
        if all(character.isspace() for character in self.characters):
            raise DataError(
                f"no text to train a tokenizer on: {self.document_count} documents, all of them "
                "empty"
            )


def _special_tokens(kind: TokenizerKind, extra: Sequence[str]) -> list[str]:
    """Return the special tokens of a kind, then the extra ones, each once."""
    own = {
        "bpe": (END_OF_TEXT, PAD, *CHAT_TOKENS),
        "unigram": (END_OF_TEXT, PAD, *CHAT_TOKENS, UNKNOWN),
        "wordpiece": BERT_TOKENS,
    }[kind]

    specials = [*own, *extra]
    repeated = [token for token, count in Counter(specials).items() if count > 1]
    if repeated or "" in extra:
        raise ConfigError(
            f"extra_special_tokens has {(repeated or [''])[0]!r}, which is empty or there already:"
            f" {kind} comes with {', '.join(own)}"
        )

    return specials


def _train_bpe(
    texts: Iterable[str], vocab_size: int, specials: list[str], min_frequency: int, lowercase: bool
) -> Tokenizer:
    del lowercase  # refused before: folding case would lose text
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()

    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=specials,
        # all 256 bytes, so that nothing is unknown
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )

    core.train_from_iterator(texts, trainer)
    return core


def _train_unigram(
    texts: Iterable[str], vocab_size: int, specials: list[str], min_frequency: int, lowercase: bool
) -> Tokenizer:
    del min_frequency, lowercase  # Unigram prunes by likelihood; folding case was refused before
    core = Tokenizer(models.Unigram())

    # The first split keeps pieces inside one line. No space is added before a text, so that
    # decode(encode(text)) is the text. Words are not split from their punctuation: the trainer
    # considers only strings that occur in at least two different words, and "fox", "fox." and
    # "fox," make three.
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\s*\n\s*"), "isolated"),
            pre_tokenizers.Metaspace(prepend_scheme="never"),
        ]
    )

    core.decoder = decoders.Metaspace(prepend_scheme="never")

    trainer = trainers.UnigramTrainer(
        vocab_size=vocab_size, special_tokens=specials, unk_token=UNKNOWN, show_progress=False
    )
    counted = cast(_CountedTexts, texts)
    try:
        core.train_from_iterator(counted, trainer)
    except Exception as error:  # the library raises bare Exception
        if "all chars" not in str(error):
            raise
        needed = len(counted.characters) + len(specials)
        raise _alphabet_too_large("unigram", vocab_size, needed, len(counted.characters)) from error

    return core


def _train_wordpiece(
    texts: Iterable[str], vocab_size: int, specials: list[str], min_frequency: int, lowercase: bool
) -> Tokenizer:
    core = BertTokenizer(do_lower_case=lowercase).backend_tokenizer
    words: Counter[str] = Counter()

    for text in texts:
        normalised = core.normalizer.normalize_str(text)
        words.update(word for word, _ in core.pre_tokenizer.pre_tokenize_str(normalised))

    # The trainer breaks ties by id, and numbers the characters inside words in the order of a
    # random hash: listing them first makes two runs equal.
    inner = sorted({f"##{character}" for word in words for character in word[1:]})
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=specials + inner,
        show_progress=False,
    )

    core.train_from_iterator(_repeat_words(words), trainer)
    return core


def _repeat_words(words: Counter[str]) -> Iterator[str]:
    """Yield text in which each word occurs as often as it was counted."""
    for word, count in sorted(words.items()):
        for start in range(0, count, _REPEATS_A_TEXT):
            yield f"{word} " * min(_REPEATS_A_TEXT, count - start)


_TRAIN: dict[TokenizerKind, Callable[[Iterable[str], int, list[str], int, bool], Tokenizer]] = {
    "bpe": _train_bpe,
    "unigram": _train_unigram,
    "wordpiece": _train_wordpiece,
}


def _alphabet_too_large(
    kind: TokenizerKind, vocab_size: int, needed: int, characters: int
) -> ConfigError:
    return ConfigError(
        f"vocab_size is {vocab_size}, but {kind} on this text needs at least {needed}: it has "
        f"{characters} different characters; ask for more, clean the text, or use kind bpe, whose "
        "alphabet is 256 bytes"
    )


def _wrap(
    core: Tokenizer,
    kind: TokenizerKind,
    extra: list[str],
    *,
    lowercase: bool,
    model_max_length: int | None,
) -> PreTrainedTokenizerFast:
    """Wrap a trained core so that AutoTokenizer loads it, with its chat template."""
    tokenizer: PreTrainedTokenizerFast

    # BERT's own class, since its words begin and end otherwise; it has no chat
    if kind == "wordpiece":
        tokenizer = BertTokenizer(
            vocab=core.get_vocab(),
            do_lower_case=lowercase,
            padding_side="right",
            extra_special_tokens=extra,
        )
    else:
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=core,
            eos_token=END_OF_TEXT,
            pad_token=PAD,
            unk_token=UNKNOWN if kind == "unigram" else None,
            extra_special_tokens=[*CHAT_TOKENS, *extra],
            chat_template=CHAT_TEMPLATE,
            padding_side="right",
            clean_up_tokenization_spaces=False,
        )

    if model_max_length is not None:
        tokenizer.model_max_length = model_max_length
    return tokenizer
