"""Items from answers: which pairs there are, which are chosen, and hidden checks."""

import math

import pytest

from hfstack.errors import ConfigError, DataError
from hfstack.feedback.items import (
    Answered,
    ItemCounts,
    ProjectArgs,
    as_seen,
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


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("caf\u00e9", "cafe\u0301", True),
        ("a\r\nb", "a  \nb\n", True),
        ("a\u200bb", "ab", True),
        ("a b", "ab", False),
        ("a\n\nb", "a\nb", False),
        ("A", "a", False),
        # the joiner of a family of emoji, and a mark that turns the direction of letters
        ("\U0001f468\u200d\U0001f469", "\U0001f468\U0001f469", False),
        ("\u05d0\u200f.", "\u05d0.", False),
    ],
)
def test_answers_that_nobody_could_tell_apart_are_no_pair(
    first: str, second: str, same: bool
) -> None:
    counts = ItemCounts()
    found = items_of("pairs", [Answered("p", [first, second], [0, 0])], counts, seed=0)
    assert (len(found), counts.equal_answers) == ((0, 1) if same else (1, 0))


def test_nothing_to_see_is_no_answer_and_a_tenth_answer_of_a_ranking_is_counted() -> None:
    counts = ItemCounts()
    assert as_seen("\ufeff \u200b\n") == ""
    assert items_of("thumbs", [Answered("p", ["\u200b"], [0])], counts, seed=0) == []
    assert counts.empty_answers == 1
    many = Answered("p", [f"answer {n}" for n in range(11)], [0] * 11)
    (item,) = items_of("ranking", [many], counts, seed=0)
    assert len(item.answers) == 9 and counts.answers_left_out == 2


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": 3, "completion": "a"}, "row 1: the prompt must be text or a conversation"),
        ({"prompt": " ", "completion": "a"}, "row 1: the prompt is empty"),
        ({"prompt": "p", "completion": 3}, "row 1: the answer must be text"),
        ({"prompt": "p", "completions": ["a", None]}, "row 1: the answer must be text .* null"),
    ],
)
def test_what_cannot_be_shown_is_refused(row: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_answered([row], PreferenceArgs())


def test_an_answer_that_no_correction_could_hold_is_refused() -> None:
    with pytest.raises(DataError, match="answer of 50001 characters, and a correction has at most"):
        items_of("correction", [Answered("p", ["x" * 50_001], [0])], ItemCounts(), seed=0)


@pytest.mark.parametrize(
    ("kind", "row", "message"),
    [
        ("pairs", {"prompt": "p", "chosen": "a", "rejected": "a "}, "two answers look the same"),
        ("pairs", {"prompt": None, "chosen": "a", "rejected": "b"}, "the prompt must be text"),
        ("pairs", {"prompt": "p", "chosen": "", "rejected": "b"}, "the answer is empty"),
        ("ranking", {"prompt": "p", "completions": ["a", "b"], "ranks": [1, 7]}, "from 1 to 2"),
        ("ranking", {"prompt": "p", "completions": ["a", "b"], "ranks": [1]}, "a list of 2"),
    ],
)
def test_a_hidden_check_that_nobody_could_pass_is_refused(
    kind: str, row: dict, message: str
) -> None:
    with pytest.raises(DataError, match=f"gold row 1: .*{message}.*; nobody could judge it right"):
        read_gold(kind, [row], PreferenceArgs())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"annotators": ["ann", "ann "]}, "names 'ann' twice"),
        ({"annotators": ["caf\u00e9", "cafe\u0301"]}, "names 'caf\u00e9' twice"),
        ({"annotators": [" "]}, "names '' with no letters"),
        ({"annotators": ["a\nlead: x"]}, "with a control character"),
        ({"gold_share": 0.6, "repeat_share": 0.4}, "leave no room for new items"),
        ({"kind": "ratings", "scales": ["kind", " "]}, "--scales needs different names"),
    ],
)
def test_people_and_shares_that_make_no_project_end_in_one_line(
    settings: dict, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        ProjectArgs(**settings)
    # a scientist, which is one sign made of three
    assert ProjectArgs(annotators=["\U0001f469\u200d\U0001f52c"])
