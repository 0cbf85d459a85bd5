"""Mask tokens of blocks of text for masked language models.

Devlin et al. 2018, section 3.1.

Of the tokens of a block a share is chosen to be predicted; of those 80 % become the mask token,
10 % a random token and 10 % stay as they are. Which ones is a function of (seed, epoch, block)
alone: another choice in each epoch of training (dynamic masking, Liu et al. 2019, section 4.1), the
same whatever the number of processes or workers, equal after a resume, and for evaluation always
the same, so that losses compare.

A block is [CLS], text, [SEP], as the model will see text later. Documents follow one another across
it, with [SEP] between them (FULL-SENTENCES of Liu et al. 2019, section 4.2); `isolate_documents`
keeps attention inside each.

Legend: N blocks, B blocks of a batch, T tokens of a block, V vocabulary.
"""

import copy
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
import torch
from huggingface_hub import constants
from tokenizers.processors import TemplateProcessing
from transformers import (
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from hfstack.data.columns import column_names
from hfstack.data.packing.blocks import PackedBlocks, count_documents, hash_texts, pack
from hfstack.errors import ConfigError, DataError
from hfstack.logs import get_logger
from hfstack.row_counts import RowCounts
from hfstack.tokens.special_tokens import IGNORED_LABEL
from hfstack.tokens.word_starts import WordStarts, given_word_starts

logger = get_logger(__name__)

MaskUnit = Literal["token", "word", "given"]

MASK_SPELLINGS = ("[MASK]", "<mask>")  # how people write a mask, whatever a tokenizer calls it
_EVALUATION_EPOCH = 1 << 32  # in place of the epoch, larger than any of training


def add_mask_tokens(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Return the tokenizer with a mask, a first and a separating token.

    BERT's and RoBERTa's own tokenizers come back as they are. One made for causal models gets
    `<mask>`, and as RoBERTa's does, `<s>` before a text and its eos after it.

    Raises:
        ConfigError: there is neither a separating nor an eos token, or the tokenizer is not a fast
            one.
    """
    if None not in (tokenizer.mask_token_id, tokenizer.cls_token_id, tokenizer.sep_token_id):
        return tokenizer

    if not tokenizer.is_fast:
        raise ConfigError(
            f"the tokenizer {tokenizer.name_or_path} has no mask token: use one of a masked model"
        )

    end = tokenizer.sep_token or tokenizer.eos_token
    if end is None:
        raise ConfigError(
            f"the tokenizer {tokenizer.name_or_path} has neither a sep nor an eos token to end a "
            "text: make one with the tokenizer recipe, --kind wordpiece or bpe"
        )

    # A vocabulary may have the token without the tokenizer knowing it as its mask.
    vocabulary = tokenizer.get_vocab()
    spelled = next((token for token in MASK_SPELLINGS if token in vocabulary), "<mask>")
    mask = tokenizer.mask_token or spelled
    first = tokenizer.cls_token or "<s>"

    before = len(tokenizer)
    added: dict[str, Any] = {"mask_token": mask, "cls_token": first, "sep_token": end}
    tokenizer.add_special_tokens(added)
    _put_around_texts(tokenizer, str(first), str(end))

    logger.info(
        "the tokenizer has %d tokens more: %s masks a token, %s ... %s are put around a text",
        len(tokenizer) - before,
        mask,
        first,
        end,
    )
    return tokenizer


def _put_around_texts(tokenizer: PreTrainedTokenizerBase, first: str, end: str) -> None:
    """Let a fast tokenizer put its first and its separating token around each text."""
    ids = [(token, cast(int, tokenizer.convert_tokens_to_ids(token))) for token in (first, end)]
    backend: Any = tokenizer.backend_tokenizer  # type: ignore[attr-defined]
    backend.post_processor = TemplateProcessing(
        single=f"{first} $A {end}", pair=f"{first} $A {end} $B:1 {end}:1", special_tokens=ids
    )


class MaskedBlocks(torch.utils.data.Dataset):
    """Blocks of token ids with some of them masked.

    `labels` are IGNORED_LABEL wherever nothing is to be predicted.

    Attributes:
        epoch: `SetMaskingEpoch` sets it, so that each epoch of training masks other tokens.
    """

    def __init__(
        self,
        tokens: PackedBlocks | np.ndarray,
        tokenizer: PreTrainedTokenizerBase,
        *,
        probability: float,
        seed: int,
        word_starts: WordStarts | np.ndarray | None = None,
        isolate_documents: bool = False,
        fixed: bool = False,
    ) -> None:
        """Wrap blocks of text.

        Args:
            tokens: blocks of T - 2 tokens, (N, T - 2): the first and the last token are put around
                them.
            probability: share of the text's tokens that are predicted, in (0, 1).
            seed: with the epoch and the block's number it decides which tokens are masked.
            word_starts: mask whole words: a table for any tokens, or (N, T - 2) bool of these; None
                masks single tokens.
            isolate_documents: add an attention mask that keeps each document to itself.
            fixed: mask the same tokens in every epoch, for evaluation.
        """
        self.tokens = tokens
        self.probability = probability
        self.seed = seed
        self.word_starts = word_starts
        self.isolate_documents = isolate_documents
        self.fixed = fixed
        self.epoch = 0

        self.mask_id = cast(int, tokenizer.mask_token_id)
        self.first_id = cast(int, tokenizer.cls_token_id)
        self.last_id = cast(int, tokenizer.sep_token_id)

        # Special tokens are never masked, and never a random token.
        special = np.array(sorted({*tokenizer.all_special_ids}))
        vocabulary = np.array(sorted(tokenizer.get_vocab().values()))
        self._special = np.zeros(vocabulary.max() + 1, dtype=bool)  # (V,)
        self._special[special] = True
        self._ordinary = np.setdiff1d(vocabulary, special)

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """Return one block, each (T,) int64; isolated ones with a mask (1, T, T) bool."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, torch.Tensor]]:
        """Return several blocks; `DataLoader` calls this with the indices of a batch."""
        rows, starts = self._read_text(indices)  # (B, T - 2), (B, T - 2)
        epoch = _EVALUATION_EPOCH if self.fixed else self.epoch
        blocks = []

        for index, row, start in zip(indices, rows, starts, strict=True):
            generator = np.random.default_rng([self.seed, epoch, int(index)])
            inputs, labels = self._mask(row, start, generator)
            block = {"input_ids": torch.from_numpy(inputs), "labels": torch.from_numpy(labels)}
            if self.isolate_documents:
                block["attention_mask"] = torch.from_numpy(self._same_document(row))[None]
            blocks.append(block)

        return blocks

    def token_counts(self, blocks: int) -> np.ndarray:
        """Return how often each token is in the first `blocks` blocks, (V,).

        Special tokens are not counted.
        """
        counts = np.zeros(len(self._special), dtype=np.int64)
        for first in range(0, min(blocks, len(self)), 1024):
            rows, _ = self._read_text(range(first, min(first + 1024, blocks, len(self))))
            counts += np.bincount(rows.reshape(-1), minlength=len(counts))
        return np.where(self._special, 0, counts)

    def _read_text(self, indices: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Return token ids and where words begin, (B, T - 2) each, of the blocks' texts."""
        if isinstance(self.tokens, PackedBlocks):
            rows = self.tokens.batch(indices)["input_ids"].numpy()  # (B, T - 2)
        else:
            rows = self.tokens[np.asarray(indices)].astype(np.int64)  # (B, T - 2)

        if self.word_starts is None:
            return rows, np.ones_like(rows, dtype=bool)
        if isinstance(self.word_starts, np.ndarray):
            return rows, self.word_starts[np.asarray(indices)]
        return rows, self.word_starts(rows)

    def _mask(
        self, row: np.ndarray, starts: np.ndarray, generator: np.random.Generator
    ) -> tuple[np.ndarray, ...]:
        """Return the masked block and its labels, (T,) each, of a text (T - 2,).

        `starts` is true where a word begins.
        """
        inputs = np.concatenate([[self.first_id], row, [self.last_id]])  # (T,)
        labels = np.full(len(inputs), IGNORED_LABEL, dtype=np.int64)
        text = np.flatnonzero(~self._special[row])  # positions that may be masked
        if not len(text):
            return inputs, labels

        words = np.cumsum(starts | self._special[row])[text]  # the word that each belongs to
        _, word_of, sizes = np.unique(words, return_inverse=True, return_counts=True)
        order = generator.permutation(len(sizes))

        # Words in random order until the share is reached: the last one is taken when its middle is
        # below it. The share is rounded up or down at random, so that it is right on average.
        middle = np.cumsum(sizes[order]) - sizes[order] / 2
        share = self.probability * len(text) + generator.random() - 0.5
        taken = order[: max(1, int((middle < share).sum()))]
        chosen = text[np.isin(word_of, taken)] + 1  # after the first token
        labels[chosen] = inputs[chosen]

        # 80 % become the mask, 10 % a random token, 10 % stay.
        chance = generator.random(len(chosen))
        random_tokens = generator.choice(self._ordinary, size=len(chosen))
        replaced = np.where(chance < 0.9, random_tokens, inputs[chosen])
        inputs[chosen] = np.where(chance < 0.8, self.mask_id, replaced)
        return inputs, labels

    def _same_document(self, row: np.ndarray) -> np.ndarray:
        """Return (T, T) bool, true where two tokens are of one document.

        [CLS] belongs to the first.
        """
        ends = np.concatenate([[False], row == self.last_id, [False]])  # (T,)
        document = np.cumsum(ends) - ends
        return document[:, None] == document[None, :]

    @staticmethod
    def collate(rows: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """Stack blocks: `input_ids` and `labels` (B, T).

        Isolated ones have `attention_mask` (B, 1, T, T) too.
        """
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def pack_masked_splits(
    splits: Mapping[str, Mapping[str, Iterable[str]]],
    tokenizer: PreTrainedTokenizerBase,
    *,
    text_column: str,
    block_size: int,
    probability: float,
    unit: MaskUnit = "token",
    isolate_documents: bool = False,
    seed: int = 0,
    row_counts: RowCounts | None = None,
) -> dict[str, MaskedBlocks]:
    """Pack one column of each split into blocks with masked tokens.

    Those of every split but `train` stay the same in every epoch.

    Args:
        block_size: tokens of a block, its first and last token included.
        unit: what is masked together: tokens one by one, the words that the vocabulary shows, or
            the words that white space separates in the text.
        row_counts: gets what is left out, and the names of the columns.

    Raises:
        ConfigError: a setting is out of range.
        DataError: there is no text, or less than a block.
    """
    if unit not in get_args(MaskUnit):
        raise ConfigError(f"--mask_unit is {unit!r}: choose one of {', '.join(get_args(MaskUnit))}")
    if not 0 < probability < 1:
        raise ConfigError(f"--mask_probability must be above 0 and below 1, got {probability}")
    if block_size < 8:
        raise ConfigError(f"--block_size must be at least 8 tokens, got {block_size}")

    # The packer puts a tokenizer's eos behind each document; here that is to be [SEP].
    separating = copy.deepcopy(tokenizer)
    separating.eos_token, separating.bos_token = (tokenizer.sep_token, None)
    cache_dir = Path(constants.HF_HOME) / "hfstack" / "packed"
    row_counts = RowCounts() if row_counts is None else row_counts
    first = next(iter(splits.values()))
    row_counts.name_columns(column_names(first), [text_column])
    found = {}

    for split, rows in splits.items():
        texts = rows[text_column]
        starts: WordStarts | np.ndarray | None = None

        if unit == "given":
            blocks, starts, documents = _pack_with_words(texts, tokenizer, block_size - 2)
            count_documents(row_counts, split, documents, empty=0)
        else:
            blocks = pack(
                texts,
                separating,
                block_size=block_size - 2,
                cache_dir=cache_dir,
                data_hash=hash_texts(texts),
            )
            starts = WordStarts(tokenizer) if unit == "word" else None
            counts = blocks.counts
            count_documents(row_counts, split, counts.document_count, counts.empty_document_count)

        found[split] = MaskedBlocks(
            blocks,
            tokenizer,
            probability=probability,
            seed=seed,
            word_starts=starts,
            isolate_documents=isolate_documents,
            fixed=split != "train",
        )

    return found


def _pack_with_words(
    texts: Iterable[str], tokenizer: PreTrainedTokenizerBase, size: int
) -> tuple[np.ndarray, np.ndarray, int]:
    """Return token ids and where words begin, (N, T - 2) each, and how many documents.

    They are held in memory, 5 bytes a token: packed files have no room for the boundaries.
    """
    ids, starts = [], []  # arrays of each document
    for number, text in enumerate(texts, 1):
        if not isinstance(text, str):
            raise DataError(
                f"document {number} is {type(text).__name__}, not text: check the text column of "
                "the data"
            )

        encoded = tokenizer(
            text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        ended = [*cast(Any, encoded["input_ids"]), tokenizer.sep_token_id]
        ids.append(np.array(ended, dtype=np.uint32))
        words = given_word_starts(text, cast(Any, encoded["offset_mapping"]))
        starts.append(np.append(words, True))  # the separating token is a word of its own

    total = sum(map(len, ids))
    whole = total // size
    if not whole:
        raise DataError(
            f"the data has {total} tokens, fewer than one block of {size + 2}: add text"
        )

    tokens = np.concatenate(ids)[: whole * size]
    begins = np.concatenate(starts)[: whole * size]
    logger.info(
        "%d blocks; words as the spaces of the text give them: %.2f tokens a word",
        whole,
        1 / begins.mean(),
    )
    # a document without a token in the blocks begins behind the last of them
    firsts = np.cumsum([0, *map(len, ids[:-1])])
    documents = int((firsts < whole * size).sum())
    return tokens.reshape(whole, size), begins.reshape(whole, size), documents


class SetMaskingEpoch(TrainerCallback):
    """Set the epoch of the blocks, on which their masks depend.

    A resumed run gets the masks that it would have had without the interruption.

    Args:
        blocks: the training blocks, which the Trainer's workers have not copied yet when an epoch
            begins.
    """

    def __init__(self, blocks: MaskedBlocks) -> None:
        self.blocks = blocks

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Set the epoch, which is whole here unless the run resumes in the middle of one."""
        self.blocks.epoch = int(state.epoch or 0)
