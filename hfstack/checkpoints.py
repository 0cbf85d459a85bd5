"""What must hold before checkpoints are written. Standard library only."""

import shutil
from pathlib import Path

from hfstack.errors import CheckpointError

# Weights in fp32 and two fp32 moments of Adam, beside which everything else in a checkpoint is small.
_BYTES_PER_TRAINED_PARAMETER = 12


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
