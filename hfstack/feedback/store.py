"""Keep items and judgements in one SQLite file that only grows.

An undo or an edit is a new row; triggers refuse to change or remove one. A judgement carries the
id that the page made for it, so that sending it again is the same judgement. Each is on the disk
(write-ahead log, flushed) before it is acknowledged.
"""

import contextlib
import fcntl
import json
import os
import secrets
import sqlite3
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hfstack.disk import describe_os_error
from hfstack.errors import DataError, MachineError
from hfstack.feedback.kinds import Item

ACTIONS = ("judge", "skip", "undo")
_VERSION = 1
_TABLES = """
CREATE TABLE project (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE items (id INTEGER PRIMARY KEY, body TEXT NOT NULL);
CREATE TABLE steps (
    annotator TEXT NOT NULL, step INTEGER NOT NULL, item INTEGER NOT NULL REFERENCES items (id),
    role TEXT NOT NULL, shown REAL NOT NULL, PRIMARY KEY (annotator, step)
) WITHOUT ROWID;
CREATE TABLE judgements (
    id INTEGER PRIMARY KEY AUTOINCREMENT, client_id TEXT NOT NULL UNIQUE,
    annotator TEXT NOT NULL, step INTEGER NOT NULL, action TEXT NOT NULL, body TEXT NOT NULL,
    received REAL NOT NULL, FOREIGN KEY (annotator, step) REFERENCES steps (annotator, step)
);
"""


@dataclass(frozen=True)
class Step:
    """An item shown to a person: in turn, as a hidden check, or once more."""

    annotator: str
    number: int
    item: int
    role: str  # turn, gold or repeat
    shown: float  # seconds since 1970


@dataclass(frozen=True)
class Judgement:
    """One row of what people did.

    Args:
        client_id: made by the page, once for each judgement.
        action: judge, skip or undo; a later row of the same step replaces an earlier one.
        body: verdict (on the item's own answers), comment, flag, seconds and order.
    """

    client_id: str
    annotator: str
    step: int
    action: str
    body: dict[str, Any]


class Store:
    """The file of one project: what is judged, by whom, and every judgement.

    Args:
        path: the file; an empty one is made where there is none.

    Raises:
        DataError: it cannot be opened, or is of something else or of another version.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._claim: int | None = None  # a file descriptor
        # Readable by its owner alone: it holds the key of the links, and people's names.
        try:
            path.touch(mode=0o600, exist_ok=True)
        except OSError as error:
            raise DataError(f"the store {path}: {describe_os_error(error)}") from None

        try:
            # Absolute, because SQLite keeps a file called :memory: in memory. It is used by the
            # server's thread, and opened and closed by the main one.
            self._db = sqlite3.connect(
                path.absolute(), isolation_level=None, check_same_thread=False, timeout=10
            )
            names = {name for (name,) in self._db.execute("SELECT name FROM sqlite_master")}
        except sqlite3.DatabaseError as error:
            raise DataError(f"{path} is no store of feedback: {error}") from None

        self.is_new = not names
        try:
            self._open(names)
        except BaseException:
            self._db.close()
            raise

    def _open(self, names: set[str]) -> None:
        """Set the connection up, once the file is known to be a store of this version."""
        if names:
            if not {"project", "items", "steps", "judgements"} <= names:
                raise DataError(f"{self.path} is an SQLite file of something else: name another")
            if (version := self.project().get("version")) != _VERSION:
                raise DataError(f"{self.path} has version {version}, this hfstack reads {_VERSION}")

        try:
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.execute("PRAGMA foreign_keys = ON")
        except sqlite3.DatabaseError as error:
            raise DataError(f"{self.path} cannot be opened to write: {error}") from None

    def claim(self) -> None:
        """Refuse every other process that claims this file, until it is closed.

        Two servers would give out the same steps; readers need no claim.

        Raises:
            DataError: another process has claimed it.
        """
        # Not one of the locks that SQLite takes, which closing this file would drop.
        self._claim = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.flock(self._claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(
                f"{self.path} is served by another annotate: open its links, or stop it first"
            ) from None

    def close(self) -> None:
        """Close the file; what was acknowledged is in it already."""
        self._db.close()
        if self._claim is not None:
            os.close(self._claim)
            self._claim = None

    def create(self, project: dict[str, Any], items: Sequence[Item]) -> None:
        """Write the project and its items, all or nothing."""
        values = {**project, "version": _VERSION, "key": secrets.token_hex(32)}
        with self._writing(), self._all_or_nothing():
            for statement in _TABLES.strip().split(";\n"):
                self._db.execute(statement)
            for table in ("judgements", "steps", "items"):
                for change in ("UPDATE", "DELETE"):
                    self._db.execute(
                        f"CREATE TRIGGER {table}_{change.lower()} BEFORE {change} ON {table} "
                        f"BEGIN SELECT RAISE(ABORT, '{table} only grows'); END"
                    )

            rows = [(name, json.dumps(value)) for name, value in values.items()]
            self._db.executemany("INSERT INTO project VALUES (?, ?)", rows)
            bodies = [(number, json.dumps(asdict(item))) for number, item in enumerate(items)]
            self._db.executemany("INSERT INTO items VALUES (?, ?)", bodies)
        self.is_new = False

    @contextlib.contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            # a full disk has rolled it back already
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    def project(self) -> dict[str, Any]:
        """Return what was given to `create`, with the version and the key of the links."""
        return {
            name: json.loads(value) for name, value in self._read("SELECT name, value FROM project")
        }

    def items(self) -> list[Item]:
        """Return all items; the number of one is its place."""
        rows = self._read("SELECT body FROM items ORDER BY id")
        return [Item(**json.loads(body)) for (body,) in rows]

    def steps(self) -> Iterator[Step]:
        """Yield what was shown to whom, each person's in order."""
        columns = "annotator, step, item, role, shown"
        for row in self._read(f"SELECT {columns} FROM steps ORDER BY annotator, step"):
            yield Step(*row)

    def judgements(self) -> Iterator[Judgement]:
        """Yield every row in the order in which they came."""
        columns = "client_id, annotator, step, action, body"
        rows = self._read(f"SELECT {columns} FROM judgements ORDER BY id")
        for client_id, annotator, step, action, body in rows:
            yield Judgement(client_id, annotator, step, action, json.loads(body))

    def _read(self, query: str) -> Iterator[tuple[Any, ...]]:
        """Yield the rows of a query.

        Raises:
            DataError: the file is damaged.
        """
        try:
            yield from self._db.execute(query)
        except sqlite3.DatabaseError as error:
            raise DataError(
                f"{self.path} cannot be read: {error}; restore it from a copy"
            ) from None

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Turn what the system refuses (disk full, read-only) into one line."""
        try:
            yield
        except sqlite3.OperationalError as error:
            raise MachineError(f"{self.path} cannot be written: {error}") from None

    def add_annotators(self, names: Sequence[str]) -> None:
        """Let more people judge; who was there stays."""
        value = json.dumps([*self.project()["annotators"], *names])
        with self._writing():
            self._db.execute("UPDATE project SET value = ? WHERE name = 'annotators'", (value,))

    def add_step(self, step: Step) -> None:
        """Record that an item is shown.

        It is not flushed by itself: a judgement of it is, and everything before it in the log.
        """
        row = (step.annotator, step.number, step.item, step.role, step.shown)
        with self._writing():
            self._db.execute("PRAGMA synchronous = NORMAL")
            try:
                self._db.execute("INSERT INTO steps VALUES (?, ?, ?, ?, ?)", row)
            finally:
                self._db.execute("PRAGMA synchronous = FULL")

    def add_judgement(self, judgement: Judgement) -> bool:
        """Write a judgement to the disk; return False when it is there already.

        Raises:
            DataError: another judgement has that id.
            MachineError: the disk takes nothing; nothing is written.
        """
        row = (judgement.client_id, judgement.annotator, judgement.step, judgement.action)
        body = json.dumps(judgement.body, sort_keys=True)
        with self._writing():
            cursor = self._db.execute(
                "INSERT INTO judgements (client_id, annotator, step, action, body, received) "
                "VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (client_id) DO NOTHING",
                (*row, body, time.time()),
            )
        if cursor.rowcount == 1:
            return True

        columns = "client_id, annotator, step, action, body"
        found = self._db.execute(
            f"SELECT {columns} FROM judgements WHERE client_id = ?", (judgement.client_id,)
        ).fetchone()
        if found != (*row, body):
            raise DataError(f"the id {judgement.client_id} belongs to another judgement")
        return False


@contextlib.contextmanager
def claimed_store(path: Path) -> Iterator[Store]:
    """Open a store, or make an empty one, that no other process serves meanwhile.

    Raises:
        DataError: it is no store of this version, or another process serves it.
    """
    store = Store(path)
    try:
        store.claim()
        yield store
    finally:
        store.close()


def open_store(path: Path) -> Store:
    """Open a store that must be there already, to read it.

    Raises:
        DataError: there is none, it is empty, or of another version.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such store; it is what hfstack run annotate writes")
    store = Store(path)
    if store.is_new:
        store.close()
        raise DataError(f"{path} is an empty store: annotate has not begun")
    return store


def latest_judgements(store: Store) -> dict[tuple[str, int], Judgement]:
    """Return what counts now, by person and step: the last row, unless it is an undo."""
    latest: dict[tuple[str, int], Judgement] = {}
    for judgement in store.judgements():
        latest[judgement.annotator, judgement.step] = judgement
    return {key: one for key, one in latest.items() if one.action != "undo"}
