"""Pack documents into blocks of token ids in a memory-mapped file.

Documents are tokenised once; later runs open the file.

Every document is followed by the eos token, and begins with the bos token where the tokenizer
itself adds one before a text, as Llama's does. That one long row of tokens is split into blocks, so
a document may begin in one block and continue in the next. The folder's name is a hash of (data,
tokenizer, settings): a second run finds it.

With `isolate_documents` each block carries `position_ids` that restart at 0 after every eos, and
there is NO attention mask. From restarting positions transformers builds the mask that keeps
documents apart. Two things switch that off silently, and every document then attends to the ones
before it: an attention mask of ones, and a key-value cache (`use_cache=True`, the default of a
model's config; Trainer turns it off). It holds for attention `sdpa` and `eager`, and for hfstack's
recurrent models, which reset their state at each position 0; flash attention supports restarting
positions only in batches of one.

A document that is split by a block's edge starts at position 0 again in the next block. The text
`<|endoftext|>` inside a document becomes the eos token, as the tokenizer has it, and so ends a
document too; a document that ends with it gets no second one.

Legend: N blocks, T tokens a block, B blocks a batch.
"""

import errno
import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from huggingface_hub import constants
from transformers import PreTrainedTokenizerBase

from hfstack.data.columns import column_names
from hfstack.data.packing.block_writer import BlockWriter, PackedCounts
from hfstack.data.reading.files import fingerprint
from hfstack.disk import (
    atomic_folder,
    describe_os_error,
    flush_to_disk,
    hash_text,
    is_missing,
    retry_reading,
)
from hfstack.errors import ConfigError, DataError
from hfstack.logs import get_logger
from hfstack.progress import follow
from hfstack.row_counts import RowCounts
from hfstack.tokens.fast_encoding import backend_settings, end_token_id, start_token_id
from hfstack.tokens.special_tokens import IGNORED_LABEL

logger = get_logger(__name__)

_BLOCKS_FORMAT = 1  # part of the cache key: raise it when the files' content changes
# text held in memory at a time; smaller than one document when that is larger
_BATCH_CHARACTERS = 1 << 20
_TOKENS_FILE = "tokens.bin"
_COUNTS_FILE = "counts.json"
_DIGEST_FILE = "tokens.blake2b"


class PackedBlocks(torch.utils.data.Dataset):
    """Blocks of token ids in a memory-mapped file, cheap to open and send to workers."""

    def __init__(
        self,
        folder: Path,
        *,
        isolate_documents: bool = False,
        masked_token_ids: Collection[int] = (),
    ) -> None:
        """Open a packed folder.

        Args:
            folder: a folder that `pack` created.
            isolate_documents: add `position_ids` that restart after each eos.
            masked_token_ids: tokens that are inputs but not targets (label -100).

        Raises:
            DataError: the folder is incomplete or damaged, or it could not be read.
        """
        self.folder = Path(folder)
        self.isolate_documents = isolate_documents
        self.masked_token_ids = tuple(masked_token_ids)

        try:
            self.counts, self._tokens = retry_reading(
                lambda: _open_folder(self.folder),
                self.folder,
                raises=DataError,
                remark="; it was not changed",
            )
        except (OSError, ValueError, TypeError) as error:
            # What could not be read is no damage, and its message is there already.
            if isinstance(error, DataError):
                raise
            raise DataError(
                f"packed data in {self.folder} is damaged ({error}): delete that folder and run "
                "again"
            ) from error

    @property
    def block_size(self) -> int:
        """Return the number of tokens in a block."""
        return self.counts.block_size

    @property
    def token_count(self) -> int:
        """Return the number of tokens in all blocks, text and eos, without padding."""
        return self.counts.token_count

    @property
    def byte_count(self) -> int:
        """Return the UTF-8 bytes of the text in all blocks, by which bits per byte divide."""
        return self.counts.byte_count

    @property
    def document_count(self) -> int:
        """Return the number of documents with at least one token in the blocks."""
        return self.counts.document_count

    @property
    def tokens_per_byte(self) -> float:
        """Return tokens, eos included, per UTF-8 byte.

        It turns nats per token into bits per byte.
        """
        return self.token_count / self.byte_count

    def __len__(self) -> int:
        return self.counts.block_count

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """Return one block: `input_ids`, `labels`, maybe `position_ids`, each (T,) int64."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"block {index} of {len(self)}")
        return {name: rows[0] for name, rows in self.batch([index]).items()}

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, torch.Tensor]]:
        """Return several blocks, read at once.

        `DataLoader` calls this with the indices of a batch.
        """
        columns = self.batch(indices)
        return [
            dict(zip(columns, rows, strict=True)) for rows in zip(*columns.values(), strict=True)
        ]

    def batch(self, indices: Sequence[int]) -> dict[str, torch.Tensor]:
        """Return blocks as a batch, (B, T) int64 each.

        `input_ids`, `labels`, and `position_ids` where documents are isolated.
        """
        rows = self._tokens[np.asarray(indices)]  # (B, T)
        tokens = torch.from_numpy(rows.astype(np.int64))  # (B, T)
        columns = {"input_ids": tokens, "labels": self._labels(rows, indices, tokens)}
        if self.isolate_documents:
            columns["position_ids"] = torch.from_numpy(document_positions(rows, self.counts.eos_id))
        return columns

    def _labels(
        self, rows: np.ndarray, indices: Sequence[int], tokens: torch.Tensor
    ) -> torch.Tensor:
        labels = tokens.clone()
        if self.masked_token_ids:
            labels[torch.from_numpy(np.isin(rows, self.masked_token_ids))] = IGNORED_LABEL

        # Only the last block may be padded; an index may count from the end.
        padding = self.counts.block_count * self.counts.block_size - self.counts.token_count
        if padding:
            last = self.counts.block_count - 1
            is_last = np.asarray(indices) % self.counts.block_count == last  # (B,)
            labels[is_last, self.block_size - padding :] = IGNORED_LABEL

        return labels

    @staticmethod
    def collate(rows: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """Stack blocks into a batch (B, T), without an attention mask."""
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}

    def __reduce__(self) -> tuple[Any, ...]:
        # A pickled memmap is a full copy: send the path instead, each worker maps the file itself.
        return _reopen, (self.folder, self.isolate_documents, self.masked_token_ids)


def _open_folder(folder: Path) -> tuple[PackedCounts, np.memmap]:
    """Return the counts of a packed folder and its tokens, (N, T)."""
    counts = PackedCounts(**json.loads((folder / _COUNTS_FILE).read_bytes()))
    shape = (counts.block_count, counts.block_size)
    return counts, np.memmap(folder / _TOKENS_FILE, dtype=counts.dtype, mode="r", shape=shape)


def _reopen(
    folder: Path, isolate_documents: bool, masked_token_ids: tuple[int, ...]
) -> PackedBlocks:
    return PackedBlocks(
        folder, isolate_documents=isolate_documents, masked_token_ids=masked_token_ids
    )


def document_positions(rows: np.ndarray, eos_id: int) -> np.ndarray:
    """Return (B, T) int64 positions that restart in each document of `rows` (B, T).

    An eos ends its document.
    """
    columns = np.arange(rows.shape[1], dtype=np.int64)  # (T,)
    # (B, T): column at which the latest document began, else 0
    starts = np.zeros(rows.shape, dtype=np.int64)
    starts[:, 1:] = np.where(rows[:, :-1] == eos_id, columns[1:], 0)
    return columns - np.maximum.accumulate(starts, axis=1)


def pack(
    texts: Iterable[str],
    tokenizer: PreTrainedTokenizerBase,
    *,
    block_size: int,
    cache_dir: Path,
    data_hash: str,
    isolate_documents: bool = False,
    drop_last: bool = True,
    masked_token_ids: Collection[int] = (),
) -> PackedBlocks:
    """Tokenise documents into blocks of `block_size` tokens, or open existing blocks.

    Safe to call from every process of a launch: the first one packs, the others wait for it and
    open the result. Memory does not grow with the corpus.

    Args:
        texts: documents; read only when there is no cached result.
        tokenizer: a fast tokenizer with an eos token.
        block_size: tokens a block.
        cache_dir: where packed folders are kept, one per (data, tokenizer, settings).
        data_hash: fingerprint of `texts`, such as `hash_texts` or a dataset's fingerprint.
        isolate_documents: give `position_ids` that restart at each document (see the top of this
            file).
        drop_last: drop the tokens after the last full block; otherwise the last block is padded and
            its labels masked.
        masked_token_ids: tokens that are inputs but not targets (label -100).

    Raises:
        ConfigError: `block_size` is below 2, or `cache_dir` cannot be written, or its disk is full.
        DataError: no eos token, no text, less text than a block, or text that the tokenizer cannot
            express; or earlier blocks that could not be read, which stay as they are.
    """
    if block_size < 2:
        raise ConfigError(
            f"block_size is {block_size}: a block needs at least 2 tokens, one to read and one to "
            "predict"
        )

    folder = Path(cache_dir) / _cache_key(
        tokenizer, data_hash, block_size=block_size, drop_last=drop_last
    )
    if not _is_undamaged(folder):
        with _one_process_only(folder):
            if not _is_undamaged(folder):
                if folder.is_dir():
                    logger.warning("packed data in %s is damaged: packing it again", folder)
                _write_folder(folder, texts, tokenizer, block_size=block_size, drop_last=drop_last)

    return PackedBlocks(
        folder, isolate_documents=isolate_documents, masked_token_ids=masked_token_ids
    )


def pack_splits(
    splits: Mapping[str, Mapping[str, Iterable[str]]],
    tokenizer: PreTrainedTokenizerBase,
    *,
    text_column: str,
    block_size: int,
    isolate_documents: bool = False,
    row_counts: RowCounts | None = None,
    rearrange: Callable[[Iterable[str]], Iterable[str]] | None = None,
) -> dict[str, PackedBlocks]:
    """Pack one column of each split, cached by the text's content.

    The cache is beside the Hub's.

    Every block is full, so that the mean of the blocks' losses is the mean over tokens whatever the
    batch size; the tokens after the last full block are dropped.

    Args:
        row_counts: gets what is left out, and the names of the columns.
        rearrange: makes other texts of the documents of `train`; the rest stays as it is.
    """
    cache_dir = Path(constants.HF_HOME) / "hfstack" / "packed"
    row_counts = RowCounts() if row_counts is None else row_counts
    row_counts.name_columns(column_names(splits["train"]), [text_column])

    packed: dict[str, PackedBlocks] = {}
    for split, rows in splits.items():
        texts: Iterable[str] = rows[text_column]
        if rearrange is not None and split == "train":
            texts = rearrange(texts)
        packed[split] = pack(
            texts,
            tokenizer,
            block_size=block_size,
            cache_dir=cache_dir,
            data_hash=hash_texts(texts),
            isolate_documents=isolate_documents,
        )
        counts = packed[split].counts
        count_documents(row_counts, split, counts.document_count, counts.empty_document_count)
    return packed


def count_documents(row_counts: RowCounts, split: str, packed: int, empty: int) -> None:
    """Count the documents of a split that are in its blocks, and those that are not."""
    if split in row_counts.splits:
        row_counts.leave_out(split, "empty", empty)
        behind = row_counts.splits[split].used - packed
        row_counts.leave_out(split, "behind the last full block", behind)


def hash_texts(texts: Iterable[str]) -> str:
    """Return a fingerprint of documents and their order, for `pack`'s `data_hash`.

    Memory is constant.
    """
    digest = hashlib.blake2b(digest_size=16)
    for text in texts:
        encoded = text.encode("utf-8", "surrogatepass")
        digest.update(len(encoded).to_bytes(8, "little"))
        digest.update(encoded)
    return digest.hexdigest()


def _cache_key(
    tokenizer: PreTrainedTokenizerBase, data_hash: str, *, block_size: int, drop_last: bool
) -> str:
    settings = [
        _BLOCKS_FORMAT,
        data_hash,
        block_size,
        drop_last,
        end_token_id(tokenizer),
        tokenizer.pad_token_id,
        start_token_id(tokenizer),
        bool(tokenizer.split_special_tokens),
        backend_settings(tokenizer),
    ]
    return hash_text(json.dumps(settings))


@contextmanager
def _one_process_only(folder: Path) -> Iterator[None]:
    """Hold the lock of one packed folder.

    The system releases it when the process dies, so a killed run never blocks a new one.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder.with_suffix(".lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            logger.info("another process is packing the same data: waiting for it")
            lock.acquire()
    except OSError as error:
        raise ConfigError(
            f"cannot write packed data to {folder.parent}: {describe_os_error(error)}; HF_HOME may "
            "name another folder"
        ) from error

    try:
        yield
    finally:
        lock.release()


def _is_undamaged(folder: Path) -> bool:
    """Return whether packed data is there, and undamaged by its digest.

    Hashing the tokens takes less time than hashing their text does.

    Raises:
        DataError: it could not be read, so that nobody knows.
    """
    digest = folder / _DIGEST_FILE
    remark = f"; the packed data in {folder} was not changed"
    try:
        expected = retry_reading(digest.read_bytes, digest, raises=DataError, remark=remark)
        return expected == fingerprint(folder / _TOKENS_FILE)["blake2b"].encode()
    except OSError as error:
        if is_missing(error):
            return False
        raise


def _write_folder(
    folder: Path,
    texts: Iterable[str],
    tokenizer: PreTrainedTokenizerBase,
    *,
    block_size: int,
    drop_last: bool,
) -> None:
    """Pack into a folder that exists only when whole.

    A damaged one of that name is deleted last. The caller holds the lock.
    """
    try:
        with atomic_folder(folder) as partial:
            with (partial / _TOKENS_FILE).open("wb") as file:
                writer = BlockWriter(file, tokenizer, block_size)
                for documents in _batches(follow(texts, "packing documents")):
                    writer.add(documents)
                counts = writer.finish(drop_last=drop_last)

            flush_to_disk(partial / _TOKENS_FILE)
            (partial / _DIGEST_FILE).write_text(fingerprint(partial / _TOKENS_FILE)["blake2b"])
            (partial / _COUNTS_FILE).write_text(json.dumps(asdict(counts), indent=1) + "\n")
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise ConfigError(
                f"the disk of {folder.parent} is full: packed text takes 2 or 4 bytes a token there"
            ) from error
        raise ConfigError(
            f"cannot write packed data to {folder.parent}: {describe_os_error(error)}"
        ) from error

    logger.info(
        "packed %d documents into %d blocks of %d tokens (%d tokens dropped at the end): %s",
        counts.document_count,
        counts.block_count,
        block_size,
        counts.dropped_token_count,
        folder,
    )


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    """Gather documents until they hold about a million characters."""
    documents: list[str] = []
    characters = 0

    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise DataError(
                f"document {index} is {type(text).__name__}, not text: check the text column of "
                "the data"
            )

        documents.append(text)
        characters += len(text)
        if characters >= _BATCH_CHARACTERS:
            yield documents
            documents, characters = [], 0

    if documents:
        yield documents
