"""Published layouts become rows of standard columns."""

import json
from pathlib import Path
from typing import Any

import pytest

from hfstack.data.reading.folders import expand_files
from hfstack.data.reading.rows import read_rows
from hfstack.errors import DataError
from hfstack.tasks.preferences.data import to_pairs

TEXT = "Ada met Charles in London. They wrote about engines."
QUESTION = {"id": "q1", "question": "Who met Charles?"}
ANSWERS = [{"text": "Ada", "answer_start": 0}]


def read(path: Path, content: Any, **settings: Any) -> list[dict[str, Any]]:
    text = content if isinstance(content, str) else json.dumps(content)
    path.write_text(text, encoding="utf-8")
    return list(read_rows(expand_files(str(path)), **settings))


def test_contents_in_parts_and_plain_ones_are_alike(tmp_path: Path) -> None:
    said = [{"type": "text", "text": "Who met "}, {"type": "input_text", "text": "Charles?"}]
    turns = [{"role": "user", "content": said}, {"role": "assistant", "content": "Ada."}]
    plain = [{"role": "user", "content": "Who met Charles?"}, turns[1]]
    lines = [{"messages": turns}, {"messages": plain}]
    text = "".join(json.dumps(row) + "\n" for row in lines)

    rows = read(tmp_path / "a.jsonl", text, purpose="conversations")
    assert [row["messages"] for row in rows] == [plain, plain]

    # a picture is no text: the parts stay, for the recipe to refuse
    turns[0] = {"role": "user", "content": [{"type": "image", "text": "a fox"}]}
    (row,) = read(tmp_path / "b.jsonl", {"messages": turns[:1]}, purpose="conversations")
    assert row["messages"][0]["content"] == [{"type": "image", "text": "a fox"}]


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("version_first", [True, False])
def test_squad(tmp_path: Path, indent: int | None, version_first: bool) -> None:
    qas = [
        QUESTION | {"answers": ANSWERS, "is_impossible": False},
        {
            "id": "q2",
            "question": "Who met Alan?",
            "answers": [],
            "is_impossible": True,
            "plausible_answers": ANSWERS,
        },
    ]
    data = [{"title": "Ada", "paragraphs": [{"context": TEXT, "qas": qas}]}] * 2
    document: dict[str, Any] = {"version": "v2.0", "data": data}
    if not version_first:
        document = dict(reversed(document.items()))

    shared = {"title": "Ada", "context": TEXT}
    expected = [
        {"id": "q1", **shared, "question": "Who met Charles?"}
        | {"answers": {"text": ["Ada"], "answer_start": [0]}},
        {"id": "q2", **shared, "question": "Who met Alan?"}
        | {"answers": {"text": [], "answer_start": []}},
    ]
    text = json.dumps(document, indent=indent)
    assert read(tmp_path / "train.json", text) == expected * 2
    # the list of articles alone
    assert read(tmp_path / "articles.json", json.dumps(data, indent=indent)) == expected * 2


def test_cmrc_in_its_first_form(tmp_path: Path) -> None:
    context = "范廷颂是越南罗马天主教枢机"
    asked = {"query_id": "T_0", "query_text": "他是谁?", "answers": ["枢机", "越南"]}
    article = {"context_id": "T", "context_text": context, "qas": [asked], "title": "范廷颂"}
    row = read(tmp_path / "cmrc.json", [article])[0]
    assert row["id"] == "T_0" and row["context"] == context and row["question"] == "他是谁?"
    assert row["answers"] == {"text": ["枢机", "越南"], "answer_start": [11, 4]}


def test_published_questions_without_answers_get_no_column_of_answers(tmp_path: Path) -> None:
    document = {"data": [{"paragraphs": [{"context": TEXT, "qas": [QUESTION]}]}]}
    assert "answers" not in read(tmp_path / "test.json", document)[0]


def test_a_question_without_text_is_a_bad_row(tmp_path: Path) -> None:
    qas = [QUESTION | {"answers": ANSWERS}, {"id": "q2", "answers": ANSWERS}]
    document = {"data": [{"paragraphs": [{"context": TEXT, "qas": qas}]}]}
    with pytest.raises(
        DataError, match=r"a\.json line 1: question 2 on 'Ada met Charles in.*no te"
    ):
        read(tmp_path / "a.json", document)
    assert len(read(tmp_path / "a.json", document, on_bad_row="skip")) == 1


def test_lines_of_objects_in_a_json_file_stay_rows(tmp_path: Path) -> None:
    rows = [{"id": number, "data": ["a", "b"], "text": "x"} for number in range(3)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    assert read(tmp_path / "a.json", lines) == rows
    assert read(tmp_path / "b.json", {"data": rows}) == rows
    with pytest.raises(DataError, match=r"c\.json line 1: more text after the end of the array"):
        read(tmp_path / "c.json", json.dumps({"data": rows}) + "{}")


def dialogue(*turns: str) -> str:
    speakers = ("Human", "Assistant") * len(turns)
    return "".join(f"\n\n{who}: {said}" for who, said in zip(speakers, turns, strict=False))


def test_hh_dialogues_become_conversations(tmp_path: Path) -> None:
    start = ("Is a\n\ntomato: a fruit?", "Yes.", "Why?")
    row = {"chosen": dialogue(*start, "It has seeds."), "rejected": dialogue(*start, "No idea.")}
    rows = read(tmp_path / "hh.jsonl", json.dumps(row), purpose="preferences")
    pair = to_pairs(rows)[0]
    assert [turn["role"] for turn in pair["prompt"]] == ["user", "assistant", "user"]
    assert [turn["content"] for turn in pair["prompt"]] == list(start)
    assert pair["chosen"] == [{"role": "assistant", "content": "It has seeds."}]
    assert pair["rejected"] == [{"role": "assistant", "content": "No idea."}]
    # asked for as text, the rows stay as they are
    assert read(tmp_path / "hh.jsonl", json.dumps(row)) == [row]


def test_shp_labels_say_which_answer_is_better(tmp_path: Path) -> None:
    rows = [
        {"history": "why?", "human_ref_A": "a", "human_ref_B": "b", "labels": label, "score_A": 1}
        for label in (1, 0, 2)
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    with pytest.raises(DataError, match=r"shp\.jsonl line 3: column 'labels' must be 1 .* got 2"):
        read(tmp_path / "shp.jsonl", lines, purpose="preferences")
    found = read(tmp_path / "shp.jsonl", lines, purpose="preferences", on_bad_row="skip")
    assert found == [
        {"prompt": "why?", "chosen": "a", "rejected": "b", "score_A": 1},
        {"prompt": "why?", "chosen": "b", "rejected": "a", "score_A": 1},
    ]


def test_turns_with_two_answers_become_a_pair(tmp_path: Path) -> None:
    row = {
        "conversations": [{"from": "human", "value": "hello"}],
        "chosen": {"from": "gpt", "value": "hello!"},
        "rejected": {"from": "gpt", "value": "no"},
    }
    assert read(tmp_path / "dpo.json", [row], purpose="preferences") == [
        {
            "prompt": [{"role": "user", "content": "hello"}],
            "chosen": [{"role": "assistant", "content": "hello!"}],
            "rejected": [{"role": "assistant", "content": "no"}],
        }
    ]


def test_a_row_of_another_layout_is_a_bad_row(tmp_path: Path) -> None:
    rows = [{"chosen": dialogue("a", "b"), "rejected": dialogue("a", "c")}]
    rows += [{"chosen": "plain", "rejected": "text"}]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    with pytest.raises(DataError, match=r"hh\.jsonl line 2: expected dialogues of Human and"):
        read(tmp_path / "hh.jsonl", lines, purpose="preferences")


def test_pairs_and_thumbs_of_llama_factory(tmp_path: Path) -> None:
    turns = [{"from": "system", "value": "s"}, {"from": "human", "value": "hello"}]
    prompt = [{"role": "system", "content": "s"}, {"role": "user", "content": "hello"}]
    answer = {"role": "assistant", "content": "hello!"}

    openai = {"messages": prompt, "chosen": answer, "rejected": answer | {"content": "no"}}
    assert read(tmp_path / "a.json", [openai], purpose="preferences") == [
        {"prompt": prompt, "chosen": [answer], "rejected": [answer | {"content": "no"}]}
    ]
    for name, tag in (("conversations", "kto_tag"), ("messages", "label")):
        said = [*turns, {"from": "gpt", "value": "hello!"}]
        rows = [{name: said, tag: True, "id": 7}, {name: turns, tag: False, "id": 8}]
        found = read(tmp_path / "b.json", rows, purpose="preferences", on_bad_row="skip")
        assert found == [{"prompt": prompt, "completion": [answer], "label": True, "id": 7}]
        with pytest.raises(DataError, match=r"b\.json line 1: the last turn of a conversation"):
            read(tmp_path / "b.json", rows, purpose="preferences")


def test_alpaca_with_two_answers_or_a_thumb(tmp_path: Path) -> None:
    asked = {"instruction": "Add.", "input": "1 2", "history": []}
    pair = asked | {"chosen": "3", "rejected": "12", "system": "s"}
    assert read(tmp_path / "a.json", [pair], purpose="preferences") == [
        {"prompt": "Add.\n1 2", "chosen": "3", "rejected": "12", "system": "s"}
    ]
    thumb = asked | {"history": [["hi", "ho"]], "output": "3", "kto_tag": False}
    assert read(tmp_path / "b.json", [thumb], purpose="preferences") == [
        {
            "prompt": [
                {"role": "user", "content": "hi"},
                {"role": "assistant", "content": "ho"},
                {"role": "user", "content": "Add.\n1 2"},
            ],
            "completion": "3",
            "label": False,
        }
    ]
