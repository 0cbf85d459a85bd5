"""Let trackers (`--report_to tensorboard wandb trackio`) take a resumed run for the run that it continues.

Upstream gives each start of a process a name and a folder of its own, so that a resumed run looks like two, with the
steps between the checkpoint and the end of the first process twice. What counts stays trainer_state.json.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from transformers import TrainingArguments

from hfstack.errors import MissingExtraError

_FOLDER = "tensorboard"


@contextmanager
def tracked(args: TrainingArguments | None, output_dir: Path, run_id: str) -> Iterator[None]:
    """Give the trackers of a block the run's name, its id and a folder that a resume finds again.

    What the user has set (`--run_name`, TENSORBOARD_LOGGING_DIR, WANDB_RUN_ID ...) is left as it is.

    Args:
        args: the settings of a run that trains, whose `run_name` is filled in; None for other runs.
        run_id: as in run.json; a resumed run has that of the run it continues.
    """
    names: dict[str, str] = {}
    if args is not None and args.report_to:
        args.run_name = args.run_name or f"{output_dir.resolve().name}-{run_id}"
        wanted = {
            "TENSORBOARD_LOGGING_DIR": str(output_dir / _FOLDER),
            "WANDB_DIR": str(output_dir),
            "WANDB_RUN_ID": run_id,
            "WANDB_RESUME": "allow",
        }
        names = {name: value for name, value in wanted.items() if name not in os.environ}
    os.environ.update(names)
    try:
        yield
    finally:
        for name in names:
            os.environ.pop(name, None)


def forget_later_steps(args: TrainingArguments, step: int) -> None:
    """Have TensorBoard leave out what was logged after a step: a run that goes on from there takes those steps again.

    Call it inside `tracked`, before the Trainer is built. wandb and trackio keep both, under one run.

    Raises:
        MissingExtraError: tensorboard is asked for and not installed.
    """
    folder = os.environ.get("TENSORBOARD_LOGGING_DIR")
    if "tensorboard" not in (args.report_to or []) or folder is None or not Path(folder).is_dir():
        return
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise MissingExtraError("tensorboard", "tracking") from None
    SummaryWriter(log_dir=folder, purge_step=step + 1).close()
