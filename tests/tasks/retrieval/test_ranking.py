"""Rankings are scored as by hand, and as sentence-transformers scores them."""

import gzip
import importlib.util
import json
import math
import random
from itertools import islice
from pathlib import Path

import numpy
import pytest

from hfstack.tasks.retrieval.ranking import (
    HEADLINE,
    Questions,
    Tokens,
    compare_rankings,
    make_questions,
    rank_by_bm25,
    rank_by_model,
    score_ranking,
    split_words,
)
from hfstack.tasks.retrieval.rows import TextPair
from tests.conftest import ROOT, SENTENCES
from tests.tiny_encoder import save_tiny_bert


def test_scores_by_hand() -> None:
    # the first query's only answer is second; of the second's two answers one is third
    ranking = numpy.array([[5, 0, 1, 2], [3, 1, 2, 0]])
    scores = score_ranking(ranking, [frozenset({0}), frozenset({2, 9})])
    assert scores["mrr_at_10"].tolist() == [1 / 2, 1 / 3]
    best = 1 + 1 / math.log2(3)
    expected = [1 / math.log2(3), (1 / math.log2(4)) / best]
    assert scores["ndcg_at_10"] == pytest.approx(expected)
    assert scores["recall_at_1"].tolist() == [0, 0]
    # fewer than ten passages were ranked: no recall at 10 is made up
    assert "recall_at_10" not in scores


def test_equal_to_the_evaluator_of_sentence_transformers(tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.evaluation import (
        InformationRetrievalEvaluator,
    )

    model = SentenceTransformer(str(save_tiny_bert(tmp_path)), device="cpu")
    words = sorted({word for text in SENTENCES for word in text.split()})
    # no two texts are alike: equal scores may stand in any order
    draw = random.Random(0)
    passages = list(dict.fromkeys(" ".join(draw.choices(words, k=6)) for _ in range(130)))
    relevant = [frozenset({n, (n * n + 3) % 130}) for n in range(40)]
    queries = [f"{passages[n]} {words[n % len(words)]} {draw.choice(words)}" for n in range(40)]
    asked = Questions(queries, passages, relevant)

    evaluator = InformationRetrievalEvaluator(
        {str(n): query for n, query in enumerate(queries)},
        {str(n): passage for n, passage in enumerate(passages)},
        {str(n): {str(row) for row in rows} for n, rows in enumerate(relevant)},
        precision_recall_at_k=[1, 10, 100],
        show_progress_bar=False,
    )
    theirs = evaluator(model)
    ours = score_ranking(rank_by_model(model, asked, batch_size=16), relevant)
    names = {
        "ndcg_at_10": "cosine_ndcg@10",
        "mrr_at_10": "cosine_mrr@10",
        **{f"recall_at_{most}": f"cosine_recall@{most}" for most in (1, 10, 100)},
    }
    for name, upstream in names.items():
        assert ours[name].mean() == pytest.approx(theirs[upstream], abs=1e-6), name
    assert 0 < ours["ndcg_at_10"].mean() < 1


def test_bm25_reads_words_and_chinese() -> None:
    assert split_words("Don't PANIC, 42!", "words") == ["don", "t", "panic", "42"]
    assert split_words("北京是GPU", "characters") == [
        *"北京是gpu",
        "北京",
        "京是",
        "是g",
        "gp",
        "pu",
    ]

    asked = Questions(
        ["首都在哪里", "小猫喜欢什么", "zzz"],
        ["小猫喜欢吃鱼。", "中国的首都是北京。", "天气很好。"],
        [frozenset({1}), frozenset({0}), frozenset({2})],
    )
    assert rank_by_bm25(asked)[:2, 0].tolist() == [1, 0]
    # a query of unknown words leaves the order as it is
    assert rank_by_bm25(asked)[2].tolist() == [0, 1, 2]


def test_questions_have_all_passages_once() -> None:
    held_out = [TextPair("a?", "A"), TextPair("a?", "B"), TextPair("b?", "B")]
    asked = make_questions(held_out, [TextPair("c?", "C"), TextPair("d?", "A")])
    assert asked.queries == ["a?", "b?"] and asked.passages == ["A", "B", "C"]
    assert asked.relevant == [frozenset({0, 1}), frozenset({1})] and asked.groups == [0, 1]


def test_intervals_hold_the_mean_and_queries_of_one_passage_together() -> None:
    generator = numpy.random.default_rng(0)
    groups = [n // 4 for n in range(200)]
    # the four queries of a passage are right or wrong together
    after = {"ndcg_at_10": generator.integers(0, 2, 50).repeat(4).astype(float)}
    before = {"ndcg_at_10": after["ndcg_at_10"] * 0.5}
    together = compare_rankings({"eval": after, "before": before}, groups)
    apart = compare_rankings({"eval": after, "before": before}, list(range(200)))

    mean = float(after["ndcg_at_10"].mean())
    low, high = together["eval_ndcg_at_10_low"], together["eval_ndcg_at_10_high"]
    assert together["eval_ndcg_at_10"] == mean and low < mean < high
    width = apart["eval_ndcg_at_10_high"] - apart["eval_ndcg_at_10_low"]
    assert high - low == pytest.approx(2 * width, rel=0.2), "as of 50 queries, not of 200"
    assert together["eval_gain_over_before"] == pytest.approx(mean / 2)
    assert together["eval_gain_over_before_low"] > 0


@pytest.mark.shared
def test_bm25_finds_real_chinese_paragraphs_by_characters(shared_data: Path) -> None:
    with gzip.open(shared_data / "qa" / "cmrc2018.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in islice(file, 800)]
    questions = make_questions(
        [TextPair(row["question"], row["context"]) for row in rows if row["question"].strip()]
    )
    assert len(questions.passages) > 150

    def score(tokens: Tokens) -> float:
        ranking = rank_by_bm25(questions, tokens=tokens)
        return float(score_ranking(ranking, questions.relevant)[HEADLINE].mean())

    assert score("auto") == score("characters") > 0.97
    assert score("words") < 0.5, "sentences are no words"


@pytest.mark.shared
def test_bm25_on_the_articles_of_the_benchmark(shared_data: Path) -> None:
    spec = importlib.util.spec_from_file_location("embed", ROOT / "benchmarks" / "embed.py")
    assert spec is not None and spec.loader is not None
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    with gzip.open(shared_data / "qa" / "xquad_en.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    parts = benchmark.split_by_article(rows, 0.3, 0.15)
    for column in ("title", "context"):
        found = [{row[column] for row in part} for part in parts.values()]
        assert len(set.union(*found)) == sum(map(len, found)), f"a {column} is on two sides"

    pairs = {
        name: [TextPair(row["question"], row["context"]) for row in part]
        for name, part in parts.items()
    }
    questions = make_questions(pairs["test"], pairs["dev"] + pairs["train"])
    assert (len(questions.queries), len(questions.passages)) == (275, 186), "one is asked twice"
    ranking = rank_by_bm25(questions, tokens="auto")
    mean = float(score_ranking(ranking, questions.relevant)[HEADLINE].mean())
    assert mean == pytest.approx(0.960, abs=5e-4), "what docs/recipes/embed.md says"
