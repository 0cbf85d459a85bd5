"""Judgements become rows that the preference recipes read, and no tie is ever a win."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from hfstack.errors import DataError
from hfstack.feedback.annotators import annotator_rows
from hfstack.feedback.exchange import read_exchange, to_argilla, to_label_studio
from hfstack.feedback.export import JudgedItem, Vote, export_rows, store_paths
from hfstack.feedback.kinds import Item
from hfstack.tasks.preferences.data import to_labels, to_pairs

FIRST, SECOND, TIE = {"choice": 0, "strength": 3}, {"choice": 1, "strength": 1}, None


def votes(*verdicts: Any, role: str = "turn") -> list[Vote]:
    tie = {"choice": None, "strength": 0}
    return [
        Vote(f"person {place}", role, tie if verdict is None else verdict, {}, number=0)
        for place, verdict in enumerate(verdicts)
    ]


def judged(*verdicts: Any, **changes: Any) -> JudgedItem:
    return JudgedItem(Item("p", ["a", "b"]), votes(*verdicts), **changes)


@pytest.mark.parametrize(
    ("given", "chosen", "why"),
    [
        ([FIRST], "a", ""),
        ([SECOND, SECOND, FIRST], "b", ""),
        ([FIRST, TIE, FIRST], "a", ""),
        ([TIE], None, "left_out_ties"),
        ([FIRST, TIE], None, "left_out_ties"),
        ([FIRST, TIE, TIE], None, "left_out_ties"),
        ([FIRST, SECOND], None, "left_out_conflicts"),
        ([FIRST, SECOND, TIE], None, "left_out_conflicts"),
    ],
)
def test_the_majority_of_pairs(given: list[Any], chosen: str | None, why: str) -> None:
    rows, counts = export_rows("pairs", [judged(*given)])
    assert [row["chosen"] for row in rows] == ([chosen] if chosen else [])
    assert counts.ties == given.count(TIE) and counts.judgements == len(given)
    assert counts.conflicts == (FIRST in given and SECOND in given)
    assert not why or getattr(counts, why) == 1
    assert counts.kept + counts.left_out_ties + counts.left_out_conflicts == counts.items == 1


def test_a_tie_never_becomes_a_win() -> None:
    """Of all ways in which four people can judge, no row has more ties than votes for its side."""
    for given in itertools.product([FIRST, SECOND, TIE], repeat=4):
        rows, _ = export_rows("pairs", [judged(*given)])
        side = {"a": given.count(FIRST), "b": given.count(SECOND)}
        for row in rows:
            assert side[row["chosen"]] > given.count(TIE)
            assert side[row["chosen"]] > side[row["rejected"]] and row["margin"] >= 0


def test_what_is_left_out_on_demand() -> None:
    rows = [judged(FIRST, FIRST, SECOND), judged(FIRST), judged(FIRST, FIRST, flags=1)]
    kept, counts = export_rows(
        "pairs", rows, min_judgements=2, conflicts="drop", leave_out_flagged=True
    )
    assert kept == []
    assert (counts.left_out_conflicts, counts.left_out_too_few, counts.left_out_flagged) == (1,) * 3
    rows, _ = export_rows("pairs", rows[:1], with_names=True)
    assert rows[0]["annotators"] == ["person 0", "person 1", "person 2"]
    # the mean strength towards the majority: (3 + 3 - 1) / 3
    assert rows[0]["margin"] == pytest.approx(1.667)


def test_hidden_checks_and_repeats_are_no_rows() -> None:
    gold = JudgedItem(Item("g", ["a", "b"], gold={"choice": 0}), votes(FIRST, role="gold"))
    again = judged(FIRST)
    again.votes += votes(SECOND, role="repeat")
    rows, counts = export_rows("pairs", [gold, again])
    assert [row["prompt"] for row in rows] == ["p"] and rows[0]["chosen"] == "a"
    assert counts.gold_judgements == counts.repeats == counts.judgements == 1


def test_every_other_kind_is_read_by_the_preference_readers() -> None:
    ranked = JudgedItem(
        Item("p", ["a", "b", "c"]), votes({"ranks": [1, 2, 2]}, {"ranks": [2, 1, 3]})
    )
    rows, _ = export_rows("ranking", [ranked])
    # mean ranks 1.5, 1.5 and 2.5
    assert rows[0]["ranks"] == [1, 1, 2]
    pairs = {(row["chosen"], row["rejected"]) for row in to_pairs(rows)}
    assert pairs == {("a", "c"), ("b", "c")}, "a tie of ranks is no pair"

    good, bad, neither = ({"label": label} for label in (True, False, None))
    thumbs = [
        JudgedItem(Item("p", [answer]), votes(*given))
        for answer, given in {"x": [good], "y": [bad, bad, good], "z": [good, neither]}.items()
    ]
    rows, counts = export_rows("thumbs", thumbs)
    labels = {row["completion"]: row["label"] for row in to_labels(rows)}
    assert labels == {"x": True, "y": False} and counts.left_out_ties == 1

    rated = [
        JudgedItem(Item("p", ["x"]), votes({"scales": {"kind": 5, "true": 3}})),
        JudgedItem(Item("p", ["y"]), votes({"scales": {"kind": 1, "true": 3}})),
    ]
    rows, _ = export_rows("ratings", rated)
    assert [row["rating"] for row in rows] == [4, 2]
    assert [row["chosen"] for row in to_pairs(rows)] == ["x"]

    corrected = JudgedItem(Item("p", ["x"]), votes({"text": "better"}))
    rows, _ = export_rows("correction", [corrected])
    assert rows == [{"prompt": "p", "completion": "better", "original": "x"}]
    turns = [{"role": "assistant", "content": "x"}]
    corrected = JudgedItem(Item("p", [turns]), votes({"text": "better"}))
    rows, _ = export_rows("correction", [corrected])
    assert rows[0]["completion"] == [{"role": "assistant", "content": "better"}]


def test_the_table_of_annotators() -> None:
    rows = []
    for place in range(20):
        order = [place % 2, 1 - place % 2]
        # one always takes the first side of the page, one the answer a
        bodies = [{"order": order, "seconds": 2}, {"order": order, "seconds": 4}]
        verdicts = [{"choice": order[0], "strength": 1}, FIRST]
        rows.append(
            JudgedItem(
                Item("p", ["a", "b"]),
                [
                    Vote(name, "turn", verdict, body, number=place)
                    for name, verdict, body in zip(("side", "a"), verdicts, bodies, strict=True)
                ],
            )
        )
    gold = Item("g", ["a", "b"], gold={"choice": 0})
    rows.append(JudgedItem(gold, [Vote("a", "gold", FIRST, {}, number=20)]))
    rows[0].votes.append(Vote("side", "repeat", SECOND, {}, number=20))
    side, always_a = annotator_rows("pairs", rows, {"side": "A1", "a": "A2"})
    assert side[:5] == ["A1", 20, 0, 0, 2] and always_a[:5] == ["A2", 20, 0, 0, 4]
    assert side[5] == "100 % [84, 100] of 20" and always_a[5] == "50 % [30, 70] of 20"
    assert side[6] is None and str(always_a[6]).startswith("100 %")
    assert str(side[7]).startswith("0 %") and str(side[8]).startswith("50 %")


CASES = {
    "pairs": [FIRST, {"choice": None, "strength": 0}],
    "thumbs": [{"label": True}, {"label": None}],
    "ratings": [{"scales": {"kind": 5}}, {"scales": {"kind": 1}}],
    "correction": [{"text": "better"}, {"text": "best"}],
    "ranking": [{"ranks": [1, 2]}, {"ranks": [2, 1]}],
}


@pytest.mark.parametrize("kind", CASES)
@pytest.mark.parametrize("write", [to_label_studio, to_argilla], ids=["label_studio", "argilla"])
def test_judgements_come_back_from_the_json_of_others(tmp_path, kind: str, write: Any) -> None:
    answers = ["a", "b"] if kind in ("pairs", "ranking") else ["a"]
    rows = [JudgedItem(Item("p", answers), votes(*CASES[kind]))]
    names = {"person 0": "A1", "person 1": "A2"}
    if kind == "ranking" and write is to_label_studio:
        with pytest.raises(DataError, match="rankings have no form"):
            write(kind, rows, names)
        return
    path = tmp_path / "judgements.json"
    path.write_text(json.dumps(write(kind, rows, names)))
    found, read = read_exchange(path)
    assert found == kind and read[0].item == Item("p", answers)
    assert [(vote.annotator, vote.verdict) for vote in read[0].votes] == [
        ("A1", CASES[kind][0]),
        ("A2", CASES[kind][1]),
    ]
    path.write_text('[{"text": "something else"}]')
    with pytest.raises(DataError, match="neither tasks of Label Studio"):
        read_exchange(path)


def label_studio(results: list[Any], *, answers: int = 2, **changes: Any) -> dict[str, Any]:
    data = {"prompt": "p"} | {f"answer{n}": f"a{n}" for n in range(1, answers + 1)}
    data |= {"answer_source": "a model", "image": "x.png"}
    return {
        "id": 1,
        "data": data,
        "annotations": [{"completed_by": 7, "result": results}],
    } | changes


LEFT = {"type": "pairwise", "from_name": "pw", "value": {"selected": "left"}}
REASON = {"type": "choices", "from_name": "why", "value": {"choices": ["style", "facts"]}}
LINK = {"type": "relation", "from_id": "a", "to_id": "b", "direction": "right"}
FIXED = {"type": "textarea", "from_name": "fixed"}


def argilla(responses: dict[str, Any], *, answers: int = 2) -> dict[str, Any]:
    fields = {"prompt": "p"} | {f"response{n}": f"a{n}" for n in range(answers, 0, -1)}
    given = {
        question: [value if isinstance(value, dict) else {"value": value, "user_id": "u"}]
        for question, value in responses.items()
    }
    return {"fields": fields | {"response_model": "m"}, "responses": given}


@pytest.mark.parametrize(
    ("row", "kind", "verdict"),
    [
        # what stands beside a judgement, in any order, is not it
        (label_studio([REASON, LINK, LEFT]), "pairs", {"choice": 0, "strength": 2}),
        (
            label_studio([FIXED | {"value": {"text": "as one text"}}], answers=1),
            "correction",
            {"text": "as one text"},
        ),
        (
            label_studio([{**REASON, "type": "rating", "value": {"rating": 4.0}}], answers=1),
            "ratings",
            {"scales": {"why": 4}},
        ),
        (
            argilla({"preference": "response2", "why": "kind"}),
            "pairs",
            {"choice": 1, "strength": 2},
        ),
        # scales may be called as the questions of other kinds
        (
            argilla({"strength": 3, "preference": 2, "correction": 5}, answers=1),
            "ratings",
            {"scales": {"strength": 3, "preference": 2, "correction": 5}},
        ),
        (
            argilla(
                {"ranking": [{"value": f"response{n}", "rank": n} for n in (3, 1, 2)]}, answers=3
            ),
            "ranking",
            {"ranks": [1, 2, 3]},
        ),
    ],
)
def test_odd_fields_of_other_tools_are_read_right(
    tmp_path: Path, row: dict[str, Any], kind: str, verdict: dict[str, Any]
) -> None:
    path = tmp_path / "judgements.json"
    path.write_text(json.dumps([row]))
    found, (one,) = read_exchange(path)
    assert found == kind and [vote.verdict for vote in one.votes] == [verdict]
    assert one.item.answers == [f"a{n}" for n in range(1, len(one.item.answers) + 1)]


def test_what_nobody_judged_and_a_second_judgement_of_one_person(tmp_path: Path, caplog) -> None:
    path = tmp_path / "judgements.json"
    # a draft, a comment alone, and a person who judged twice: the later counts
    draft = {"value": "response1", "user_id": "u", "status": "draft"}
    rows = [argilla({"preference": draft}), argilla({"why": "x"}), argilla({"preference": "tie"})]
    path.write_text(json.dumps(rows))
    _, judged_rows = read_exchange(path)
    assert [len(one.votes) for one in judged_rows] == [0, 0, 1]
    assert "1 judgements hold nothing that is read" in caplog.text

    row = label_studio([LEFT])
    right = {**LEFT, "value": {"selected": "right"}}
    row["annotations"].append({"completed_by": 7, "result": [right], "lead_time": "unknown"})
    path.write_text(json.dumps([row]))
    _, (one,) = read_exchange(path)
    assert [vote.verdict["choice"] for vote in one.votes] == [1]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([label_studio([LEFT], answers=1)], "entry 1: it has 1 answers, and is judged as pairs"),
        ([label_studio([LEFT], data={"prompt": None, "answer1": "a"})], "prompt must be text"),
        ([label_studio([LEFT], data={"prompt": "p", "answer2": "a"})], "cannot be read.*answer1"),
        ([argilla({"preference": "response9"})], "cannot be read: KeyError.*response9"),
        ([argilla({"kind": 9}, answers=1)], "ratings must be whole numbers from 1 to 5"),
        ([argilla({"why": "x"})], r"judgements of 0 kinds \(none\)"),
        ([argilla({"preference": "tie"}), argilla({"kind": 3}, answers=1)], "2 kinds"),
        ([argilla({"preference": "tie"}), 5], "entry 2: cannot be read"),
        ("[" * 100_000, "cannot be read as JSON"),
    ],
)
def test_what_cannot_be_read_of_other_tools_ends_in_one_line(
    tmp_path: Path, rows: Any, message: str
) -> None:
    path = tmp_path / "judgements.json"
    path.write_text(rows if isinstance(rows, str) else json.dumps(rows))
    with pytest.raises(DataError, match=message):
        read_exchange(path)


def test_a_store_that_is_named_twice_does_not_count_twice(tmp_path: Path) -> None:
    (tmp_path / "feedback.sqlite").touch()
    with pytest.raises(DataError, match=r"--stores names .*feedback\.sqlite twice"):
        store_paths([str(tmp_path), str(tmp_path / "feedback.sqlite")])


def test_every_item_is_a_row_or_left_out_for_a_reason() -> None:
    unseen, skipped = judged(), judged(skipped_by=["a"])
    # the first judgement of a repeated item was taken back
    again = JudgedItem(Item("p", ["a", "b"]), votes(FIRST, role="repeat"))
    rows = [unseen, skipped, again, judged(FIRST), judged(TIE), judged(FIRST, SECOND)]
    _, counts = export_rows("pairs", rows)
    left = [getattr(counts, name) for name in vars(counts) if name.startswith("left_out")]
    assert counts.items == counts.kept + sum(left) == 6 and counts.left_out_too_few == 3
