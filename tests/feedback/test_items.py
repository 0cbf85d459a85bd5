"""Items from answers: which pairs there are, which are chosen, and hidden checks."""

import math

import pytest

from hfstack.errors import DataError
from hfstack.feedback.items import (
    Answered,
    ItemCounts,
    choose_random,
    items_of,
    read_answered,
    read_gold,
)
from hfstack.feedback.kinds import Item
from hfstack.feedback.sampling import choose_uncertain, uncertainty
from hfstack.tasks.preferences.rows import PreferenceArgs


def test_two_models_are_compared_and_never_a_model_with_itself() -> None:
    counts = ItemCounts()
    answered = [Answered("p", ["a", "b", "c", "a"], [0, 0, 1, 1])]
    found = items_of("pairs", answered, counts, seed=0)
    assert {tuple(item.answers) for item in found} == {("a", "c"), ("b", "c")}
    assert all(item.source["makers"] == [0, 1] for item in found)
    assert counts.equal_answers == 1, "the second a is the first"


def test_every_pair_of_one_model_and_some_of_each_prompt() -> None:
    answered = [Answered(f"p{n}", ["a", "b", "c"], [0, 0, 0]) for n in range(5)]
    found = items_of("pairs", answered, ItemCounts(), seed=0)
    assert len(found) == 15
    kept = choose_random(found, per_prompt=1, most=4, seed=0)
    assert len({item.prompt for item in kept}) == len(kept) == 4
    assert kept == choose_random(found, per_prompt=1, most=4, seed=0)


def test_rows_of_one_prompt_belong_together() -> None:
    rows = [{"prompt": "p", "completion": "a"}, {"prompt": "p", "completion": "b"}]
    assert read_answered(rows, PreferenceArgs()) == [Answered("p", ["a", "b"], [-1, -1])]
    turns = [{"role": "user", "content": "p"}]
    chosen = [*turns, {"role": "assistant", "content": "a"}]
    rejected = [*turns, {"role": "assistant", "content": "b"}]
    (one,) = read_answered([{"chosen": chosen, "rejected": rejected}], PreferenceArgs())
    assert one.prompt == turns and one.answers == [chosen[1:], rejected[1:]]


def test_uncertainty_by_hand() -> None:
    assert uncertainty([0.0]) == 1.0
    assert uncertainty([5.0, -5.0]) == pytest.approx(1.0), "who contradict each other are unsure"
    three_quarters = math.log(3)
    assert uncertainty([three_quarters]) == pytest.approx(0.8113, abs=1e-4)
    assert uncertainty([800.0]) == pytest.approx(0.0, abs=1e-9)


def test_the_least_sure_pairs_are_chosen_and_come_first() -> None:
    items = [Item(f"p{n % 3}", ["x" * n, ""]) for n in range(6)]
    found = choose_uncertain(
        items, [lambda _, texts: [float(len(text)) for text in texts]], per_prompt=1, most=2
    )
    # margins are 0, 1, 2 and more: the first of each prompt is the least sure
    assert [item.answers[0] for item in found] == ["", "x"]
    assert [item.priority for item in found] == pytest.approx([1.0, 0.8399], abs=1e-3)


def test_hidden_checks_hold_what_is_known() -> None:
    args = PreferenceArgs()
    pair = {"prompt": "p", "chosen": "a", "rejected": "b"}
    assert read_gold("pairs", [pair], args) == [Item("p", ["a", "b"], gold={"choice": 0})]
    thumb = {"prompt": "p", "completion": "a", "label": False}
    assert read_gold("thumbs", [thumb], args)[0].gold == {"label": False}
    ranked = {"prompt": "p", "completions": ["a", "b"], "ranks": [2, 1]}
    assert read_gold("ranking", [ranked], args)[0].gold == {"ranks": [2, 1]}
    with pytest.raises(DataError, match=r"gold row 1 holds no judgement of pairs \(needs prompt, "):
        read_gold("pairs", [thumb], args)
