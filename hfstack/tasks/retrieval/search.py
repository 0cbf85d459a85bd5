"""Ask an index: embed queries, find the nearest passages, maybe rerank them."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy
from accelerate import Accelerator
from trl import ModelConfig

from hfstack.errors import DataError
from hfstack.tasks.retrieval.index import PassageIndex
from hfstack.tasks.retrieval.model import load_embedder, load_reranker

# candidates that a reranker reads for each passage that is returned
_READ_PER_RETURNED = 5
_MOST_READ = 100


class Searcher:
    """An opened index with the models that it is asked by.

    Args:
        model: a SentenceTransformer, the one that the index was built with.
        index: that is asked.
        reranker: a CrossEncoder that orders what was found, or None.
        batch_size: texts of a forward pass.
    """

    def __init__(
        self, model: Any, index: PassageIndex, reranker: Any = None, *, batch_size: int = 32
    ) -> None:
        self._model, self._index, self._reranker = model, index, reranker
        self._batch_size = batch_size

    def ask(self, queries: Sequence[str], top: int) -> list[list[dict[str, Any]]]:
        """Return what is found for each query: `rank`, `score`, the kept columns.

        The score is the cosine, or the reranker's where there is one.

        Args:
            top: passages returned of each query at most.
        """
        vectors = embed_texts(self._model, queries, self._batch_size, are_queries=True)  # (Q, D)
        most = top
        if self._reranker is not None:
            most = max(top, min(_READ_PER_RETURNED * top, _MOST_READ))
        scores, numbers = self._index.find(vectors, most)  # (Q, K)

        found = []
        for query, row_scores, row_numbers in zip(queries, scores, numbers, strict=True):
            # an approximate search may find fewer than it was asked for
            known = [(s, n) for s, n in zip(row_scores, row_numbers, strict=True) if n >= 0]
            rows = [self._index.passage(int(number)) for _, number in known]
            values = [float(score) for score, _ in known]
            if self._reranker is not None:
                values, rows = self._rerank(query, rows)
            hits = zip(values[:top], rows[:top], strict=True)
            found.append(
                [{"rank": n, "score": round(s, 6)} | row for n, (s, row) in enumerate(hits, 1)]
            )
        return found

    def _rerank(
        self, query: str, rows: list[dict[str, Any]]
    ) -> tuple[list[float], list[dict[str, Any]]]:
        """Return scores and rows in the order of the reranker."""
        column = self._index.info.text_column
        pairs = [(query, row[column]) for row in rows]
        scores = self._reranker.predict(pairs, batch_size=self._batch_size, show_progress_bar=False)
        order = numpy.argsort(-scores, kind="stable")
        return [float(scores[place]) for place in order], [rows[place] for place in order]


def embed_texts(
    model: Any, texts: Sequence[str], batch_size: int, *, are_queries: bool
) -> numpy.ndarray:
    """Return the vectors of texts, (N, D) fp32, each of length 1.

    Args:
        are_queries: put the model's prompt of queries in front, else that of documents.
    """
    encode = model.encode_query if are_queries else model.encode_document
    found = encode(
        list(texts), batch_size=batch_size, normalize_embeddings=True, show_progress_bar=False
    )
    return numpy.asarray(found, dtype=numpy.float32)


def load_search_models(
    args: ModelConfig, reranker: str | None, *, max_length: int | None = None
) -> tuple[Any, Any]:
    """Return the embedding model, and the reranker or None, on the device.

    Raises:
        CheckpointError: there is no such model, or it is of another kind.
        ConfigError: `max_length` is more than the model reads.
        MissingExtraError: sentence-transformers is not installed.
    """
    device = Accelerator().device
    model = load_embedder(args, max_length=max_length).to(device)
    if reranker is None:
        return model, None
    return model, load_reranker(ModelConfig(model_name_or_path=reranker)).to(device)


def answer_rows(
    searcher: Searcher, rows: Iterable[dict[str, Any]], column: str, *, top: int, batch_size: int
) -> Iterator[dict[str, Any]]:
    """Yield what is found for each row, a line for each passage.

    Args:
        rows: with a query each, in `column`.

    Raises:
        DataError: a row has no query.
    """
    number = 0
    stream = iter(rows)
    while batch := list(islice(stream, batch_size)):
        queries = []
        for row in batch:
            number += 1
            query = row.get(column)
            if not isinstance(query, str) or not query.strip():
                found = f"is {str(query)[:40]!r}, not text" if column in row else "is missing"
                raise DataError(
                    f"query {number}: {column} {found}, found {', '.join(row)}; set --query_column"
                )
            queries.append(query)

        for query, hits in zip(queries, searcher.ask(queries, top), strict=True):
            yield from ({"query": query} | hit for hit in hits)
