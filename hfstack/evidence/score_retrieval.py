"""Score a finished embedding model or reranker by the functions of its training.

Rows of a query and its passage measure search, and a row of the score is a query. Rows with a score
measure similarity, and a row is a pair.
"""

from collections.abc import Hashable, Sequence
from typing import Any

import numpy
from accelerate import Accelerator
from datasets import Dataset
from trl import ModelConfig

from hfstack.evidence.scored import ScoreArgs, Scored, Scorer
from hfstack.intervals import bootstrap_intervals
from hfstack.tasks.retrieval.evaluation import RankingEvaluation
from hfstack.tasks.retrieval.model import RetrieverKind, load_retriever
from hfstack.tasks.retrieval.predict import trained_column
from hfstack.tasks.retrieval.ranking import mean_scores, score_ranking
from hfstack.tasks.retrieval.rows import RowsArgs, TextPair, read_text_pairs

_BATCH_SIZE = 8  # of evaluations in training


def load_retrieval_scorer(
    args: ModelConfig, how: ScoreArgs, train: Dataset | None = None
) -> Scorer:
    """Load a finished embedding model, or a reranker.

    Args:
        train: rows whose passages are searched too, as in training.

    Raises:
        CheckpointError: there is no such model.
        ConfigError: `max_length` is more than the model reads.
        MissingExtraError: sentence-transformers is not installed.
    """
    model = load_retriever(args, max_length=how.max_length).to(Accelerator().device)
    kind: RetrieverKind = "bi_encoder" if hasattr(model, "encode") else "cross_encoder"
    named = RowsArgs(
        query_column=how.text_column or trained_column(args, "query"),
        passage_column=how.text_pair_column or trained_column(args, "passage"),
        score_column=how.label("score"),
    )

    def score(rows: Dataset) -> Scored:
        pairs = read_text_pairs(rows, named, "eval")
        others = [] if train is None else read_text_pairs(train, named, "train")
        evaluation = RankingEvaluation(
            kind, pairs, others, tokens="auto", batch_size=how.batch_size or _BATCH_SIZE
        )
        found = evaluation.measure(model)
        if evaluation.has_scores:
            return _as_similarities(evaluation, pairs, found)
        return _as_searches(evaluation, pairs, found)

    columns = {named.query_column, named.passage_column, named.negatives_column}
    return Scorer(columns | {named.score_column}, score, numbers=frozenset({named.score_column}))


def _as_searches(
    evaluation: RankingEvaluation, pairs: Sequence[TextPair], found: numpy.ndarray
) -> Scored:
    """Return what was found for each query.

    Args:
        found: (Q, K) rows of passages, best first.
    """
    asked = evaluation.questions
    scores = score_ranking(found, asked.relevant)
    groups = asked.groups

    def measure(indices: Sequence[int]) -> dict[str, float]:
        some = {name: values[list(indices)] for name, values in scores.items()}
        return mean_scores(some, [groups[index] for index in indices], prefix="")

    # a query that stands in several rows is that of the first one
    places: dict[str, int] = {}
    for place, pair in enumerate(pairs):
        places.setdefault(pair.query, place)

    units: list[Hashable] = list(groups)
    return Scored(
        metrics=evaluation.report(found),
        main=evaluation.headline,
        places=[places[query] for query in asked.queries],
        answers=list(evaluation.lines(found)),
        measure=measure,
        resample=lambda index: {name: float(one[index].mean()) for name, one in scores.items()},
        right=[ranked[0] in right for ranked, right in zip(found, asked.relevant, strict=True)],
        units=units if len(set(units)) < len(units) else None,
    )


def _as_similarities(
    evaluation: RankingEvaluation, pairs: Sequence[TextPair], found: numpy.ndarray
) -> Scored:
    """Return how alike a model finds the texts of each pair.

    Args:
        found: (N,).
    """
    main = evaluation.headline
    shares = [_share_below(values) for values in (found, [pair.score for pair in pairs])]

    # A cosine and a score have no common scale: what a pair is off by is its place in the order.
    answers = [
        line | {"value": value, "true": true}
        for line, value, true in zip(evaluation.lines(found), *shares, strict=True)
    ]

    def resample(index: numpy.ndarray[Any, Any]) -> dict[str, float]:
        return {main: evaluation.spearman(found, index)}

    def measure(indices: Sequence[int]) -> dict[str, float]:
        some = numpy.array(indices)
        interval = bootstrap_intervals(lambda drawn: resample(some[drawn]), len(some))
        low, high = interval.get(main, (float("nan"), float("nan")))
        return resample(some) | {f"{main}_low": low, f"{main}_high": high}

    return Scored(
        metrics=evaluation.report(found),
        main=main,
        places=list(range(len(pairs))),
        answers=answers,
        measure=measure,
        resample=resample,
    )


def _share_below(values: Any) -> list[float]:
    """Return of each value the share of values below it, ties counting half."""
    ordered = numpy.sort(numpy.asarray(values, dtype=float))
    low, high = (numpy.searchsorted(ordered, values, side=side) for side in ("left", "right"))
    return ((low + high) / (2 * len(ordered))).tolist()
