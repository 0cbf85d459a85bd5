"""Merge an adapter into its base, or the shards of a checkpoint, to publish them."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from hfstack.errors import CheckpointError, ConfigError
from hfstack.models.loading import merge_into_base
from hfstack.models.saved import compare_with_saved, read_logits
from hfstack.models.shards import kind_of_shards
from hfstack.publishing.check_number import load_published
from hfstack.publishing.files import (
    ADAPTER_CONFIG,
    FACTS,
    PublishedKind,
    detect_kind,
    published_files,
    refuse_outside,
    tokenizer_files,
)

_MERGE = (
    "import sys; from pathlib import Path; from hfstack.models.shards import merge_checkpoint; "
    "merge_checkpoint(Path(sys.argv[1]), Path(sys.argv[2]))"
)
_LAUNCHER = (
    "ACCELERATE_",
    "FSDP_",
    "MASTER_",
    "RANK",
    "WORLD_SIZE",
    "LOCAL_",
    "GROUP_",
    "ROLE_",
    "TORCHELASTIC_",
)


def merge(
    adapter: Path, kind: PublishedKind, folder: Path
) -> tuple[PublishedKind, dict[str, Path]]:
    """Save the model with the adapter merged into it, and return its kind and files.

    Args:
        adapter: the folder of the adapter and its tokenizer.
        folder: an empty folder for the whole model, in the number format of its base.

    Raises:
        ConfigError: there is no adapter to merge.
        CheckpointError: the base cannot be loaded, or what was saved is another model.
    """
    if not kind.adapter:
        raise ConfigError(f"--merge_adapter: {adapter} has no {ADAPTER_CONFIG}: leave it out")

    write_merged(adapter, kind, folder)
    whole = detect_kind(folder, {})
    return replace(whole, name=kind.name), published_files(folder, whole, {})


def write_merged(adapter: Path, kind: PublishedKind, folder: Path) -> tuple[int, dict[str, Any]]:
    """Save the model that an adapter makes of its base, with the files beside it.

    Returns:
        The number of parameters, and how the model compares with the adapter, as
        `compare_with_saved` says it.

    Raises:
        CheckpointError: the base cannot be loaded, or what was saved is another model.
    """
    tuned = load_published(adapter, kind, dtype="auto")
    trained = read_logits(tuned)
    model = merge_into_base(tuned)
    model.save_pretrained(folder)
    beside = {path.name: path for name in FACTS if (path := adapter / name).is_file()}
    for name, path in (tokenizer_files(adapter) | beside).items():
        refuse_outside(path, adapter)
        shutil.copyfile(path, folder / name)

    whole = replace(kind, adapter=False)
    found = compare_with_saved(
        trained,
        model,
        folder,
        lambda saved: load_published(folder, whole, dtype=str(saved.dtype)),
        merged=True,
    )
    return int(model.num_parameters()), found


def in_shards(checkpoint: Path) -> bool:
    """Return whether a checkpoint has its weights in shards of FSDP or DeepSpeed only."""
    return kind_of_shards(checkpoint) is not None and not any(checkpoint.glob("*.safetensors"))


def merge_shards(checkpoint: Path, folder: Path) -> None:
    """Merge a sharded checkpoint into one plain model with its tokenizer.

    A process of its own does it, on the CPU: in one that trains, loading a model would shard that
    again, and wait for the other processes for ever.

    Args:
        folder: an empty folder for it.

    Raises:
        CheckpointError: a shard is missing, or nothing describes the weights.
    """
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(_LAUNCHER)
    }
    environment["CUDA_VISIBLE_DEVICES"] = ""
    command = [sys.executable, "-c", _MERGE, str(checkpoint), str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        reason = next(iter(done.stderr.strip().splitlines()[-1:]), f"exit code {done.returncode}")
        raise CheckpointError(f"{checkpoint}: its shards could not be merged: {reason}")

    for name, path in tokenizer_files(checkpoint).items():
        shutil.copyfile(path, folder / name)
