"""Check what was published, as others get it: every hash, then one number."""

import hashlib
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, get_token

from hfstack.errors import CheckpointError, HubError
from hfstack.logs import get_logger
from hfstack.publishing.check_number import agrees, measure_check_number
from hfstack.publishing.files import (
    ADAPTER_CONFIG,
    PublishedKind,
    detect_kind,
    make_item,
    refuse_pickles,
)
from hfstack.publishing.hub import HubRepo, check_name, transport
from hfstack.publishing.hub_errors import describe, is_network
from hfstack.publishing.staging import read_publication
from hfstack.runs.rendering import PUBLICATION

logger = get_logger(__name__)

_EXPECTED = (PUBLICATION, ".gitattributes", ".gitignore")


def fetch(repo: str, folder: Path, *, endpoint: str, revision: str) -> str:
    """Download a repository into a folder, and return the id of its commit.

    Raises:
        ConfigError: the name is none that a repository can have.
        HubError: it is private, missing, or out of reach.
    """
    check_name(repo)
    api = HfApi(endpoint=endpoint, token=get_token())
    error: Exception | None = None
    for kind in ("model", "dataset"):
        target = HubRepo(repo, kind, endpoint, get_token())
        try:
            sha = str(api.repo_info(repo, repo_type=kind, revision=revision).sha)
            with transport(target):
                # An empty cache, or what this machine has of that commit would be taken.
                empty = folder / ".cache"
                api.snapshot_download(
                    repo, repo_type=kind, revision=sha, local_dir=folder, cache_dir=empty
                )
            return sha
        except Exception as failure:
            if not is_network(failure):
                raise
            error = error or failure

    # Neither a model nor a dataset was found: report the first failure.
    assert error is not None
    token = "" if get_token() else "; there is no token here: set HF_TOKEN, or run `hf auth login`"
    described = describe(error, f"{endpoint}/{repo} at {revision}", endpoint)
    raise HubError(f"{described}{token}") from error


def check_files(folder: Path) -> dict[str, Any]:
    """Compare every file with its hash in publication.json, and return what that says.

    Raises:
        CheckpointError: a file is missing, differs, or is a pickle; or there is nothing to compare
            with.
    """
    publication = read_publication(folder)
    for name, expected in publication["files"].items():
        path = folder / name
        if not path.resolve().is_relative_to(folder.resolve()) or not path.is_file():
            raise CheckpointError(
                f"{folder} lacks {name}, which {PUBLICATION} lists: it was not published whole"
            )

        found = make_item(name, path)
        if found.sha256 != expected["sha256"]:
            raise CheckpointError(
                f"{path} has sha256 {found.sha256[:12]}, published was "
                f"{expected['sha256'][:12]}: it was changed since"
            )

    # files that somebody added
    there = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
    expected = {*publication["files"], *_EXPECTED}
    others = [name for name in there if name not in expected and not name.startswith(".cache/")]
    refuse_pickles(others, str(folder))
    if others:
        logger.warning(
            "not part of the publication, so not checked: %s", ", ".join(sorted(others)[:8])
        )
    return publication


def check_number(folder: Path, publication: dict[str, Any]) -> tuple[str, float, float] | None:
    """Measure the check number again; return its name, the old and the new value.

    Raises:
        CheckpointError: it differs, or the files cannot be loaded.
    """
    check = publication.get("check")
    if not check:
        logger.warning("no number was published to be measured again: only the hashes were checked")
        return None
    files = {name: folder / name for name in publication["files"]}
    name, measured = measure_check_number(files, published_kind(folder, publication))
    recorded = float(check["value"])
    if name != check["name"] or not agrees(measured, recorded):
        raise CheckpointError(
            f"{folder}: {name} is {measured:.6g} here, published was {check['name']} "
            f"{recorded:.6g}: the files are those that were published, so the libraries that load "
            "them differ (see runs.json)"
        )
    return name, recorded, measured


def published_kind(folder: Path, publication: dict[str, Any]) -> PublishedKind:
    """Return what a publication is."""
    if publication["kind"] == "dataset":
        return PublishedKind("dataset", "dataset")
    kind = detect_kind(folder, {}, rewards=publication["kind"] == "reward")
    if kind.adapter and not kind.base:
        raise CheckpointError(f"{folder / ADAPTER_CONFIG} names no base model")
    return kind


def publication_digest(publication: dict[str, Any]) -> str:
    """Return one hash over all files of a publication, to quote."""
    lines = [f"{entry['sha256']}  {name}\n" for name, entry in sorted(publication["files"].items())]
    return hashlib.sha256("".join(lines).encode()).hexdigest()
