"""Entities, tables and baselines of tags, against seqeval on random rows."""

import random

import pytest
from seqeval.metrics import classification_report, f1_score
from seqeval.metrics.sequence_labeling import get_entities

from hfstack.tasks.token_classification.data import Sentence
from hfstack.tasks.token_classification.metrics import (
    baseline_tags,
    beside_baseline,
    entities,
    f1_interval,
    tag_metrics,
    type_table,
)


def random_rows(prefixes: str, seed: int, rows: int = 200) -> list[list[str]]:
    draw = random.Random(seed)
    tags = ["O", *[f"{prefix}-{kind}" for prefix in prefixes for kind in ("per", "loc")]]
    return [[draw.choice(tags) for _ in range(draw.randint(1, 9))] for _ in range(rows)]


@pytest.mark.parametrize("prefixes", ["BI", "I", "BIES"])
def test_entities_are_those_of_seqeval(prefixes: str) -> None:
    for row in random_rows(prefixes, seed=1):
        assert entities(row) == [tuple(entity) for entity in get_entities(row)], row


def test_the_table_is_the_report_of_seqeval() -> None:
    gold, predicted = random_rows("BI", seed=2), random_rows("BI", seed=2)
    for row in predicted:
        row[0] = "O"
    columns, rows = type_table(gold, predicted)
    report = classification_report(gold, predicted, output_dict=True)
    assert columns == ["type", "precision", "recall", "F1", "count"]
    for kind, precision, recall, f1, there in rows:
        wanted = report[kind]
        expected = [wanted["precision"], wanted["recall"], wanted["f1-score"], wanted["support"]]
        assert [precision, recall, f1, there] == pytest.approx(expected, abs=5e-5)
    score = f1_score(gold, predicted)
    assert tag_metrics(gold, predicted)["entity_f1"] == pytest.approx(score, abs=1e-9)
    interval = f1_interval(gold, predicted)
    assert interval["entity_f1_low"] < score < interval["entity_f1_high"]


def test_the_baseline_by_hand() -> None:
    train = [
        Sentence(["Paris", "is", "paris"], ["B-loc", "O", "B-loc"]),
        Sentence(["is", "is"], ["O", "O"]),
    ]
    rows = [Sentence(["paris", "was", "Is"], ["B-loc", "O", "O"]), Sentence(["Rome"], ["B-loc"])]
    assert baseline_tags(train, rows) == [["B-loc", "O", "O"], ["O"]]
    found = beside_baseline(train, rows, [["B-loc", "O", "O"], ["B-loc"]])
    assert (
        found["baseline_entity_f1"] == pytest.approx(2 / 3) and found["eval_entity_f1_low"] == 1.0
    )
