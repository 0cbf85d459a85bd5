"""Rank passages for queries, by a model or by BM25, and score the rankings.

Legend: Q queries, P passages, K ranked passages of a query.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy

from hfstack.intervals import bootstrap_intervals, gain_interval
from hfstack.tasks.retrieval.libraries import import_library
from hfstack.tasks.retrieval.rows import TextPair

Floats = numpy.ndarray[Any, numpy.dtype[numpy.float64]]
Tokens = Literal["auto", "words", "characters"]

CUTOFF = 10
RECALLS = (1, 10, 100)
HEADLINE = f"ndcg_at_{CUTOFF}"

_QUERIES_AT_ONCE = 256
_RANKED_WORD = re.compile(r"\w+")
# scripts that are written without spaces: Han, kana, Thai, Lao, Khmer, Myanmar
_UNSPACED = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]")


@dataclass(frozen=True)
class Questions:
    """Queries, the passages to find answers among, and which of them are right."""

    queries: list[str]
    passages: list[str]
    relevant: list[frozenset[int]]  # rows of `passages`, for each query

    @property
    def groups(self) -> list[int]:
        """Return a number for each query, equal where the answer is the same passage."""
        return [min(rows) for rows in self.relevant]


def make_questions(held_out: Sequence[TextPair], others: Sequence[TextPair] = ()) -> Questions:
    """Return the queries of held-out pairs, to be answered among all passages.

    Args:
        others: pairs whose passages are searched too, such as those that were trained on: the more
            passages, the closer to use.
    """
    rows: dict[str, int] = {}
    for pair in [*held_out, *others]:
        rows.setdefault(pair.passage, len(rows))

    right: dict[str, set[int]] = {}
    for pair in held_out:
        right.setdefault(pair.query, set()).add(rows[pair.passage])
    return Questions(list(right), list(rows), [frozenset(found) for found in right.values()])


def rank_by_model(
    model: Any, questions: Questions, *, batch_size: int, dimensions: int | None = None
) -> numpy.ndarray:
    """Return the best passages of each query by cosine of embeddings, (Q, K).

    Args:
        model: a SentenceTransformer; its prompts of queries and documents are used.
        dimensions: read the first ones of each embedding only.
    """
    settings: dict[str, Any] = {
        "batch_size": batch_size,
        "normalize_embeddings": True,
        "truncate_dim": dimensions,
        "show_progress_bar": False,
    }
    passages = model.encode_document(questions.passages, **settings)  # (P, D)
    queries = model.encode_query(questions.queries, **settings)  # (Q, D)

    # a part of the queries at a time, so that memory does not hold Q x P scores
    parts = [
        best_first(queries[first : first + _QUERIES_AT_ONCE] @ passages.T, max(RECALLS))
        for first in range(0, len(queries), _QUERIES_AT_ONCE)
    ]
    return numpy.concatenate(parts)


def best_first(scores: numpy.ndarray, most: int) -> numpy.ndarray:
    """Return the columns of each row's highest scores; of equal ones the first.

    Args:
        scores: (Q, P).
        most: columns returned at most.
    """
    return numpy.argsort(-scores, axis=1, kind="stable")[:, :most]


def rank_by_bm25(questions: Questions, *, tokens: Tokens = "auto") -> numpy.ndarray:
    """Return the best passages of each query by BM25, (Q, K).

    By bm25s, with its defaults k1 1.5 and b 0.75 (Robertson and Zaragoza 2009).

    Args:
        tokens: what is compared, as in `split_words`.

    Raises:
        MissingExtraError: bm25s is not installed.
    """
    index, read = index_by_bm25(questions.passages, tokens)
    scores = numpy.stack([index.get_scores(read(query)) for query in questions.queries])
    return best_first(scores, max(RECALLS))


def index_by_bm25(passages: Sequence[str], tokens: Tokens = "auto") -> tuple[Any, Any]:
    """Return a BM25 index of passages, and what reads a query for its `get_scores`."""
    bm25s = import_library("bm25s")
    if tokens == "auto":
        unspaced = any(_UNSPACED.search(passage[:1000]) for passage in passages[:1000])
        tokens = "characters" if unspaced else "words"

    ids: dict[str, int] = {}
    corpus = [[ids.setdefault(w, len(ids)) for w in split_words(p, tokens)] for p in passages]
    index = bm25s.BM25()
    # a word of its own keeps the index whole where no passage has any
    ids.setdefault("", len(ids))
    index.index((corpus, ids), show_progress=False, create_empty_token=False)

    def read(query: str) -> list[int]:
        return [ids[word] for word in split_words(query, tokens) if word in ids] or [ids[""]]

    return index, read


def split_words(text: str, tokens: Tokens) -> list[str]:
    """Return what BM25 compares of a text: words, in lower case.

    With "characters" each run of a script without spaces is its characters and its pairs of
    neighbours (bigrams), which need no dictionary.
    """
    words = _RANKED_WORD.findall(text.lower())
    if tokens == "words":
        return words

    found: list[str] = []
    for word in words:
        if not _UNSPACED.search(word):
            found.append(word)
            continue
        found += list(word)
        found += [word[place : place + 2] for place in range(len(word) - 1)]
    return found


def score_ranking(ranking: numpy.ndarray, relevant: Sequence[frozenset[int]]) -> dict[str, Floats]:
    """Return nDCG@10, MRR@10 and recall@k of each query, (Q,) each.

    With gains of 0 and 1 (Jarvelin and Kekalainen 2002): a right passage at rank r counts
    1 / log2(r + 1), over what the best order would give.

    Args:
        ranking: (Q, K) rows of passages, best first.
        relevant: right rows of each query.
    """
    hits = numpy.array(
        [[row in right for row in ranked] for ranked, right in zip(ranking, relevant, strict=True)],
        dtype=numpy.float64,
    )  # (Q, K)
    counts = numpy.array([len(right) for right in relevant])  # (Q,)

    top = hits[:, :CUTOFF]
    discounts = 1 / numpy.log2(numpy.arange(2, 2 + CUTOFF))  # (10,)
    best = numpy.array([discounts[: min(count, CUTOFF)].sum() for count in counts])
    scores = {
        HEADLINE: top @ discounts[: top.shape[1]] / best,
        f"mrr_at_{CUTOFF}": (top / numpy.arange(1, 1 + top.shape[1])).max(axis=1)
        if top.shape[1]
        else numpy.zeros(len(top)),
    }
    # the first hit has the largest share of 1 / rank
    for most in RECALLS:
        if most <= max(hits.shape[1], RECALLS[0]):
            scores[f"recall_at_{most}"] = hits[:, :most].sum(axis=1) / counts
    return scores


def mean_scores(
    scores: dict[str, Floats], groups: Sequence[int], *, prefix: str
) -> dict[str, float]:
    """Return the mean of each score over queries, with its 95 % interval.

    Queries whose answer is one passage are resampled together: they are right or wrong together.

    Args:
        scores: (Q,) each.
        groups: the group of each query.
        prefix: of the names.
    """
    _, members = numpy.unique(groups, return_inverse=True)
    sizes = numpy.bincount(members)  # (G,)
    sums = {name: numpy.bincount(members, weights=values) for name, values in scores.items()}

    def score(drawn: numpy.ndarray) -> dict[str, float]:
        queries = sizes[drawn].sum()
        return {name: float(total[drawn].sum() / queries) for name, total in sums.items()}

    intervals = bootstrap_intervals(score, len(sizes))
    found: dict[str, float] = {}
    for name, values in scores.items():
        found[f"{prefix}{name}"] = float(values.mean())
        found[f"{prefix}{name}_low"], found[f"{prefix}{name}_high"] = intervals[name]
    return found


def compare_rankings(
    scores: dict[str, dict[str, Floats]], groups: Sequence[int]
) -> dict[str, float]:
    """Return the scores of each ranking, and what "eval" gains over the others.

    Args:
        scores: of "eval", and of what is beside it, such as "before" and "bm25".
        groups: the group of each query.
    """
    found: dict[str, float] = {}
    for name, values in scores.items():
        found |= mean_scores(values, groups, prefix=f"{name}_")

    after = scores["eval"][HEADLINE]
    for name, values in scores.items():
        if name == "eval":
            continue
        gain = f"eval_gain_over_{name}"
        low, high = gain_interval(after.tolist(), values[HEADLINE].tolist(), groups)
        found |= {gain: float((after - values[HEADLINE]).mean())}
        found |= {f"{gain}_low": low, f"{gain}_high": high}
    return found
