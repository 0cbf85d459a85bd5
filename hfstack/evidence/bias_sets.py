"""Read CrowS-Pairs, WinoBias, Winogender, BBQ and a user's own pairs."""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hfstack.data.sources import Source, SourceLog, iterate_rows
from hfstack.errors import DataError

_FEMALE = frozenset({"she", "her", "hers", "herself"})
_MALE = frozenset({"he", "him", "his", "himself"})
_NEUTRAL = frozenset({"they", "them", "their", "theirs", "themselves", "themself"})
_WORD_OF_TEMPLATE = re.compile(r"[^\W\d_]+")

# What a file is recognised by. Names of the authors' own files come after those of copies.
_CROWS = frozenset({"sent_more", "sent_less"})
_WINOBIAS = frozenset({"pro_text", "anti_text"})
_WINOGENDER = (frozenset({"text", "occupation", "gender"}), frozenset({"sentid", "sentence"}))
_STATISTICS = frozenset({"occupation", "bls_pct_female"})
_BBQ = frozenset({"context", "question", "ans0", "ans1", "ans2", "label"})
_DIRECTIONS = ("stereo", "antistereo")


@dataclass(frozen=True)
class SentencePair:
    """Two sentences that differ in whom they are about.

    Args:
        first: the more stereotyped one; of Winogender, the one with the female pronoun.
        direction: of CrowS, whether it states a stereotype or its opposite.
        occupation: of Winogender, whose stereotype is looked at.
    """

    first: str
    second: str
    category: str
    direction: str = "stereo"
    occupation: str = ""


@dataclass(frozen=True)
class BiasQuestion:
    """A question of BBQ with three answers, one of which is that nobody can know.

    Args:
        label: index of the right answer.
        unknown: index of the answer that says so.
        target: index of the answer that a stereotype would give, None where the row does not say;
            whether it is right has nothing to do with it.
        target_group: whom the stereotype is about.
        template: rows of one template differ in names and words.
    """

    text: str
    answers: tuple[str, str, str]
    label: int
    unknown: int
    target: int | None
    target_group: str
    category: str
    ambiguous: bool
    template: str


@dataclass
class BiasSets:
    """The rows of all files, by the set that they belong to."""

    pairs: dict[str, list[SentencePair]] = field(default_factory=dict)
    questions: list[BiasQuestion] = field(default_factory=list)
    female_share: dict[str, float] = field(default_factory=dict)
    """Occupation -> share of women in it."""


def read_bias_sets(
    sources: Sequence[Source],
    *,
    pair_columns: Sequence[str] = (),
    category_column: str = "category",
    log: SourceLog | None = None,
) -> BiasSets:
    """Return the rows of each file as the set that its columns say.

    Args:
        sources: files of the sets, of Winogender's statistics, or of pairs of one's own.
        pair_columns: names of the columns of such pairs, the more stereotyped sentence first.
        category_column: of such pairs, where there is one.
        log: gets the files and the number of rows of each source.

    Raises:
        DataError: a file is of no known set, or a row lacks what its set needs.
    """
    found = BiasSets()
    for source in sources:
        rows = list(iterate_rows([source], log=log))
        if not rows:
            raise DataError(f"{source.path} has no rows")
        columns = set().union(*rows)
        place = source.path

        if pair_columns and set(pair_columns) <= columns:
            more, less = pair_columns
            pairs = [
                SentencePair(
                    _text_of_key(row, more, place, number),
                    _text_of_key(row, less, place, number),
                    str(row.get(category_column) or "all"),
                )
                for number, row in enumerate(rows, 1)
            ]
            found.pairs.setdefault("pairs", []).extend(pairs)

        # the published sets
        elif columns >= _CROWS:
            found.pairs.setdefault("crows_pairs", []).extend(_read_crows(rows, place))
        elif columns >= _WINOBIAS:
            pairs = [
                SentencePair(
                    _text_of_key(row, "pro_text", place, number),
                    _text_of_key(row, "anti_text", place, number),
                    str(row.get("type") or "all"),
                )
                for number, row in enumerate(rows, 1)
            ]
            found.pairs.setdefault("winobias", []).extend(pairs)

        elif columns >= _BBQ:
            found.questions += [
                _read_bbq_question(row, place, number) for number, row in enumerate(rows, 1)
            ]
        elif columns >= _STATISTICS:
            found.female_share |= _read_statistics(rows, place)
        elif any(columns >= names for names in _WINOGENDER):
            found.pairs.setdefault("winogender", []).extend(_read_winogender(rows, place))
        else:
            named = f" and no {' and '.join(pair_columns)}" if pair_columns else ""
            raise DataError(
                f"{place} is none of CrowS-Pairs, WinoBias, Winogender and BBQ: it has the columns "
                f"{', '.join(sorted(columns))}{named}; name the columns of your own pairs with "
                "--pair_columns MORE LESS"
            )

    if not found.pairs and not found.questions:
        raise DataError("the datasets hold statistics of occupations and nothing to measure")
    return found


def pronoun_gender(text: str) -> str | None:
    """Return the gender of a text's first pronoun: female, male, neutral, or None."""
    for word in _WORD_OF_TEMPLATE.findall(text.lower()):
        for gender, words in (("female", _FEMALE), ("male", _MALE), ("neutral", _NEUTRAL)):
            if word in words:
                return gender
    return None


def before_the_difference(pair: SentencePair) -> tuple[str, str, str]:
    """Return the words that both sentences begin with, and what follows in each."""
    first, second = pair.first.split(" "), pair.second.split(" ")
    shared = 0
    while shared < min(len(first), len(second)) and first[shared] == second[shared]:
        shared += 1
    return " ".join(first[:shared]), " ".join(first[shared:]), " ".join(second[shared:])


def _read_crows(rows: Sequence[Mapping[str, Any]], place: str) -> list[SentencePair]:
    pairs = []
    for number, row in enumerate(rows, 1):
        direction = str(row.get("stereo_antistereo") or "stereo")
        if direction not in _DIRECTIONS:
            raise DataError(
                f"{place}, row {number}: stereo_antistereo is {direction!r}, neither "
                f"{' nor '.join(_DIRECTIONS)}"
            )
        more, less = (_text_of_key(row, name, place, number) for name in ("sent_more", "sent_less"))
        pairs.append(SentencePair(more, less, str(row.get("bias_type") or "all"), direction))
    return pairs


def _read_winogender(rows: Sequence[Mapping[str, Any]], place: str) -> list[SentencePair]:
    """Return a pair for each sentence that there is with a female and a male pronoun."""
    sentences: dict[tuple[str, str, str], dict[str, str]] = defaultdict(dict)
    for number, row in enumerate(rows, 1):
        if row.get("sentid"):  # technician.customer.1.male.txt
            parts = str(row["sentid"]).split(".")
            if len(parts) < 4:
                raise DataError(
                    f"{place}, row {number}: sentid is {row['sentid']!r}, not "
                    "occupation.participant.answer.gender.txt"
                )
            occupation, participant, answer, gender = parts[:4]
            text = _text_of_key(row, "sentence", place, number)
        else:
            names = ("occupation", "participant", "answer", "gender")
            occupation, participant, answer, gender = (str(row.get(name, "")) for name in names)
            text = _text_of_key(row, "text", place, number)
        sentences[occupation, participant, answer][gender] = text

    pairs = [
        SentencePair(
            texts["female"],
            texts["male"],
            "occupation" if answer == "0" else "participant",
            occupation=occupation,
        )
        for (occupation, _, answer), texts in sentences.items()
        if {"female", "male"} <= texts.keys()
    ]
    if not pairs:
        raise DataError(f"{place}: no sentence is there with a female and a male pronoun")
    return pairs


def _read_statistics(rows: Sequence[Mapping[str, Any]], place: str) -> dict[str, float]:
    shares = {}
    for number, row in enumerate(rows, 1):
        try:
            shares[str(row["occupation"])] = float(row["bls_pct_female"]) / 100
        except (KeyError, TypeError, ValueError):
            raise DataError(
                f"{place}, row {number}: bls_pct_female is {row.get('bls_pct_female')!r}, not a "
                "percentage"
            ) from None
    return shares


def _read_bbq_question(row: Mapping[str, Any], place: str, number: int) -> BiasQuestion:
    """Return a row of BBQ, as its authors or a flat copy write it."""
    answers = tuple(_text_of_key(row, f"ans{index}", place, number) for index in range(3))
    info, metadata = row.get("answer_info") or {}, row.get("additional_metadata") or {}
    groups = row.get("answer_groups") or [
        (info.get(f"ans{index}") or [""])[-1] for index in range(3)
    ]
    stereotyped = row.get("stereotyped_groups") or metadata.get("stereotyped_groups") or []

    label, condition = row.get("label"), str(row.get("context_condition"))
    polarity = str(row.get("question_polarity"))
    if label not in (0, 1, 2) or condition not in ("ambig", "disambig"):
        raise DataError(
            f"{place}, row {number}: label {label!r} is not 0, 1 or 2, or context_condition "
            f"{condition!r} is neither ambig nor disambig"
        )
    if polarity not in ("neg", "nonneg") or len(groups) != 3 or "unknown" not in groups:
        raise DataError(
            f"{place}, row {number}: question_polarity is {polarity!r} (neg or nonneg), and the "
            f"groups of the answers are {groups}, of which one has to be unknown"
        )

    # A stereotype answers a negative question with its group, and another one with who is not it.
    unknown = list(groups).index("unknown")
    named = _stereotyped_answer(answers, groups, stereotyped, unknown)
    target = named
    if named is not None and polarity == "nonneg":
        target = 3 - unknown - named

    category = str(row.get("category") or "all")
    context, question = (_text_of_key(row, name, place, number) for name in ("context", "question"))
    text = f"{context}\n{question}"
    return BiasQuestion(
        text=f"{text}\nAnswer:",
        answers=(answers[0], answers[1], answers[2]),
        label=int(label),
        unknown=unknown,
        target=target,
        target_group="" if named is None else str(groups[named]),
        category=category,
        ambiguous=condition == "ambig",
        template=f"{category} {row.get('question_index', number)}",
    )


def _stereotyped_answer(
    answers: Sequence[str], groups: Sequence[str], stereotyped: Sequence[str], unknown: int
) -> int | None:
    """Return the answer whose group is stereotyped, by the group's name or its text."""
    names = [str(name).lower() for name in stereotyped]
    people = [index for index in range(3) if index != unknown]
    by_group = [index for index in people if str(groups[index]).lower() in names]
    by_text = [
        index
        for index in people
        if any(re.search(rf"\b{re.escape(name)}\b", answers[index].lower()) for name in names)
    ]
    return next((found[0] for found in (by_group, by_text) if len(found) == 1), None)


def _text_of_key(row: Mapping[str, Any], column: str, place: str, number: int) -> str:
    value = row.get(column)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{place}, row {number}: {column} is {value!r}, not a text")
    return value
