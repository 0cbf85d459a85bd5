"""The gold rule: obedient stories score high, what only pretends scores low, and more is never
worth less.
"""

import random
from collections.abc import Callable
from statistics import mean

import pytest

from hfstack.demo.instructions import instructions
from hfstack.demo.lexicon import TRAITS
from hfstack.demo.rules import (
    TRAIT_DEEDS,
    ending_of,
    gold_breakdown,
    gold_score,
    require_demo_prompts,
)
from hfstack.demo.stories import stories
from hfstack.errors import DataError

ROWS = list(instructions(8, 400))
STORIES = [row for row in ROWS if row["task"] == "story"]
QUESTIONS = [row for row in ROWS if row["task"] != "story"]
BEGINNINGS = list(instructions(8, 300, task="beginning"))
FOX = (
    "A brave fox named Pip lived by the river. One day the kite of his friend Mia fell into the "
    "water. "
    "Pip was afraid, but he took a deep breath and jumped. He swam out and brought the kite back. "
    '"Thank you," said Mia, and she gave him a hug. They flew the kite until it was dark. '
    "Pip went home with a happy smile, and he told his mother all about it."
)


def shuffled(text: str) -> str:
    words = text.split()
    random.Random(0).shuffle(words)
    return " ".join(words)


def sentences(text: str, count: int) -> str:
    return ". ".join(text.split(". ")[:count]) + "."


def other_story(row: dict) -> str:
    return next(
        other["completion"]
        for other in STORIES
        if other["animal"] != row["animal"]
        and other["trait"] != row["trait"]
        and other["ending"] != row["ending"]
    )


def test_own_answers_score_at_least_0_95_on_average():
    assert mean(gold_score(row["prompt"], row["completion"]) for row in STORIES) >= 0.95
    assert mean(gold_score(row["prompt"], row["completion"]) for row in QUESTIONS) >= 0.95


def test_a_story_written_by_hand_scores_high():
    for prompt in (
        "Write a story about a fox who is brave.",
        "Tell me a story about Pip, a brave fox. It takes place by the river. Put a kite in it. "
        "It should end happily.",
    ):
        assert gold_score(prompt, FOX) >= 0.9, gold_breakdown(prompt, FOX)


@pytest.mark.parametrize(
    ("answer", "limit"),
    [
        (other_story, 0.25),
        (lambda row: row["completion"][: len(row["completion"]) // 2], 0.2),
        (lambda row: sentences(row["completion"], 3), 0.35),
        (lambda row: "", 0.0),
        (lambda row: row["prompt"], 0.02),
        (lambda row: row["prompt"] + " " + row["completion"], 0.15),
        (lambda row: f"{row['completion']} {row['completion']}", 0.05),
        (lambda row: (sentences(row["completion"], 1) + " ") * 12, 0.05),
        (lambda row: shuffled(row["completion"]), 0.05),
        (
            lambda row: (
                f"{row['animal']} {row['trait']} {row['ending']} river kite smile tears deep "
                "breath " * 10
            ),
            0.02,
        ),
        (lambda row: f"The {row['animal']} was {row['trait']}. " * 20, 0.02),
        (
            lambda row: (
                f"There was a {row['trait']} {row['animal']}. It had a kite. It was in a den. It "
                "was happy."
            ),
            0.2,
        ),
        (lambda row: " ".join(other["completion"] for other in STORIES[:4]), 0.1),
    ],
    ids=[
        "another story",
        "torn off",
        "no ending",
        "empty",
        "echo",
        "echo and story",
        "told twice",
        "one sentence",
        "shuffled",
        "keywords",
        "one keyword sentence",
        "stuffed sentences",
        "four stories",
    ],
)
def test_low_scores(answer: Callable[[dict], str], limit: float):
    assert mean(gold_score(row["prompt"], answer(row)) for row in STORIES) <= limit


def other_beginning(row: dict) -> str:
    return next(
        other["completion"]
        for other in BEGINNINGS
        if other["animal"] != row["animal"] and other["trait"] != row["trait"]
    )


@pytest.mark.parametrize(
    ("answer", "limit"),
    [
        (other_beginning, 0.15),
        (lambda row: row["completion"][: len(row["completion"]) // 2], 0.3),
        (lambda row: sentences(row["completion"], 1), 0.3),
        (lambda row: "", 0.0),
        (lambda row: row["prompt"], 0.02),
        (lambda row: row["prompt"] + " " + row["completion"], 0.15),
        (lambda row: f"{row['completion']} {row['completion']}", 0.05),
        (lambda row: shuffled(row["completion"]), 0.05),
        (lambda row: f"The {row['animal']} was {row['trait']}. " * 8, 0.02),
        (lambda row: " ".join(other["completion"] for other in BEGINNINGS[:4]), 0.02),
    ],
    ids=[
        "another",
        "torn off",
        "one sentence",
        "empty",
        "echo",
        "echo and beginning",
        "told twice",
        "shuffled",
        "one keyword sentence",
        "four beginnings",
    ],
)
def test_of_beginnings_the_own_one_scores_high_and_what_pretends_low(
    answer: Callable[[dict], str], limit: float
):
    assert mean(gold_score(row["prompt"], row["completion"]) for row in BEGINNINGS) >= 0.95
    assert mean(gold_score(row["prompt"], answer(row)) for row in BEGINNINGS) <= limit


def test_own_answer_beats_another_story_nearly_always():
    wins = sum(
        gold_score(row["prompt"], row["completion"]) > gold_score(row["prompt"], other_story(row))
        for row in STORIES
    )
    assert wins >= 0.98 * len(STORIES)


@pytest.mark.parametrize(
    ("wish", "key"),
    [
        ("It takes place at the beach.", "place"),
        ("Put a drum in it.", "object"),
        ("It should end sadly.", "ending"),
    ],
)
def test_each_unmet_wish_costs(wish: str, key: str):
    prompt = "Write a story about a fox who is brave."
    assert gold_breakdown(f"{prompt} {wish}", FOX)[key] == 0.0
    assert gold_score(f"{prompt} {wish}", FOX) < gold_score(prompt, FOX) - 0.2


def test_wrong_hero_or_trait_costs():
    assert gold_score("Write a story about a bear.", FOX) < 0.1
    assert gold_breakdown("Write a story about a fox who is lazy.", FOX)["trait"] == 0.0
    assert gold_score("Write a story about a fox called Max.", FOX) < 0.6


def test_trait_needs_the_word_and_the_deed():
    prompt = "Write a story about a fox who is brave."
    untold, unshown = FOX.replace("brave ", ""), FOX.replace("took a deep breath and ", "")
    assert (
        gold_breakdown(prompt, untold)["trait"] == gold_breakdown(prompt, unshown)["trait"] == 0.5
    )
    assert (
        gold_breakdown(prompt, FOX.replace("A brave fox", "A fox who was not brave"))["trait"]
        == 0.5
    )
    heap = FOX.replace("A brave fox", "A brave, kind, lazy, shy, proud and greedy fox")
    assert gold_breakdown(prompt, heap)["trait"] == 0.5


def test_score_rises_as_the_story_grows_to_its_end():
    """A longer part of the same story is worth at least as much, and the whole is worth most."""
    prompt = "Write a story about a fox who is brave. Put a kite in it. It should end happily."
    scores = [gold_score(prompt, sentences(FOX, count)) for count in (1, 3, 5, 7)] + [
        gold_score(prompt, FOX)
    ]
    assert scores == sorted(scores)
    assert scores[-1] > scores[0] + 0.7


@pytest.mark.parametrize(
    "text", ["", " ", "...", "?!", "\x00", "你好。", "a" * 5000, "1 2 3", "\n\n\n", '"']
)
def test_any_text_is_judged_between_0_and_1(text: str):
    for prompt in (
        "Write a story about a fox.",
        "",
        text,
        f"{FOX}\n\nWho is the hero?",
        QUESTIONS[0]["prompt"],
    ):
        assert all(0 <= value <= 1 for value in gold_breakdown(prompt, text).values())


@pytest.mark.parametrize(
    ("question", "good", "bad"),
    [
        ("Who is the hero of this story?", "The hero is Pip, a fox.", "The hero is Mia, a bear."),
        (
            "Who is the hero of this story?",
            "It is Pip the fox.",
            "A fox, a bear, a cat, Pip, Mia and a dog.",
        ),
        ("How does the story end?", "It ends happily.", "It ends sadly."),
        ("How does the story end?", "The ending is happy.", "It ends happily and sadly."),
        (
            "Where does this story take place?",
            "It takes place by the river.",
            "It takes place at the beach.",
        ),
        ("What is the hero like?", "Pip is brave.", "Pip is lazy, shy, brave, kind and greedy."),
        ("Which object is important in the story?", "It is the kite.", "It is the drum."),
        ("Who is the hero of this story?", "The hero is Pip, a fox.", FOX),
    ],
)
def test_questions_are_judged_against_the_story(question: str, good: str, bad: str):
    for prompt in (f"{FOX}\n\n{question}", f"{question}\n\n{FOX}"):
        assert gold_score(prompt, good) >= 0.95
        assert gold_score(prompt, bad) <= 0.3
        assert gold_score(prompt, "") == 0.0


def test_ending_is_read_from_the_last_sentences():
    assert (
        ending_of("She wept and cried for days. But he came back. They laughed. Now she was happy.")
        == "happy"
    )
    assert ending_of("They laughed and danced. Then it broke. Pip wept all night.") == "sad"
    assert ending_of('It was over. "I am so happy," Pip cried.') == "happy"
    assert ending_of("There was a house. It had a door.") is None


def test_every_trait_is_shown_in_the_stories_that_have_it():
    assert TRAIT_DEEDS.keys() == TRAITS.keys()
    corpus = list(stories(30, 600))
    for trait in TRAITS:
        told = [one.text for one in corpus if one.trait == trait]
        prompt = f"Write a story about somebody who is {trait}."
        assert mean(gold_breakdown(prompt, text)["trait"] for text in told) >= 0.97, trait


def test_the_rule_refuses_prompts_that_it_cannot_read():
    own = [row["prompt"] for row in ROWS + BEGINNINGS]
    for each in own:
        require_demo_prompts([each])

    other = [
        "What is your refund policy?",
        "Who wrote it?\n\nThe paper has three authors.",
    ]
    for prompts in (other, [*other, other[0], own[0]]):
        with pytest.raises(DataError, match=r"can read [01] of \d prompts, and not 'What is your"):
            require_demo_prompts(prompts)
