"""Write token ids of documents to a file of fixed blocks, and count what is in it.

The writing half of blocks.py beside this file.

Legend: n tokens and D documents of one batch.
"""

from dataclasses import dataclass
from typing import BinaryIO, cast

import numpy as np
from transformers import PreTrainedTokenizerBase

from hfstack.errors import DataError
from hfstack.tokens.fast_encoding import DocumentEncoder, start_token_id

# Of the first batch, on which the fast encoder must agree with the tokenizer.
_SAMPLE_DOCUMENTS = 32
_SAMPLE_CHARACTERS = 1000  # of each of them


@dataclass(frozen=True)
class PackedCounts:
    """What a packed file holds; kept as JSON beside it."""

    block_size: int
    dtype: str
    """uint16 or uint32"""
    block_count: int
    token_count: int
    """tokens in the blocks: text, bos and eos, without padding"""
    byte_count: int
    """UTF-8 bytes of the text in the blocks; an eos has none, a character split by the last edge
    counts in full
    """
    document_count: int
    """documents with at least one token in the blocks"""
    dropped_token_count: int
    """tokens after the last full block"""
    empty_document_count: int
    """documents without a single token, left out"""
    pad_id: int
    eos_id: int
    engine: str
    """the library that encoded: tiktoken or tokenizers"""


@dataclass(frozen=True)
class _Document:
    """A document that reaches past the last full block, kept until that block ends."""

    text: str
    start: int
    """index of its first token in the whole row of tokens"""
    end: int
    """index just past its eos"""


class BlockWriter:
    """Writes token ids to a file as they come, and counts the text that they encode."""

    def __init__(self, file: BinaryIO, tokenizer: PreTrainedTokenizerBase, block_size: int) -> None:
        self._file = file
        self._tokenizer = tokenizer
        self._block_size = block_size
        self._vocabulary_size = max(tokenizer.get_vocab().values(), default=-1) + 1
        self._dtype = np.dtype(np.uint16 if self._vocabulary_size < 1 << 16 else np.uint32)

        self._start_id = start_token_id(tokenizer)
        self._encoder: DocumentEncoder | None = None
        self._open_documents: list[_Document] = []
        self._seen_count = 0
        self._token_count = 0

        self._byte_count = 0
        self._document_count = 0
        self._empty_count = 0

    def add(self, documents: list[str]) -> None:
        """Encode and write a batch of documents."""
        kept = [document for document in documents if document]
        byte_counts = [_byte_length(document) for document in kept]

        if kept:
            ids, ends = self._encode(kept)  # (n,), (D,)
            lengths = np.diff(ends, prepend=0)  # (D,)
            if (lengths == 1).any():
                kept, ids, ends, byte_counts = self._without_empty(kept, ids, lengths, byte_counts)
            ids, ends = self._with_one_end(ids, ends)
            ids, ends = self._with_one_start(ids, ends)
            self._file.write(ids.astype(self._dtype).tobytes())

            self._track_open_documents(kept, ends)
            self._byte_count += sum(byte_counts)
            self._document_count += len(kept)

        self._seen_count += len(documents)
        self._empty_count = self._seen_count - self._document_count

    def finish(self, *, drop_last: bool) -> PackedCounts:
        """Truncate the file to full blocks, or pad it to one, and return the counts."""
        size, total = self._block_size, self._token_count
        if not total:
            raise DataError(
                f"nothing to pack: {self._seen_count} documents hold no text; check the data and "
                "its text column"
            )

        whole, rest = divmod(total, size)
        if drop_last and not whole:
            raise DataError(
                f"the data has {total} tokens, fewer than one block of block_size {size}: lower "
                "block_size or add text"
            )

        # Padding is not scored, so the end token serves where a tokenizer has none of its own.
        assert self._encoder is not None
        pad_id = cast(int | None, self._tokenizer.pad_token_id)
        if pad_id is None:
            pad_id = self._encoder.end_id

        if drop_last:
            self._file.truncate(whole * size * self._dtype.itemsize)
            self._uncount_after(whole * size)
        elif rest:
            self._file.write(np.full(size - rest, pad_id, dtype=self._dtype).tobytes())
            whole += 1

        return PackedCounts(
            block_size=size,
            dtype=self._dtype.name,
            block_count=whole,
            token_count=min(total, whole * size),
            byte_count=self._byte_count,
            document_count=self._document_count,
            dropped_token_count=rest if drop_last else 0,
            empty_document_count=self._empty_count,
            pad_id=pad_id,
            eos_id=self._encoder.end_id,
            engine=self._encoder.engine,
        )

    def _encode(self, documents: list[str]) -> tuple[np.ndarray, np.ndarray]:
        if self._encoder is None:
            step = max(1, len(documents) // _SAMPLE_DOCUMENTS)
            sample = [document[:_SAMPLE_CHARACTERS] for document in documents[::step]]
            self._encoder = DocumentEncoder(self._tokenizer, sample=sample)

        try:
            ids, ends = self._encoder.encode(documents)
        except DataError:
            raise
        except Exception as error:  # the `tokenizers` library raises bare Exception
            raise DataError(
                f"the tokenizer cannot encode one of the {len(documents)} documents from number "
                f"{self._seen_count} on ({error}): its vocabulary lacks a token of theirs and has "
                "no unk token"
            ) from error

        if int(ids.max()) >= self._vocabulary_size:
            raise DataError(
                f"the tokenizer gave id {int(ids.max())}, but its vocabulary ends at "
                f"{self._vocabulary_size - 1}: its files do not belong together"
            )

        return ids, ends

    def _without_empty(
        self, documents: list[str], ids: np.ndarray, lengths: np.ndarray, byte_counts: list[int]
    ) -> tuple[list[str], np.ndarray, np.ndarray, list[int]]:
        """Leave out documents that are nothing but their eos; only white space may."""
        for index in np.flatnonzero(lengths == 1):
            if documents[index].strip():
                raise DataError(
                    "the tokenizer has no token for the document that begins "
                    f"{documents[index][:40]!r}: use one trained on such text, or a byte-level one"
                )

        keep = lengths > 1  # (D,)
        indices = np.flatnonzero(keep)
        return (
            [documents[index] for index in indices],
            ids[np.repeat(keep, lengths)],
            np.cumsum(lengths[keep]),
            [byte_counts[index] for index in indices],
        )

    def _with_one_end(self, ids: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Drop our eos behind documents whose own text ends with the eos token."""
        assert self._encoder is not None
        twice = ids[ends - 2] == self._encoder.end_id  # (D,); no document is empty here
        if not twice.any():
            return ids, ends
        return np.delete(ids, ends[twice] - 1), ends - np.cumsum(twice)

    def _with_one_start(self, ids: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Insert the bos before each document where the tokenizer does so itself.

        Not where the text begins with it already.
        """
        if self._start_id is None or not len(ends):
            return ids, ends
        starts = np.concatenate([[0], ends[:-1]])  # (D,)
        missing = ids[starts] != self._start_id  # (D,)
        return np.insert(ids, starts[missing], self._start_id), ends + np.cumsum(missing)

    def _track_open_documents(self, documents: list[str], ends: np.ndarray) -> None:
        """Advance the token count and keep the documents that reach past the last block."""
        first = self._token_count
        self._token_count += int(ends[-1]) if documents else 0
        boundary = self._token_count // self._block_size * self._block_size
        still_open = [document for document in self._open_documents if document.end > boundary]

        for index in np.flatnonzero(ends + first > boundary):
            start = first + (int(ends[index - 1]) if index else 0)
            still_open.append(_Document(documents[index], start, first + int(ends[index])))

        self._open_documents = still_open

    def _uncount_after(self, boundary: int) -> None:
        """Subtract the text after token `boundary` from the counts."""
        for document in self._open_documents:
            byte_count = _byte_length(document.text)
            if document.start >= boundary:
                self._document_count -= 1
                self._byte_count -= byte_count
            else:
                kept = self._first_tokens_text(document.text, boundary - document.start)
                self._byte_count -= byte_count - _byte_length(kept)

    def _first_tokens_text(self, document: str, token_count: int) -> str:
        """Return the beginning of a document that its first tokens encode."""
        assert self._encoder is not None
        offsets = self._encoder.tokenizer.encode(document, add_special_tokens=False).offsets
        token_count -= self._start_id is not None

        if token_count <= 0:
            return ""
        if token_count > len(offsets):
            return document
        return document[: offsets[token_count - 1][1]]


def _byte_length(text: str) -> int:
    """Return the length of text in UTF-8."""
    try:
        return len(text) if text.isascii() else len(text.encode())
    except UnicodeEncodeError as error:
        raise DataError(
            f"the document that begins {text[:40]!r} holds half a surrogate pair at character "
            f"{error.start}: clean the text first"
        ) from None
