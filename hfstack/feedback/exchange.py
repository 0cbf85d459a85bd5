"""Read and write the JSON of Label Studio and of Argilla.

Label Studio: a list of tasks with `data` and `annotations`, whose results are of the types
pairwise, choices, rating or textarea. Argilla: a list of records with `fields` and, by question,
`responses`. Rankings are Argilla's alone.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hfstack.errors import DataError
from hfstack.feedback.export import JudgedItem, Vote
from hfstack.feedback.kinds import Item, read_verdict
from hfstack.tasks.preferences.rows import answer_text

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


def _from_results(results: list[dict[str, Any]]) -> tuple[str, dict[str, Any]]:
    """Return kind and verdict of an annotation of Label Studio."""
    values = [(one["type"], one["from_name"], one["value"]) for one in results]
    ratings = {name: value["rating"] for type_, name, value in values if type_ == "rating"}
    for type_, _, value in values:
        if type_ == "pairwise":
            choice = {"left": 0, "right": 1}[value["selected"]]
            return "pairs", {"choice": choice, "strength": ratings.get("strength", 2)}
        if type_ == "choices" and value["choices"] == ["tie"]:
            return "pairs", {"choice": None, "strength": 0}
        if type_ == "choices":
            return "thumbs", {"label": _LABELS[value["choices"][0]]}
        if type_ == "textarea":
            return "correction", {"text": "\n".join(value["text"])}
    if not ratings:
        raise KeyError("pairwise, choices, rating or textarea")
    return "ratings", {"scales": ratings}


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


def _from_responses(given: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return kind and verdict of one user's responses in Argilla."""
    if "preference" in given:
        choice = {"response1": 0, "response2": 1, "tie": None}[given["preference"]]
        strength = 0 if choice is None else given.get("strength", 2)
        return "pairs", {"choice": choice, "strength": strength}
    if "ranking" in given:
        ranked = sorted(given["ranking"], key=lambda one: int(one["value"][len("response") :]))
        return "ranking", {"ranks": [one["rank"] for one in ranked]}
    if "thumb" in given:
        return "thumbs", {"label": _LABELS[given["thumb"]]}
    if "correction" in given:
        return "correction", {"text": given["correction"]}
    return "ratings", {"scales": given}


def read_exchange(path: Path) -> tuple[str, list[JudgedItem]]:
    """Return kind and judged items of a file of Label Studio or Argilla, by its form.

    Raises:
        DataError: it is neither, or holds a judgement that cannot be read; the message says where.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(found, list) or not found or not isinstance(found[0], dict):
        raise DataError(f"{path} must be a list of tasks (Label Studio) or records (Argilla)")
    if {"data", "annotations"} <= set(found[0]):
        read_one: Callable[[Any], tuple[Item, list[tuple[str, str, dict[str, Any], Any]]]]
        read_one = _read_labelled
    elif {"fields", "responses"} <= set(found[0]):
        read_one = _read_record
    else:
        raise DataError(
            f"{path}: neither tasks of Label Studio (data, annotations) nor records of Argilla "
            f"(fields, responses): found {', '.join(found[0])}"
        )

    kinds: dict[str, int] = {}
    judged: list[JudgedItem] = []
    for number, row in enumerate(found, 1):
        try:
            item, given = read_one(row)
            one = JudgedItem(item)
            for annotator, kind, verdict, seconds in given:
                kinds.setdefault(kind, number)
                scales = list(verdict.get("scales", ()))
                checked = read_verdict(kind, verdict, answers=len(item.answers), scales=scales)
                body = {"seconds": seconds} if seconds else {}
                one.votes.append(Vote(annotator, "turn", checked, body, number=number))
        except (KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
            raise DataError(f"{path}, entry {number}: cannot be read: {error!r:.100}") from None
        judged.append(one)

    if len(kinds) != 1:
        raise DataError(f"{path} holds judgements of {len(kinds)} kinds ({', '.join(kinds)})")
    return next(iter(kinds)), judged


def _read_labelled(row: dict[str, Any]) -> tuple[Item, list[Any]]:
    names = sorted(name for name in row["data"] if name.startswith("answer"))
    item = Item(row["data"]["prompt"], [row["data"][name] for name in names])
    given = []
    for one in row["annotations"]:
        if one.get("was_cancelled") or not one["result"]:
            continue
        who = one.get("completed_by", "")
        who = who.get("email", who.get("id")) if isinstance(who, dict) else who
        given.append((str(who), *_from_results(one["result"]), one.get("lead_time")))
    return item, given


def _read_record(row: dict[str, Any]) -> tuple[Item, list[Any]]:
    names = sorted(name for name in row["fields"] if name.startswith("response"))
    item = Item(row["fields"]["prompt"], [row["fields"][name] for name in names])
    by_user: dict[str, dict[str, Any]] = {}
    for question, responses in row["responses"].items():
        for one in responses:
            by_user.setdefault(str(one["user_id"]), {})[question] = one["value"]
    return item, [(who, *_from_responses(given), None) for who, given in by_user.items()]
