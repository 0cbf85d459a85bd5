"""Mixtures by weight and splits without overlap."""

from collections import Counter
from typing import Any

import pytest
from datasets import Dataset, Value

from hfstack.data.splitting import drop_overlap, hold_out, interleave, mix
from hfstack.errors import DataError


def texts(prefix: str, count: int) -> Dataset:
    return Dataset.from_list([{"text": f"{prefix}{number}"} for number in range(count)])


def test_equal_weights_of_one_take_every_row() -> None:
    joined = mix([texts("a", 3), texts("b", 5)], weights=[1, 1], names=["a", "b"], seed=0)
    assert joined["text"][:] == ["a0", "a1", "a2", "b0", "b1", "b2", "b3", "b4"]


def test_weights_give_exact_shares_without_repeats() -> None:
    parts = [texts("a", 1000), texts("b", 90)]
    joined = mix(parts, weights=[1, 3], names=["a", "b"], seed=0)
    assert Counter(text[0] for text in joined["text"]) == {"a": 30, "b": 90}
    assert len(set(joined["text"])) == 120
    again = mix(parts, weights=[1, 3], names=["a", "b"], seed=0)
    other = mix(parts, weights=[1, 3], names=["a", "b"], seed=1)
    assert joined["text"][:] == again["text"][:] != other["text"][:]


def test_mixture_keeps_common_columns_and_says_what_it_leaves_out(
    caplog: pytest.LogCaptureFixture, monkeypatch
) -> None:
    monkeypatch.setattr("hfstack.data.splitting.logger.parent.propagate", True)
    one = Dataset.from_list([{"id": 1, "text": "a", "score": 1}])
    two = Dataset.from_list([{"id": "x", "text": "b", "score": 0.5, "title": "t"}])
    joined = mix([one, two], weights=[1, 1], names=["one", "two"], seed=0)
    assert joined.to_list() == [{"text": "a", "score": 1.0}, {"text": "b", "score": 0.5}]
    assert joined.features["score"] == Value("float64")
    assert "two: left out the columns that not all have with one type: id, title" in caplog.text
    with pytest.raises(DataError, match=r"no column in common \(one: id, text, score; two: body\)"):
        mix([one, Dataset.from_list([{"body": "x"}])], weights=[1, 1], names=["one", "two"], seed=0)
    with pytest.raises(DataError, match="'id' holds other types: int64 in one, string in two"):
        mix([one, two], weights=[1, 1], names=["one", "two"], seed=0, read={"id", "title"})


def test_interleave_follows_weights_and_stops_with_the_first_that_is_used_up() -> None:
    def draw(seed: int) -> list[Any]:
        streams = [iter([{"n": "a"}] * 10_000), iter([{"n": "b"}] * 300)]
        return [
            row["n"] for row in interleave(streams, weights=[3, 1], names=["a", "b"], seed=seed)
        ]

    drawn = draw(0)
    assert drawn.count("b") == 300
    assert 700 < drawn.count("a") < 1100
    assert drawn == draw(0) != draw(1)
    streams = [iter([{"n": 1}]), iter([{"n": 2}])]
    assert [row["n"] for row in interleave(streams, weights=[1, 1], names=["a", "b"], seed=0)] == [
        1,
        2,
    ]


def test_split_is_exact_and_depends_on_seed_and_text_alone() -> None:
    rows = texts("t", 200)
    train, evaluation = hold_out(rows, fraction=0.05, seed=0, text_column="text")
    assert (len(train), len(evaluation)) == (190, 10)
    assert not set(train["text"]) & set(evaluation["text"])
    shuffled = hold_out(rows.shuffle(seed=1), fraction=0.05, seed=0, text_column="text")[1]
    assert set(shuffled["text"]) == set(evaluation["text"])
    assert set(hold_out(rows, fraction=0.05, seed=1, text_column="text")[1]["text"]) != set(
        evaluation["text"]
    )
    grown = hold_out(texts("t", 220), fraction=0.05, seed=0, text_column="text")[1]
    assert len(set(grown["text"]) & set(evaluation["text"])) >= 8


@pytest.mark.parametrize(
    "columns",
    [
        lambda number: {"id": number, "text": f"t{number % 40}"},
        lambda number: {"id": number, "prompt": f"t{number % 40}", "chosen": str(number)},
        lambda number: {"id": number, "messages": [{"role": "user", "content": f"t{number % 40}"}]},
        lambda number: {"a": number % 40, "b": None},
    ],
    ids=["text", "prompt", "messages", "row"],
)
def test_copies_of_a_text_stay_on_one_side(columns) -> None:
    rows = Dataset.from_list([columns(number) for number in range(200)])
    train, evaluation = hold_out(rows, fraction=0.1, seed=0, text_column="text")
    name = next(name for name in ("text", "prompt", "messages", "a") if name in rows.column_names)
    seen, held = {str(value) for value in train[name]}, {str(value) for value in evaluation[name]}
    assert not seen & held
    assert (len(train), len(evaluation)) == (180, 20)


def test_empty_side_is_refused() -> None:
    with pytest.raises(
        DataError, match=r"no eval rows: eval_fraction 0\.05 of 9 rows is less than one row"
    ):
        hold_out(texts("t", 9), fraction=0.05, seed=0, text_column="text")
    with pytest.raises(DataError, match=r"no train rows: the 50 rows hold only 1 different texts"):
        hold_out(
            Dataset.from_list([{"text": "same"}] * 50), fraction=0.1, seed=0, text_column="text"
        )


def test_train_rows_that_are_in_eval_are_left_out() -> None:
    train = drop_overlap(texts("t", 10), texts("t", 3), text_column="text")
    assert train["text"][:] == [f"t{number}" for number in range(3, 10)]
    assert drop_overlap(texts("a", 3), texts("b", 3), text_column="text")["text"][:] == [
        "a0",
        "a1",
        "a2",
    ]
    with pytest.raises(
        DataError, match="no train rows: all 3 rows of datasets are also in eval_datasets"
    ):
        drop_overlap(texts("t", 3), texts("t", 9), text_column="text")
