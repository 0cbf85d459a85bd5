"""Find which checkpoint is whole, which one to resume, which ones to keep.

Standard library only.

A checkpoint is whole when the manifest that was written last, after everything else had reached the
disk, says so: `hfstack-manifest.json` holds size and blake2b of every file. Renaming a finished
folder into place instead was merged into transformers and taken back twice
(huggingface/transformers#27820 and #29370, #35580 and #36112): a folder can be renamed while
another process still writes into it.
"""

import json
import re
import shutil
import struct
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from hfstack.disk import atomic_write, flush_to_disk, hash_file
from hfstack.errors import CheckpointError
from hfstack.logs import get_logger

logger = get_logger(__name__)

MANIFEST = "hfstack-manifest.json"
# upstream's mark of a checkpoint that is being written
INCOMPLETE = "checkpoint-is-incomplete.txt"
STATE = "trainer_state.json"
_SCHEMA = 1
_THREADS = 4

# Weights in fp32 and two fp32 moments of Adam, beside which everything else in a checkpoint is
# small.
_BYTES_PER_TRAINED_PARAMETER = 12

_STEP = re.compile(r"checkpoint-(\d+)")

# What parsing JSON, safetensors headers and archives raises on half a file.
_PARSE_ERRORS = (
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    EOFError,
    struct.error,
    zipfile.BadZipFile,
)


def refuse_full_disk(
    directory: str | Path, *, parameters: int = 0, checkpoint_bytes: int = 0
) -> None:
    """Raise when the disk cannot hold two checkpoints.

    A run needs the last good one and the one being written.

    Args:
        directory: an existing directory, where the checkpoints go.
        parameters: number of parameters that are trained, when there is no checkpoint to go by.
        checkpoint_bytes: size of a checkpoint of this run; one is on the disk already, so one more
            must fit.

    Raises:
        CheckpointError: there is too little free space.
    """
    needed = checkpoint_bytes or 2 * _BYTES_PER_TRAINED_PARAMETER * parameters
    count = "one more checkpoint needs" if checkpoint_bytes else "two checkpoints need"
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise CheckpointError(
            f"{count} {needed / 2**20:,.0f} MiB but the disk of {directory} has "
            f"{free / 2**20:,.0f} MiB free; make room, choose another --output_dir, or set "
            "--save_strategy no"
        )


def step_of(path: Path) -> int:
    """Return the step of a `checkpoint-<step>` folder, or -1 for another name."""
    match = _STEP.fullmatch(path.name)
    return int(match[1]) if match else -1


def list_checkpoints(directory: str | Path) -> list[Path]:
    """Return the `checkpoint-<step>` folders of a run, newest first, whole or not."""
    found = [
        path
        for path in Path(directory).glob("checkpoint-*")
        if step_of(path) >= 0 and path.is_dir()
    ]
    return sorted(found, key=step_of, reverse=True)


def newest_checkpoint(directory: str | Path, *, needs_manifest: bool = False) -> Path | None:
    """Return a run's newest checkpoint that has all its files, or None.

    Names and sizes are compared; contents are not read.
    """
    for path in list_checkpoints(directory):
        if find_damage(path, needs_manifest=needs_manifest, deep=False) is None:
            return path
    return None


def resumable_checkpoint(directory: str | Path, *, needs_manifest: bool = False) -> Path | None:
    """Return the newest checkpoint whose files are what was written, or None.

    Newer ones that are torn are set aside as `broken-<step>`, so that nothing takes them for good
    ones.
    """
    for path in list_checkpoints(directory):
        damage = find_damage(path, needs_manifest=needs_manifest)
        if damage is None:
            return path
        aside = set_aside(path, "broken")
        logger.warning("%s is torn: %s; it is set aside as %s", path, damage, aside.name)

    return None


def set_aside(path: Path, word: str) -> Path:
    """Rename `checkpoint-<step>` to `<word>-<step>`, and return its new path.

    Of several with one word only the last is kept, to save space.
    """
    target = path.with_name(f"{word}-{step_of(path)}")
    for older in path.parent.glob(f"{word}-*"):
        if older.is_dir() and older.name.removeprefix(f"{word}-").isdigit():
            shutil.rmtree(older, ignore_errors=True)
    path.rename(target)
    return target


def check_checkpoint(path: Path, *, needs_manifest: bool = False) -> int:
    """Return the step of a checkpoint that a run can be resumed from.

    Raises:
        CheckpointError: it is torn, or has no optimizer or schedule, so that training would
            continue with a newly initialised optimizer, and the learning rate back at its peak.
    """
    damage = find_damage(path, needs_manifest=needs_manifest)
    if damage is not None:
        raise CheckpointError(f"{path} is no whole checkpoint: {damage}; name another")

    missing = [what for what, there in _find_training_state(path).items() if not there]
    if missing:
        raise CheckpointError(
            f"{path} has no {' and no '.join(missing)} state to continue from; name another "
            f"checkpoint, or start a new run from its weights alone: --model_name_or_path {path}"
        )

    if not any(path.glob("rng_state*")):
        logger.warning(
            "%s has no rng_state.pth: training continues, but dropout and shuffling will differ "
            "from an uninterrupted run's",
            path,
        )

    return _read_state(path)["global_step"]


def write_manifest(
    path: Path, *, step: int, world_size: int = 1, settings: dict[str, Any] | None = None
) -> None:
    """Flush every file of a checkpoint to the disk, then write its manifest.

    Upstream's mark of an unfinished checkpoint is removed last.

    Args:
        path: the checkpoint's folder, to which every process has written its part.
        step: the optimizer step that it holds.
        world_size: how many processes wrote it.
        settings: what the optimizer's state in it was made with, such as the learning rate.
    """
    # Contents first, then the folders' lists of names, and only then the manifest.
    names = _file_names(path)
    with ThreadPoolExecutor(_THREADS) as pool:
        described = list(pool.map(lambda name: _size_and_hash(path / name, flush=True), names))
    for folder in {path, *((path / name).parent for name in names)}:
        flush_to_disk(folder)

    manifest = {
        "schema": _SCHEMA,
        "step": step,
        "world_size": world_size,
        "settings": settings or {},
        "files": dict(zip(names, described, strict=True)),
    }
    with atomic_write(path / MANIFEST) as file:
        json.dump(manifest, file, indent=1)

    (path / INCOMPLETE).unlink(missing_ok=True)
    flush_to_disk(path)
    flush_to_disk(path.parent)


def read_manifest_settings(path: Path) -> dict[str, Any]:
    """Return the settings that `write_manifest` was given for a whole checkpoint.

    Empty without a manifest.
    """
    if not (path / MANIFEST).is_file():
        return {}
    return json.loads((path / MANIFEST).read_text(encoding="utf-8")).get("settings", {})


def find_damage(path: Path, *, needs_manifest: bool = False, deep: bool = True) -> str | None:
    """Return what is wrong with the files of a checkpoint, in a few words, or None.

    Args:
        path: the checkpoint's folder.
        needs_manifest: whether one without a manifest is unfinished; otherwise it was made by
            something else than hfstack, and its files are judged by their own structure.
        deep: whether contents are read, and not only names and sizes compared.

    Raises:
        CheckpointError: a newer hfstack wrote it, so that this one cannot judge it.
    """
    try:
        if not path.is_dir():
            return "there is no such folder"
        if (path / INCOMPLETE).exists():
            return f"{INCOMPLETE} says that it was being written"
        if (path / MANIFEST).exists():
            return _differs_from_manifest(path, deep)
        if needs_manifest:
            return f"{MANIFEST}, which is written last, is missing"

        return _find_structural_damage(path, deep)
    except OSError as error:
        return f"{error.filename}: {error.strerror}"


def rotate(
    directory: str | Path, *, keep: int | None, protected: str | Path | None = None
) -> list[Path]:
    """Delete the oldest checkpoints beyond `keep` and return them.

    Never the newest whole one, nor the protected one.

    Args:
        directory: the run's directory.
        keep: how many to keep (`--save_total_limit`); None or 0 keeps all.
        protected: the best checkpoint, kept beside the newest.
    """
    paths = list_checkpoints(directory)
    whole = [path for path in paths if find_damage(path, needs_manifest=True, deep=False) is None]
    if not keep or keep < 1 or not whole:
        return []

    # By name, because the best checkpoint may be given by another path to the same folder.
    safe = {whole[0].name}
    if protected:
        safe.add(Path(protected).name)
    kept = [path for path in paths if path.name in safe]
    for path in paths:
        if path not in kept and len(kept) < max(keep, len(safe)):
            kept.append(path)

    # What is newer than the newest whole one may be in the making.
    deleted = [path for path in paths if path not in kept and step_of(path) < step_of(whole[0])]
    for path in deleted:
        # Without its manifest it is no checkpoint, whenever the process dies from here on.
        (path / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(path, ignore_errors=True)

    return deleted


def remove_unfinished(directory: str | Path) -> list[Path]:
    """Delete checkpoints without a manifest, and return them.

    They are what a failed save left, and would fill the disk.
    """
    unfinished = [path for path in list_checkpoints(directory) if not (path / MANIFEST).exists()]
    for path in unfinished:
        shutil.rmtree(path, ignore_errors=True)
    return unfinished


def size_bytes(path: Path) -> int:
    """Return the size of all files of a checkpoint."""
    return sum((path / name).stat().st_size for name in _file_names(path))


def says_disk_is_full(error: BaseException) -> bool:
    """Return whether an error, of whichever library, means that the disk is full."""
    words = (
        *("No space left", "os error 28", "Disk quota", "File too large"),
        # torch.save says neither why nor where
        *("PytorchStreamWriter failed writing", "inline_container.cc"),
    )

    # Libraries raise errors of their own while they handle the system's.
    current: BaseException | None = error
    while current is not None:
        if any(word in str(current) for word in words):
            return True
        current = current.__cause__ or current.__context__

    return False


def _file_names(path: Path) -> list[str]:
    """Return the relative names of a checkpoint's files.

    Neither the manifest nor upstream's mark is content.
    """
    names = {str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()}
    # .tmp is what versions before 0.2 left of a manifest that was never finished.
    own = {MANIFEST, f"{MANIFEST}.partial", f"{MANIFEST}.tmp", INCOMPLETE}
    return sorted(names - own)


def _size_and_hash(path: Path, *, flush: bool = False) -> list[int | str]:
    """Return size in bytes and blake2b of a file, flushed to the disk first if asked."""
    if flush:
        flush_to_disk(path)
    return [path.stat().st_size, hash_file(path)]


def _differs_from_manifest(path: Path, deep: bool) -> str | None:
    """Return how a checkpoint differs from its manifest, or None.

    Raises:
        CheckpointError: a newer hfstack wrote the manifest.
    """
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        files: dict[str, list[Any]] = manifest["files"]
        step, schema = int(manifest["step"]), int(manifest["schema"])
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST} is not whole"

    # Raised, because what is returned as damage would be set aside.
    if schema > _SCHEMA:
        raise CheckpointError(
            f"{path / MANIFEST} has schema {schema}, this hfstack reads {_SCHEMA}: upgrade hfstack"
        )

    if step_of(path) not in (step, -1):
        return f"its manifest is of step {step}"

    for name, (size, _) in files.items():
        if not (path / name).is_file():
            return f"{name} is missing"
        found_bytes = (path / name).stat().st_size
        if found_bytes != size:
            return f"{name} has {found_bytes} bytes instead of {size}"

    if not deep:
        return None

    # Hashing releases the interpreter's lock, so threads read several files at once.
    with ThreadPoolExecutor(_THREADS) as pool:
        hashed = pool.map(lambda name: _size_and_hash(path / name), files)
        for name, found in zip(files, hashed, strict=True):
            if found != files[name]:
                return f"{name} is not what was written (its blake2b differs)"

    return None


def _find_structural_damage(path: Path, deep: bool) -> str | None:
    """Return the damage that files show by themselves, or None.

    JSON that ends early, archives with a bad checksum, missing shards.
    """
    # The Trainer writes its state last.
    try:
        _read_state(path)
    except (OSError, ValueError, KeyError, TypeError):
        return f"{STATE} is missing or torn"

    for name in _file_names(path):
        try:
            damage = _find_damage_of_file(path, name, deep)
        except _PARSE_ERRORS:
            return f"{name} is torn"
        if damage is not None:
            return damage

    return None


def _find_damage_of_file(path: Path, name: str, deep: bool) -> str | None:
    """Return the damage of one file, or raise what parsing it raises."""
    file = path / name
    if file.suffix == ".json":
        values = json.loads(file.read_text(encoding="utf-8"))
        if name.endswith(".index.json"):
            shards = set(values["weight_map"].values())
            missing = sorted(shard for shard in shards if not (path / shard).is_file())
            return f"{missing[0]} is missing" if missing else None

    # Archives of torch carry a checksum for each member; reading them all takes a while.
    if file.suffix in (".pt", ".pth") and deep:
        with zipfile.ZipFile(file) as archive:
            return f"{name} fails its checksum" if archive.testzip() is not None else None

    if file.suffix == ".safetensors" and not _safetensors_is_whole(file):
        return f"{name} is truncated"
    return None


def _safetensors_is_whole(path: Path) -> bool:
    """Return whether a file of weights is as long as its own header says."""
    # Eight bytes with the header's length, the header in JSON, then the tensors.
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))

    end = max(
        (entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"),
        default=0,
    )
    return path.stat().st_size == 8 + length + end


def _find_training_state(path: Path) -> dict[str, bool]:
    """Return whether each state that training resumes from is in a checkpoint.

    Sharded runs keep it in folders of their own.
    """
    deepspeed = any(path.glob("global_step*"))
    return {
        "optimizer": deepspeed or any(path.glob("*optim*")),
        "scheduler": deepspeed or (path / "scheduler.pt").is_file(),
    }


def _read_state(path: Path) -> dict[str, Any]:
    """Return the Trainer's state of a checkpoint, its step as an int."""
    values = json.loads((path / STATE).read_text(encoding="utf-8"))
    values["global_step"] = int(values["global_step"])
    return values
