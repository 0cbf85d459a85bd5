"""Instructions, questions and labels: reproducible, unseen by pretraining, in the shapes that
trainers take.
"""

import re
from collections import Counter

import pytest

from hfstack.demo.instructions import (
    as_messages,
    carelessly,
    instruction,
    instructions,
    openings,
    question,
    sentiment_rows,
)
from hfstack.demo.rules import ending_of, facts_of, gold_score, read_request
from hfstack.demo.stories import stories, story

ROWS = list(instructions(5, 800))
STORY_ROWS = [row for row in ROWS if row["task"] == "story"]


def test_rows_are_a_pure_function_of_seed_and_index():
    assert list(instructions(5, 30))[17] == instruction(5, 17) == ROWS[17]
    assert instruction(5, 17) != instruction(6, 17)


def test_a_quarter_of_the_rows_are_questions_about_everything_that_can_be_asked():
    tasks = Counter(row["task"] for row in ROWS)
    assert 0.18 < 1 - tasks["story"] / len(ROWS) < 0.32
    assert tasks.keys() - {"story"} == {
        f"question {about}" for about in ("hero", "place", "trait", "object", "ending")
    }


def test_instructions_are_varied_and_ask_for_what_the_answer_has():
    assert len({row["prompt"] for row in STORY_ROWS}) > 0.8 * len(STORY_ROWS)
    asked = Counter[str]()
    for row in STORY_ROWS:
        request = read_request(row["prompt"])
        asked.update(
            name
            for name in ("animal", "name", "trait", "place", "object", "ending")
            if getattr(request, name)
        )
        for name in ("animal", "trait", "ending"):
            assert getattr(request, name) in (None, row[name]), row["prompt"]
    assert all(
        asked[name] > 0.08 * len(STORY_ROWS)
        for name in ("animal", "name", "trait", "place", "object", "ending")
    )


def test_the_example_of_the_documentation_is_understood():
    request = read_request(
        "Write a story about a fox who is brave. It takes place by the river. Give it a sad ending."
    )
    assert (request.animal, request.trait, request.place, request.ending) == (
        "fox",
        "brave",
        "river",
        "sad",
    )
    assert read_request("Write a story.") == read_request("")


def test_question_carries_the_story_and_has_a_short_answer():
    told = story(5, 3)
    for about in ("hero", "place", "trait", "object", "ending"):
        prompt, answer = question(told, about, seed=1)
        assert told.text in prompt
        assert prompt.count("\n\n") == 1
        assert len(answer.split()) < 12
        assert read_request(prompt).question == about
    assert told.hero in question(told, "hero", seed=1)[1]


def test_beginnings_are_short_and_hold_what_they_are_asked_for():
    rows = list(instructions(5, 300, task="beginning"))
    assert rows[17] == instruction(5, 17, task="beginning") and rows[17]["ending"] == "open"
    assert {row["task"] for row in rows} == {"beginning"}
    assert all(15 <= len(row["completion"].split()) <= 70 for row in rows)
    for row in rows:
        request = read_request(row["prompt"])
        assert request.beginning and request.ending is None
        assert request.object is None or re.search(rf"\b{request.object}\b", row["completion"]), row
    assert not any(read_request(row["prompt"]).beginning for row in ROWS)
    assert not {row["completion"] for row in rows} & {row["completion"] for row in STORY_ROWS}


def test_careless_answers_are_worse_to_the_same_prompts():
    careful = list(instructions(5, 400, task="beginning"))
    careless = list(instructions(5, 400, task="beginning", careless_share=0.4))
    assert careless[17] == instruction(5, 17, task="beginning", careless_share=0.4)
    assert [row["prompt"] for row in careless] == [row["prompt"] for row in careful]
    spoilt = [row for row, before in zip(careless, careful, strict=True) if row != before]
    assert 0.3 < len(spoilt) / 400 < 0.5
    scores = [gold_score(row["prompt"], row["completion"]) for row in spoilt]
    assert sum(scores) / len(scores) < 0.4
    assert sum(score < 0.85 for score in scores) > 0.97 * len(scores)


def test_each_way_of_being_careless():
    text = 'Ann was shy. "Oh!" She saw a fox. It ran.'
    ways = {way: carelessly(text, iter((0.5, way)).__next__) for way in (0.0, 0.4, 0.6, 0.8)}
    assert ways == {
        0.0: text.lower(),
        0.4: text.lower(),
        0.6: 'Ann was shy. "Oh!" She',
        0.8: "Ann was shy.",
    }


def test_messages_are_a_user_and_an_assistant_turn():
    messages = as_messages(ROWS[0])["messages"]
    assert [turn["role"] for turn in messages] == ["user", "assistant"]
    assert [turn["content"] for turn in messages] == [ROWS[0]["prompt"], ROWS[0]["completion"]]


def test_labels_are_balanced_and_follow_the_ending():
    rows = list(sentiment_rows(5, 400))
    assert sum(row["label"] for row in rows) == 200
    agreed = sum((ending_of(row["text"]) == "happy") == row["label"] for row in rows)
    assert agreed >= 0.98 * len(rows)


def test_streams_share_no_story():
    raw = {told.text for told in stories(5, 800)}
    answers = {row["completion"] for row in STORY_ROWS}
    labelled = {row["text"] for row in sentiment_rows(5, 800)}
    assert not raw & answers
    assert not raw & labelled
    assert not answers & labelled


def test_openings_are_short_and_unfinished():
    lines = list(openings(5, 30))
    assert len(set(lines)) > 25
    assert all(4 <= len(line.split(" ")) <= 8 for line in lines)


@pytest.mark.parametrize("name", ["animal", "name", "trait", "place", "object", "ending"])
def test_a_reader_finds_the_facts_of_a_story(name: str):
    own = {"animal": "animal", "name": "hero"}.get(name, name)
    told = list(stories(21, 500))
    found = sum(getattr(facts_of(one.text), name) == getattr(one, own) for one in told)
    assert found >= 0.98 * len(told)
