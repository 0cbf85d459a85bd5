"""Generate short stories, each a pure function of (seed, index).

Story 7 is the same whether 10 or 10 million are asked for.

A hero with a trait wants something, meets an obstacle, acts as the trait makes it act, and the
ending follows. Half of the endings are happy and half are sad: of stories 2k and 2k + 1 one is
happy and one is sad.
"""

import random
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from hfstack.demo.grammar import Parts, compile_template, render, tidy
from hfstack.demo.lexicon import (
    ELDERS,
    NAMES,
    PLACES,
    RELATIVES,
    SPECIES,
    THINGS,
    TRAITS,
    Place,
    Species,
    Thing,
)
from hfstack.demo.templates import Block, Plot, read_blocks, read_plots

Option = TypeVar("Option")
PLOTS = read_plots("friends", "quests", "work")
_SHARED = read_blocks("phrases")
PHRASES = _SHARED["phrases"]
WEATHER = tuple(_SHARED["weather"])

LONGEST = 150
_PRONOUNS = {
    "he": ("he", "him", "his", "himself", "his"),
    "she": ("she", "her", "her", "herself", "hers"),
}
_NUMBER_FORMS = {
    # number -> article, object pronoun, subject pronoun, past and present of to be, "all mine"
    "one": ("a", "it", "it", "was", "is", "It is all mine,"),
    "mass": ("some", "it", "it", "was", "is", "It is all mine,"),
    "many": ("some", "them", "they", "were", "are", "They are all mine,"),
}
_IRREGULAR_PLURALS = {
    "wolf": "wolves",
    "mouse": "mice",
    "deer": "deer",
    "fox": "foxes",
    "foot": "feet",
    "hoof": "hooves",
}
# Snow does not go with gardens, butterflies and bare feet; a walk by night brings its own weather.
_WINTER_PLOTS = frozenset({"sick", "neighbor", "broken", "secret", "trick"})
_DARK_PLOTS = frozenset({"storm", "dark"})


@dataclass(frozen=True)
class Story:
    """One story and the facts behind it.

    `label` is 1 for a happy ending and 0 for any other.
    """

    text: str
    hero: str
    animal: str
    trait: str
    place: str
    object: str
    ending: str
    label: int
    plot: str
    friend: str


_SYNONYMS = {line.split("|")[0]: f"[{line}]" for line in _SHARED["synonyms"]["all"]}
_SYNONYM = re.compile(
    r"\b(?:" + "|".join(sorted(map(re.escape, _SYNONYMS), key=len, reverse=True)) + r")\b(?![\w}>])"
)


def _compiled(templates: Sequence[str], phrases: Block | None = None) -> tuple[Parts, ...]:
    varied = (
        _SYNONYM.sub(lambda match: _SYNONYMS[match.group()], template) for template in templates
    )
    return tuple(compile_template(template, phrases or PHRASES) for template in varied)


def _suited(templates: Sequence[str], trait: str, step: str) -> list[str]:
    """Return the templates that this trait can use.

    All but those that start with a list of other traits.
    """
    suited = []
    for template in templates:
        traits, _, rest = (
            template.partition(" ") if template.startswith("@") else ("", "", template)
        )
        if not traits or trait in traits[1:].split(","):
            named = step in ("setup", "trouble") and rest.startswith("{H} ")
            suited.append("{S} " + rest[4:] if named else rest)

    return suited


def _by_kind(templates: Sequence[str]) -> list[str]:
    """Begin a sentence with the hero's kind now and then: "the little fox"."""
    subject = "[{H}|{H}|{H}|the {kind}|the [little|young|poor] {kind}] "
    return [subject + text[4:] if text.startswith("{H} ") else text for text in templates]


_STEPS = {
    (plot.name, trait, step): _compiled(_suited(getattr(plot, step), trait, step))
    for plot in PLOTS
    for trait in plot.deeds
    for step in ("hooks", "setup", "trouble", "talk")
}
_TITLES = {plot.name: _compiled([plot.title]) for plot in PLOTS}
_DEEDS = {
    (plot.name, trait): _compiled(_by_kind(deeds))
    for plot in PLOTS
    for trait, deeds in plot.deeds.items()
}
_OUTCOMES = {
    (plot.name, trait, ending): _compiled(
        _by_kind(
            plot.outcomes.get(f"{trait} {ending}") or plot.outcomes[f"{TRAITS[trait]} {ending}"]
        )
    )
    for plot in PLOTS
    for trait in plot.deeds
    for ending in ("happy", "sad")
}

# how a hero is introduced, and feels at the end
_INTRODUCTIONS = {
    (trait, step): _compiled(lines, {**PHRASES, "habit": _SHARED["habits"][trait]})
    for trait in TRAITS
    for step, lines in _SHARED["introductions"].items()
}
_FEELINGS = {ending: _compiled(_by_kind(lines)) for ending, lines in _SHARED["feelings"].items()}
_LONELY_FEELINGS = {
    ending: _compiled([line for line in lines if "{F}" not in line])
    for ending, lines in _SHARED["feelings"].items()
}
_MORAL_LEADS = ("", "{H} learned that ", "and so we see: ")
_MORALS = {
    key: _compiled([lead + line for line in lines for lead in _MORAL_LEADS])
    for key, lines in _SHARED["morals"].items()
}

# what stands around the plot: the frame, the weather, details
_FRAMES = _compiled(_SHARED["frames"]["all"])
_SCENES = {
    name: _compiled(
        [f"{scene.format(name)} {line}" for scene in _SHARED["times"]["scene"] for line in lines]
    )
    for name, lines in _SHARED["weather"].items()
}
_DETAILS = _compiled(_SHARED["details"]["all"])
_THOUGHTS_OF = {trait: _compiled(lines) for trait, lines in _SHARED["thoughts"].items()}
_WHEN = _compiled(
    [f"it all began {time}." for which in ("weather", "plain") for time in _SHARED["times"][which]]
)

# what may be chosen together
_PLOTS_OF_TRAIT = {trait: tuple(plot for plot in PLOTS if trait in plot.deeds) for trait in TRAITS}
_THINGS_OF_PLOT = {
    plot.name: tuple(thing for thing in THINGS if set(plot.roles) & set(thing.roles))
    for plot in PLOTS
}
_TRAIT_NAMES = tuple(TRAITS)
_MILD_WEATHER = tuple(name for name in WEATHER if name not in ("snowy", "cold"))


def story(seed: int, index: int) -> Story:
    """Write story number `index` of the corpus `seed`, 60 to 150 words long."""
    uniform = random.Random(f"story/{seed}/{index}").random

    # twice as fast as random.choice, and the hot spot
    def pick(options: Sequence[Option]) -> Option:
        return options[int(uniform() * len(options))]

    happy = (zlib.crc32(f"ending/{seed}/{index // 2}".encode()) + index) % 2
    ending = "happy" if happy else "sad"
    plot, facts = _cast(uniform, pick)
    trait, weather = facts["trait"], facts["weather"]
    steps = _opening(plot, trait, weather, uniform, pick)
    steps.append((pick(_DEEDS[plot.name, trait]), False))

    if uniform() < 0.4:
        steps.append((pick(_THOUGHTS_OF[trait]), True))
    steps.append((pick(_OUTCOMES[plot.name, trait, ending]), False))
    texts = [(_capital(render(parts, facts, uniform)), spare) for parts, spare in steps]
    feelings = _FEELINGS if facts["F"] == facts["FN"] else _LONELY_FEELINGS
    texts.append((_capital(render(pick(feelings[ending]), facts, uniform)), False))

    if uniform() < 0.4:
        texts.append((_capital(render(pick(_MORALS[f"{trait} {ending}"]), facts, uniform)), True))
    return _told(tidy(_joined(texts)), facts, plot=plot.name, ending=ending)


def beginning(seed: int, index: int) -> Story:
    """Generate how a story begins, in 15 to 70 words, with an open ending.

    Who the hero is, and what it has or wants.

    Beginnings come from a stream of their own and are no stories of the corpus cut short.
    """
    uniform = random.Random(f"beginning/{seed}/{index}").random

    def pick(options: Sequence[Option]) -> Option:
        return options[int(uniform() * len(options))]

    plot, facts = _cast(uniform, pick)
    steps = (_INTRODUCTIONS[facts["trait"], "first"], _STEPS[plot.name, facts["trait"], "setup"])
    text = " ".join(_capital(render(pick(step), facts, uniform)) for step in steps)
    return _told(tidy(text), facts, plot=plot.name, ending="open")


def stories(seed: int, count: int) -> Iterator[Story]:
    """Yield stories 0 .. count - 1 of the corpus `seed`."""
    for index in range(count):
        yield story(seed, index)


def _cast(uniform: Callable[[], float], pick: Callable) -> tuple[Plot, dict[str, str]]:
    """Draw a plot and everything that its templates may ask for."""
    trait = pick(_TRAIT_NAMES)
    plot = pick(_PLOTS_OF_TRAIT[trait])
    kind, place, thing = pick(SPECIES), pick(PLACES), pick(_THINGS_OF_PLOT[plot.name])
    weather = pick(WEATHER if plot.name in _WINTER_PLOTS else _MILD_WEATHER)
    facts = _facts(kind, place, thing, pick)
    facts.update(trait=trait, weather=weather)

    facts["S"] = pick((facts["H"], facts["he"]))
    facts["title"] = render(pick(_TITLES[plot.name]), facts, uniform)
    return plot, facts


def _told(text: str, facts: dict[str, str], *, plot: str, ending: str) -> Story:
    return Story(
        text=text,
        hero=facts["H"],
        animal=facts["kind"],
        trait=facts["trait"],
        place=facts["place"],
        object=facts["o"],
        ending=ending,
        label=int(ending == "happy"),
        plot=plot,
        friend=facts["FN"],
    )


def _opening(
    plot: Plot, trait: str, weather: str, uniform: Callable[[], float], pick: Callable
) -> list[tuple[Parts, bool]]:
    """Return the steps before the deed, and whether each can be left out.

    In one of five orders.

    Scene first, hero first, in the middle of things, as a tale of others, or without any
    scene.
    """

    def step(name: str) -> tuple[Parts, bool]:
        return pick(_STEPS[plot.name, trait, name]), False

    introduction, again = pick(_INTRODUCTIONS[trait, "first"]), pick(_INTRODUCTIONS[trait, "again"])
    scene = [] if plot.name in _DARK_PLOTS else [(pick(_SCENES[weather]), True)]
    order = uniform()
    if order < 0.25:
        steps = [*scene, (introduction, False)]
    elif order < 0.5:
        steps = [(introduction, False), *scene]
    elif order < 0.7:
        steps = [step("hooks"), (again, False), *([(pick(_WHEN), False)] if scene else [])]
    elif order < 0.82:
        steps = [(pick(_FRAMES), False), (again, False)]
    else:
        steps = [(introduction, False)]

    detail = [(pick(_DETAILS), True)] if plot.name not in _DARK_PLOTS and uniform() < 0.35 else []
    steps += [step("setup"), *detail, step("trouble")]

    if uniform() < 0.55:
        steps.append(step("talk"))
    return steps


def _facts(kind: Species, place: Place, thing: Thing, pick: Callable) -> dict[str, str]:
    """Return words for every `{fact}` of the templates.

    The friend has the other pronoun, so that "he" is never in doubt.
    """
    hero_pronoun = pick(kind.pronouns)
    friend_pronoun = "she" if hero_pronoun == "he" else "he"
    friend_kind = pick(SPECIES)
    while friend_kind is kind or friend_pronoun not in friend_kind.pronouns:
        friend_kind = pick(SPECIES)

    # The order of these picks is part of the corpus: another order gives other stories.
    hero = pick(NAMES[hero_pronoun])
    friend = pick(NAMES[friend_pronoun])
    elder = pick(ELDERS)
    relative = pick(RELATIVES)

    he, him, his, himself, his_own = _PRONOUNS[hero_pronoun]
    fhe, fhim, fhis, fhimself, _ = _PRONOUNS[friend_pronoun]
    article, oit, ois, owas, oare, all_mine = _NUMBER_FORMS[thing.number]
    adjective = pick(thing.adjectives)
    first_spot = int(pick((0, 1, 2)))

    stranger = pick(
        (f"a {friend_kind.noun} [named] {friend}", f"{friend} the {friend_kind.noun}")
    ).replace("[named]", "named")
    known = pick(
        (
            f"{his} friend {friend} the {friend_kind.noun}",
            f"{friend} the {friend_kind.noun}",
            stranger,
        )
    )

    # the hero
    facts = {"H": hero, "HN": hero, "he": he, "him": him, "his": his}
    facts.update(self=himself, his_own=his_own)
    facts.update(kind=kind.noun, kinds=_plural(kind.noun), home=kind.home, went=kind.went)
    facts.update(limb=kind.limb, limbs=_plural(kind.limb))

    # the others: a friend, and who is older
    facts.update(F=known, FX=stranger, FN=friend, fhe=fhe, fhim=fhim, fhis=fhis, fhimself=fhimself)
    facts.update(fkind=friend_kind.noun, fhome=friend_kind.home)
    facts.update(
        E=f"an old {elder}", EN=f"the {elder}", his_elder=pick(("his", "her")), kin=relative
    )

    # where
    facts.update(
        place=place.noun, at=f"{place.at} the {place.noun}", to=f"{place.to} the {place.noun}"
    )
    facts.update(
        the_place=f"the {place.noun}",
        from_place=pick(("from the sea", "over the hills", "from the north")),
    )
    facts.update(
        from_far=pick(
            ("from across the sea", "from a big city", "from the other side of the hills")
        )
    )

    facts.update(spot=place.spots[first_spot], spot2=place.spots[(first_spot + 1) % 3])

    # the thing, whose number its verbs and pronouns follow
    facts.update(
        a=f"{article} {adjective} {thing.noun}", o=thing.noun, oa=f"{adjective} {thing.noun}"
    )
    facts.update(oit=oit, ois=ois, owas=owas, oare=oare, all_mine=all_mine)

    return facts


def _joined(texts: list[tuple[str, bool]]) -> str:
    """Join the steps to at most LONGEST words, leaving out spare ones from the end.

    Spare ones are scenery, thoughts and morals.
    """
    words = sum(text.count(" ") + 1 for text, _ in texts)
    for position in range(len(texts) - 1, -1, -1):
        if words > LONGEST and texts[position][1]:
            words -= texts.pop(position)[0].count(" ") + 1
    return " ".join(text for text, _ in texts)


def _plural(noun: str) -> str:
    return _IRREGULAR_PLURALS.get(noun, noun + "s")


def _capital(text: str) -> str:
    position = 1 if text.startswith('"') else 0
    return text[:position] + text[position : position + 1].upper() + text[position + 1 :]
