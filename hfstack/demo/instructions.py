"""Generate instructions, questions about stories, and labelled stories.

The data of the later stages.

Every row is a pure function of (seed, index), and its stories come from other streams than the raw
corpus of that seed, so that fine-tuning and evaluation never see a text that pretraining has seen.
"""

import random
import re
from collections.abc import Callable, Iterator
from typing import Any, Literal

from hfstack.demo.grammar import compile_template, render, tidy
from hfstack.demo.lexicon import PLACES, THINGS
from hfstack.demo.stories import Story, beginning, story
from hfstack.demo.templates import read_blocks

DemoTask = Literal["mixed", "beginning"]

QUESTION_SHARE = 0.25
# Between seeds of the streams: a prime, so that two nearby corpus seeds share no stream.
_STREAM_SIZE = 1_000_003
_BLOCKS = {
    title: {section: tuple(map(compile_template, lines)) for section, lines in block.items()}
    for title, block in read_blocks("instructions").items()
}
# Each kind of story task: what is asked of the hero, and which further wishes follow, each in a
# sentence of its own.
_WISHES = (
    ("hero", ()),
    ("hero trait", ()),
    ("hero trait", ()),
    ("hero", ("ending",)),
    ("hero trait", ("ending",)),
    ("hero trait", ("place",)),
    ("hero trait", ("object",)),
    ("hero", ("place", "object")),
    ("hero", ("object", "ending")),
    ("hero name", ()),
    ("hero name", ("ending",)),
    ("hero trait name", ("place",)),
    ("hero trait", ("place", "ending")),
    ("hero trait", ("object", "ending")),
    ("trait", ("place",)),
    ("hero trait", ("place", "object", "ending")),
)
_PLACE_PREPOSITIONS = {place.noun: f"{place.at} the {place.noun}" for place in PLACES}
_GRAMMATICAL_NUMBERS = {thing.noun: thing.number for thing in THINGS}


def instruction(
    seed: int, index: int, *, task: DemoTask = "mixed", careless_share: float = 0.0
) -> dict[str, Any]:
    """Return row `index`: "prompt", "completion", "task" and the facts.

    The task is "story", "question <about>" or "beginning".

    Args:
        task: `mixed` answers with story n of the instruction stream, and a quarter of the rows are
            questions about that story; `beginning` asks only for how a story begins, so that
            answers are a quarter as long.
        careless_share: Of beginnings, the share in [0, 1) whose completion has no capitals, is torn
            off or stops after one sentence, as hasty writers leave them: see `carelessly`.
    """
    # Its own stream for each row: row n is the same however many are asked for.
    uniform = random.Random(f"instruction/{seed}/{index}").random
    if task == "beginning":
        tale = beginning(seed * _STREAM_SIZE + 1, index)
        kind = "beginning"
        prompt, completion = _request(tale, kind, uniform), tale.text
        if careless_share and uniform() < careless_share:
            completion = carelessly(completion, uniform)
    else:
        tale = story(seed * _STREAM_SIZE + 1, index)
        if uniform() < QUESTION_SHARE:
            about = _pick(tuple(_BLOCKS["questions"]), uniform)
            prompt, completion = question(tale, about, seed=seed + index)
            kind = f"question {about}"
        else:
            kind = "story"
            prompt, completion = _request(tale, kind, uniform), tale.text

    return {
        "prompt": prompt,
        "completion": completion,
        "task": kind,
        "animal": tale.animal,
        "trait": tale.trait,
        "ending": tale.ending,
    }


def instructions(
    seed: int, count: int, *, task: DemoTask = "mixed", careless_share: float = 0.0
) -> Iterator[dict[str, Any]]:
    """Yield rows 0 .. count - 1 of `instruction`."""
    for index in range(count):
        yield instruction(seed, index, task=task, careless_share=careless_share)


def carelessly(text: str, uniform: Callable[[], float]) -> str:
    """Return a careless copy of a text: no capitals, torn off, or without its end.

    The text has two sentences or more.

    Half of such texts are as long as they were, so that length alone does not give them away beside
    good ones.

    Args:
        uniform: a source of numbers in [0, 1), which decide.
    """
    words = text.split(" ")
    torn = " ".join(words[: int(len(words) * (0.3 + 0.5 * uniform()))])
    first = re.split(r"(?<=[.!?])\s+(?=[\"A-Z])", text)[0]
    return _pick((text.lower(), text.lower(), torn, first), uniform)


def question(tale: Story, about: str, *, seed: int) -> tuple[str, str]:
    """Return a question about one fact of a story, and its answer.

    The fact is "hero", "place", "trait", "object" or "ending".
    """
    uniform = random.Random(f"question/{seed}").random
    facts = _facts_of_story(tale)
    asked = render(_pick(_BLOCKS["questions"][about], uniform), facts, uniform)
    parts = (tale.text, asked) if uniform() < 0.5 else (asked, tale.text)
    return "\n\n".join(parts), tidy(
        render(_pick(_BLOCKS["answers"][about], uniform), facts, uniform)
    )


def as_messages(row: dict[str, Any]) -> dict[str, Any]:
    """Return a prompt and completion as {"messages": [user turn, assistant turn]}."""
    return {
        "messages": [
            {"role": "user", "content": row["prompt"]},
            {"role": "assistant", "content": row["completion"]},
        ]
    }


def sentiment_rows(seed: int, count: int) -> Iterator[dict[str, Any]]:
    """Yield labelled stories: 1 for a happy ending, 0 for a sad one, as many of each."""
    for index in range(count):
        tale = story(seed * _STREAM_SIZE + 2, index)
        yield {"text": tale.text, "label": tale.label}


def openings(seed: int, count: int) -> Iterator[str]:
    """Yield the first words of unseen stories, for a model to continue."""
    for index in range(count):
        words = story(seed * _STREAM_SIZE + 3, index).text.split(" ")
        yield " ".join(words[: 4 + index % 5])


def _request(tale: Story, kind: str, uniform: Any) -> str:
    """Return a request for a story, or for its beginning, by some of its facts."""
    absent = {"ending"} if kind == "beginning" else set()
    # a friend who is ill, for example, brings no thing yet
    if kind == "beginning" and not re.search(rf"\b{tale.object}\b", tale.text):
        absent.add("object")
    possible: Any = tuple(pair for pair in _WISHES if not absent & set(pair[1]))
    hero, wishes = _pick(possible, uniform)

    facts = _facts_of_story(tale)
    parts = [
        _pick(_BLOCKS[kind][hero], uniform),
        *(_pick(_BLOCKS["extras"][wish], uniform) for wish in wishes),
    ]

    return tidy(" ".join(render(part, facts, uniform) for part in parts))


def _facts_of_story(tale: Story) -> dict[str, str]:
    article = {"one": "a ", "mass": "some ", "many": "some "}[_GRAMMATICAL_NUMBERS[tale.object]]
    return {
        "H": tale.hero,
        "kind": tale.animal,
        "a_kind": f"a {tale.animal}",
        "trait": tale.trait,
        "a_trait": f"a {tale.trait}",
        "at": _PLACE_PREPOSITIONS[tale.place],
        "a": article + tale.object,
        "the_o": f"the {tale.object}",
        "ending": tale.ending,
        "end": {"happy": "happily", "sad": "sadly", "open": ""}[tale.ending],
    }


def _pick(options: tuple, uniform: Any) -> Any:
    return options[int(uniform() * len(options))]
