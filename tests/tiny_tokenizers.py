"""Tiny tokenizers of each family: byte-level BPE, WordPiece, Unigram, SentencePiece BPE."""

import json
from typing import Any

from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

CHINESE = ["小狐狸跑回家了，天黑了。", "猫头鹰说：你好吗？我很好。"]
ENGLISH = [
    "The fox was happy, and the little girl ran home with a red ball.",
    "Human: who are you?\n\nAssistant: I am an owl.\nGood night!",
]
SPECIAL = ["<unk>", "<s>", "</s>"]


def wrap(core: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


def byte_bpe(**settings: bool) -> PreTrainedTokenizerFast:
    """Like GPT-2's; with trim_offsets like RoBERTa's, with use_regex off it merges over words."""
    core = Tokenizer(models.BPE())
    use_regex = settings.pop("use_regex", True)
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)
    core.post_processor = processors.ByteLevel(**settings)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator([*ENGLISH, *CHINESE] * 3, trainer)
    return wrap(core)


def word_piece() -> PreTrainedTokenizerFast:
    core = Tokenizer(models.WordPiece(unk_token="<unk>"))
    core.normalizer = normalizers.BertNormalizer(lowercase=False)
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.decoder = decoders.WordPiece(cleanup=False)
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=SPECIAL, show_progress=False)
    core.train_from_iterator([*ENGLISH, *CHINESE] * 3, trainer)
    return wrap(core)


def unigram(scheme: Any) -> PreTrainedTokenizerFast:
    """Like T5's: pieces with a leading mark, in front of a text too unless the scheme is never."""
    core = Tokenizer(models.Unigram())
    core.normalizer = normalizers.NFKC()
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    core.decoder = decoders.Metaspace(prepend_scheme=scheme)
    trainer = trainers.UnigramTrainer(
        vocab_size=150, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False
    )
    core.train_from_iterator([*ENGLISH, *CHINESE] * 3, trainer)
    return wrap(core)


def llama2(*, dummy_prefix: bool) -> PreTrainedTokenizerFast:
    """Like Llama 2's: SentencePiece BPE with bytes for what has no piece, and a start token."""
    words = [f"▁{word}" for text in ENGLISH for word in text.split()]
    trained = Tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(vocab_size=110, special_tokens=SPECIAL, show_progress=False)
    trained.train_from_iterator(words * 3, trainer)

    model = json.loads(trained.to_str())["model"]
    vocabulary = model["vocab"]
    for byte in range(256):
        vocabulary[f"<0x{byte:02X}>"] = len(vocabulary)
    merges = [tuple(pair) for pair in model["merges"]]
    core = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True))
    core.add_special_tokens(SPECIAL)

    replace = normalizers.Replace(" ", "▁")
    back: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if dummy_prefix:
        core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replace])
        back.append(decoders.Strip(" ", 1, 0))
    else:
        core.normalizer = replace
    core.decoder = decoders.Sequence(back)
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return wrap(core)
