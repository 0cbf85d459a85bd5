"""Find duplicates, exact or near, and documents that hold evaluation text.

Each check is called like a filter: it returns None to keep the document, or `exact_duplicate`,
`near_duplicate: ...`, `contaminated: ...`. The first of several similar documents is the one that
is kept, so the result depends on the order of the documents and on nothing else. The index of a
check grows with the documents; `index_bytes` says how large it is.
"""

import hashlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Self

import numpy as np
from datasketch import MinHash, MinHashLSH

from hfstack.data.cleaning.filters import ngram_hashes, split_units, unit_hashes
from hfstack.data.cleaning.pipeline import CleanText, OrderedCheck
from hfstack.data.columns import strings_of
from hfstack.data.sources import Source, SourceLog, iterate_rows
from hfstack.errors import ConfigError, DataError

# 5-grams and a similarity of 0.8: Lee et al. 2022, arXiv:2107.06499, section 4.2
_SHINGLE_UNITS = 5
# x 128 permutations x 4 bytes = 256 KiB: stays in cache, and long documents need no more memory
_CHUNK_SHINGLES = 512
# of false alarms and of misses: losing a text of which 0.7 is in another loses little
_ERROR_WEIGHTS = (0.2, 0.8)


class HashSet:
    """A set of 64-bit hashes in one flat array: 12 to 24 bytes a member.

    A Python set of ints needs about 80. Open addressing with linear probing; a slot of 0
    is empty, and the hash 0 is stored as 1.
    """

    def __init__(self) -> None:
        self._slots = array("Q", bytes(8 * 1024))
        self._members = 0

    def __contains__(self, value: int) -> bool:
        return self._slots[self._find(value or 1)] != 0

    def __len__(self) -> int:
        return self._members

    @property
    def index_bytes(self) -> int:
        """Return the bytes that the slots take."""
        return len(self._slots) * self._slots.itemsize

    def add(self, value: int) -> bool:
        """Add a hash below 2**64; return whether it was new."""
        slot = self._find(value or 1)
        if self._slots[slot]:
            return False

        self._slots[slot] = value or 1
        self._members += 1
        if self._members * 3 > len(self._slots) * 2:
            self._grow()
        return True

    def _find(self, value: int) -> int:
        """Return the slot that holds the value, or the empty one where it belongs."""
        slots, mask = self._slots, len(self._slots) - 1
        slot = value & mask
        while (found := slots[slot]) and found != value:
            slot = (slot + 1) & mask
        return slot

    def _grow(self) -> None:
        before = self._slots
        self._slots = array("Q", bytes(16 * len(before)))
        for value in before:
            if value:
                self._slots[self._find(value)] = value


def text_hash(text: str, purpose: bytes = b"") -> int:
    """Return a 64-bit BLAKE2b hash of a text, independent for each `purpose`.

    The purpose has at most 16 bytes.
    """
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8, person=purpose)
    return int.from_bytes(digest.digest(), "little")


class ExactDuplicates(OrderedCheck):
    """Refuse a text that is the same, character by character, as one before.

    Two of N different texts share a 64-bit hash with probability N**2 / 2**65: 3e-6 for ten million
    documents.
    """

    def __init__(self) -> None:
        self._seen = HashSet()

    def fingerprint(self, text: str) -> int:
        """Return the hash of a text."""
        return text_hash(text)

    def admit(self, fingerprint: int) -> str | None:
        """Return None for a hash that is new."""
        return None if self._seen.add(fingerprint) else "exact_duplicate"

    @property
    def index_bytes(self) -> int:
        """Return the bytes that the index of all texts so far takes."""
        return self._seen.index_bytes


class NearDuplicates(OrderedCheck):
    """Refuse near duplicates: Jaccard similarity of 5-unit shingles over `threshold`.

    MinHash signatures (Broder 1997) are datasketch's, split into the bands that its MinHashLSH
    would choose: two texts are similar when all rows of any band agree. At the default threshold,
    12 bands of 10 rows, texts of similarity 0.5, 0.7, 0.8 and 0.9 are dropped with probability
    0.01, 0.29, 0.74 and 0.99. Of every band only a 64-bit hash is kept, because MinHashLSH also
    keeps keys and buckets, 16 times the memory, for nothing that is needed here.

    Args:
        threshold: similarity in (0, 1] from which on a document is a near duplicate.
        permutations: length of a signature; more is more exact and slower.

    Raises:
        ConfigError: the threshold is not in that range, or there are too few permutations to form
            two bands.
    """

    def __init__(self, *, threshold: float = 0.8, permutations: int = 128) -> None:
        if not 0 < threshold <= 1:
            raise ConfigError(
                f"near_duplicate_threshold must be in (0, 1], or 0 to turn it off, got {threshold}"
            )

        if permutations < 16:
            raise ConfigError(f"minhash_permutations must be at least 16, got {permutations}")

        try:
            bands = MinHashLSH(threshold=threshold, num_perm=permutations, weights=_ERROR_WEIGHTS)
        except ValueError as error:
            raise ConfigError(
                f"minhash_permutations {permutations} cannot resolve similarity {threshold}: "
                f"{error}"
            ) from None

        self.bands, self.rows = bands.b, bands.r
        self._empty = MinHash(num_perm=permutations, seed=1, hashfunc=int)  # shingles come hashed
        self._seen = HashSet()

    def fingerprint(self, text: str) -> list[int]:
        """Return a hash for each band of the signature; none for a text without units."""
        shingles = shingle_hashes(text)
        return self._band_keys(shingles) if len(shingles) else []

    def admit(self, fingerprint: list[int]) -> str | None:
        """Return None when no band is that of a text before."""
        if any(key in self._seen for key in fingerprint):
            return "near_duplicate"
        for key in fingerprint:
            self._seen.add(key)

        return None

    @property
    def index_bytes(self) -> int:
        """Return the bytes that the index of all kept texts takes."""
        return self._seen.index_bytes

    def signature(self, shingles: np.ndarray) -> MinHash:
        """Return the MinHash of (S,) shingle hashes below 2**32."""
        minhash = self._empty.copy()
        for start in range(0, len(shingles), _CHUNK_SHINGLES):
            minhash.update_batch(shingles[start : start + _CHUNK_SHINGLES].tolist())
        return minhash

    def _band_keys(self, shingles: np.ndarray) -> list[int]:
        """Return one 64-bit hash for each band of the signature, different for each band."""
        used = self.signature(shingles).hashvalues[: self.bands * self.rows]
        values = used.astype("<u8").tobytes()
        width = 8 * self.rows
        keys = []

        for band in range(self.bands):
            part = values[band * width : (band + 1) * width]
            digest = hashlib.blake2b(part, digest_size=8, salt=bytes([band])).digest()
            keys.append(int.from_bytes(digest, "little"))

        return keys


def shingle_hashes(text: str) -> np.ndarray:
    """Return (S,) uint64 hashes below 2**32 of the 5-unit shingles.

    A shorter text is one shingle.
    """
    hashes = unit_hashes(text)
    if len(hashes) == 0:
        return hashes
    return ngram_hashes(hashes, min(_SHINGLE_UNITS, len(hashes))) >> np.uint64(32)


def duplicate_checks(
    exact: bool = True, threshold: float = 0.8, permutations: int = 128
) -> list[ExactDuplicates | NearDuplicates]:
    """Return the duplicate checks asked for, the cheap one first.

    A threshold of 0 means no near duplicates.
    """
    checks: list[ExactDuplicates | NearDuplicates] = []
    if exact:
        checks.append(ExactDuplicates())
    if threshold:
        checks.append(NearDuplicates(threshold=threshold, permutations=permutations))
    return checks


class Contamination:
    """Refuse a text that shares a long n-gram with an evaluation text.

    Brown et al. 2020, arXiv:2005.14165, appendix C. Case and punctuation are left out of the
    comparison. An evaluation text shorter than the n-gram
    is looked for as a whole, unless it has under `least` units, when finding it would mean nothing.

    Args:
        texts: evaluation texts; questions, answers and contexts each on its own.
        words: length of the n-gram (GPT-3: 13 words).
        characters: the same for evaluation texts in scripts without spaces, in characters.
        least: shortest evaluation text that is looked for, in units (GPT-3: 8).

    Raises:
        DataError: no evaluation text is long enough, so that nothing could ever match.
    """

    def __init__(
        self, texts: Iterable[str], *, words: int = 13, characters: int = 20, least: int = 8
    ) -> None:
        self._least = least
        self.texts = self.ignored_texts = 0
        # hash of the first units -> length and hash of the whole
        self._short: dict[int, set[tuple[int, int]]] = {}
        # length of the n-grams -> their hashes, an array for each text
        found: dict[int, list[np.ndarray]] = {}

        for text in texts:
            self.texts += 1
            hashes = unit_hashes(text)
            length = characters if split_units(text).unspaced else words
            if len(hashes) >= length:
                found.setdefault(length, []).append(ngram_hashes(hashes, length))
            elif len(hashes) >= least:
                start = ngram_hashes(hashes, least)[0]
                whole = ngram_hashes(hashes, len(hashes))[0]
                self._short.setdefault(int(start), set()).add((len(hashes), int(whole)))
            else:
                self.ignored_texts += 1

        if self._short:
            found[least] = [*found.get(least, []), np.array(list(self._short), dtype=np.uint64)]

        if not found:
            raise DataError(
                f"none of the {self.texts} texts has {least} words or characters; name files with "
                "text"
            )

        self._ngrams = {
            length: np.unique(np.concatenate(parts)) for length, parts in sorted(found.items())
        }

    def __call__(self, text: str) -> str | None:
        hashes = unit_hashes(text)
        for length, known in self._ngrams.items():
            ngrams = ngram_hashes(hashes, length)
            places = np.searchsorted(known, ngrams).clip(max=len(known) - 1)

            for start in np.flatnonzero(known[places] == ngrams).tolist():
                matched = self._match_length(hashes, start, length)
                if matched:
                    units = split_units(text)
                    separator = "" if units.unspaced else " "
                    run = separator.join(units.words[start : start + matched])
                    return f"contaminated: {run[:80]}"

        return None

    def _match_length(self, hashes: np.ndarray, start: int, length: int) -> int:
        """Return how many units match from `start` on.

        The first `length` are known to match. 0 where they begin a longer text that does not match.
        """
        if length != self._least:
            return length

        wholes = self._short[int(ngram_hashes(hashes[start : start + length], length)[0])]
        for whole_length, whole in sorted(wholes):
            run = hashes[start : start + whole_length]
            if len(run) == whole_length and int(ngram_hashes(run, whole_length)[0]) == whole:
                return whole_length
        return 0

    @classmethod
    def from_sources(
        cls,
        sources: Sequence[Source],
        clean: Callable[[str], CleanText],
        log: SourceLog | None = None,
    ) -> Self:
        """Index every text in any column of these datasets, cleaned as documents are."""

        def texts() -> Iterator[str]:
            try:
                for row in iterate_rows(sources, columns=(), log=log):
                    for text in strings_of(row):
                        yield clean(text).text
            except DataError as error:
                raise DataError(f"--decontaminate: {error}") from None

        return cls(texts())

    @property
    def index_bytes(self) -> int:
        """Return the bytes that the n-grams of the evaluation texts take.

        They do not grow with the documents.
        """
        return sum(known.nbytes for known in self._ngrams.values())
