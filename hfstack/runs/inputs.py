"""Describe what a run reads, and find what of it has changed since.

No torch: the command line reads this before a recipe is started.

Beside its settings a run is what it has read: the recipe's code, and of every model, tokenizer and
template that a setting names all files that loading it opens, those of an adapter's base among
them. Each is listed in run.json as `models`, by its digest.

Weights are read in full once. At the next start a file of `_LARGE_BYTES` or more counts as the same
without being read while its inode, its size and its change time are the same: the system sets that
time at each write, and `touch` cannot set it back. Smaller files are read each time.
"""

import json
import os
import re
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from huggingface_hub import constants

from hfstack.disk import HASHING_THREADS, hash_file, hash_text, is_missing, retry_reading
from hfstack.errors import CheckpointError
from hfstack.runs.record import RUN_FILE, RunRecord, read_run
from hfstack.shipped import ARCHITECTURES, find_shipped

RECIPE = "recipe"
CODE = "code"

# The settings of all recipes that name a model, a tokenizer, a template or a file of upstream's.
INPUT_SETTINGS = (
    "model_name_or_path",
    "tokenizer_name_or_path",
    "reward_model",
    "critic_model",
    "reference_model",
    "teacher_model",
    "architectures",
    "chat_template_path",
    "generation_config",
    "deepspeed",
    "prompts_file",
)

# What transformers, tokenizers, peft and hfstack open of a model's folder: tests/runs/
# test_inputs.py compares it with the names that upstream knows.
_MODEL_FILES = (
    "config.json generation_config.json adapter_config.json classifier.json "
    "*.safetensors *.safetensors.index.json pytorch_model*.bin* adapter_model.bin "
    "tokenizer.json tokenizer_config.json special_tokens_map.json added_tokens.json "
    "chat_template.json chat_template.jinja additional_chat_templates/*.jinja "
    "*vocab*.json *vocab*.txt merges.txt bpe.codes *.model *.spm *.tiktoken processor_config.json"
).split()

HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_LARGE_BYTES = 64 << 20
# A file that was written a moment ago may be written again within the same tick of the clock.
_SETTLED_NS = 2_000_000_000


def describe_inputs(
    settings: Mapping[str, Mapping[str, Any]],
    recipe: Path | None,
    known: Sequence[Mapping[str, Any]] = (),
) -> list[dict[str, Any]]:
    """Describe the recipe's code and every file of what its settings name.

    Args:
        settings: the groups of a run, as run.json has them.
        recipe: the file of the recipe.
        known: what an earlier start described; weights that are the same are not read again.

    Returns:
        For each file the setting that named it, its path, size and digest; for a model of the Hub
        its name and, where it is known, the commit.

    Raises:
        CheckpointError: a file could not be read.
    """
    values = {name: value for group in settings.values() for name, value in group.items()}
    entries: list[dict[str, Any]] = []
    files: list[tuple[str, Path]] = []
    if recipe is not None and recipe.is_file():
        files.append((RECIPE, recipe))

    for name in INPUT_SETTINGS:
        value = values.get(name)
        for place in value if isinstance(value, list) else [value]:
            if not isinstance(place, str | Path) or not str(place):
                continue
            revision = values.get("model_revision") if name == "model_name_or_path" else None
            for found in _follow(str(place), revision):
                if isinstance(found, Path):
                    files.append((name, found))
                else:
                    entries.append({"setting": name, **found})

    # What no setting names but the recipe's code: it was recorded when it was read.
    places = {Path(entry["path"]).parent for entry in known if entry.get("setting") == CODE}
    files += [(CODE, path) for place in sorted(places) for path in _model_files(place)]
    return [*_describe_files(files, known), *entries]


def digests(inputs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what identifies the content of inputs, whatever else is known of them."""
    return [str(entry.get("blake2b") or entry.get("commit")) for entry in inputs]


def describe_folder(folder: Path, known: Sequence[Mapping[str, Any]] = ()) -> list[dict[str, Any]]:
    """Describe a model's folder that the recipe's code names, but for known files."""
    listed = {entry["path"] for entry in known}
    files = [(CODE, path) for path in _model_files(folder) if str(path) not in listed]
    return _describe_files(files, known)


def find_changes(
    before: Sequence[Mapping[str, Any]],
    now: Sequence[Mapping[str, Any]],
    *,
    other_settings: Collection[str] = (),
) -> dict[str, tuple[str, str]]:
    """Return what a run has read and what is there instead, by path.

    The recipe goes by the name `recipe`, wherever it lies.

    Args:
        before: what an earlier start has described.
        now: what this one did.
        other_settings: names of settings that are known to name something else now.
    """
    old, new = _by_name(before, other_settings), _by_name(now, other_settings)
    # A version before this one recorded a part of it, and of no setting.
    if not any("setting" in entry for entry in before):
        new = {name: entry for name, entry in new.items() if name in old}
    elif RECIPE not in old:
        new.pop(RECIPE, None)

    # A folder that was moved away or cleaned up leaves nothing to compare with.
    folders = {Path(name).parent for name in new}
    changes = {}
    for name in [*old, *(name for name in new if name not in old)]:
        first, second = old.get(name), new.get(name)
        if second is None and (name == RECIPE or Path(name).parent not in folders):
            continue
        if _same(first, second):
            continue
        values = _describe_entry(first), _describe_entry(second)
        if values[0] == values[1] and first is not None and second is not None:
            values = f"{values[0]}, {_digest(first)}", f"{values[1]}, {_digest(second)}"
        changes[name] = values
    return changes


def refuse_changed_inputs(
    before: RunRecord,
    now: RunRecord,
    allowed: Collection[str],
    *,
    place: Path,
    other_settings: Collection[str] = (),
) -> dict[str, tuple[Any, Any]]:
    """Return the allowed changes of what a run has read, by path.

    Args:
        before: the run that is continued, or has finished.
        now: the run that is starting.
        allowed: paths, and names of settings, that may differ.
        place: the folder of the earlier run.
        other_settings: settings whose new value was allowed.

    Raises:
        CheckpointError: something else has changed; the message names it, and says how to accept
            it.
    """
    changes = find_changes(before.models, now.models, other_settings=other_settings)
    settings = {_name(entry): entry.get("setting") for entry in [*before.models, *now.models]}
    refused = [name for name in changes if name not in allowed and settings[name] not in allowed]
    if not refused:
        return dict(changes)

    paths = {_name(entry): entry["path"] for entry in [*before.models, *now.models]}
    shown = []
    for name in refused[:3]:
        why = f"of --{settings[name]}, " if settings[name] in INPUT_SETTINGS else ""
        shown.append(f"{paths[name]} ({why}{changes[name][0]} -> {changes[name][1]})")
    if len(refused) > 3:
        shown.append(f"{len(refused) - 3} more")
    state = "finished run" if before.status == "finished" else "run"
    raise CheckpointError(
        f"{place} holds a {state} that began with something else: {'; '.join(shown)} has changed "
        "since; restore it, choose another --output_dir, or continue with it: "
        f"{flags_to_allow(now, refused)}"
    )


def flags_to_allow(record: RunRecord, names: Sequence[str]) -> str:
    """Return the flags that let a run go on although what they name has changed."""
    flags = f"--allow_changed {' '.join(names)}"
    # Only recipes that train have checkpoints to resume from.
    trains = any("resume_from_checkpoint" in group for group in record.settings.values())
    return f"--resume_from_checkpoint last {flags}" if trains else flags


def record_commits(record: RunRecord, before: RunRecord | None) -> None:
    """Record at which commit a model of the Hub was loaded, once it was.

    Raises:
        CheckpointError: a resumed run has loaded it at another commit than before.
    """
    for entry in record.models:
        if "commit" in entry:
            entry["commit"] = _commit_of(entry["path"], entry.get("revision")) or entry["commit"]
    if before is None:
        return

    known = {entry["path"]: entry.get("commit") for entry in before.models if "commit" in entry}
    for entry in record.models:
        old, commit = known.get(entry["path"]), entry.get("commit")
        if old and commit and old != commit:
            raise CheckpointError(
                f"{entry['path']} is at commit {commit[:12]} of the Hub now, and this run began "
                f"with {old[:12]}: name that one with --model_revision {old}"
            )


def relative_parent(folder: Path, output_dir: Path) -> str | None:
    """Return the relative path of the run that wrote a folder; None if none did."""
    if not (folder / RUN_FILE).is_file():
        return None
    return os.path.relpath(folder.resolve(), output_dir.resolve())


def refuse_changed_data(
    before: RunRecord, role: str, records: Sequence[dict[str, Any]], allowed: Collection[str] = ()
) -> dict[str, tuple[Any, Any]]:
    """Return the allowed changes of the data of one role, by path.

    Args:
        before: the run that is resumed.
        role: of the data, as `train`.
        records: the sources that are read now, as `describe_sources` gives them.
        allowed: paths that may differ; `datasets` or `eval_datasets` for all of them.

    Raises:
        CheckpointError: a file is new or missing, or its content is not what it was.
    """
    old = _digests(entry for entry in before.data if entry.get("role") == role)
    new = _digests(records)
    # A run that stopped before it recorded its data has nothing to compare with.
    if not old:
        return {}

    changes = {
        path: (old.get(path), new.get(path))
        for path in {**old, **new}
        if old.get(path) != new.get(path)
    }
    every = {"datasets", "eval_datasets"} & set(allowed)
    for path in changes:
        if every or path in allowed:
            continue
        what = "is not read any more" if path not in new else "is not what this run began with"
        raise CheckpointError(
            f"{path} {what}; restore it, start again in another --output_dir, or continue with it: "
            f"--resume_from_checkpoint last --allow_changed {path}"
        )
    return changes


def _follow(place: str, revision: str | None) -> Iterator[Path | dict[str, Any]]:
    """Yield the files that a name means, with those of an adapter's base."""
    seen: set[str] = set()
    while place and place not in seen:
        seen.add(place)
        path = Path(place).expanduser()
        if not path.exists() and place.endswith(".json"):
            path = find_shipped(place, ARCHITECTURES) or path
        if path.is_file():
            yield path
            return
        if not path.is_dir():
            if HUB_ID.fullmatch(place):
                commit = _commit_of(place, revision)
                yield {"path": place, "revision": revision, "commit": commit}
            return

        yield from _model_files(path)
        place, revision = _base_of(path / "adapter_config.json")


def _model_files(folder: Path) -> list[Path]:
    """Return the files of a folder that loading a model from it may open."""
    found = {path for pattern in _MODEL_FILES for path in folder.glob(pattern) if path.is_file()}
    # How the rows of its run were rendered decides how they are rendered now.
    if (folder / RUN_FILE).is_file():
        found.add(folder / RUN_FILE)
    return sorted(found)


def _base_of(adapter_config: Path) -> tuple[str, str | None]:
    """Return the name of an adapter's base and its revision, or "" without an adapter."""
    if not adapter_config.is_file():
        return "", None
    try:
        text = retry_reading(
            lambda: adapter_config.read_text(encoding="utf-8"),
            adapter_config,
            raises=CheckpointError,
        )
        values = json.loads(text)
        base, revision = values.get("base_model_name_or_path"), values.get("revision")
    except (ValueError, AttributeError, RecursionError):
        # What is wrong with it is said where it is loaded.
        return "", None
    return (base, revision) if isinstance(base, str) else ("", None)


def _commit_of(name: str, revision: str | None) -> str | None:
    """Return the commit of the Hub at which a model lies in the cache, or None."""
    if revision is not None and _COMMIT.fullmatch(revision):
        return revision
    # Where huggingface_hub notes what a branch was at when it was last asked.
    folder = Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}"
    try:
        return (folder / "refs" / (revision or "main")).read_text(encoding="utf-8").strip()
    except OSError:
        return None


def _describe_files(
    files: Sequence[tuple[str, Path]], known: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Describe files, each once."""
    named: dict[Path, str] = {}
    for setting, path in files:
        named.setdefault(path, setting)
    earlier = {entry["path"]: entry for entry in known}

    def describe(path: Path) -> dict[str, Any] | None:
        try:
            return retry_reading(
                lambda: _describe_file(path, earlier.get(str(path))), path, raises=CheckpointError
            )
        except OSError as error:
            # It was deleted between two looks.
            if is_missing(error):
                return None
            raise

    # Hashing releases the interpreter's lock, so threads read several files at once.
    with ThreadPoolExecutor(HASHING_THREADS) as pool:
        found = list(pool.map(describe, named))
    return [
        {"setting": setting, **entry}
        for setting, entry in zip(named.values(), found, strict=True)
        if entry is not None
    ]


def _describe_file(path: Path, known: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return path, size and digest of a file, and of a large one its stamp."""
    if path.name == RUN_FILE:
        return _describe_run(path)

    status = path.stat()
    entry: dict[str, Any] = {"path": str(path), "bytes": status.st_size}
    if status.st_size < _LARGE_BYTES:
        return entry | {"blake2b": hash_file(path)}

    stamp = [status.st_ino, status.st_ctime_ns]
    same = known is not None and known.get("stamp") == stamp
    if known is not None and same and known.get("bytes") == status.st_size:
        return entry | {"blake2b": known["blake2b"], "stamp": stamp}

    entry["blake2b"] = hash_file(path)
    after = path.stat()
    settled = time.time_ns() - after.st_ctime_ns > _SETTLED_NS
    if settled and [after.st_ino, after.st_ctime_ns] == stamp:
        entry["stamp"] = stamp
    return entry


def _describe_run(path: Path) -> dict[str, Any]:
    """Describe the record of a run whose model is read, by how it rendered its rows."""
    try:
        record = read_run(path.parent)
        text = json.dumps([record.recipe, record.rendering], sort_keys=True)
    except CheckpointError:
        # `read_rendering` says so, and goes on without.
        text = ""
    return {"path": str(path), "bytes": len(text), "blake2b": hash_text(text)}


def _name(entry: Mapping[str, Any]) -> str:
    """Return what an entry is called: its path, wherever the recipe's own lies."""
    return RECIPE if entry.get("setting") == RECIPE else entry["path"]


def _by_name(
    entries: Sequence[Mapping[str, Any]], but: Collection[str]
) -> dict[str, Mapping[str, Any]]:
    return {_name(entry): entry for entry in entries if entry.get("setting") not in but}


def _same(old: Mapping[str, Any] | None, new: Mapping[str, Any] | None) -> bool:
    """Return whether two descriptions are of the same content."""
    if old is None or new is None:
        return False
    # A model of the Hub that was not loaded yet has no commit to compare.
    if "commit" in old or "commit" in new:
        commits = {old.get("commit"), new.get("commit")}
        return None in commits or len(commits) == 1
    return (old["bytes"], old["blake2b"]) == (new["bytes"], new["blake2b"])


def _describe_entry(entry: Mapping[str, Any] | None) -> str:
    """Return what is known of a file in a few words."""
    if entry is None:
        return "not there"
    if "commit" in entry:
        return f"commit {str(entry['commit'])[:12]}"
    return f"{entry['bytes']:,} bytes" if "bytes" in entry else "a file"


def _digest(entry: Mapping[str, Any]) -> str:
    return f"blake2b {str(entry.get('blake2b'))[:8]}"


def _digests(records: Any) -> dict[str, str]:
    """Return the digest of each local file of sources."""
    return {file["path"]: file["blake2b"] for entry in records for file in entry.get("files", [])}
