"""The store only grows, knows a judgement that comes twice, and opens what was written."""

import sqlite3
from pathlib import Path

import pytest

from hfstack.errors import DataError
from hfstack.feedback.items import must_make_items
from hfstack.feedback.kinds import Item
from hfstack.feedback.store import Judgement, Step, Store, latest_judgements, open_store

PROJECT = {"kind": "pairs", "annotators": ["ann", "ben"]}


@pytest.fixture
def store(tmp_path: Path):
    made = Store(tmp_path / "feedback.sqlite")
    made.create(PROJECT, [Item("p", ["a", "b"]), Item("q", ["c", "d"], gold={"choice": 0})])
    made.add_step(Step("ann", 0, 1, "gold", 5.0))
    yield made
    made.close()


def judgement(client_id: str, action: str = "judge", choice: int = 0) -> Judgement:
    body = {"verdict": {"choice": choice, "strength": 1}} if action == "judge" else {}
    return Judgement(client_id, "ann", 0, action, body)


def test_what_is_written_comes_back(store: Store) -> None:
    assert store.add_judgement(judgement("one-id-here"))
    store.close()
    again = open_store(store.path)
    assert again.items() == [Item("p", ["a", "b"]), Item("q", ["c", "d"], gold={"choice": 0})]
    assert list(again.steps()) == [Step("ann", 0, 1, "gold", 5.0)]
    assert list(again.judgements()) == [judgement("one-id-here")]
    assert again.project()["kind"] == "pairs" and len(again.project()["key"]) == 64
    again.close()
    assert store.path.stat().st_mode & 0o077 == 0, "names and the key are for its owner alone"


def test_a_judgement_that_comes_again_is_the_same_one(store: Store) -> None:
    assert store.add_judgement(judgement("one-id-here"))
    assert not store.add_judgement(judgement("one-id-here"))
    assert len(list(store.judgements())) == 1
    with pytest.raises(DataError, match="belongs to another judgement"):
        store.add_judgement(judgement("one-id-here", choice=1))


def test_the_last_row_of_a_step_counts_and_an_undo_leaves_none(store: Store) -> None:
    store.add_judgement(judgement("first-id-0"))
    store.add_judgement(judgement("second-id-", choice=1))
    assert latest_judgements(store)["ann", 0].body["verdict"]["choice"] == 1
    store.add_judgement(judgement("third-id-0", "undo"))
    assert latest_judgements(store) == {}
    assert len(list(store.judgements())) == 3, "nothing is taken away"


@pytest.mark.parametrize("table", ["judgements", "steps", "items"])
def test_nothing_can_be_changed_or_removed(store: Store, table: str) -> None:
    store.add_judgement(judgement("one-id-here"))
    other = sqlite3.connect(store.path)
    with pytest.raises(sqlite3.IntegrityError, match="only grows"):
        other.execute(f"DELETE FROM {table}")
    column = "role" if table == "steps" else "body"
    with pytest.raises(sqlite3.IntegrityError, match="only grows"):
        other.execute(f"UPDATE {table} SET {column} = 'x'")
    other.close()


def test_what_is_no_store_of_this_project_is_refused(store: Store, tmp_path: Path) -> None:
    assert not must_make_items(store, PROJECT)
    with pytest.raises(DataError, match=r"another project: its kind is 'pairs', here .* 'thumbs'"):
        must_make_items(store, PROJECT | {"kind": "thumbs"})
    with pytest.raises(DataError, match="no such store"):
        open_store(tmp_path / "none.sqlite")
    text = tmp_path / "notes.txt"
    text.write_text("not a database at all, only text\n" * 50)
    with pytest.raises(DataError, match="is no store of feedback"):
        Store(text)
    other = tmp_path / "other.sqlite"
    database = sqlite3.connect(other)
    database.execute("CREATE TABLE cats (name TEXT)")
    database.close()
    with pytest.raises(DataError, match="SQLite file of something else"):
        Store(other)
