"""Local metrics: equal to the libraries' own numbers, usable through combine and evaluator, SQuAD
and CMRC by hand.
"""

import collections
import random
import re
import string
import sys

import evaluate
import pytest
from scipy import stats
from seqeval import metrics as seqeval
from seqeval.scheme import IOB2
from sklearn import metrics as sklearn

from hfstack.errors import ConfigError, MissingExtraError
from hfstack.tasks.shared.metrics import (
    F1,
    Accuracy,
    CmrcAnswers,
    EntityF1,
    Matthews,
    Pearson,
    Spearman,
    SquadAnswers,
)


def draw(seed: int, classes: int, count: int = 200) -> tuple[list[int], list[int]]:
    generator = random.Random(seed)
    truth = [generator.randrange(classes) for _ in range(count)]
    return [t if generator.random() < 0.6 else generator.randrange(classes) for t in truth], truth


@pytest.mark.parametrize("classes", [2, 5])
def test_labels_as_scikit_learn_scores_them(classes: int):
    predictions, references = draw(classes, classes)
    both = evaluate.combine([Accuracy(), F1("macro"), F1("micro"), F1("weighted"), Matthews()])
    found = both.compute(predictions=predictions, references=references)
    assert found == pytest.approx(
        {
            "accuracy": sklearn.accuracy_score(references, predictions),
            "f1_macro": sklearn.f1_score(references, predictions, average="macro"),
            "f1_micro": sklearn.f1_score(references, predictions, average="micro"),
            "f1_weighted": sklearn.f1_score(references, predictions, average="weighted"),
            "matthews": sklearn.matthews_corrcoef(references, predictions),
        },
        abs=1e-9,
    )
    if classes == 2:
        binary = F1("binary").compute(predictions=predictions, references=references)
        assert binary == pytest.approx({"f1": sklearn.f1_score(references, predictions)}, abs=1e-9)


def test_several_labels_a_row():
    rows = [draw(seed, 2, 4) for seed in range(30)]
    predictions, references = [p for p, _ in rows], [r for _, r in rows]
    found = evaluate.combine([Accuracy(), F1("macro"), F1("micro")]).compute(
        predictions=predictions, references=references
    )
    assert found == pytest.approx(
        {
            "accuracy": sklearn.accuracy_score(references, predictions),
            "f1_macro": sklearn.f1_score(references, predictions, average="macro"),
            "f1_micro": sklearn.f1_score(references, predictions, average="micro"),
        },
        abs=1e-9,
    )


def test_a_class_that_never_comes_up_counts_when_it_is_named():
    found = F1("macro", labels=[0, 1, 2]).compute(predictions=[0, 1], references=[0, 1])
    assert found == {"f1_macro": pytest.approx(2 / 3)}


def test_correlations_as_scipy_computes_them():
    generator = random.Random(0)
    references = [generator.random() for _ in range(60)]
    predictions = [value + generator.gauss(0, 0.3) for value in references]
    found = evaluate.combine([Pearson(), Spearman()]).compute(
        predictions=predictions, references=references
    )
    assert found == pytest.approx(
        {
            "pearson": stats.pearsonr(references, predictions).statistic,
            "spearman": stats.spearmanr(references, predictions).statistic,
        },
        abs=1e-9,
    )
    flat = evaluate.combine([Pearson(), Spearman()]).compute(
        predictions=[1.0] * 60, references=references
    )
    assert flat == {"pearson": 0, "spearman": 0}


def test_entities_as_seqeval_scores_them():
    generator = random.Random(1)
    tags = ["O", "O", "B-person", "I-person", "B-place", "I-place"]
    references = [[generator.choice(tags) for _ in range(12)] for _ in range(40)]
    predictions = [
        [t if generator.random() < 0.8 else generator.choice(tags) for t in row]
        for row in references
    ]
    found = EntityF1().compute(predictions=predictions, references=references)
    assert found == pytest.approx(
        {
            "entity_precision": seqeval.precision_score(references, predictions),
            "entity_recall": seqeval.recall_score(references, predictions),
            "entity_f1": seqeval.f1_score(references, predictions),
            "tag_accuracy": seqeval.accuracy_score(references, predictions),
        },
        abs=1e-9,
    )
    strict = EntityF1("IOB2").compute(predictions=predictions, references=references)
    assert strict is not None
    upstream = seqeval.f1_score(references, predictions, mode="strict", scheme=IOB2)
    assert strict["entity_f1"] == pytest.approx(upstream, abs=1e-9)
    assert strict["entity_f1"] != found["entity_f1"]


def squad_rules(text: str, golds: list[str]) -> tuple[float, float]:
    """The rules of SQuAD 2.0 as its paper's script states them, written for this test."""

    def words(answer: str) -> list[str]:
        kept = answer.lower().translate({ord(mark): None for mark in string.punctuation})
        return re.sub(r"\b(a|an|the)\b", " ", kept).split()

    def score(gold: list[str], found: list[str]) -> float:
        if not gold or not found:
            return float(gold == found)
        same = sum((collections.Counter(gold) & collections.Counter(found)).values())
        if same == 0:
            return 0.0
        precision, recall = same / len(found), same / len(gold)
        return 2 * precision * recall / (precision + recall)

    kept = [gold for gold in golds if words(gold)] or [""]
    return max(float(words(g) == words(text)) for g in kept), max(
        score(words(g), words(text)) for g in kept
    )


def question(number: int, *answers: str) -> dict:
    return {
        "id": str(number),
        "answers": {"text": list(answers), "answer_start": [0] * len(answers)},
    }


def test_squad_by_its_rules():
    words = ["the", "The", "fox", "a", "red", "ball,", "U.S.", "-", "1990"]
    generator = random.Random(2)

    def phrase(most: int) -> str:
        return " ".join(generator.choice(words) for _ in range(generator.randint(0, most)))

    golds = [[phrase(4) for _ in range(generator.randint(0, 3))] for _ in range(150)]
    texts = [generator.choice([phrase(4), *gold]) for gold in golds]
    predictions = [{"id": str(i), "prediction_text": text} for i, text in enumerate(texts)]
    references = [question(i, *gold) for i, gold in enumerate(golds)]
    found = SquadAnswers().compute(predictions=predictions[::-1], references=references)
    expected = [squad_rules(text, gold) for text, gold in zip(texts, golds, strict=True)]
    assert found is not None
    assert found["exact_match"] == pytest.approx(100 * sum(e for e, _ in expected) / 150, abs=1e-9)
    assert found["answer_f1"] == pytest.approx(100 * sum(f for _, f in expected) / 150, abs=1e-9)
    without = [f for (_, f), gold in zip(expected, golds, strict=True) if not gold]
    assert found["answer_f1_unanswerable"] == pytest.approx(
        100 * sum(without) / len(without), abs=1e-9
    )


def test_squad_by_hand():
    predictions = [
        {"id": "0", "prediction_text": "The red fox!"},
        {"id": "1", "prediction_text": "in 1990"},
        {"id": "2", "prediction_text": ""},
    ]
    references = [question(0, "red fox", "a fox"), question(1, "1990"), question(2)]
    found = SquadAnswers().compute(predictions=predictions, references=references)
    assert found is not None
    assert found["exact_match"] == pytest.approx(100 * 2 / 3)
    assert found["answer_f1"] == pytest.approx(100 * (1 + 2 / 3 + 1) / 3)
    # as evaluator hands them over
    doubting = [row | {"no_answer_probability": 0.5} for row in predictions]
    assert (
        SquadAnswers(with_probability=True).compute(predictions=doubting, references=references)
        == found
    )
    with pytest.raises(ConfigError, match="question 1 has no prediction"):
        SquadAnswers().compute(predictions=predictions[:1] * 2, references=references[:2])


def test_cmrc_by_hand():
    predictions = [
        {"id": "0", "prediction_text": "《红楼梦》"},
        {"id": "1", "prediction_text": "在北京大学"},
        {"id": "2", "prediction_text": "iPhone 手机"},
        {"id": "3", "prediction_text": "无"},
    ]
    references = [
        question(0, "红楼梦"),
        question(1, "北大", "北京"),
        question(2, "apple iphone手机。"),
        question(3, "有"),
    ]
    found = CmrcAnswers().compute(predictions=predictions, references=references)
    assert found is not None
    assert found["exact_match"] == pytest.approx(25)
    # the second: 北京 of 5 and 2 characters; the third: `iphone`, 手 and 机 of 3 and 4 units
    assert found["answer_f1"] == pytest.approx(100 * (1 + 2 * 2 / 7 + 2 * 3 / 7 + 0) / 4)


def test_the_evaluator_takes_them():
    from datasets import Dataset
    from transformers import BertConfig, BertForSequenceClassification

    from tests.tiny_encoder import tiny_bert_tokenizer

    tokenizer = tiny_bert_tokenizer()
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=1,
    )
    model = BertForSequenceClassification(config)
    data = Dataset.from_dict({"text": ["the fox", "a ball"], "label": [0, 1]})
    both = evaluate.combine([Accuracy(), Matthews()])
    for metric in (Accuracy(), both):
        found = evaluate.evaluator("text-classification").compute(
            model,
            data,
            metric=metric,
            tokenizer=tokenizer,
            label_mapping={"LABEL_0": 0, "LABEL_1": 1},
        )
        assert found["accuracy"] in (0.0, 0.5, 1.0)


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "sklearn.metrics", None)
    with pytest.raises(
        MissingExtraError, match=r"scikit-learn is not installed; .* 'hfstack\[metrics\]'"
    ):
        Accuracy().compute(predictions=[0], references=[0])
