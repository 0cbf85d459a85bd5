"""Find which checkpoint is whole, which one to resume, which ones to keep.

Standard library only.

A checkpoint is whole when the manifest that was written last, after everything else had reached the
disk, says so (see manifest.py). Renaming a finished folder into place instead was merged into
transformers and taken back twice (huggingface/transformers#27820 and #29370, #35580 and #36112): a
folder can be renamed while another process still writes into it.

A checkpoint is torn when it was read and is not what was written. One that could not be read is
neither torn nor whole: that is an error, after which nothing is set aside and nothing deleted.
"""

import itertools
import json
import re
import shutil
import struct
import zipfile
from pathlib import Path
from typing import Any

from hfstack.disk import (
    describe_os_error,
    is_folder,
    is_missing,
    read_regular_file,
    size_of_file,
)
from hfstack.errors import CheckpointError
from hfstack.logs import get_logger
from hfstack.runs.manifest import (
    INCOMPLETE,
    MANIFEST,
    STATE,
    content_names,
    differs_from_manifest,
    find_size,
    look,
)

logger = get_logger(__name__)

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
    OverflowError,
    RecursionError,
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
    """Return the `checkpoint-<step>` folders of a run, newest first, whole or not.

    Raises:
        CheckpointError: the directory could not be listed.
    """
    return sorted(_list_folders(Path(directory), _STEP), key=step_of, reverse=True)


def _list_folders(directory: Path, name: re.Pattern[str]) -> list[Path]:
    """Return the folders in a directory whose names match; none where it is missing."""

    def scan() -> list[Path]:
        return [path for path in directory.iterdir() if name.fullmatch(path.name)]

    try:
        found = look(scan, directory)
    except OSError as error:
        if is_missing(error):
            return []
        raise
    return [path for path in found if look(lambda path=path: is_folder(path), path)]


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
    ones. What was set aside earlier is deleted, to save space, once there is a whole one.

    Raises:
        CheckpointError: one of them could not be read; nothing was set aside or deleted then.
    """
    # All are judged before the first is touched: the next one may be out of reach.
    whole, torn = None, []
    for path in list_checkpoints(directory):
        damage = find_damage(path, needs_manifest=needs_manifest)
        if damage is None:
            whole = path
            break
        torn.append((path, damage))

    earlier = list_set_aside(directory, "broken") if torn else []
    for path, damage in torn:
        aside = set_aside(path, "broken")
        logger.warning("%s is torn: %s; it is set aside as %s", path, damage, aside.name)

    if whole is not None:
        _delete_set_aside(earlier)
    return whole


def set_aside(path: Path, word: str) -> Path:
    """Rename `checkpoint-<step>` to `<word>-<step>`, and return its new path.

    Nothing is deleted: when that name is taken, a number follows it.

    Raises:
        CheckpointError: it could not be renamed.
    """
    names = (f"-{number}" if number > 1 else "" for number in itertools.count(1))
    try:
        target = next(
            target
            for name in names
            if not (target := path.with_name(f"{word}-{step_of(path)}{name}")).exists()
        )
        path.rename(target)
    except OSError as error:
        raise CheckpointError(
            f"{path} could not be set aside: {describe_os_error(error)}; it stays where it is"
        ) from error
    return target


def list_set_aside(directory: str | Path, word: str) -> list[Path]:
    """Return the folders that `set_aside` made with this word."""
    return _list_folders(Path(directory), re.compile(rf"{re.escape(word)}-\d+(-\d+)?"))


def set_aside_later(path: Path, step: int) -> None:
    """Set the checkpoints aside that are newer than one that is whole.

    Left in place, a newer one would be what the next `last` resumes from. What was abandoned
    earlier is deleted, to save space.
    """
    later = [other for other in list_checkpoints(path.parent) if step_of(other) > step]
    earlier = list_set_aside(path.parent, "abandoned") if later else []
    for other in later:
        aside = set_aside(other, "abandoned")
        logger.warning("%s is newer than %s: set aside as %s", other, path, aside.name)

    _delete_set_aside(earlier)


def _delete_set_aside(folders: list[Path]) -> None:
    """Delete folders that were set aside in an earlier start."""
    for folder in folders:
        _delete_folder(folder)


def _delete_folder(path: Path) -> None:
    """Delete a folder, or of a link the link alone: the rest is not the run's."""
    if path.is_symlink():
        path.unlink(missing_ok=True)
        return

    # Without its manifest it is no checkpoint, whenever the process dies from here on.
    (path / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(path, ignore_errors=True)


def check_checkpoint(path: Path, *, needs_manifest: bool = False, deep: bool = True) -> int:
    """Return the step of a checkpoint that a run can be resumed from.

    Args:
        path: the checkpoint's folder.
        needs_manifest: whether one without a manifest is unfinished.
        deep: whether contents are read; not when that was done a moment ago.

    Raises:
        CheckpointError: it is torn, or has no optimizer or schedule, so that training would
            continue with a newly initialised optimizer, and the learning rate back at its peak.
    """
    damage = find_damage(path, needs_manifest=needs_manifest, deep=deep)
    if damage is not None:
        raise CheckpointError(f"{path} is no complete checkpoint: {damage}; name another")

    missing = [what for what, there in _find_training_state(path).items() if not there]
    if missing:
        raise CheckpointError(
            f"{path} has no {' and no '.join(missing)} state to continue from; name another "
            f"checkpoint, or start a new run from its weights alone: --model_name_or_path {path}"
        )

    if not any(name.startswith("rng_state") for name in content_names(path)):
        logger.warning(
            "%s has no rng_state.pth: training continues, but dropout and shuffling will differ "
            "from an uninterrupted run's",
            path,
        )

    return look(lambda: _read_state(path), path / STATE)["global_step"]


def find_damage(path: Path, *, needs_manifest: bool = False, deep: bool = True) -> str | None:
    """Return what is wrong with the files of a checkpoint, in a few words, or None.

    Args:
        path: the checkpoint's folder.
        needs_manifest: whether one without a manifest is unfinished; otherwise it was made by
            something else than hfstack, and its files are judged by their own structure.
        deep: whether contents are read, and not only names and sizes compared.

    Raises:
        CheckpointError: something could not be read, or a newer hfstack wrote it, so that this one
            cannot judge it.
    """
    try:
        if not look(lambda: is_folder(path), path):
            return "there is no such folder"
        if find_size(path / INCOMPLETE) is not None:
            return f"{INCOMPLETE} says that it was being written"
        if find_size(path / MANIFEST) is not None:
            return differs_from_manifest(path, step_of(path), deep)
        if needs_manifest:
            return f"{MANIFEST}, which is written last, is missing"

        return _find_structural_damage(path, deep)
    except OSError as error:
        # A file that was deleted between two looks; everything else is no answer.
        if not is_missing(error):
            raise
        return f"{error.filename}: {error.strerror}"


def rotate(
    directory: str | Path, *, keep: int | None, protected: str | Path | None = None
) -> list[Path]:
    """Delete the oldest checkpoints beyond `keep` and return them.

    Never the newest whole one, nor the protected one, and none at all while one of them cannot be
    looked at.

    Args:
        directory: the run's directory.
        keep: how many to keep (`--save_total_limit`); None or 0 keeps all.
        protected: the best checkpoint, kept beside the newest.
    """
    if not keep or keep < 1:
        return []
    try:
        paths = list_checkpoints(directory)
        whole = [
            path for path in paths if find_damage(path, needs_manifest=True, deep=False) is None
        ]
    except CheckpointError as error:
        logger.warning("no old checkpoint is deleted: %s", error)
        return []
    if not whole:
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
        _delete_folder(path)

    return deleted


def remove_unfinished(directory: str | Path) -> list[Path]:
    """Delete checkpoints without a manifest, and return them.

    They are what a failed save left, and would fill the disk.
    """
    unfinished = [
        path for path in list_checkpoints(directory) if find_size(path / MANIFEST) is None
    ]
    for path in unfinished:
        _delete_folder(path)
    return unfinished


def size_bytes(path: Path) -> int:
    """Return the size of all files of a checkpoint."""
    return sum((path / name).stat().st_size for name in content_names(path))


def _find_structural_damage(path: Path, deep: bool) -> str | None:
    """Return the damage that files show by themselves, or None.

    JSON that ends early, archives with a bad checksum, missing shards.
    """
    # The Trainer writes its state last.
    try:
        look(lambda: _read_state(path), path / STATE)
    except (*_PARSE_ERRORS, FileNotFoundError):
        return f"{STATE} is missing or torn"

    for name in content_names(path):
        try:
            damage = look(lambda name=name: _find_damage_of_file(path, name, deep), path / name)
        except _PARSE_ERRORS:
            return f"{name} is torn"
        if damage is not None:
            return damage

    return None


def find_torn_file(folder: Path) -> str | None:
    """Return which file of a model is torn by its structure; None if all are whole.

    Args:
        folder: with weights and their configuration, and maybe a run's other files.

    Raises:
        CheckpointError: one of them could not be read.
    """
    # in folders of their own sentence-transformers keeps what follows the transformer
    names = ("*.json", "[0-9]*_*/*.json", "*.safetensors")
    for file in sorted(path for name in names for path in folder.glob(name)):
        name = str(file.relative_to(folder))
        try:
            damage = look(lambda name=name: _find_damage_of_file(folder, name, False), file)
        except _PARSE_ERRORS:
            return f"{name} is torn"
        if damage is not None:
            return damage
    return None


def _find_damage_of_file(path: Path, name: str, deep: bool) -> str | None:
    """Return the damage of one file, or raise what parsing it raises."""
    file = path / name
    if file.suffix == ".json":
        values = json.loads(read_regular_file(file))
        if name.endswith(".index.json"):
            shards = set(values["weight_map"].values())
            missing = sorted(shard for shard in shards if find_size(path / shard) is None)
            return f"{missing[0]} is missing" if missing else None

    # Archives of torch carry a checksum for each member; reading them all takes a while.
    if file.suffix in (".pt", ".pth") and deep:
        try:
            with zipfile.ZipFile(file) as archive:
                return f"{name} fails its checksum" if archive.testzip() is not None else None
        except zipfile.BadZipFile as error:
            # zipfile says "not a zip file" as well where the system could not read its end.
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise

    if file.suffix == ".safetensors" and not _safetensors_is_whole(file):
        return f"{name} is truncated"
    return None


def _safetensors_is_whole(path: Path) -> bool:
    """Return whether a file of weights is as long as its own header says."""
    # Eight bytes with the header's length, the header in JSON, then the tensors.
    size = size_of_file(path)
    if size is None:
        return False
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        # A header longer than the file would be made room for before anything is read.
        if length > size:
            return False
        header = json.loads(file.read(length))

    end = max(
        (entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"),
        default=0,
    )
    return size == 8 + length + end


def _find_training_state(path: Path) -> dict[str, bool]:
    """Return whether each state that training resumes from is in a checkpoint.

    Sharded runs keep it in folders of their own.
    """
    names = {Path(name).parts[0] for name in content_names(path)}
    deepspeed = any(name.startswith("global_step") for name in names)
    return {
        "optimizer": deepspeed or any("optim" in name for name in names),
        "scheduler": deepspeed or "scheduler.pt" in names,
    }


def read_step(path: Path) -> int | None:
    """Return the step of a folder's trainer_state.json, or None if that is torn."""
    try:
        return _read_state(path)["global_step"]
    except (OSError, *_PARSE_ERRORS):
        return None


def _read_state(path: Path) -> dict[str, Any]:
    """Return the Trainer's state of a checkpoint, its step as an int."""
    values = json.loads(read_regular_file(path / STATE))
    values["global_step"] = int(values["global_step"])
    return values
