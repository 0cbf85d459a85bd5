"""Which checkpoint can be resumed, and what must hold before one is written. Standard library only."""

import json
import re
import shutil
from pathlib import Path

from hfstack.errors import CheckpointError

# Weights in fp32 and two fp32 moments of Adam, beside which everything else in a checkpoint is small.
_BYTES_PER_TRAINED_PARAMETER = 12

_STEP = re.compile(r"checkpoint-(\d+)$")


def refuse_full_disk(directory: str | Path, *, parameters: int) -> None:
    """Refuse to start when the disk cannot hold two checkpoints: the last good one and the one being written.

    Args:
        directory: an existing directory, where the checkpoints go.
        parameters: number of parameters that are trained.

    Raises:
        CheckpointError: there is too little free space.
    """
    needed = 2 * _BYTES_PER_TRAINED_PARAMETER * parameters
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise CheckpointError(
            f"two checkpoints need {needed / 2**20:,.0f} MiB but the disk of {directory} has {free / 2**20:,.0f} MiB "
            "free; make room, choose another --output_dir, or set --save_strategy no"
        )


def newest_checkpoint(directory: str | Path) -> Path | None:
    """Return the newest whole `checkpoint-<step>` of a run, or None; torn ones are passed over.

    The Trainer writes trainer_state.json last, so a checkpoint without a readable one was being written when its
    process died.
    """
    paths = [path for path in Path(directory).glob("checkpoint-*") if _STEP.match(path.name)]
    for path in sorted(paths, key=lambda path: int(path.name.removeprefix("checkpoint-")), reverse=True):
        try:
            check_checkpoint(path)
        except CheckpointError:
            continue
        return path
    return None


def check_checkpoint(path: Path) -> int:
    """Return the step of a checkpoint that a run can be continued from.

    Raises:
        CheckpointError: its state or its optimizer is missing or torn, so that training would go on from a fresh
            optimizer, with the learning rate back at its peak.
    """
    state = path / "trainer_state.json"
    try:
        step = int(json.loads(state.read_text(encoding="utf-8"))["global_step"])
    except (OSError, ValueError, KeyError, TypeError):
        raise CheckpointError(f"{path} is no whole checkpoint: {state.name} is missing or torn; name another") from None
    if not any(path.glob("*optim*")) and not any(path.glob("global_step*")):  # sharded runs have folders of their own
        raise CheckpointError(f"{path} has no optimizer state to continue from; name another checkpoint")
    return step
