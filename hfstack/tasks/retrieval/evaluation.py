"""Measure a model on held-out pairs, beside BM25 and the model before training.

Pairs of a query and its passage measure search: does the right passage come first, among all
passages of the data? Pairs with a score measure similarity: Spearman's rank correlation.

Legend: Q queries, N pairs, K ranked passages.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy
from accelerate import PartialState

from hfstack.data.reading.jsonl import write_jsonl
from hfstack.intervals import bootstrap_intervals
from hfstack.tasks.retrieval.model import RetrieverKind
from hfstack.tasks.retrieval.ranking import (
    HEADLINE,
    Tokens,
    compare_rankings,
    index_by_bm25,
    make_questions,
    mean_scores,
    rank_by_bm25,
    rank_by_model,
    score_ranking,
)
from hfstack.tasks.retrieval.rows import TextPair

RERANKED = 50
_SHOWN_PASSAGES = 3
_SPEARMAN = "spearman"


class RankingEvaluation:
    """What a model is measured by: held-out pairs, and BM25 on the same.

    Args:
        kind: of the model; a cross-encoder orders what BM25 ranks first.
        held_out: pairs that are not trained on.
        others: pairs whose passages are searched too.
        tokens: what BM25 compares.
        batch_size: texts, or pairs, of a forward pass.
    """

    def __init__(
        self,
        kind: RetrieverKind,
        held_out: Sequence[TextPair],
        others: Sequence[TextPair],
        *,
        tokens: Tokens,
        batch_size: int,
    ) -> None:
        self._kind, self._batch_size = kind, batch_size
        self._pairs = list(held_out)
        self.has_scores = held_out[0].score is not None

        if self.has_scores:
            self._by_bm25 = self._score_by_bm25(tokens)  # (N,)
        else:
            self.questions = make_questions(held_out, others)
            self._by_bm25 = rank_by_bm25(self.questions, tokens=tokens)  # (Q, K)

    @property
    def headline(self) -> str:
        """Return the metric that says most, of which more is better."""
        return _SPEARMAN if self.has_scores else HEADLINE

    def measure(self, model: Any, *, dimensions: int | None = None) -> numpy.ndarray:
        """Return a model's scores of the pairs (N,), or its ranking of passages (Q, K).

        Args:
            dimensions: read the first ones of each embedding only.
        """
        if self.has_scores:
            return score_pairs(model, self._pairs, self._batch_size, dimensions=dimensions)
        if self._kind == "cross_encoder":
            return self._rerank(model)
        return rank_by_model(
            model, self.questions, batch_size=self._batch_size, dimensions=dimensions
        )

    def brief(self, model: Any) -> dict[str, float]:
        """Return the means alone, for an evaluation while training."""
        found = self.measure(model)
        if self.has_scores:
            return {_SPEARMAN: self.spearman(found)}
        scores = score_ranking(found, self.questions.relevant)
        return {name: float(values.mean()) for name, values in scores.items()}

    def report(self, after: numpy.ndarray, before: numpy.ndarray | None = None) -> dict[str, float]:
        """Return the metrics of a model beside BM25's, with 95 % intervals.

        Args:
            after: of `measure`, of the trained model.
            before: of the model that it was made from, where that is measured too.
        """
        measured = {"eval": after} | ({} if before is None else {"before": before})
        measured["bm25"] = self._by_bm25
        if self.has_scores:
            return self._correlations(measured) | {"eval_pairs": len(self._pairs)}

        relevant = self.questions.relevant
        scores = {name: score_ranking(found, relevant) for name, found in measured.items()}
        counts = {
            "eval_queries": len(self.questions.queries),
            "eval_passages": len(self.questions.passages),
        }
        return compare_rankings(scores, self.questions.groups) | counts

    def by_dimensions(self, model: Any, dims: Sequence[int]) -> tuple[list[str], list[list[Any]]]:
        """Return a table of the headline and its interval by the size of embeddings.

        Args:
            dims: sizes beside the whole one.
        """
        rows = []
        for size in sorted({*dims, model.get_embedding_dimension()}, reverse=True):
            found = self.measure(model, dimensions=size)
            if self.has_scores:
                values = self._correlations({"eval": found})
            else:
                scores = {HEADLINE: score_ranking(found, self.questions.relevant)[HEADLINE]}
                values = mean_scores(scores, self.questions.groups, prefix="eval_")
            name = f"eval_{self.headline}"
            rows.append([size, *(round(values[name + end], 4) for end in ("", "_low", "_high"))])
        return ["dimensions", self.headline, "low", "high"], rows

    def write(self, path: Path, found: numpy.ndarray) -> None:
        """Write a line for each query with its first passages, or for each pair.

        Of several processes, which have all found the same, the first one writes.
        """
        if not PartialState().is_main_process:
            return
        with write_jsonl(path) as add:
            for line in self.lines(found):
                add(line)

    def lines(self, found: numpy.ndarray) -> Iterator[dict[str, Any]]:
        """Yield what a model found for each query, or said of each pair."""
        if self.has_scores:
            for pair, score in zip(self._pairs, found, strict=True):
                texts = {"query": pair.query, "passage": pair.passage}
                yield texts | {"score": pair.score, "predicted": round(float(score), 6)}
            return

        asked = self.questions
        for query, right, rows in zip(asked.queries, asked.relevant, found, strict=True):
            places = [place for place, row in enumerate(rows, 1) if row in right]
            yield {
                "query": query,
                "rank": places[0] if places else None,
                "found": [asked.passages[row] for row in rows[:_SHOWN_PASSAGES]],
                "passages": [asked.passages[row] for row in sorted(right)],
            }

    def _rerank(self, model: Any) -> numpy.ndarray:
        """Return BM25's ranking with its first passages in the order of a cross-encoder."""
        asked, ranking = self.questions, self._by_bm25.copy()
        depth = min(RERANKED, ranking.shape[1])
        pairs = [
            (query, asked.passages[row])
            for query, rows in zip(asked.queries, ranking, strict=True)
            for row in rows[:depth]
        ]
        scores = model.predict(pairs, batch_size=self._batch_size, show_progress_bar=False)
        order = numpy.argsort(-scores.reshape(-1, depth), axis=1, kind="stable")
        ranking[:, :depth] = numpy.take_along_axis(ranking[:, :depth], order, axis=1)
        return ranking

    def _score_by_bm25(self, tokens: Tokens) -> numpy.ndarray:
        """Return BM25's score of each pair, (N,)."""
        rows = {text: row for row, text in enumerate(dict.fromkeys(p.passage for p in self._pairs))}
        index, read = index_by_bm25(list(rows), tokens)
        return numpy.array(
            [index.get_scores(read(pair.query))[rows[pair.passage]] for pair in self._pairs]
        )

    def spearman(self, found: numpy.ndarray, drawn: numpy.ndarray | None = None) -> float:
        """Return the rank correlation with the given scores; NaN of a constant side."""
        given = numpy.array([pair.score for pair in self._pairs])
        if drawn is not None:
            given, found = given[drawn], found[drawn]
        if given.min() == given.max() or found.min() == found.max():
            return float("nan")
        from scipy.stats import spearmanr  # takes half a second, which few runs need

        return float(spearmanr(found, given).statistic)  # pyright: ignore

    def _correlations(self, measured: dict[str, numpy.ndarray]) -> dict[str, float]:
        """Return the correlation of each with its interval, over pairs."""
        intervals = bootstrap_intervals(
            lambda drawn: {name: self.spearman(one, drawn) for name, one in measured.items()},
            len(self._pairs),
        )
        metrics: dict[str, float] = {}
        for name, found in measured.items():
            key = f"{name}_{_SPEARMAN}"
            metrics[key] = self.spearman(found)
            if name in intervals:
                metrics[f"{key}_low"], metrics[f"{key}_high"] = intervals[name]
        return metrics


def make_evaluation(
    kind: RetrieverKind, pairs: Mapping[str, Sequence[TextPair]], *, tokens: Tokens, batch_size: int
) -> RankingEvaluation | None:
    """Return what measures a model on the held-out pairs, None without any.

    Passages that are trained on are searched too: the more there are, the closer to use.
    """
    held_out = pairs.get("eval")
    if not held_out:
        return None
    return RankingEvaluation(kind, held_out, pairs["train"], tokens=tokens, batch_size=batch_size)


def score_pairs(
    model: Any, pairs: Sequence[TextPair], batch_size: int, *, dimensions: int | None = None
) -> numpy.ndarray:
    """Return how alike a model finds the two texts of each pair, (N,).

    By the cosine of their embeddings, or by the output of a cross-encoder.
    """
    if not hasattr(model, "encode"):
        texts = [(pair.query, pair.passage) for pair in pairs]
        return model.predict(texts, batch_size=batch_size, show_progress_bar=False)

    settings: dict[str, Any] = {
        "batch_size": batch_size,
        "normalize_embeddings": True,
        "truncate_dim": dimensions,
        "show_progress_bar": False,
    }
    queries = model.encode_query([pair.query for pair in pairs], **settings)
    passages = model.encode_document([pair.passage for pair in pairs], **settings)
    return (queries * passages).sum(axis=1)
