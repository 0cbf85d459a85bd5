"""Entities, tables and baselines of tags, against seqeval on random rows."""

import random

import pytest
from seqeval.metrics import classification_report, f1_score
from seqeval.metrics.sequence_labeling import get_entities
from seqeval.scheme import BILOU, IOBES, Entities

from hfstack.errors import DataError
from hfstack.tasks.token_classification.data import Sentence
from hfstack.tasks.token_classification.metrics import (
    baseline_tags,
    beside_baseline,
    f1_interval,
    tag_metrics,
    type_table,
)
from hfstack.tasks.token_classification.schemes import (
    Scheme,
    entities,
    entities_by_type,
    read_scheme,
    rewrite_entities,
)


def random_rows(prefixes: str, seed: int, rows: int = 200) -> list[list[str]]:
    draw = random.Random(seed)
    tags = ["O", *[f"{prefix}-{kind}" for prefix in prefixes for kind in ("per", "loc")]]
    return [[draw.choice(tags) for _ in range(draw.randint(1, 9))] for _ in range(rows)]


@pytest.mark.parametrize("prefixes", ["BI", "I", "BIES"])
def test_entities_are_those_of_seqeval(prefixes: str) -> None:
    for row in random_rows(prefixes, seed=1):
        assert entities_by_type(row) == [tuple(entity) for entity in get_entities(row)], row


@pytest.mark.parametrize(
    ("prefixes", "scheme", "theirs", "letters"),
    [
        ("BIES", "IOBES", IOBES, {}),
        ("BILU", "BILOU", BILOU, {}),
        ("BMES", "BMES", IOBES, {"M": "I"}),
        ("BMEW", "BMEW", IOBES, {"M": "I", "W": "S"}),
    ],
)
def test_whole_entities_are_those_of_strict_seqeval(
    prefixes: str, scheme: Scheme, theirs: type, letters: dict[str, str]
) -> None:
    gold, predicted = random_rows(prefixes, seed=3), random_rows(prefixes, seed=3)
    for row in predicted[::3]:
        row[-1] = "O"

    def translated(rows: list[list[str]]) -> list[list[str]]:
        return [[letters.get(tag[0], tag[0]) + tag[1:] for tag in row] for row in rows]

    for row in gold:
        (wanted,) = Entities(translated([row]), theirs).entities
        spans = [(entity.tag, entity.start, entity.end - 1) for entity in wanted]
        assert entities(row, scheme) == spans, row

    score = f1_score(translated(gold), translated(predicted), mode="strict", scheme=theirs)
    assert 0 < score < 1
    assert tag_metrics(gold, predicted)["entity_f1"] == pytest.approx(score)

    # the table by type sums up to the same
    _, rows = type_table(gold, predicted)
    assert sum(row[-1] for row in rows) == sum(len(entities(row, scheme)) for row in gold)


def test_neighbours_of_one_word_and_a_missed_entity_by_hand() -> None:
    gold = [["U-per", "U-per", "O", "B-loc", "L-loc"]]
    found = tag_metrics(gold, [["U-per", "U-per", "O", "B-loc", "O"]])
    assert found["entity_precision"] == 1.0  # B- without its L- is no entity
    assert found["entity_recall"] == pytest.approx(2 / 3)


def test_schemes_are_read_from_the_whole_set_or_refused() -> None:
    assert read_scheme(["O", "I-x"]) == read_scheme(["B-x", "I-x"]) == "BIO"
    assert read_scheme(["O", "U-x", "B-y", "L-y"]) == "BILOU"
    assert read_scheme(["O", "NN", "B-x"]) is None and read_scheme(["O"]) is None
    for mixed in (["B-x", "E-x", "L-x"], ["B-x", "I-x", "S-x"], ["E-x", "S-x"]):
        with pytest.raises(DataError, match=r"none of the schemes that can be scored"):
            read_scheme(["O", *mixed])


def test_rewritten_entities_are_whole() -> None:
    tags = ["I-x", "I-x", "I-y", "O", "L-y"]
    assert rewrite_entities(tags, "BIO") == ["B-x", "I-x", "B-y", "O", "B-y"]
    assert rewrite_entities(tags, "BILOU") == ["B-x", "L-x", "U-y", "O", "U-y"]


def test_the_interval_of_a_faultless_score_has_a_width() -> None:
    gold = [["B-x", "I-x", "O"]] * 40
    interval = f1_interval(gold, gold)
    assert interval["entity_f1_high"] == 1.0
    assert interval["entity_f1_low"] == pytest.approx(40 / (40 + 1.959964**2))


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
    assert found["baseline_entity_f1"] == pytest.approx(2 / 3)
    assert found["eval_entity_f1_low"] == pytest.approx(2 / (2 + 1.959964**2))  # of two rows
