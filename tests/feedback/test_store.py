"""The store only grows, knows a judgement that comes twice, and opens what was written."""

import resource
import sqlite3
from pathlib import Path

import pytest

from hfstack.errors import DataError, MachineError
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
    before = other.read_bytes()
    with pytest.raises(DataError, match="SQLite file of something else"):
        Store(other)
    assert other.read_bytes() == before, "and what is not ours is not touched"

    with pytest.raises(DataError, match=r"the store .*none/x\.sqlite: No such file or directory"):
        Store(tmp_path / "none" / "x.sqlite")
    with pytest.raises(DataError, match="is no store of feedback: unable to open"):
        Store(tmp_path)


def test_a_store_of_another_version_or_a_damaged_one_ends_in_one_line(
    store: Store, tmp_path: Path
) -> None:
    store.close()
    whole = store.path.read_bytes()
    damaged = tmp_path / "damaged.sqlite"
    damaged.write_bytes(whole[:4096] + b"\xff" * 4096 + whole[8192:])
    with pytest.raises(DataError, match="cannot be read: .*; restore it from a copy"):
        open_store(damaged)

    later = sqlite3.connect(store.path)
    later.execute("UPDATE project SET value = '2' WHERE name = 'version'")
    later.commit()
    later.close()
    for open_it in (Store, open_store):
        with pytest.raises(DataError, match="has version 2, this hfstack reads 1"):
            open_it(store.path)


def test_people_can_be_added_and_what_else_differs_is_named(store: Store) -> None:
    more = PROJECT | {"annotators": ["cid", "ben", "ann"]}
    assert not must_make_items(store, more) and not must_make_items(store, more)
    assert store.project()["annotators"] == ["ann", "ben", "cid"]
    with pytest.raises(DataError, match="holds the judgements of cid too: name them in"):
        must_make_items(store, PROJECT)

    path = store.path.with_name("second.sqlite")
    second = Store(path)
    made = {"made_of": {"temperature": 1.0, "models": ["a", None]}}
    second.create(PROJECT | made, [Item("p", ["a", "b"])])
    # a setting that a store does not know yet is no other project
    assert not must_make_items(second, PROJECT | {"made_of": {"top_k": 3, **made["made_of"]}})
    with pytest.raises(DataError, match=r"its temperature is 1\.0, here it is 0\.7; name another"):
        must_make_items(second, PROJECT | {"made_of": {"temperature": 0.7}})
    second.close()


def test_one_process_serves_a_store_and_others_may_read_it(store: Store) -> None:
    store.claim()
    other = Store(store.path)
    with pytest.raises(DataError, match="is served by another annotate"):
        other.claim()
    assert len(other.items()) == 2
    other.close()
    store.close()
    other = Store(store.path)
    other.claim()
    other.close()


def test_a_disk_that_takes_nothing_is_one_line_and_nothing_is_half_written(store: Store) -> None:
    largest = max(file.stat().st_size for file in store.path.parent.iterdir())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest, hard))
    try:
        with pytest.raises(MachineError, match="cannot be written: "):
            store.add_judgement(judgement("one-id-here"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(store.judgements()) == []
    assert store.add_judgement(judgement("one-id-here")), "and the same is taken later"
