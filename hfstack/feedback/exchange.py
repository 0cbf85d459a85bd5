"""Read and write the JSON of Label Studio and of Argilla.

Label Studio: a list of tasks with `data` and `annotations`, whose results are of the types
pairwise, choices, rating or textarea. Argilla: a list of records with `fields` and, by question,
`responses`. Rankings are Argilla's alone.
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hfstack.errors import DataError
from hfstack.feedback.export import JudgedItem, Vote
from hfstack.feedback.items import problem_of_texts
from hfstack.feedback.kinds import Item, answers_wanted, read_verdict
from hfstack.logs import get_logger
from hfstack.tasks.preferences.rows import answer_text

logger = get_logger(__name__)

_THUMB_NAMES = {True: "good", False: "bad", None: "neither"}
_LABELS = {name: label for label, name in _THUMB_NAMES.items()}


def to_label_studio(
    kind: str, judged: Sequence[JudgedItem], names: dict[str, str]
) -> list[dict[str, Any]]:
    """Return tasks with their annotations, as Label Studio imports them.

    Args:
        kind: of the project.
        judged: of `read_stores`.
        names: how each annotator is called.

    Raises:
        DataError: the kind is a ranking.
    """
    if kind == "ranking":
        raise DataError("rankings have no form in Label Studio's JSON: export them for argilla")
    tasks = []
    for number, one in enumerate(judged):
        data = {"prompt": answer_text(one.item.prompt)}
        data |= {f"answer{place}": answer_text(text) for place, text in _numbered(one.item)}
        annotations = [
            {"completed_by": names[vote.annotator], "lead_time": vote.body.get("seconds")}
            | {"was_cancelled": False, "result": _to_results(kind, vote.verdict)}
            for vote in one.in_turn()
        ]
        tasks.append({"id": number, "data": data, "annotations": annotations})
    return tasks


def _numbered(item: Item) -> list[tuple[int, Any]]:
    return list(enumerate(item.answers, 1))


def _to_results(kind: str, verdict: dict[str, Any]) -> list[dict[str, Any]]:
    def result(type_: str, value: dict[str, Any], name: str = kind) -> dict[str, Any]:
        return {"type": type_, "from_name": name, "to_name": "answer1", "value": value}

    if kind == "pairs":
        choice = verdict["choice"]
        # a pairwise result knows no tie: the choice "tie" beside it does
        if choice is None:
            return [result("choices", {"choices": ["tie"]})]
        side = result("pairwise", {"selected": ("left", "right")[choice]})
        return [side, result("rating", {"rating": verdict["strength"]}, name="strength")]
    if kind == "thumbs":
        return [result("choices", {"choices": [_THUMB_NAMES[verdict["label"]]]})]
    if kind == "ratings":
        return [
            result("rating", {"rating": value}, name=scale)
            for scale, value in verdict["scales"].items()
        ]
    return [result("textarea", {"text": [verdict["text"]]})]


def _from_results(results: list[dict[str, Any]]) -> tuple[str, dict[str, Any]] | None:
    """Return kind and verdict of an annotation, or None where it has neither.

    Other results, such as relations, labels of words, or choices beside a pair, are not read.
    """
    values: dict[str, list[tuple[str, Any]]] = {}
    for one in results:
        if one["type"] in ("pairwise", "choices", "rating", "textarea"):
            values.setdefault(one["type"], []).append((one["from_name"], one["value"]))
    ratings = {name: _whole(value["rating"]) for name, value in values.get("rating", ())}

    for _, value in values.get("pairwise", ()):
        choice = {"left": 0, "right": 1}[value["selected"]]
        return "pairs", {"choice": choice, "strength": ratings.get("strength", 2)}
    chosen = [value["choices"] for _, value in values.get("choices", ())]
    if ["tie"] in chosen:
        return "pairs", {"choice": None, "strength": 0}
    for choices in chosen:
        if len(choices) == 1 and choices[0] in _LABELS:
            return "thumbs", {"label": _LABELS[choices[0]]}

    if ratings:
        return "ratings", {"scales": ratings}
    for _, value in values.get("textarea", ()):
        text = value["text"]
        return "correction", {"text": text if isinstance(text, str) else "\n".join(text)}
    return None


def _whole(value: Any) -> Any:
    """Return a number as JSON writers that know no integers mean it: 4.0 is 4."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def to_argilla(
    kind: str, judged: Sequence[JudgedItem], names: dict[str, str]
) -> list[dict[str, Any]]:
    """Return records with their responses, as Argilla's `from_json` reads them."""
    records = []
    for number, one in enumerate(judged):
        fields = {"prompt": answer_text(one.item.prompt)}
        fields |= {f"response{place}": answer_text(text) for place, text in _numbered(one.item)}
        responses: dict[str, list[dict[str, Any]]] = {}
        for vote in one.in_turn():
            for question, value in _to_responses(kind, vote.verdict).items():
                given = {"value": value, "user_id": names[vote.annotator]}
                responses.setdefault(question, []).append(given)
        records.append(
            {"id": str(number), "fields": fields, "metadata": {}, "suggestions": {}}
            | {"responses": responses, "vectors": {}}
        )
    return records


def _to_responses(kind: str, verdict: dict[str, Any]) -> dict[str, Any]:
    if kind == "pairs":
        choice = verdict["choice"]
        side = "tie" if choice is None else f"response{choice + 1}"
        return {"preference": side, "strength": verdict["strength"]}
    if kind == "ranking":
        ranked = enumerate(verdict["ranks"], 1)
        return {"ranking": [{"value": f"response{n}", "rank": rank} for n, rank in ranked]}
    if kind == "thumbs":
        return {"thumb": _THUMB_NAMES[verdict["label"]]}
    if kind == "ratings":
        return dict(verdict["scales"])
    return {"correction": verdict["text"]}


def _from_responses(given: dict[str, Any]) -> tuple[str, dict[str, Any]] | None:
    """Return kind and verdict of one user's responses, or None of neither.

    Questions that are answered by other text, such as a comment, are not read.
    """
    given = {question: _whole(value) for question, value in given.items()}
    # a scale may have any name, such as strength, and its value tells it from the rest
    texts = {question: value for question, value in given.items() if isinstance(value, str)}
    ratings = {question: value for question, value in given.items() if isinstance(value, int)}

    if "preference" in texts:
        choice = {"response1": 0, "response2": 1, "tie": None}[texts["preference"]]
        strength = 0 if choice is None else ratings.get("strength", 2)
        return "pairs", {"choice": choice, "strength": strength}
    if isinstance(given.get("ranking"), list):
        ranked = sorted(given["ranking"], key=lambda one: _number_of(one["value"]))
        return "ranking", {"ranks": [one["rank"] for one in ranked]}
    if "thumb" in texts:
        return "thumbs", {"label": _LABELS[texts["thumb"]]}
    if ratings:
        return "ratings", {"scales": ratings}
    return ("correction", {"text": texts["correction"]}) if "correction" in texts else None


def read_exchange(path: Path) -> tuple[str, list[JudgedItem]]:
    """Return kind and judged items of a file of Label Studio or Argilla, by its form.

    Raises:
        DataError: it is neither, or holds a judgement that cannot be read; the message says where.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(found, list) or not found or not isinstance(found[0], dict):
        raise DataError(f"{path} must be a list of tasks (Label Studio) or records (Argilla)")
    if {"data", "annotations"} <= set(found[0]):
        read_one: Callable[[Any], tuple[Item, list[_Given]]] = _read_labelled
    elif {"fields", "responses"} <= set(found[0]):
        read_one = _read_record
    else:
        raise DataError(
            f"{path}: neither tasks of Label Studio (data, annotations) nor records of Argilla "
            f"(fields, responses): found {', '.join(found[0])}"
        )

    kinds: set[str] = set()
    judged: list[JudgedItem] = []
    unread = 0
    for number, row in enumerate(found, 1):
        try:
            item, given = read_one(row)
            votes = _check_votes(item, given, number)
        except DataError as error:
            raise DataError(f"{path}, entry {number}: {error}") from None
        except (KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
            raise DataError(f"{path}, entry {number}: cannot be read: {error!r:.100}") from None
        unread += len(given) - sum(one.judged is not None for one in given)
        kinds |= {one.judged[0] for one in given if one.judged is not None}
        judged.append(JudgedItem(item, votes))

    if unread:
        logger.warning(
            "%s: %d judgements hold nothing that is read, and are left out", path, unread
        )
    if len(kinds) != 1:
        named = ", ".join(sorted(kinds)) or "none"
        raise DataError(
            f"{path} holds judgements of {len(kinds)} kinds ({named}), and one is read at a time; "
            "docs/recipes/feedback.md says what each is called"
        )
    return next(iter(kinds)), judged


@dataclass(frozen=True)
class _Given:
    """What one person said of an entry: kind and verdict, or None where it is neither."""

    annotator: str
    judged: tuple[str, dict[str, Any]] | None
    seconds: Any = None


def _check_votes(item: Item, given: Sequence[_Given], number: int) -> list[Vote]:
    """Return what was said of an entry as votes.

    Raises:
        DataError: it has no texts, too few answers, or a value out of range.
    """
    if problem := problem_of_texts(item.prompt, item.answers):
        raise DataError(problem)

    # of two judgements of one person the later counts, as where they edit one here
    votes: dict[str, Vote] = {}
    for one in given:
        if one.judged is None:
            continue
        kind, verdict = one.judged
        least, most = answers_wanted(kind)
        if not least <= len(item.answers) <= most:
            raise DataError(f"it has {len(item.answers)} answers, and is judged as {kind}")
        scales = list(verdict.get("scales", ()))
        checked = read_verdict(kind, verdict, answers=len(item.answers), scales=scales)
        is_timed = isinstance(one.seconds, int | float) and one.seconds > 0
        body = {"seconds": one.seconds} if is_timed else {}
        votes[one.annotator] = Vote(one.annotator, "turn", checked, body, number=number)
    return list(votes.values())


def _read_labelled(row: dict[str, Any]) -> tuple[Item, list[_Given]]:
    data = row["data"]
    item = Item(data["prompt"], _numbered_values(data, "answer"))
    given = []
    for one in row["annotations"]:
        if one.get("was_cancelled") or not one["result"]:
            continue
        who = one.get("completed_by", "")
        who = who.get("email", who.get("id")) if isinstance(who, dict) else who
        given.append(_Given(str(who), _from_results(one["result"]), one.get("lead_time")))
    return item, given


def _read_record(row: dict[str, Any]) -> tuple[Item, list[_Given]]:
    item = Item(row["fields"]["prompt"], _numbered_values(row["fields"], "response"))
    by_user: dict[str, dict[str, Any]] = {}
    for question, responses in row["responses"].items():
        for one in responses:
            # a draft is not submitted yet, and what was discarded is a skip
            if one.get("status", "submitted") == "submitted":
                by_user.setdefault(str(one["user_id"]), {})[question] = one["value"]
    return item, [_Given(who, _from_responses(given)) for who, given in by_user.items()]


def _numbered_values(fields: dict[str, Any], name: str) -> list[Any]:
    """Return the fields answer1, answer2 and so on in the order of their numbers.

    Raises:
        KeyError: one of them is missing.
    """
    count = sum(bool(re.fullmatch(rf"{name}\d+", field)) for field in fields)
    return [fields[f"{name}{number}"] for number in range(1, max(1, count) + 1)]


def _number_of(name: str) -> int:
    return int(name.removeprefix("response"))
