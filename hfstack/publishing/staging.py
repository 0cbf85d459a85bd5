"""Prepare a finished run for a push: check it, and stage its files.

What is made for the publication names no path of this machine.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import hfstack
from hfstack.errors import CheckpointError, ConfigError
from hfstack.logs import get_logger
from hfstack.publishing.files import (
    ADAPTER_CONFIG,
    FileToPublish,
    PublishedKind,
    detect_kind,
    make_item,
    published_files,
    refuse_pickles,
)
from hfstack.publishing.lineage import Chain, shorten_paths
from hfstack.publishing.secret_scan import hide_known
from hfstack.redaction import redact
from hfstack.runs.model_folder import read_object
from hfstack.runs.record import changed_output
from hfstack.runs.record_forms import Publication, read_publication_file
from hfstack.runs.rendering import PUBLICATION

logger = get_logger(__name__)

CARD, RUNS = "README.md", "runs.json"
_PUBLICATION_SCHEMA = 1


def check_ready(chain: Chain) -> tuple[PublishedKind, dict[str, Path]]:
    """Return what a finished run has made, and its files as they were at its end.

    Raises:
        CheckpointError: the run has not finished, files are missing, are pickles, or were changed
            afterwards.
    """
    # the run
    folder, record = chain.last.directory, chain.last.record
    if record.status != "finished":
        todo = "wait for it, or run it again" if record.status == "running" else "finish it first"
        raise CheckpointError(
            f"{folder} is {record.status}, not finished: {todo}; only finished runs are published"
        )

    # its files
    kind = detect_kind(folder, record.artifacts, rewards=record.recipe == "reward")
    files = published_files(folder, kind, record.artifacts)
    refuse_pickles(files, str(folder))

    # are they those that the run left?
    if not record.outputs:
        logger.warning(
            "%s was finished by an older hfstack, which did not record the hashes of its files",
            folder,
        )

    if (change := changed_output(folder, record.outputs, files.keys())) is not None:
        raise CheckpointError(
            f"{folder}: {change} after the run had finished, so its card would describe other "
            "files: restore it, or run it again"
        )
    known = {file["path"] for file in record.outputs}
    if record.outputs and (added := sorted(files.keys() - known)):
        raise CheckpointError(
            f"{folder}: {added[0]} was added after the run had finished: remove it, or run it again"
        )
    return kind, files


def check_base(kind: PublishedKind, base_repo: str | None) -> str:
    """Return the base model that a published adapter names, "" for what is no adapter.

    Raises:
        ConfigError: its base is a folder of this machine, which nobody else has.
    """
    if not kind.adapter:
        return ""
    if base_repo is not None:
        return base_repo
    looks_local = kind.base.startswith((".", "/", "~")) or kind.base.count("/") > 1
    if looks_local or Path(kind.base).exists():
        raise ConfigError(
            f"the adapter's base is {kind.base}, a folder that only this machine has: publish that "
            "first and name it with --base_repo, or use --merge_adapter true"
        )
    return kind.base


def stage_files(
    files: dict[str, Path],
    folder: Path,
    *,
    chain: Chain,
    secrets: Sequence[str],
    card: str,
    picture: str | None,
    base: str,
) -> list[FileToPublish]:
    """Write what is made for the publication into a folder; return all items.

    Args:
        files: what the run has made, by path in the repository.
        secrets: values that are removed from the card and the records.
        card: the text of README.md.
        picture: an SVG, named `curves.svg`.
        base: what an adapter's configuration is to name as its base, "" for no adapter.
    """
    made = dict(files)

    def write(name: str, text: str) -> None:
        (folder / name).write_text(hide_known(text, secrets), encoding="utf-8")
        made[name] = folder / name

    # the card with its curves, and the records of the runs
    write(CARD, card)
    records = [_clean(asdict(link.record), link.label, chain) for link in chain.everything]
    write(RUNS, json.dumps(records, indent=1, ensure_ascii=False, default=str))
    if picture is not None:
        write("curves.svg", picture)

    # an adapter's configuration that names a base that others have
    config = read_object(files[ADAPTER_CONFIG]) if base else {}
    if base and config.get("base_model_name_or_path") != base:
        values = config | {"base_model_name_or_path": base}
        write(ADAPTER_CONFIG, json.dumps(values, indent=2, ensure_ascii=False))
    return [make_item(name, path) for name, path in sorted(made.items())]


def write_publication(
    items: list[FileToPublish],
    folder: Path,
    *,
    kind: PublishedKind,
    rendering: dict[str, str],
    repo: str,
    run_id: str,
    check: tuple[str, float] | None,
) -> list[FileToPublish]:
    """Write publication.json, which `verify` reads, and return the items with it.

    Args:
        rendering: of `rendering_of`: who uses the model is held to it, as to that of run.json.
        repo: where the files go: what is found elsewhere is a copy.
        run_id: of the run that made them, whose record runs.json has.
        check: a number that was measured on these files, and its name.
    """
    values: dict[str, Any] = {
        "schema": _PUBLICATION_SCHEMA,
        "hfstack": hfstack.__version__,
        "repo": repo,
        "run_id": run_id,
        "kind": kind.name,
        "repo_type": kind.repo_type,
        "adapter": kind.adapter,
        "rendering": rendering,
        "check": None if check is None else {"name": check[0], "value": check[1]},
        "files": {one.path: {"bytes": one.bytes, "sha256": one.sha256} for one in items},
    }
    (folder / PUBLICATION).write_text(json.dumps(values, indent=1), encoding="utf-8")
    return [*items, make_item(PUBLICATION, folder / PUBLICATION)]


def read_publication(folder: Path) -> Publication:
    """Return the content of publication.json.

    Raises:
        CheckpointError: there is none, it is not whole, or it is of a newer hfstack.
    """
    path = folder / PUBLICATION
    if not path.is_file():
        raise CheckpointError(
            f"{folder} has no {PUBLICATION}: it was not published by hfstack, "
            "so nothing can be checked"
        )

    values = read_publication_file(path)
    if values["schema"] > _PUBLICATION_SCHEMA:
        raise CheckpointError(
            f"{path} has schema {values['schema']}, this hfstack reads {_PUBLICATION_SCHEMA}: "
            "upgrade hfstack"
        )
    return values


def fresh_folder(folder: Path) -> Path:
    """Return an empty folder, whatever an earlier attempt has left there."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _clean(record: dict[str, Any], label: str, chain: Chain) -> dict[str, Any]:
    """Return a run record without what identifies this machine and its people."""
    record.pop("process", None)
    record.get("hardware", {}).pop("platform", None)

    def strings(value: Any) -> Any:
        if isinstance(value, str):
            return redact(shorten_paths(value, chain))
        if isinstance(value, dict):
            return {name: strings(entry) for name, entry in value.items()}
        return [strings(entry) for entry in value] if isinstance(value, list | tuple) else value

    return {"label": label, **strings(record)}
