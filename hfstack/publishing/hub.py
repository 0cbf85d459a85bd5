"""Push files to a repository of the Hub: one commit on a known parent, or nothing.

    target = HubRepo("alice/model", endpoint=endpoint, token=token)
    parent = prepare_repo(target)
    sha = push(target, items, parent=parent, message="...")
    check_pushed(target, items, sha)

What is uploaded stays invisible until the commit, so a connection that breaks, or a process that is
killed, leaves the repository as it was, and the next attempt does not send again what has arrived.
"""

import hashlib
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants, get_token
from huggingface_hub.errors import (
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import build_hf_headers, get_session, validate_repo_id

from hfstack.errors import CheckpointError, ConfigError, HubError
from hfstack.logs import get_logger
from hfstack.publishing.files import PICKLES, FileToPublish
from hfstack.publishing.hub_errors import (
    as_hub_error,
    is_network,
    is_transient,
    retry_after_s,
    status_of,
)
from hfstack.runs.record_forms import read_publication_file
from hfstack.runs.rendering import PUBLICATION

logger = get_logger(__name__)

WAITS_S = (1.0, 2.0, 4.0, 8.0, 16.0)
_REPO_TYPES = ("model", "dataset", "space")
_NO_TOKEN = "no token to push with: set HF_TOKEN, or run `hf auth login`, with one that may write"


@dataclass(frozen=True)
class HubRepo:
    """A repository, and who pushes to it.

    Args:
        repo: `namespace/name`.
        repo_type: `model` or `dataset`.
        private: what a new repository becomes, and what one that exists has to be.
        branch: made from main when it is missing.
    """

    repo: str
    repo_type: str = "model"
    endpoint: str = constants.ENDPOINT
    token: str | None = field(default=None, repr=False)
    private: bool = True
    branch: str = "main"

    def __post_init__(self) -> None:
        object.__setattr__(self, "endpoint", self.endpoint.rstrip("/"))

    @property
    def api(self) -> HfApi:
        return HfApi(endpoint=self.endpoint, token=self.token)

    @property
    def url(self) -> str:
        prefix = "" if self.repo_type == "model" else f"{self.repo_type}s/"
        return f"{self.endpoint}/{prefix}{self.repo}"


def find_token() -> str:
    """Return the token of HF_TOKEN or of `hf auth login`.

    Raises:
        ConfigError: there is none.
    """
    token = get_token()
    if not token:
        raise ConfigError(_NO_TOKEN)
    return token


def check_name(repo: str) -> None:
    """Refuse a name that no repository can have.

    Raises:
        ConfigError: it is not `namespace/name`, or has characters that the Hub does not take.
    """
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ConfigError(f"--repo {repo}: {' '.join(str(error).split())}") from None
    if repo.count("/") != 1:
        raise ConfigError(f"--repo {repo} names no owner: write it as your_name/{repo}")


def check_token(target: HubRepo) -> str:
    """Return the name of the token's owner, once it is known that it may write there.

    Raises:
        ConfigError: the name is not valid, or the token is not, may only read, or belongs to
            somebody else.
        HubError: the endpoint cannot be reached.
    """
    check_name(target.repo)
    if not target.token:
        raise ConfigError(_NO_TOKEN)
    user = _whoami(target.endpoint, target.token, url=target.url)
    name, token = str(user["name"]), user.get("auth", {}).get("accessToken", {})

    # may it write at all?
    role, namespace = token.get("role"), target.repo.split("/")[0]
    if role == "read":
        raise ConfigError(
            f"the token of {name} may only read: make one that may write in the settings of "
            f"{target.endpoint}"
        )
    if role == "fineGrained" and not _may_write(token.get("fineGrained", {}), namespace):
        raise ConfigError(
            f"the fine-grained token of {name} may not write to repositories of {namespace}: "
            "add that right"
        )

    # and to this namespace?
    orgs = [str(org["name"]) for org in user.get("orgs", [])]
    if namespace not in (name, *orgs):
        known = f" or an organisation of {name} ({', '.join(orgs)})" if orgs else ""
        raise ConfigError(
            f"--repo {target.repo}: the token belongs to {name}; push to {name}/...{known}"
        )
    return name


def owner_of(endpoint: str, token: str) -> str:
    """Return whose token this is.

    Raises:
        ConfigError: the endpoint does not know the token.
        HubError: it cannot be reached.
    """
    return str(_whoami(endpoint, token, url=endpoint)["name"])


def _whoami(endpoint: str, token: str, *, url: str) -> dict[str, Any]:
    """Return what the endpoint knows of a token's owner.

    Args:
        url: what was to be reached, for an error.
    """
    try:
        return HfApi(endpoint=endpoint, token=token).whoami()
    except Exception as error:
        if status_of(error) == 401:
            raise ConfigError(
                f"{endpoint} does not know this token: check HF_TOKEN, or run `hf auth login` again"
            ) from None
        raise as_hub_error(error, url, endpoint) from error


def head_commit(target: HubRepo) -> str:
    """Return the commit that the branch is at.

    Raises:
        HubError: the repository or the branch is gone, or out of reach.
    """
    try:
        return _read_head(target)
    except Exception as error:
        if not is_network(error):
            raise
        raise as_hub_error(error, target.url, target.endpoint) from error


def prepare_repo(target: HubRepo) -> str:
    """Make the repository and its branch if needed; return the commit to push onto.

    Raises:
        ConfigError: the name is not valid or taken by another kind of repository, the token may not
            write there, or a public repository was found where a private one was meant.
        HubError: the endpoint refuses or cannot be reached.
    """
    check_token(target)
    try:
        info = _find_or_create(target)
        if target.private and not info.private:
            raise ConfigError(
                f"{target.url} is public and everybody would see what is pushed: "
                "add --private false if that is meant"
            )

        if target.branch == "main":
            return str(info.sha)
        try:
            return _read_head(target)
        except RevisionNotFoundError:
            target.api.create_branch(
                target.repo, branch=target.branch, repo_type=target.repo_type, exist_ok=True
            )
            return _read_head(target)
    except (ConfigError, HubError):
        raise
    except Exception as error:
        raise as_hub_error(error, target.url, target.endpoint) from error


def _find_or_create(target: HubRepo) -> Any:
    """Return what the Hub says of the repository, which is made when it is missing."""
    api = target.api
    try:
        return api.repo_info(target.repo, repo_type=target.repo_type)
    except RepositoryNotFoundError:
        refuse_other_kind(target)
        api.create_repo(target.repo, repo_type=target.repo_type, private=target.private)
        visibility = "private" if target.private else "public"
        logger.info("made the %s repository %s", visibility, target.url)
        return api.repo_info(target.repo, repo_type=target.repo_type)


def _read_head(target: HubRepo) -> str:
    """Return the commit that the branch is at, or raise what the client raises."""
    info = target.api.repo_info(target.repo, repo_type=target.repo_type, revision=target.branch)
    return str(info.sha)


def refuse_other_kind(target: HubRepo) -> None:
    """Raise ConfigError when another kind of repository has this name."""
    for kind in _REPO_TYPES:
        if kind != target.repo_type and target.api.repo_exists(target.repo, repo_type=kind):
            raise ConfigError(
                f"--repo {target.repo}: that name is taken by a {kind} of yours, "
                f"and this is a {target.repo_type}: choose another"
            )


def find_superseded(
    target: HubRepo, revision: str, items: Sequence[FileToPublish], *, kind: str
) -> list[str]:
    """Return the files of an earlier publication that this one no longer has.

    The same commit removes them.

    Args:
        revision: the commit that will be the parent.
        kind: what is about to be published.

    Raises:
        ConfigError: the repository holds another kind of thing, or weights of somebody else, of
            which and these any might be loaded.
    """
    paths = set(_list_files(target, revision))
    new = {item.path for item in items}

    # an earlier publication lists its files
    if PUBLICATION in paths:
        with tempfile.TemporaryDirectory() as folder:
            path = _download(target, PUBLICATION, revision, folder)
            try:
                before = read_publication_file(path)
            except CheckpointError as error:
                reason = str(error).removeprefix(f"{path}: ").partition(";")[0]
                raise ConfigError(
                    f"--repo {target.repo} has a damaged {PUBLICATION} ({reason}), so it is not "
                    "known which files belong to it: remove it there, or choose another name"
                ) from None
        if before["kind"] != kind:
            raise ConfigError(
                f"--repo {target.repo} holds a {before['kind']}, this is a {kind}: choose another"
            )
        return sorted(paths & set(before["files"]) - new)

    # weights of somebody else
    foreign = sorted(path for path in paths - new if path.endswith((".safetensors", *PICKLES)))
    if foreign:
        raise ConfigError(
            f"--repo {target.repo} already has {foreign[0]}, which was not published from here and "
            "would be loaded beside or instead of this: remove it there, or choose another name"
        )
    return []


def push(
    target: HubRepo,
    items: Sequence[FileToPublish],
    *,
    parent: str,
    message: str,
    delete: Sequence[str] = (),
    waits_s: Sequence[float] = WAITS_S,
) -> str:
    """Put the items into one commit on `parent`, and return its id.

    What fails in the network or the server is tried again after each of `waits_s`, always on the
    same parent, so that nothing of somebody else's is overwritten and nothing is committed twice.

    Args:
        delete: paths in the repository that this commit removes.

    Raises:
        HubError: the branch has moved, or the Hub refuses or cannot be reached, also after the last
            wait. In each case the branch is as it was before.
    """
    removals = [CommitOperationDelete(path) for path in delete]
    xet = has_xet(target)
    for wait_s in (*waits_s, None):
        try:
            with _additions(items, xet=xet) as additions:
                commit = target.api.create_commit(
                    target.repo,
                    [*additions, *removals],
                    commit_message=message,
                    repo_type=target.repo_type,
                    revision=target.branch,
                    parent_commit=parent,
                )
            return str(commit.oid)
        except Exception as error:
            # The commit may have been made although its answer was lost.
            _raise_unless_network(error, target)
            landed = _find_landed_commit(target, items, parent)
            if landed is not None:
                logger.info("the answer was lost, but the commit was made: %s", landed[:10])
                return landed

            if status_of(error) == 412:
                raise HubError(
                    f"{target.url}: {target.branch} has changed since {parent[:10]}, while "
                    "this was being pushed; nothing of this push is visible: look at the "
                    "change, then push again"
                ) from None
            described = as_hub_error(error, target.url, target.endpoint)
            if wait_s is None or not is_transient(error):
                raise described from error

            wait_s = max(wait_s, retry_after_s(error))
            logger.warning("%s; again in %g s", described, wait_s)
            time.sleep(wait_s)
    raise AssertionError("the last attempt returns or raises")


@contextmanager
def _additions(items: Sequence[FileToPublish], *, xet: bool) -> Iterator[list[CommitOperationAdd]]:
    """Give the files of a commit, by name for Xet, else opened.

    The Hub's client uploads by Xet whatever it may open itself, and has no fallback for an endpoint
    without it; what is open already goes by LFS.
    """
    with ExitStack() as stack:
        yield [
            CommitOperationAdd(
                item.path,
                str(item.source) if xet else stack.enter_context(item.source.open("rb")),
            )
            for item in items
        ]


def _raise_unless_network(error: Exception, target: HubRepo) -> None:
    """Raise what waiting does not help: an invalid card, and any bug of ours."""
    if isinstance(error, ValueError) and "metadata in README.md" in str(error):
        reason = " ".join(str(error).split())[:300]
        raise HubError(f"{target.url} refuses the card: {reason}") from error
    if not is_network(error):
        raise error


def check_pushed(target: HubRepo, items: Sequence[FileToPublish], sha: str) -> int:
    """Compare every item with what a commit holds, by sha256; return their number.

    The Hub reports the hash of large files, which it has computed; small ones are read back.

    Raises:
        HubError: a file is missing or differs.
    """
    stored = _list_files(target, sha)
    with tempfile.TemporaryDirectory() as folder:
        for item in items:
            there = stored.get(item.path)
            if there is None:
                raise HubError(
                    f"{target.url} at {sha[:10]} lacks {item.path} after the push; push again"
                )

            if there.lfs is not None:
                digest = there.lfs.sha256
            else:
                content = _download(target, item.path, sha, folder).read_bytes()
                digest = hashlib.sha256(content).hexdigest()
            if digest != item.sha256:
                raise HubError(
                    f"{target.url} at {sha[:10]}: {item.path} has sha256 {digest[:12]}, "
                    f"pushed was {item.sha256[:12]}"
                )
    return len(items)


def has_xet(target: HubRepo) -> bool:
    """Return whether large files can go by Xet: it is installed, allowed, and there."""
    if constants.HF_HUB_DISABLE_XET or find_spec("hf_xet") is None:
        return False
    if _offers_xet(target):
        return True

    logger.info("%s has no Xet: large files go by LFS", target.endpoint)
    return False


def _offers_xet(target: HubRepo) -> bool:
    """Return whether the endpoint gives out what a Xet upload needs."""
    url = f"{target.endpoint}/api/{target.repo_type}s/{target.repo}/xet-write-token/{target.branch}"
    try:
        response = get_session().get(url, headers=build_hf_headers(token=target.token), timeout=30)
    except Exception as error:
        if not is_network(error):
            raise
        return False
    return (
        response.status_code == 200
        and constants.HUGGINGFACE_HEADER_X_XET_ENDPOINT in response.headers
    )


def _list_files(target: HubRepo, revision: str) -> dict[str, Any]:
    """Return the files of a commit, by path."""
    try:
        entries = target.api.list_repo_tree(
            target.repo, recursive=True, revision=revision, repo_type=target.repo_type
        )
        return {entry.path: entry for entry in entries if hasattr(entry, "blob_id")}
    except Exception as error:
        if not is_network(error):
            raise
        raise as_hub_error(error, target.url, target.endpoint) from error


def _download(target: HubRepo, path: str, revision: str, folder: str) -> Path:
    """Return one file of a commit, fetched into a folder past this machine's cache."""
    where: Any = {"repo_type": target.repo_type, "revision": revision, "local_dir": folder}
    try:
        return Path(
            target.api.hf_hub_download(target.repo, path, cache_dir=f"{folder}/.cache", **where)
        )
    except Exception as error:
        if not is_network(error):
            raise
        raise as_hub_error(error, target.url, target.endpoint) from error


def _find_landed_commit(target: HubRepo, items: Sequence[FileToPublish], parent: str) -> str | None:
    """Return the head of the branch if it has moved on to exactly these files.

    That is a commit whose answer was lost.
    """
    try:
        head = _read_head(target)
        if head == parent:
            return None
        stored = _list_files(target, head)
    except Exception as error:  # still out of reach: the next attempt will see
        if not is_network(error):
            raise
        return None
    same = all(item.path in stored and _is_stored(item, stored[item.path]) for item in items)
    return head if same else None


def _is_stored(item: FileToPublish, there: Any) -> bool:
    """Return whether a file of the repository is the item.

    Large files are known by their sha256, small ones by git's own hash.
    """
    if there.size != item.bytes:
        return False
    if there.lfs is not None:
        return there.lfs.sha256 == item.sha256
    data = item.source.read_bytes()
    blob = b"blob %d\0" % len(data) + data
    return there.blob_id == hashlib.sha1(blob, usedforsecurity=False).hexdigest()


def _may_write(rights: dict[str, Any], namespace: str) -> bool:
    """Return whether a fine-grained token has `repo.write` for this namespace."""
    scoped = [
        permission
        for scope in rights.get("scoped", [])
        if str(scope.get("entity", {}).get("name", "")).split("/")[0] == namespace
        for permission in scope.get("permissions", [])
    ]
    return "repo.write" in [*rights.get("global", []), *scoped]
