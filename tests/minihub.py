"""A small look-alike of the Hub, for tests: repositories, tokens, LFS uploads, atomic commits, and
planned faults.

    with minihub({"hf_writer": User("alice")}) as hub:
        HfApi(endpoint=hub.url, token="hf_writer").create_repo("alice/model")

It answers what huggingface_hub 2.x asks for in whoami, create_repo, create_branch, repo_info,
list_repo_tree, create_commit (regular and LFS files, single or in parts) and downloads with ranges.
It has no Xet. As on the real Hub, a private repository and a missing one look the same to a
stranger. Standard library only."""

import base64
import contextlib
import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.minihub_state import File, Hub, Repo, User

_KINDS = {"models": "model", "datasets": "dataset", "spaces": "space"}
_LARGE = (".safetensors", ".bin", ".pt", ".parquet", ".npz")
_TIME = "2026-01-01T00:00:00.000Z"
_HEX40 = re.compile(r"[0-9a-f]{40}")


@contextlib.contextmanager
def minihub(users: dict[str, User], *, part_bytes: int | None = None) -> Iterator[Hub]:
    """Serve a Hub on a free port of this machine until the block ends.

    Args:
        users: by token.
        part_bytes: LFS files larger than this are uploaded in parts.
    """
    hub = Hub(users, part_bytes=part_bytes)
    handler = type("BoundHandler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
    )
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


class _Refused(Exception):
    """An answer other than 200."""

    def __init__(self, status: int, message: str, code: str = "") -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # An answer goes out in two parts, the second of which would wait for 40 ms.
    disable_nagle_algorithm = True
    hub: Hub

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class names it
        """Keep the test's output clean."""

    def _serve(self) -> None:
        parts = urlsplit(self.path)
        self.query = parse_qs(parts.query)
        key = f"{self.command} {parts.path}"
        self.hub.log.append(key)
        fault = next((f for f in self.hub.faults if f.times > 0 and re.search(f.match, key)), None)
        if fault is not None and fault.skip:
            fault.skip -= 1
            fault = None
        try:
            if fault is not None:
                fault.times -= 1
                if fault.after:
                    with contextlib.suppress(_Refused):
                        self._route(parts.path, answer=False)
                    self._drop()
                    return
                if fault.do == "drop":
                    self.rfile.read(min(int(self.headers.get("Content-Length") or 0), 1024))
                    self._drop()
                    return
                if fault.do == "slow":
                    time.sleep(fault.seconds)
                else:
                    self._body()
                    self._answer(int(fault.do), {"error": "planned fault"}, headers=fault.headers)
                    return
            self._route(parts.path)
        except _Refused as refused:
            headers = {"X-Error-Message": refused.message} | (
                {"X-Error-Code": refused.code} if refused.code else {}
            )
            self._answer(refused.status, {"error": refused.message}, headers=headers)
        except (ConnectionError, TimeoutError):  # the client went away
            self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve  # noqa: N815

    def _drop(self) -> None:
        self.close_connection = True
        self.connection.close()

    def _route(self, path: str, *, answer: bool = True) -> None:
        for method, pattern, function in _ROUTES:
            if method == self.command and (match := re.fullmatch(pattern, path)):
                found = function(
                    self, **{k: unquote(v) if v else v for k, v in match.groupdict().items()}
                )
                if found is not None and answer:
                    self._answer(200, found)
                return
        self._body()
        raise _Refused(404, f"no route {self.command} {path}")

    def _answer(
        self,
        status: int,
        body: Any = None,
        *,
        headers: dict[str, str] | None = None,
        raw: bytes | None = None,
    ) -> None:
        data = raw if raw is not None else json.dumps(body).encode()
        self.send_response(status)
        plain = {
            "Content-Type": "application/json",
            "Content-Length": str(len(data)),
            "X-Request-Id": "test",
        }
        for name, value in (plain | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            chunks = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(chunks)
        size = int(self.headers.get("Content-Length") or 0)
        data = self.rfile.read(size)
        if len(data) != size:
            raise ConnectionError("the body ended early")
        return data

    # Who asks, and for which repository

    def _user(self) -> User | None:
        given = self.headers.get("Authorization", "")
        if not given:
            return None
        if (user := self.hub.users.get(given.removeprefix("Bearer "))) is None:
            raise _Refused(401, "Invalid credentials in Authorization header")
        return user

    def _repo(self, kind: str, name: str, *, write: bool = False) -> Repo:
        user, repo, namespace = self._user(), self.hub.repos.get((kind, name)), name.split("/")[0]
        stranger = user is None or namespace not in (user.name, *user.orgs)
        if repo is None or (repo.private and stranger):
            raise _Refused(404 if user else 401, "Repository not found", "RepoNotFound")
        if write and user is None:
            raise _Refused(401, "Invalid username or password.")
        if write and not user.may_write(namespace):
            raise _Refused(403, "You don't have the rights to write here")
        return repo

    def _at(
        self, kinds: str, name: str, revision: str | None, *, write: bool = False
    ) -> tuple[Repo, str]:
        repo = self._repo(_KINDS[kinds], name, write=write)
        if (sha := repo.sha(revision or "main")) is None:
            raise _Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return repo, sha

    def whoami(self) -> dict[str, Any]:
        if (user := self._user()) is None:
            raise _Refused(401, "Invalid username or password.")
        token: dict[str, Any] = {"displayName": "test", "role": user.role}
        if user.role == "fineGrained":
            entity = {"type": "user", "name": user.name}
            token["fineGrained"] = {
                "global": [],
                "scoped": [{"entity": entity, "permissions": list(user.scopes)}],
            }
        orgs = [{"name": name} for name in user.orgs]
        return {
            "type": "user",
            "name": user.name,
            "orgs": orgs,
            "auth": {"type": "access_token", "accessToken": token},
        }

    def create(self) -> dict[str, Any] | None:
        body, user = json.loads(self._body()), self._user()
        if user is None:
            raise _Refused(401, "Invalid username or password.")
        namespace, kind = body.get("organization") or user.name, body.get("type", "model")
        name = f"{namespace}/{body['name']}"
        if not user.may_write(namespace):
            raise _Refused(403, f"You don't have the rights to create a {kind} under {namespace}")
        answer = {
            "url": f"{self.hub.url}/{'' if kind == 'model' else kind + 's/'}{name}",
            "name": name,
            "id": name,
        }
        if (kind, name) in self.hub.repos:
            self._answer(409, {"error": "You already created this repo", **answer})
            return None
        self.hub.make(
            name,
            kind=kind,
            private=body.get("visibility") == "private" or bool(body.get("private")),
        )
        return answer

    def validate_yaml(self) -> dict[str, Any] | None:
        body = json.loads(self._body())
        if "license: none-such" in body["content"]:
            self._answer(
                400, {"errors": [{"message": '"license" must be one of [...]'}], "warnings": []}
            )
            return None
        if not body["content"].startswith("---\n"):
            return {
                "errors": [],
                "warnings": [{"message": "empty or missing yaml metadata in repo card"}],
            }
        return {"errors": [], "warnings": []}

    # Reading

    def info(self, kinds: str, name: str, revision: str | None = None) -> dict[str, Any]:
        repo, sha = self._at(kinds, name, revision)
        files = [_entry(path, stored) for path, stored in sorted(repo.commits[sha].files.items())]
        times = {"lastModified": _TIME, "createdAt": _TIME}
        return {
            "_id": sha[:24],
            "id": name,
            "modelId": name,
            "author": name.split("/")[0],
            "sha": sha,
            "siblings": files,
            "private": repo.private,
            "gated": False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": [],
            **times,
        }

    def tree(self, kinds: str, name: str, revision: str, folder: str | None = None) -> list[Any]:
        repo, sha = self._at(kinds, name, revision)
        under = f"{folder.strip('/')}/" if folder else ""
        deep = self.query.get("recursive", ["false"])[0].lower() in ("true", "1")
        found: dict[str, Any] = {}
        for path, stored in sorted(repo.commits[sha].files.items()):
            if path.startswith(under):
                first, slash, _ = path[len(under) :].partition("/")
                if slash and not deep:
                    found[first] = {
                        "type": "directory",
                        "path": under + first,
                        "oid": "0" * 40,
                        "size": 0,
                    }
                else:
                    found[path] = _entry(path, stored)
        return list(found.values())

    def paths_info(self, kinds: str, name: str, revision: str) -> list[Any]:
        raw = self._body()
        asked = (
            json.loads(raw)["paths"] if raw[:1] == b"{" else parse_qs(raw.decode()).get("paths", [])
        )
        repo, sha = self._at(kinds, name, revision)
        files = repo.commits[sha].files
        return [_entry(path, files[path]) for path in asked if path in files]

    def refs(self, kinds: str, name: str) -> dict[str, Any]:
        repo = self._repo(_KINDS[kinds], name)
        branches = [
            {"name": branch, "ref": f"refs/heads/{branch}", "targetCommit": sha}
            for branch, sha in repo.refs.items()
        ]
        return {"branches": branches, "tags": [], "converts": []}

    def commits(self, kinds: str, name: str, revision: str) -> list[Any]:
        repo, sha = self._at(kinds, name, revision)
        found: list[Any] = []
        step: str | None = sha
        while step:
            commit = repo.commits[step]
            found.append(
                {"id": step, "title": commit.title, "message": "", "date": _TIME, "authors": []}
            )
            step = commit.parent
        return found

    def file(self, name: str, revision: str, path: str, kinds: str | None = None) -> None:
        repo, sha = self._at(kinds or "models", name, revision)
        if (stored := repo.commits[sha].files.get(path)) is None:
            headers = {
                "X-Error-Code": "EntryNotFound",
                "X-Error-Message": "Entry not found",
                "X-Repo-Commit": sha,
            }
            self._answer(404, {"error": "Entry not found"}, headers=headers)
            return
        etag = stored.sha256 or stored.oid
        headers = {"X-Repo-Commit": sha, "ETag": f'"{etag}"', "Accept-Ranges": "bytes"}
        if stored.sha256:
            headers |= {"X-Linked-Size": str(stored.size), "X-Linked-Etag": f'"{etag}"'}
        data = self.hub.blobs[etag]
        if match := re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(match[1]), int(match[2]) if match[2] else len(data) - 1
            headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
            self._answer(206, raw=data[first : last + 1], headers=headers)
        else:
            self._answer(200, raw=data, headers=headers)

    # Writing

    def branch(self, kinds: str, name: str, branch: str) -> dict[str, Any]:
        body = json.loads(self._body() or b"{}")
        repo, sha = self._at(kinds, name, body.get("startingPoint"), write=True)
        if branch in repo.refs:
            raise _Refused(409, "Reference already exists")
        repo.refs[branch] = sha
        return {}

    def preupload(self, kinds: str, name: str, revision: str) -> dict[str, Any]:
        body = json.loads(self._body())
        repo, sha = self._at(kinds, name, revision, write=True)
        files = repo.commits[sha].files
        answers = []
        for asked in body["files"]:
            large = asked["path"].endswith(_LARGE) or asked["size"] > 10 * 2**20
            there = files.get(asked["path"])
            oid = there and (there.sha256 or there.oid)
            answers.append(
                {
                    "path": asked["path"],
                    "uploadMode": "lfs" if large else "regular",
                    "shouldIgnore": False,
                    "oid": oid,
                }
            )
        return {"files": answers}

    def lfs_batch(self, name: str, kinds: str | None = None) -> dict[str, Any]:
        body = json.loads(self._body())
        self._repo(_KINDS[kinds or "models"], name, write=True)
        objects = []
        for asked in body["objects"]:
            oid, size, url = asked["oid"], asked["size"], f"{self.hub.url}/lfs/{asked['oid']}"
            entry: dict[str, Any] = {"oid": oid, "size": size}
            if oid not in self.hub.blobs:
                upload: dict[str, Any] = {"href": url, "header": {}}
                if self.hub.part_bytes and size > self.hub.part_bytes:
                    count = -(-size // self.hub.part_bytes)
                    places = {str(part): f"{url}/part/{part}" for part in range(1, count + 1)}
                    upload = {
                        "href": f"{url}/complete",
                        "header": {"chunk_size": str(self.hub.part_bytes), **places},
                    }
                entry["actions"] = {
                    "upload": upload,
                    "verify": {"href": f"{url}/verify", "header": {}},
                }
            objects.append(entry)
        return {"transfer": "multipart" if self.hub.part_bytes else "basic", "objects": objects}

    def lfs_put(self, oid: str, part: str | None = None) -> None:
        data = self._body()
        if part:
            self.hub.parts.setdefault(oid, {})[int(part)] = data
        else:
            self._keep(oid, data)
        self._answer(200, {}, headers={"ETag": f'"{hashlib.md5(data).hexdigest()}"'})

    def lfs_complete(self, oid: str) -> dict[str, Any]:
        self._body()
        self._keep(oid, b"".join(data for _, data in sorted(self.hub.parts.pop(oid).items())))
        return {}

    def _keep(self, oid: str, data: bytes) -> None:
        if hashlib.sha256(data).hexdigest() != oid:
            raise _Refused(400, "sha256 mismatch")
        self.hub.blobs[oid] = data

    def lfs_verify(self, oid: str) -> dict[str, Any]:
        body = json.loads(self._body())
        if len(self.hub.blobs.get(oid, b"")) != body["size"]:
            raise _Refused(404, "object missing")
        return {}

    def commit(self, kinds: str, name: str, revision: str) -> dict[str, Any]:
        lines = [json.loads(line) for line in self._body().splitlines() if line.strip()]
        with self.hub.lock:
            repo, sha = self._at(kinds, name, revision, write=True)
            head, files = lines[0]["value"], dict(repo.commits[sha].files)
            if head.get("parentCommit") and head["parentCommit"] != sha:
                raise _Refused(412, "A commit has happened since. Please refresh and try again.")
            for line in lines[1:]:
                value = line["value"]
                if line["key"] == "file":
                    files[value["path"]] = self.hub.store(base64.b64decode(value["content"]))
                elif line["key"] == "lfsFile":
                    if value["oid"] not in self.hub.blobs:
                        raise _Refused(400, f"LFS object {value['oid']} was not uploaded")
                    oid = hashlib.sha1(value["oid"].encode()).hexdigest()
                    files[value["path"]] = File(
                        oid, len(self.hub.blobs[value["oid"]]), value["oid"]
                    )
                elif line["key"] == "deletedFile":
                    files.pop(value["path"], None)
            new = self.hub.put(
                repo, revision if not _HEX40.fullmatch(revision) else "main", head["summary"], files
            )
        return {
            "success": True,
            "commitOid": new,
            "commitUrl": f"{self.hub.url}/{name}/commit/{new}",
        }


def _entry(path: str, stored: File) -> dict[str, Any]:
    entry = {
        "rfilename": path,
        "path": path,
        "type": "file",
        "size": stored.size,
        "oid": stored.oid,
    }
    if stored.sha256:
        entry["lfs"] = {
            "oid": stored.sha256,
            "sha256": stored.sha256,
            "size": stored.size,
            "pointerSize": 134,
        }
    return {**entry, "blobId": stored.oid}


_API = r"/api/(?P<kinds>models|datasets|spaces)/(?P<name>[^/]+/[^/]+)"
_PAGE = r"/(?:(?P<kinds>datasets|spaces)/)?(?P<name>[^/]+/[^/]+?)"
_LFS = r"/lfs/(?P<oid>[0-9a-f]{64})"
_ROUTES: list[tuple[str, str, Any]] = [
    ("GET", r"/api/whoami-v2", _Handler.whoami),
    ("POST", r"/api/repos/create", _Handler.create),
    ("POST", r"/api/validate-yaml", _Handler.validate_yaml),
    ("GET", _API, _Handler.info),
    ("GET", _API + r"/revision/(?P<revision>[^/]+)", _Handler.info),
    ("GET", _API + r"/tree/(?P<revision>[^/]+)(?:/(?P<folder>.+))?", _Handler.tree),
    ("POST", _API + r"/paths-info/(?P<revision>[^/]+)", _Handler.paths_info),
    ("GET", _API + r"/refs", _Handler.refs),
    ("GET", _API + r"/commits/(?P<revision>[^/]+)", _Handler.commits),
    ("POST", _API + r"/branch/(?P<branch>[^/]+)", _Handler.branch),
    ("POST", _API + r"/preupload/(?P<revision>[^/]+)", _Handler.preupload),
    ("POST", _API + r"/commit/(?P<revision>[^/]+)", _Handler.commit),
    ("POST", _PAGE + r"\.git/info/lfs/objects/batch", _Handler.lfs_batch),
    ("PUT", _LFS + r"(?:/part/(?P<part>\d+))?", _Handler.lfs_put),
    ("POST", _LFS + r"/complete", _Handler.lfs_complete),
    ("POST", _LFS + r"/verify", _Handler.lfs_verify),
    ("GET", _PAGE + r"/resolve/(?P<revision>[^/]+)/(?P<path>.+)", _Handler.file),
    ("HEAD", _PAGE + r"/resolve/(?P<revision>[^/]+)/(?P<path>.+)", _Handler.file),
]
