"""Build an index of passages on the disk, and find what is nearest to a query.

    index.json        model, rows, dimensions: written last, so that it says that the rest is whole
    vectors.f32       (P, D) fp32, each of length 1, read by memory mapping
    passages.jsonl    the rows, and offsets.u64 where each begins
    nearest.faiss     of an approximate index: a graph (HNSW, Malkov and Yashunin 2018) by faiss

Vectors are written in parts: memory holds one, and an interruption costs one. Exact search reads
every vector and needs no memory for them; approximate search holds them all.

Legend: P passages, D dimensions, Q queries, K found passages of a query.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy

from hfstack.disk import atomic_write, read_json_file
from hfstack.errors import CheckpointError, DataError
from hfstack.logs import NOTICE, get_logger
from hfstack.progress import follow
from hfstack.tasks.retrieval.libraries import import_library

logger = get_logger(__name__)

Search = Literal["auto", "exact", "approximate"]
Embed = Callable[[Sequence[str]], numpy.ndarray]
"""Returns the vectors of texts, (P, D) fp32."""

INDEX_FILE = "index.json"
EXACT_UP_TO = 100_000

_VECTORS, _PASSAGES, _OFFSETS, _GRAPH = (
    "vectors.f32",
    "passages.jsonl",
    "offsets.u64",
    "nearest.faiss",
)
_BEGUN = "begun.json"
_INDEX_SCHEMA = 2  # since 2 equal rows are one passage
_PART_ROWS = 2048
_SCANNED_ROWS = 16_384
# links of a passage, and candidates that are looked at while building and asking
_LINKS, _BUILT_FROM, _ASKED_OF = 32, 200, 128


@dataclass(frozen=True)
class IndexInfo:
    """What index.json says."""

    schema: int
    identity: str  # of model, passages and settings
    model: str
    model_hash: str
    passages: int
    dimensions: int
    text_column: str
    approximate: bool


def hash_model(model: Any) -> str:
    """Return a hash of a model's weights and of how it reads texts.

    Two models with equal hashes give equal vectors, wherever their files lie.

    Args:
        model: a SentenceTransformer.
    """
    digest = hashlib.blake2b(digest_size=16)
    settings = {"length": model.max_seq_length, "prompts": model.prompts, "modules": str(model)}
    digest.update(json.dumps(settings, sort_keys=True).encode())
    digest.update(model.tokenizer.backend_tokenizer.to_str().encode())
    for name, weight in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(weight.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()


def build_index(
    folder: Path,
    rows: Iterable[Mapping[str, Any]],
    embed: Embed,
    *,
    text_column: str,
    keep: Sequence[str],
    identity: str,
    model: str,
    model_hash: str,
    search: Search = "auto",
    part_rows: int = _PART_ROWS,
) -> IndexInfo:
    """Write an index of rows into a folder, going on where an earlier attempt stopped.

    Rows that are equal in all that is kept are one passage, as the answers of a FAQ are.

    Args:
        rows: with a text each.
        embed: of passages.
        text_column: what is embedded.
        keep: columns that are kept beside it, such as an id.
        identity: what the vectors depend on; an index begun with another starts over.
        model: its name, and `model_hash` of `hash_model`.
        search: "auto" is approximate beyond 100,000 passages.
        part_rows: passages in memory at once.

    Raises:
        DataError: a row has no text, a kept column is missing, or there are no rows.
        MissingExtraError: faiss is not installed, and the index is approximate.
    """
    done = _begin(folder, identity)
    if done:
        logger.log(NOTICE, "%s: continuing after %d passages", folder, done)
    stream = _each_once((_kept(row, text_column, keep, n) for n, row in enumerate(rows, 1)))
    if sum(1 for _ in islice(stream, done)) < done:
        raise DataError(f"{folder} has more passages than there are rows: remove it")

    total, size = done, 0
    with (
        (folder / _VECTORS).open("ab") as vectors,
        (folder / _PASSAGES).open("ab") as passages,
        (folder / _OFFSETS).open("ab") as offsets,
    ):
        for part in follow(_parts_of(stream, part_rows), "parts of passages"):
            found = embed([row[text_column] for row in part])  # (P, D)
            size = found.shape[1]

            # the vectors last: rows count when all three files have them
            _append_rows(passages, offsets, part)
            vectors.write(numpy.ascontiguousarray(found, dtype="<f4").tobytes())
            for file in (passages, offsets, vectors):
                file.flush()
                os.fsync(file.fileno())
            total += len(part)
            _write_begun(folder, identity, total, size)

    size = size or json.loads((folder / _BEGUN).read_text())["dimensions"]
    if not total:
        raise DataError("no passages to search: the files have no rows")
    approximate = search == "approximate" or (search == "auto" and total > EXACT_UP_TO)
    if approximate:
        _build_graph(folder, total, size)

    info = IndexInfo(
        _INDEX_SCHEMA,
        identity,
        model,
        model_hash,
        total,
        size,
        text_column,
        approximate=approximate,
    )
    _write_json(folder / INDEX_FILE, asdict(info))
    (folder / _BEGUN).unlink()
    return info


def _each_once(rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield each row the first time, and say how many were left out.

    Memory holds 8 bytes of a hash for each: two of a million rows have one with chance 3e-8.
    """
    seen: set[int] = set()
    left_out = 0
    for row in rows:
        text = json.dumps(row, ensure_ascii=False, default=str).encode()
        digest = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest())
        if digest in seen:
            left_out += 1
        else:
            seen.add(digest)
            yield row
    if left_out:
        logger.info("%d rows are equal to one before, and left out", left_out)


def _append_rows(passages: BinaryIO, offsets: BinaryIO, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows as lines, and where each begins."""
    starts = []
    for row in rows:
        starts.append(passages.tell())
        passages.write(json.dumps(row, ensure_ascii=False, default=str).encode() + b"\n")
    offsets.write(numpy.array(starts, dtype="<u8").tobytes())


def _write_begun(folder: Path, identity: str, rows: int, size: int) -> None:
    """Write how many rows all files have."""
    values = {"schema": _INDEX_SCHEMA, "identity": identity, "rows": rows, "dimensions": size}
    _write_json(folder / _BEGUN, values)


def _parts_of(stream: Iterator[Any], rows: int) -> Iterator[list[Any]]:
    while part := list(islice(stream, rows)):
        yield part


def _begin(folder: Path, identity: str) -> int:
    """Return how many passages are there already, and cut files to them.

    An index of anything else, whole or not, is removed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    begun = folder / _BEGUN
    values = json.loads(begun.read_text(encoding="utf-8")) if begun.is_file() else {}
    if (values.get("identity"), values.get("schema")) != (identity, _INDEX_SCHEMA):
        for name in (INDEX_FILE, _GRAPH, _VECTORS, _PASSAGES, _OFFSETS):
            (folder / name).unlink(missing_ok=True)
        _write_begun(folder, identity, 0, 0)
        return 0

    # a part that was being written is cut off
    rows, size = values["rows"], values["dimensions"]
    for name, width in ((_VECTORS, 4 * size), (_OFFSETS, 8)):
        _truncate_file(folder / name, rows * width)
    with (folder / _PASSAGES).open("rb") as file:
        end = sum(len(line) for line in islice(file, rows))
    _truncate_file(folder / _PASSAGES, end)
    return rows


def _truncate_file(path: Path, size: int) -> None:
    with path.open("rb+") as file:
        file.truncate(size)


def _kept(row: Mapping[str, Any], text: str, keep: Sequence[str], number: int) -> dict[str, Any]:
    """Return what is kept of a row; a DataError without a text."""
    for name in (text, *keep):
        if name not in row:
            raise DataError(
                f"passage {number} has no column {name!r}, found {', '.join(row)}; set "
                f"--{'passage_column' if name == text else 'keep_columns'}"
            )
    if not isinstance(row[text], str) or not row[text].strip():
        raise DataError(f"passage {number}: {text} is {str(row[text])[:40]!r}, not text")
    return {name: row[name] for name in (text, *keep)}


def _build_graph(folder: Path, rows: int, size: int) -> None:
    """Write the graph of an approximate index, added to in parts."""
    faiss = import_library("faiss")
    vectors = _map_vectors(folder, rows, size)
    graph = faiss.IndexHNSWFlat(size, _LINKS, faiss.METRIC_INNER_PRODUCT)
    graph.hnsw.efConstruction = _BUILT_FROM
    for first in follow(range(0, rows, _SCANNED_ROWS), "parts of the graph"):
        graph.add(numpy.ascontiguousarray(vectors[first : first + _SCANNED_ROWS]))
    faiss.write_index(graph, str(folder / _GRAPH))


def _map_vectors(folder: Path, rows: int, size: int) -> numpy.ndarray:
    return numpy.memmap(folder / _VECTORS, dtype="<f4", mode="r", shape=(rows, size))


def _write_json(path: Path, values: dict[str, Any]) -> None:
    with atomic_write(path) as file:
        json.dump(values, file, indent=1)


class PassageIndex:
    """A whole index, opened to be asked.

    Args:
        folder: that `build_index` has written.
        model_hash: of the model that embeds the queries.
        exact: read all vectors, even where there is a graph.

    Raises:
        CheckpointError: there is no complete index, or it was built with another model.
    """

    def __init__(self, folder: Path, *, model_hash: str, exact: bool = False) -> None:
        self.info = read_index(folder)
        if self.info.model_hash != model_hash:
            raise CheckpointError(
                f"{folder} was built with another model ({self.info.model}), whose vectors mean "
                "something else: name that one, or build the index again"
            )
        self._folder = folder
        self._vectors = _map_vectors(folder, self.info.passages, self.info.dimensions)
        self._offsets = numpy.memmap(folder / _OFFSETS, dtype="<u8", mode="r")

        self._graph = None
        if self.info.approximate and not exact:
            faiss = import_library("faiss")
            self._graph = faiss.read_index(str(folder / _GRAPH))
            self._graph.hnsw.efSearch = _ASKED_OF

    def find(self, queries: numpy.ndarray, most: int) -> tuple[numpy.ndarray, numpy.ndarray]:
        """Return scores and numbers of the nearest passages, (Q, K) each, best first.

        Args:
            queries: (Q, D), each of length 1.
            most: passages returned of each at most.
        """
        most = min(most, self.info.passages)
        if self._graph is not None:
            return self._graph.search(numpy.ascontiguousarray(queries, dtype="float32"), most)

        # a part of the vectors at a time, and of each only its best
        best = numpy.full((len(queries), 0), 0.0, dtype=numpy.float32)
        rows = numpy.zeros((len(queries), 0), dtype=numpy.int64)
        for first in range(0, self.info.passages, _SCANNED_ROWS):
            scores = queries @ self._vectors[first : first + _SCANNED_ROWS].T  # (Q, part)
            numbers = numpy.broadcast_to(numpy.arange(first, first + scores.shape[1]), scores.shape)
            scores = numpy.concatenate([best, scores], axis=1)
            numbers = numpy.concatenate([rows, numbers], axis=1)
            if scores.shape[1] > most:
                chosen = numpy.argpartition(-scores, most - 1, axis=1)[:, :most]
                scores = numpy.take_along_axis(scores, chosen, axis=1)
                numbers = numpy.take_along_axis(numbers, chosen, axis=1)
            best, rows = scores, numbers

        order = numpy.lexsort((rows, -best), axis=1)  # of equal scores the first passage
        return numpy.take_along_axis(best, order, axis=1), numpy.take_along_axis(
            rows, order, axis=1
        )

    def passage(self, number: int) -> dict[str, Any]:
        """Return a row as it was kept."""
        with (self._folder / _PASSAGES).open("rb") as file:
            file.seek(int(self._offsets[number]))
            return json.loads(file.readline())


def read_index(folder: Path) -> IndexInfo:
    """Return what index.json says.

    Raises:
        CheckpointError: there is none, it cannot be read, or a newer hfstack wrote it.
    """
    path = folder / INDEX_FILE
    if not path.is_file():
        begun = (folder / _BEGUN).is_file()
        why = "its building was interrupted, run it again" if begun else "search builds one"
        raise CheckpointError(f"{folder} holds no complete index: {why}")
    try:
        info = IndexInfo(**read_json_file(path))
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None
    if info.schema > _INDEX_SCHEMA:
        raise CheckpointError(f"{path} has schema {info.schema}: upgrade hfstack")

    size = 4 * info.passages * info.dimensions
    vectors = folder / _VECTORS
    if not vectors.is_file() or vectors.stat().st_size != size:
        raise CheckpointError(f"{vectors} is incomplete: build the index again")
    return info
