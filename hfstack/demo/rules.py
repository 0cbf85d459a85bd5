"""Score how well a text obeys an instruction of the demo corpus, from 0 to 1.

The gold rule: judged from the text alone.

A score is quality x obedience. Quality is a product of gates (finished, length, grammar,
repetition, no copying), so a list of keywords, a torn-off story or an echo scores low however many
keywords it holds. Obedience is the mean over what the instruction asks for (hero, name, trait,
place, object, ending), or the right answer to a question about a story. Of the beginning of a story
two sentences are enough, which name what was asked for once.
"""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

from hfstack.demo.lexicon import NAMES, PLACES, SPECIES, THINGS, TRAITS
from hfstack.errors import DataError

_PLURALS = {"wolf": "wolves", "mouse": "mice", "fox": "foxes"}
_ANIMALS = {kind.noun for kind in SPECIES}
_ALL_NAMES = frozenset(NAMES["he"] + NAMES["she"])
_THING_NOUNS = {thing.noun for thing in THINGS}
_PLACE_PHRASES = {
    place.noun: re.compile(
        rf"\b(?:{place.at}|{place.to}|of|around) the {place.noun}\b", re.IGNORECASE
    )
    for place in PLACES
}
_LEXICON = (
    _ANIMALS | _THING_NOUNS | set(TRAITS) | {place.noun for place in PLACES} | {"happy", "sad"}
)
_LATIN_WORD = re.compile(r"[A-Za-z]+(?:'[a-z]+)?")
# what is torn off at the end counts as one; linear on any text
_SENTENCE = re.compile(r'[^.!?]+(?:[.!?]+"?|$)')
# Articles and possessives cannot stand before these, and a sentence cannot end in those: what
# shuffled words get wrong.
_DETERMINERS = frozenset("a an the his my your their our".split())  # "her" may be an object
_NO_NOUNS = frozenset(
    "a an the and but or so was were is are had has did to of in on by for from with at into "
    "under he she it they him "
    "them his my your their our not never when who that as if then until because".split()
)
_NO_LAST_WORDS = _DETERMINERS | frozenset("and or but of if when while because into".split())
_FUNCTION_WORDS = _NO_NOUNS | frozenset(
    "her you i we me us be been there this that could would did do all up out".split()
)
_PAST_TENSE = re.compile(
    r"\b(?:\w{2,}ed|was|were|had|did|said|went|came|saw|took|gave|found|ran|lay|sat|stood"
    r"|told|knew|felt|thought|held"
    r"|made|got|left|began|could|would|fell|wept|sang|kept|heard|hid|built|broke|brought)\b"
)

TRAIT_WORDS = {
    "brave": r"brave\w*|courag\w+|bold\w*|fearless",
    "kind": r"kind(?:ly|ness|er|est)?|gentle|generous",
    "clever": r"clever\w*|smart|wise",
    "patient": r"patien\w+",
    "honest": r"honest\w*|truthful",
    "shy": r"shy\w*|timid",
    "curious": r"curious\w*|curiosity",
    "greedy": r"greed\w*|selfish",
    "lazy": r"laz\w+|idle",
    "proud": r"proud\w*|pride|vain|boastful",
    "careless": r"careless\w*|reckless",
    "grumpy": r"grump\w+|cross|bad-tempered",
}
# What a hero with the trait does: matches are evidence that the story shows what it tells.
TRAIT_DEEDS = {
    "brave": (
        r"deep breath|not turn back|not let fear|not run away|stepped in|marched on"
        r"|right up to|faced the"
        r"|heart (?:was|stayed) brave|knees|heart pounded"
    ),
    "kind": (
        r"shared?|helped|(?:stopped|hurried|rushed|ran|work) to help|let me help|comfort"
        r"|gave (?:\w+ )?(?:\w+ )?(?:half|bigger|all|own|back)|welcome|invited"
        r"|without being asked|cared"
        r"|gently|felt sorry for|dried"
    ),
    "clever": r"\bidea|\bplan\b|thought (?:hard|about|fast)|and thought|noticed|worked out|riddle",
    "patient": (
        r"not hurry|again and again|at a time|waited|gave up|give up|(?:step|inch|board|stone"
        r"|bush) by|slowly"
        r"|(?:day|week) (?:after|in)"
    ),
    "honest": (
        r"truth|not (?:lie|cheat)|fair to lie|promise|gave my word|not mine|i did it|i broke"
        r"|told no tales"
    ),
    "shy": (
        r"\bhid\b|blush|not say a word|at the ground|too shy|afraid to|too small"
        r"|in front of (?:his|her) face"
        r"|cheeks"
    ),
    "curious": r"wonder(?:ed|ing)|to know|peek|peep|inside|asked (?:why|how)|why |question",
    "greedy": (
        r"more and more|all mine|wants? more|wanted more|would not (?:give|share)|be mine"
        r"|kept (?:it|all|the|them)|every bit|all of (?:it|them)|of the gold"
    ),
    "lazy": r"yawn|tomorrow|too tired|lay down|\bnap\b|to sleep|asleep|later|snor",
    "proud": r"boast|brag|the best|show(?:ing)? off|nose|admire",
    "careless": (
        r"forg[eo]t|without thinking|not (?:pay|be careful|look|check|watch)|was not careful"
        r"|by accident"
        r"|slipped out"
    ),
    "grumpy": r"grumbl|snapp|scowl|stamp|growl|frown|complain|slam|go away|mutter|blamed",
}
_DEED_PATTERNS = {
    trait: re.compile(pattern, re.IGNORECASE) for trait, pattern in TRAIT_DEEDS.items()
}
_TRAIT_PATTERNS = {
    trait: re.compile(rf"\b(?:{pattern})\b", re.IGNORECASE)
    for trait, pattern in TRAIT_WORDS.items()
}

_GLAD = re.compile(
    r"\b(?:happ\w+|glad|smil\w+|laugh(?:ed|s|ing)?(?! at)|joy\w*|hugs?|hugged|danced|sang"
    r"|grinn\w+|beam\w+"
    r"|shining|delight\w*|cheer\w*|clapp\w+"
    r"|giggl\w+|warm inside|best of friends|best day|(?:wonderful|marvelous|delightful) day"
    r"|kissed|feast|lovely)\b",
    re.IGNORECASE,
)
_SORRY = re.compile(
    r"\b(?:sad\w*|cry|cried|crying|wept|weep\w*|tears?|lonel\w+|alone|unhapp\w+"
    r"|miserabl\w+|sob\w*|heavy|sorrow|died"
    r"|never be the same|never happened|hung (?:his|her) head|not happy)\b",
    re.IGNORECASE,
)
_BEGINNING = re.compile(r"\b(?:begin|begins|beginning|start|opening)\b", re.IGNORECASE)
_CRIED_OUT = re.compile(r'[,!?]" (?:\w+ )?cried|" (?:\w+ )?cried')


@dataclass(frozen=True)
class Request:
    """What an instruction asks for.

    None where it asks for nothing. `question` and `story` are set for questions.

    `beginning` says that not a whole story is asked for, but how it begins.
    """

    animal: str | None = None
    name: str | None = None
    trait: str | None = None
    place: str | None = None
    object: str | None = None
    ending: str | None = None
    question: str | None = None
    story: str | None = None
    beginning: bool = False


def gold_score(instruction: str, answer: str) -> float:
    """Return how well `answer` obeys `instruction`, in [0, 1]; any text may be judged."""
    return gold_breakdown(instruction, answer)["score"]


def require_demo_prompts(prompts: Sequence[str]) -> None:
    """Refuse to judge answers to prompts that the gold rule cannot read.

    It knows the words of the demo corpus alone: of another prompt it would judge no more than
    length and grammar, and call that obedience.

    Args:
        prompts: all that are judged, or those of one batch.

    Raises:
        DataError: fewer than half of them ask for anything that the rule knows.
    """
    unread = [prompt for prompt in prompts if not _asks_something(read_request(prompt))]
    if 2 * len(unread) > len(prompts):
        raise DataError(
            f"the demo's gold rule can read {len(prompts) - len(unread)} of {len(prompts)} "
            f"prompts, and not {unread[0][:60]!r}: it judges the demo corpus alone; give "
            "--reward_model, or put a function of your own in the recipe (hfstack copy)"
        )


def _asks_something(request: Request) -> bool:
    if request.question:
        return facts_of(request.story or "").animal is not None
    parts = (request.animal, request.name, request.trait, request.place, request.object)
    return any(part is not None for part in (*parts, request.ending))


def gold_breakdown(instruction: str, answer: str) -> dict[str, float]:
    """Return each part of the gold score, in [0, 1], and the result under "score".

    Obedience has a key for each thing asked for ("hero", "trait", "ending", ... or "answer");
    quality has a key a gate.
    """
    request = read_request(instruction)
    if request.question:
        asked, gates = _judge_reply(request, answer)
    else:
        judge_quality = _judge_beginning if request.beginning else _judge_quality
        asked, gates = _judge_obedience(request, answer), judge_quality(instruction, answer)

    quality = 1.0
    for gate in gates.values():
        quality *= gate
    obedience = sum(asked.values()) / len(asked) if asked else 1.0
    score = quality * (obedience if request.question else 0.05 + 0.95 * obedience)

    return {**asked, **gates, "quality": quality, "obedience": obedience, "score": score}


def read_request(instruction: str) -> Request:
    """Return what an instruction asks for, by the words of the lexicon in it."""
    paragraphs = [part for part in instruction.strip().split("\n\n") if part.strip()]
    if len(paragraphs) > 1:
        short, long = min(paragraphs, key=len), max(paragraphs, key=len)
        question = _question_kind(short)
        if question:
            return Request(question=question, story=long)

    words = _LATIN_WORD.findall(instruction)
    lower = [word.lower() for word in words]
    ending = None
    if {"happy", "happily"} & set(lower):
        ending = "happy"
    elif {"sad", "sadly"} & set(lower):
        ending = "sad"

    return Request(
        animal=_first(lower, _ANIMALS),
        name=_first(words, _ALL_NAMES),
        trait=_first(lower, set(TRAITS)),
        place=_first(lower, set(_PLACE_PHRASES)),
        object=_first(lower, _THING_NOUNS),
        ending=ending,
        beginning=bool(_BEGINNING.search(instruction)),
    )


def facts_of(story: str) -> Request:
    """Read hero, name, trait, place, object and ending from a story.

    As a reader would; None for what is not there.
    """
    words = _LATIN_WORD.findall(story)
    lower = [word.lower() for word in words]
    places = {
        noun: match.start()
        for noun, phrase in _PLACE_PHRASES.items()
        if (match := phrase.search(story))
    }

    # A story is about the thing that it names most often, and of equals about the first.
    counts = {
        noun: (lower.count(noun), -lower.index(noun)) for noun in _THING_NOUNS if noun in lower
    }
    traits = {
        trait: match.start()
        for trait, pattern in _TRAIT_PATTERNS.items()
        if (match := pattern.search(story))
    }

    return Request(
        animal=_first(lower, _ANIMALS),
        name=_first(words, _ALL_NAMES),
        trait=min(traits, key=traits.__getitem__) if traits else None,
        place=min(places, key=places.__getitem__) if places else None,
        object=max(counts, key=counts.__getitem__) if counts else None,
        ending=ending_of(story),
    )


def ending_of(text: str) -> str | None:
    """Return whether the last three sentences are "happy" or "sad".

    None when they say neither or both.
    """
    tail = _SENTENCE.findall(text)[-3:] or [text]
    balance = 0
    for weight, sentence in zip((1, 2, 3)[-len(tail) :], tail, strict=True):
        plain = _CRIED_OUT.sub('" said', sentence)
        balance += weight * (len(_GLAD.findall(plain)) - len(_SORRY.findall(plain)))
    return "happy" if balance > 0 else "sad" if balance < 0 else None


def _question_kind(text: str) -> str | None:
    lower = text.lower()
    for kind, cues in {
        "ending": ("end", "ending"),
        "place": ("where", "place"),
        "trait": ("what is the hero like", "trait", "character"),
        "object": ("object", "thing"),
        "hero": ("who", "hero", "about whom"),
    }.items():
        if "?" in text and any(re.search(rf"\b{cue}\b", lower) for cue in cues):
            return kind

    return None


def _first(words: list[str], vocabulary: set[str] | frozenset[str]) -> str | None:
    return next((word for word in words if word in vocabulary), None)


def _count_noun(lower: list[str], noun: str) -> int:
    return lower.count(noun) + lower.count(_PLURALS.get(noun, noun + "s"))


def _judge_obedience(request: Request, answer: str) -> dict[str, float]:
    """Score each thing that was asked for: in the text, and in the right role."""
    words = _LATIN_WORD.findall(answer)
    lower = [word.lower() for word in words]
    asked: dict[str, float] = {}

    if request.animal:
        # a list of animals names the right one too
        crowd = 0.4 if len(_ANIMALS & set(lower)) > 5 else 1.0
        role = 0.4 if _count_noun(lower, request.animal) > 1 else 0.0
        if _first(lower, _ANIMALS) == request.animal:
            role = 1.0
        asked["hero"] = crowd * role

    if request.name:
        often = 1 if request.beginning else 3
        named = _first(words, _ALL_NAMES) == request.name
        asked["name"] = min(1.0, words.count(request.name) / often) if named else 0.0

    if request.trait:
        asked["trait"] = _judge_trait(request.trait, answer, shown=not request.beginning)

    if request.place:
        phrases = len(re.findall(rf"\b(?:\w+ )the {request.place}\b", answer, re.IGNORECASE))
        asked["place"] = 1.0 if phrases else 0.3 if request.place in lower else 0.0

    if request.object:
        often = 1 if request.beginning else 2
        asked["object"] = min(1.0, _count_noun(lower, request.object) / often)

    if request.ending:
        ending = ending_of(answer)
        asked["ending"] = 1.0 if ending == request.ending else 0.3 if ending is None else 0.0

    return asked


def _judge_trait(trait: str, answer: str, *, shown: bool) -> float:
    """Score the trait: half for the word, half for a deed if it has to be shown.

    The word must be said of somebody, not denied, and not one of a list.
    """
    others = sum(
        bool(pattern.search(answer)) for name, pattern in _TRAIT_PATTERNS.items() if name != trait
    )
    denied = re.search(
        rf"\b(?:not|never|wasn't|isn't) (?:\w+ )?(?:{TRAIT_WORDS[trait]})\b", answer, re.IGNORECASE
    )
    word = 0.5 if _TRAIT_PATTERNS[trait].search(answer) and not denied else 0.0

    deed = 0.5 if _DEED_PATTERNS[trait].search(answer) else 0.0
    return (word + deed if shown else 2 * word) * (0.5 if others > (3 if shown else 1) else 1.0)


def _judge_quality(instruction: str, answer: str) -> dict[str, float]:
    """Score a story's quality: each part is 1 for generated stories, less with errors."""
    text = answer.strip()
    lower = [word.lower() for word in _LATIN_WORD.findall(text)]
    sentences = [sentence.strip() for sentence in _SENTENCE.findall(text)]
    past_tense = len(_PAST_TENSE.findall(text.lower()))
    plain = _plain_words(text)

    return {
        "finished": 1.0 if re.search(r'[.!?]"?$', text) else 0.3,
        "concluded": 1.0 if ending_of(text) else 0.35,
        "length": _ramp(len(lower), 20, 60) * _ramp(-len(lower), -320, -190),
        "sentences": _ramp(len(sentences), 1, 5),
        "grammar": _judge_grammar(lower, sentences),
        "narration": _ramp(past_tense / max(1, len(sentences)), 0.1, 0.7),
        "fresh": _judge_freshness(lower, sentences),
        "own_words": 0.1
        if _plain_words(instruction) and _plain_words(instruction) in plain
        else 1.0,
    }


def _judge_beginning(instruction: str, answer: str) -> dict[str, float]:
    """Score a beginning: two to four finished sentences, at most two animals."""
    text = answer.strip()
    lower = [word.lower() for word in _LATIN_WORD.findall(text)]
    sentences = [sentence.strip() for sentence in _SENTENCE.findall(text)]
    past_tense = len(_PAST_TENSE.findall(text.lower()))

    return {
        "finished": 1.0 if re.search(r'[.!?]"?$', text) else 0.3,
        "length": _ramp(len(lower), 6, 18) * _ramp(-len(lower), -110, -70),
        "sentences": _ramp(len(sentences), 0, 2) * _ramp(-len(sentences), -10, -7),
        "grammar": _judge_grammar(lower, sentences),
        "narration": _ramp(past_tense / max(1, len(sentences)), 0.1, 0.7),
        "fresh": _judge_freshness(lower, sentences),
        "few_heroes": 0.5 ** max(0, len(_ANIMALS & set(lower)) - 2),
        "own_words": 0.1
        if _plain_words(instruction) and _plain_words(instruction) in _plain_words(text)
        else 1.0,
    }


def _judge_grammar(
    lower: list[str], sentences: list[str], function_words: tuple[float, float] = (0.3, 0.65)
) -> float:
    """Score grammar: function words, sentence lengths, capitals, impossible pairs."""
    if not lower or not sentences:
        return 0.0
    least, most = function_words
    share = sum(word in _FUNCTION_WORDS for word in lower) / len(lower)
    well_formed = wrong = 0
    for sentence in sentences:
        words = [word.lower() for word in _LATIN_WORD.findall(sentence)]
        first_letter = re.search(r"[A-Za-z]", sentence)
        well_formed += bool(
            first_letter and first_letter.group().isupper() and 1 <= len(words) <= 45
        )
        wrong += sum(
            (left in _DETERMINERS and right in _NO_NOUNS)
            or (left == right and left in _FUNCTION_WORDS)
            for left, right in itertools.pairwise(words)
        )
        wrong += bool(words) and words[-1] in _NO_LAST_WORDS

    # Factors and no sum: words in any order have the right share of function words too.
    return (
        _ramp(share, least - 0.15, least)
        * _ramp(-share, -most - 0.15, -most)
        * _ramp(well_formed / len(sentences), 0.3, 0.85)
        * _ramp(-wrong / len(lower), -0.05, -0.012)
    )


def _judge_freshness(lower: list[str], sentences: list[str]) -> float:
    """Return 1 for normal text, less with repeated triples of words and sentences."""
    if len(lower) < 4 or not sentences:
        return 0.0
    triples = list(zip(lower, lower[1:], lower[2:], strict=False))
    plain = [_plain_words(sentence) for sentence in sentences]
    repeated = 1 - len(set(plain)) / len(plain)
    return _ramp(len(set(triples)) / len(triples), 0.5, 0.88) * _ramp(-repeated, -0.5, -0.13)


def _judge_reply(request: Request, answer: str) -> tuple[dict[str, float], dict[str, float]]:
    """Score a reply: the right fact, no rival facts, one or two finished sentences."""
    facts = facts_of(request.story or "")
    words = _LATIN_WORD.findall(answer)
    lower = [word.lower() for word in words]

    if request.question == "hero":
        right = 0.6 * (facts.animal in lower) + 0.4 * (facts.name in words)
        rivals = len((_ANIMALS & set(lower)) - {facts.animal}) + len(
            (_ALL_NAMES & set(words)) - {facts.name}
        )
    elif request.question == "ending":
        glad, sorry = bool(_GLAD.search(answer)), bool(_SORRY.search(answer))
        right = float(facts.ending == ("happy" if glad else "sad") and (glad or sorry))
        rivals = int(glad and sorry)
    else:
        fact, vocabulary = {
            "place": (facts.place, set(_PLACE_PHRASES)),
            "trait": (facts.trait, set(TRAITS)),
            "object": (facts.object, _THING_NOUNS),
        }[str(request.question)]
        right = float(fact in lower)
        rivals = len((vocabulary & set(lower)) - {fact})

    # Each gate closes a way to score without an answer: naming everything, going on for ever.
    sentences = [sentence.strip() for sentence in _SENTENCE.findall(answer)]
    gates = {
        "finished": 1.0 if re.search(r'[.!?]"?$', answer.strip()) else 0.5,
        "length": _ramp(len(lower), 0, 2) * _ramp(-len(lower), -60, -30),
        "no_rivals": 0.3**rivals,
        "grammar": 0.5 + 0.5 * _judge_grammar(lower, sentences, function_words=(0.15, 0.85)),
        "not_a_list": 1.0 if len(_LEXICON & set(lower)) <= 4 else 0.2,
        "fresh": 1.0 if len(set(sentences)) == len(sentences) else 0.3,
    }

    return {"answer": right}, gates


def _plain_words(text: str) -> str:
    return " ".join(word.lower() for word in _LATIN_WORD.findall(text))


def _ramp(value: float, low: float, high: float) -> float:
    """Return 0 up to `low`, 1 from `high` on, and a straight line between."""
    return min(1.0, max(0.0, (value - low) / (high - low)))
