"""Check what was published, as others get it: every hash, then one number."""

import hashlib
import shutil
from pathlib import Path

from huggingface_hub import HfApi, get_token

from hfstack.disk import is_as_described, is_inside
from hfstack.errors import CheckpointError, HubError
from hfstack.logs import get_logger
from hfstack.publishing.check_number import agrees, measure_check_number
from hfstack.publishing.files import (
    ADAPTER_CONFIG,
    PublishedKind,
    detect_kind,
    make_item,
    published_files,
    refuse_pickles,
)
from hfstack.publishing.folder import folder_of, names_folder
from hfstack.publishing.hub import check_name
from hfstack.publishing.hub_errors import as_hub_error, is_network
from hfstack.publishing.staging import CARD, RUNS, read_publication
from hfstack.runs.record_forms import Publication, read_published_runs
from hfstack.runs.rendering import PUBLICATION

logger = get_logger(__name__)

_EXPECTED = (PUBLICATION, ".gitattributes", ".gitignore")
# Made for the publication, whatever the run has left under that name.
_REWRITTEN = (ADAPTER_CONFIG, CARD)


def fetch(repo: str, folder: Path, *, endpoint: str, revision: str) -> str:
    """Download a repository into a folder, and return the id of its commit.

    Raises:
        ConfigError: the name is none that a repository can have.
        HubError: it is private, missing, or out of reach.
        CheckpointError: a file of it would lie where the Hub's client keeps its own.
    """
    check_name(repo)
    api = HfApi(endpoint=endpoint, token=get_token())
    error: Exception | None = None
    for kind in ("model", "dataset"):
        try:
            sha = str(api.repo_info(repo, repo_type=kind, revision=revision).sha)
            # An empty cache, or what this machine has of that commit would be taken.
            cache = folder / ".cache"
            api.snapshot_download(
                repo, repo_type=kind, revision=sha, local_dir=folder, cache_dir=cache
            )
            # What lies there now is the client's own, so nothing else may.
            names = api.list_repo_files(repo, repo_type=kind, revision=sha)
            if hidden := next((name for name in names if name.startswith(".cache/")), None):
                raise CheckpointError(f"{repo} has {hidden}, which no publication has")
            shutil.rmtree(cache, ignore_errors=True)
            return sha
        except Exception as failure:
            if not is_network(failure):
                raise
            error = error or failure

    # Neither a model nor a dataset was found: report the first failure.
    assert error is not None
    token = "" if get_token() else "; there is no token here: set HF_TOKEN, or run `hf auth login`"
    described = as_hub_error(error, f"{endpoint}/{repo} at {revision}", endpoint)
    raise HubError(f"{described}{token}") from error


def check_files(folder: Path, repo: str) -> Publication:
    """Compare every file of a commit with publication.json, and return what that says.

    Args:
        folder: all files of the commit.
        repo: where they were found.

    Raises:
        CheckpointError: a file is missing, differs, or is there and not listed; they belong to
            another repository or run; or there is nothing to compare with.
    """
    publication = read_publication(folder)
    files, needed = publication["files"], {CARD, RUNS}
    if missing := sorted(needed - files.keys()):
        raise CheckpointError(
            f"{folder / PUBLICATION} does not list {missing[0]}, which every publication has: it "
            "was shortened"
        )
    # A list that somebody rewrote can name what no publication has.
    refuse_pickles(files, str(folder))
    if code := next((name for name in files if name.lower().endswith(".py")), None):
        raise CheckpointError(f"{folder} has {code}: code, which no publication of hfstack has")
    for name, expected in files.items():
        _check_file(folder, name, expected["sha256"])

    # files that somebody added
    there = [str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()]
    known = {*files, *_EXPECTED}
    others = sorted(name for name in there if name not in known)
    refuse_pickles(others, str(folder))
    if others:
        raise CheckpointError(
            f"{folder} has {', '.join(others[:8])}, which {PUBLICATION} does not list: it was "
            "added after the publication"
        )

    _check_repo(publication, folder, repo)
    _check_run(publication, folder)
    # what a model cannot do without, also where the list does not name it
    if publication["kind"] != "dataset":
        published_files(folder, published_kind(folder, publication), {})
    return publication


def _check_file(folder: Path, name: str, expected: str) -> None:
    """Compare one file with its sha256."""
    path = folder / name
    if not is_inside(path, folder) or not path.is_file():
        raise CheckpointError(
            f"{folder} lacks {name}, which {PUBLICATION} lists: the publication is incomplete"
        )

    found = make_item(name, path)
    if found.sha256 != expected:
        raise CheckpointError(
            f"{path} has sha256 {found.sha256[:12]}, published was {expected[:12]}: it was changed "
            "since"
        )


def _check_repo(publication: Publication, folder: Path, repo: str) -> None:
    """Refuse a copy of what was published as something else."""
    published = publication.get("repo")
    if published is None:
        logger.warning("%s names no repository: an older hfstack wrote it", folder / PUBLICATION)
    elif names_folder(repo) and names_folder(published):
        # A folder is seen under several paths, as of a network file system.
        if folder_of(repo) != folder_of(published):
            logger.warning("it was published as %s", published)
    elif repo != published:
        raise CheckpointError(f"{repo} holds a copy of {published}: verify that one")


def _check_run(publication: Publication, folder: Path) -> None:
    """Refuse files that are not those that the recorded run has left."""
    run_id = publication.get("run_id")
    if not run_id:
        logger.warning("%s names no run: an older hfstack wrote it", folder / PUBLICATION)
        return

    records = read_published_runs(folder / RUNS)
    own = next((each for each in records if each.get("run_id") == run_id), None)
    if own is None:
        raise CheckpointError(f"{folder / RUNS} has no record of the run {run_id}")
    for output in own.get("outputs", []):
        name = output["path"]
        if name not in publication["files"] or name in _REWRITTEN:
            continue
        if not is_as_described(folder / name, dict(output)):
            raise CheckpointError(
                f"{folder / name} is not what the run {run_id} has left: its record in {RUNS} has "
                "another hash"
            )


def check_number(folder: Path, publication: Publication) -> tuple[str, float, float] | None:
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


def published_kind(folder: Path, publication: Publication) -> PublishedKind:
    """Return what a publication is."""
    if publication["kind"] == "dataset":
        return PublishedKind("dataset", "dataset")
    kind = detect_kind(folder, {}, rewards=publication["kind"] == "reward")
    if kind.adapter and not kind.base:
        raise CheckpointError(f"{folder / ADAPTER_CONFIG} names no base model")
    return kind


def publication_digest(publication: Publication) -> str:
    """Return one hash over all files of a publication, to quote."""
    lines = [f"{entry['sha256']}  {name}\n" for name, entry in sorted(publication["files"].items())]
    return hashlib.sha256("".join(lines).encode()).hexdigest()
