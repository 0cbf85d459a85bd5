"""What a small look-alike of the Hub keeps: users by token, repositories and their commits, blobs,
planned faults.
"""

import hashlib
import json
import threading
from dataclasses import dataclass, field
from typing import Any


@dataclass
class User:
    """Whom a token belongs to, and what it may do: `write`, `read`, or `fineGrained` with
    `scopes`."""

    name: str
    role: str = "write"
    orgs: tuple[str, ...] = ()
    scopes: tuple[str, ...] = ()

    def may_write(self, namespace: str) -> bool:
        allowed = self.role == "write" or (
            self.role == "fineGrained" and "repo.write" in self.scopes
        )
        return allowed and namespace in (self.name, *self.orgs)


@dataclass
class File:
    """One file of a commit; `sha256` is set for LFS files only."""

    oid: str
    size: int
    sha256: str | None = None


@dataclass
class Commit:
    parent: str | None
    title: str
    files: dict[str, File]


@dataclass
class Repo:
    private: bool
    refs: dict[str, str] = field(default_factory=dict)
    commits: dict[str, Commit] = field(default_factory=dict)

    def sha(self, revision: str) -> str | None:
        found = self.refs.get(revision, revision)
        return found if found in self.commits else None

    def head(self, revision: str = "main") -> Commit:
        return self.commits[self.refs[revision]]


@dataclass
class Fault:
    """What to do with the next `times` requests whose "METHOD /path" matches: a status code, `drop`
    or `slow`.
    """

    match: str
    do: int | str
    times: int = 1
    seconds: float = 0.0
    headers: dict[str, str] = field(default_factory=dict)
    after: bool = False
    """Carry the request out first, so that only its answer is lost."""
    skip: int = 0
    """Let so many requests pass first."""


class Hub:
    """The state of the server, for tests to look at and to plan faults in."""

    def __init__(self, users: dict[str, User], *, part_bytes: int | None = None) -> None:
        self.users, self.part_bytes = users, part_bytes
        self.repos: dict[tuple[str, str], Repo] = {}
        self.blobs: dict[str, bytes] = {}
        self.parts: dict[str, dict[int, bytes]] = {}
        self.faults: list[Fault] = []
        self.log: list[str] = []
        self.lock = threading.RLock()
        self.url = ""

    def fail(self, match: str, do: int | str, **how: Any) -> None:
        self.faults.append(Fault(match, do, **how))

    def repo(self, name: str, kind: str = "model") -> Repo:
        return self.repos[kind, name]

    def content(
        self, name: str, path: str, *, kind: str = "model", revision: str = "main"
    ) -> bytes:
        stored = self.repo(name, kind).head(revision).files[path]
        return self.blobs[stored.sha256 or stored.oid]

    def make(self, name: str, *, kind: str = "model", private: bool = False) -> Repo:
        """Create a repository with an empty first commit."""
        repo = Repo(private)
        first = hashlib.sha1(f"{kind} {name}".encode()).hexdigest()
        repo.commits[first] = Commit(None, "initial commit", {})
        repo.refs["main"] = first
        self.repos[kind, name] = repo
        return repo

    def put(self, repo: Repo, branch: str, title: str, files: dict[str, File]) -> str:
        """Add a commit to a branch and return its id."""
        parent = repo.refs[branch]
        seed = json.dumps([parent, title, sorted(files), len(repo.commits)]).encode()
        sha = hashlib.sha1(seed).hexdigest()
        repo.commits[sha] = Commit(parent, title, files)
        repo.refs[branch] = sha
        return sha

    def store(self, data: bytes) -> File:
        """Keep the content of a small file."""
        oid = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        self.blobs[oid] = data
        return File(oid, len(data))
