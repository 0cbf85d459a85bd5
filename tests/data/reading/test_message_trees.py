"""OpenAssistant's trees of messages: the best conversation of each, and its ranked answers."""

import json
import random
from pathlib import Path
from typing import Any

import datasets.config
import pytest
from datasets import Dataset

from hfstack.data.reading.folders import expand_files
from hfstack.data.reading.rows import read_rows
from hfstack.data.sources import DataArgs, Source, load_mixture
from hfstack.errors import DataError
from hfstack.tasks.preferences.data import to_pairs
from hfstack.tasks.sft.columns import Columns, convert_rows, load_instructions


def message(name: str, parent: str | None, rank: int | None, **more: Any) -> dict[str, Any]:
    role = "prompter" if name.startswith("p") else "assistant"
    return {
        "message_id": name,
        "parent_id": parent,
        "text": name,
        "role": role,
        "lang": "en",
        "review_result": True,
        "deleted": False,
        "rank": rank,
        "message_tree_id": "p0",
        **more,
    }


# p0 - a0 (rank 1), a1 (rank 0) - p1 - a2 (rank 0, deleted), a3 (rank 1), a4 (rank 1), a5 (unranked)
#      a6 (rank 2, failed its review)                  - p3 (asked, never answered)
TREE = [
    message("p0", None, None),
    message("a0", "p0", 1),
    message("a1", "p0", 0),
    message("a6", "p0", 2, review_result=False),
    message("p1", "a1", None),
    message("a5", "p1", None),
    message("a2", "p1", 0, deleted=True),
    message("p2", "a2", None),
    message("a3", "p1", 1),
    message("a4", "p1", 2),
    message("p3", "a3", None),
]
LONE = [message("p9", None, None, message_tree_id="p9", lang="de")]


def nested(messages: list[dict[str, Any]]) -> dict[str, Any]:
    def below(parent: str) -> list[dict[str, Any]]:
        own = [one for one in messages if one["parent_id"] == parent]
        return [{**one, "replies": below(one["message_id"])} for one in own]

    root = messages[0]
    prompt = {**root, "replies": below(root["message_id"])}
    state = {"message_tree_id": root["message_id"], "tree_state": "ready_for_export"}
    return state | {"prompt": prompt}


def shuffled() -> list[dict[str, Any]]:
    messages = [*TREE, *LONE]
    random.Random(3).shuffle(messages)
    # of the replies without a difference in rank the first in the file counts
    return messages


FORMS: dict[str, list[dict[str, Any]]] = {
    "messages": [*TREE, *LONE],
    "messages in any order": shuffled(),
    "trees": [nested(TREE), nested(LONE)],
}


def read(path: Path, rows: list[dict[str, Any]], **settings: Any) -> list[dict[str, Any]]:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return list(read_rows(expand_files(str(path)), **settings))


def turns(*names: str) -> list[dict[str, str]]:
    roles = {"p": "user", "a": "assistant"}
    return [{"role": roles[name[0]], "content": name} for name in names]


@pytest.mark.parametrize("form", FORMS)
def test_the_best_replies_are_one_conversation(tmp_path: Path, form: str) -> None:
    found = read(tmp_path / "a.jsonl", FORMS[form], purpose="conversations")
    best = turns("p0", "a1", "p1", "a3")
    assert found == [{"messages": best, "message_tree_id": "p0", "lang": "en"}]


@pytest.mark.parametrize("form", FORMS)
def test_ranked_replies_are_pairs(tmp_path: Path, form: str) -> None:
    found = read(tmp_path / "a.jsonl", FORMS[form], purpose="preferences")
    assert [(row["prompt"], row["ranks"]) for row in found] == [
        (turns("p0"), [0, 1]),
        (turns("p0", "a1", "p1"), [1, 2]),
    ]
    pairs = to_pairs(found)
    assert [(pair["chosen"], pair["rejected"]) for pair in pairs] == [
        (turns("a1"), turns("a0")),
        (turns("a3"), turns("a4")),
    ]


def test_rows_of_other_recipes_stay_messages(tmp_path: Path) -> None:
    assert read(tmp_path / "a.jsonl", TREE) == TREE


def test_sft_reads_them_and_a_saved_dataset_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in TREE))
    Dataset.from_list([*TREE, *LONE]).save_to_disk(str(tmp_path / "saved"))
    for name in ("a.jsonl", "saved"):
        args = DataArgs([Source(str(tmp_path / name))], eval_fraction=0)
        splits, _ = load_instructions(args, Columns(), quarantine_file=tmp_path / "bad.jsonl")
        row = convert_rows(splits["train"], Columns(), as_chat=True)[0]
        assert json.loads(row["messages"]) == turns("p0", "a1", "p1", "a3")
    pairs = load_mixture([Source(str(tmp_path / "saved"))], purpose="preferences")
    assert pairs["ranks"][:] == [[0, 1], [1, 2]]


def test_what_is_wrong_is_named_by_its_line(tmp_path: Path) -> None:
    def fails(rows: list[dict[str, Any]], detail: str, **settings: Any) -> None:
        with pytest.raises(DataError, match=detail):
            read(tmp_path / "a.jsonl", rows, **{"purpose": "conversations"} | settings)

    fails([*TREE, message("a7", "gone", 0)], r"line 12: the message that it replies .* 'gone'")
    fails([*TREE, TREE[0]], r"line 12: the message_id 'p0' occurs twice")
    fails([*TREE, {"text": "x"}], r"line 12: expected a message, got \['text'\]")
    fails(LONE, r"line 1: none of the 1 rows has what is asked for")
    fails(TREE[:3:2], r"none of the 1 rows has what is asked", purpose="preferences")
