"""Choose the checkpoint to resume from, and say after a failure how to go on."""

import json
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from hfstack.errors import CheckpointError, HfstackError, MachineError, Preempted
from hfstack.logs import get_logger
from hfstack.machine_failures import describe_failure, says_disk_is_full, says_missing
from hfstack.runs.checkpoint_files import (
    STATE,
    check_checkpoint,
    find_torn_file,
    newest_checkpoint,
    read_step,
    remove_unfinished,
    resumable_checkpoint,
    set_aside_later,
)
from hfstack.runs.claim import refuse_changes
from hfstack.runs.record import (
    RUN_FILE,
    RunRecord,
    changed_settings,
    read_run,
)

if TYPE_CHECKING:  # so that a recipe without a Trainer imports no torch
    from transformers import TrainerState

logger = get_logger(__name__)

ADAPTER_FOLDER = "adapter"
_CLOCK_METRICS = ("_runtime", "_per_second")

# What decides how many steps there are: with another value more may be left to take.
_LENGTH_SETTINGS = frozenset(
    "max_steps num_train_epochs total_episodes per_device_train_batch_size train_batch_size "
    "gradient_accumulation_steps world_size".split()
)


def find_trained(directory: Path) -> Path | None:
    """Return where whole weights of a run's last step are; None if there are none."""
    for folder in (directory / ADAPTER_FOLDER, directory):
        weights = any(folder.glob("*.safetensors"))
        if not weights or not (folder / STATE).is_file() or read_step(folder) is None:
            continue
        # A save over earlier weights that failed, such as a second one after the last step.
        if (damage := find_torn_file(folder)) is not None:
            logger.warning("the trained weights in %s are not whole: %s", folder, damage)
            continue
        return folder
    return None


def say_what_is_trained(directory: Path, *, since: float) -> None:
    """Log, after an error, where the trained weights are, if this process saved them.

    Args:
        since: when it began, in seconds since the epoch.
    """
    trained = find_trained(directory)
    if trained is not None and (trained / STATE).stat().st_mtime >= since:
        logger.error(
            "training is done, and its weights are saved in %s: --resume_from_checkpoint last does "
            "what is missing without training again",
            trained,
        )


def choose_checkpoint(
    record: RunRecord,
    asked: str | None,
    allowed: Collection[str],
    *,
    before: RunRecord | None = None,
) -> tuple[Path, int, dict[str, tuple[Any, Any]]] | None:
    """Find the checkpoint to resume from.

    What is torn, or newer than the one that is named, is set aside.

    Args:
        record: of the run that is starting.
        asked: `--resume_from_checkpoint`: None, `last`, or the path of a checkpoint.
        allowed: names of settings that may differ, when the checkpoint lies in another run's
            directory.
        before: the run that is continued, if any.

    Returns:
        The checkpoint, its step, and the allowed differences; None to begin at the first step.

    Raises:
        CheckpointError: the directory holds checkpoints and nothing said whether to continue them,
            or the checkpoint asked for cannot be resumed from, or one could not be read; nothing
            was changed then.
    """
    directory = Path(record.output_dir)
    strict = record.verified_checkpoints

    # Where only what follows training failed, no step is left to take.
    trained = None
    if before is not None and before.status != "finished":
        changed = changed_settings(before.settings, record.settings)
        trained = find_trained(directory) if not _LENGTH_SETTINGS & changed.keys() else None

    # Continuing needs a request, for who forgot an old run in the directory wants a new one.
    if asked is None and trained is not None:
        raise CheckpointError(
            f"{directory} already holds trained weights, whose run did not finish: do what is "
            "missing with --resume_from_checkpoint last, or choose another --output_dir"
        )
    newest = newest_checkpoint(directory, needs_manifest=strict)
    if asked is None and newest is not None:
        raise CheckpointError(
            f"{directory} already holds {newest.name}; continue it with "
            "--resume_from_checkpoint last, or choose another --output_dir"
        )

    # True is upstream's own word for the last one.
    if asked in (None, "last", "True", "true"):
        if trained is not None:
            logger.info("%s holds the trained weights: nothing is trained again", trained)
            return trained, cast(int, read_step(trained)), {}
        path = resumable_checkpoint(directory, needs_manifest=strict)
        if path is not None:
            # its files have just been read
            return path, check_checkpoint(path, needs_manifest=strict, deep=False), {}
        if asked is not None:
            logger.warning(
                "no complete checkpoint in %s yet: starting from the first step", directory
            )
        return None

    # A checkpoint that is named may lie in another run's directory.
    path = Path(asked)
    inside = path.resolve().parent == directory.resolve()
    changed = {} if inside else _compare_with_its_run(path, record, allowed)
    step = check_checkpoint(path, needs_manifest=strict and inside)

    if inside:
        set_aside_later(path, step)
    return path, step, changed


def explain_failure(
    record: RunRecord, error: BaseException | None, *, clears: bool = False
) -> HfstackError | None:
    """Return what failed of the machine as one line, with what to do next.

    None for what is no such failure: a user's mistake, a stop, and a bug.

    Args:
        record: of the run that ends.
        error: what ends it.
        clears: whether this process removes what a full disk left half written.
    """
    if not isinstance(error, Exception) or isinstance(error, HfstackError | Preempted):
        return None
    if clears and says_disk_is_full(error):
        return clear_full_disk(record, error)

    # run.json is written before anything else, and nothing of ours ever deletes it.
    directory = Path(record.output_dir)
    if says_missing(error) and not (directory / RUN_FILE).is_file():
        return MachineError(
            f"{directory} was deleted or moved away while the run was going on; put it back, and "
            "continue with --resume_from_checkpoint last"
        )

    failure = describe_failure(error)
    if failure is None:
        return None
    strict = record.verified_checkpoints
    try:
        newest = newest_checkpoint(directory, needs_manifest=strict)
        standing = "no checkpoint is whole yet" if newest is None else f"{newest.name} is whole"
    except CheckpointError:
        standing = "its checkpoints, which cannot be looked at either, are as they were"
    return MachineError(
        f"this machine failed the run: {failure}; {standing}: then continue with "
        "--resume_from_checkpoint last"
    )


def clear_full_disk(record: RunRecord, error: BaseException) -> CheckpointError:
    """Remove the checkpoint that could not be written, and return an error to raise."""
    directory = Path(record.output_dir)
    strict = record.verified_checkpoints
    removed, newest = [], None
    try:
        removed = remove_unfinished(directory) if strict else []
        newest = newest_checkpoint(directory, needs_manifest=strict)
    except CheckpointError as unreadable:
        # That the disk is full is what the user has to know.
        logger.warning("the checkpoints could not be looked at: %s", unreadable)

    reason = " ".join(str(error).split())[:100]
    removal = f"the unfinished {removed[0].name} was removed; " if removed else ""
    what_to_do = "make room, then start again with"
    if newest is not None:
        what_to_do = f"{newest.name} is whole: make room, then"
    return CheckpointError(
        f"the disk of {directory} is full ({reason}); {removal}{what_to_do} "
        "--resume_from_checkpoint last"
    )


def drop_repeated_evaluations(state: "TrainerState") -> None:
    """Keep one of the evaluations of a step that were done again with the same result.

    A second start does what the first may have done already, and a recipe may evaluate what the
    Trainer has just evaluated.
    """
    seen: set[str] = set()
    kept = []
    for entry in state.log_history:
        numbers = {
            name: value for name, value in entry.items() if not name.endswith(_CLOCK_METRICS)
        }
        result = json.dumps(numbers, sort_keys=True)
        if result in seen and any(name.startswith("eval_") for name in entry):
            continue
        seen.add(result)
        kept.append(entry)
    state.log_history = kept


def count_every_step(metrics: dict[str, Any], state: "TrainerState", resumed_step: int) -> None:
    """Replace a resumed run's train loss by the mean over all steps, or drop it."""
    if "train_loss" not in metrics:
        return
    own = metrics.pop("train_loss")
    logged = [entry for entry in state.log_history if "train_loss" in entry][-1:]
    earlier = [entry for entry in state.log_history if entry not in logged]
    loss = whole_train_loss(earlier, resumed_step, state.global_step, own)

    # the log says the same as the record
    for values in (metrics, *logged):
        values.pop("train_loss", None)
        if loss is not None:
            values["train_loss"] = loss


def whole_train_loss(
    history: list[dict[str, Any]], resumed_step: int, last_step: int, loss: float
) -> float | None:
    """Return the mean loss over all steps of a resumed run.

    The Trainer counts only the steps after the resume.

    Args:
        history: the Trainer's log history.
        resumed_step: step of the checkpoint; each checkpoint falls on a log, so the logs up to it
            are all its steps.
        last_step: the last step taken.
        loss: mean loss over the steps from `resumed_step` on.

    Returns:
        `loss` where the logs do not reach the checkpoint, because logging was off; None where no
        step was taken since and no log of a first training says what its mean was.
    """
    total, step = 0.0, 0
    for entry in history:
        # Each logged loss is the mean over the steps since the log before.
        if "loss" in entry and step < entry["step"] <= resumed_step:
            total += entry["loss"] * (entry["step"] - step)
            step = entry["step"]

    # When no step was left to take, the Trainer's loss is no mean of anything.
    steps = last_step - resumed_step
    if step != resumed_step:
        means = [entry["train_loss"] for entry in history if "train_loss" in entry]
        return loss if steps else next(iter(means), None)

    if steps:
        total += loss * steps
    return total / last_step


def _compare_with_its_run(
    path: Path, record: RunRecord, allowed: Collection[str]
) -> dict[str, tuple[Any, Any]]:
    """Return the allowed differences to the run whose checkpoint was named.

    Raises:
        CheckpointError: it is a run of another recipe, or differs in what is not allowed.
    """
    # A checkpoint of another tool has no run to compare with.
    if not (path.parent / RUN_FILE).is_file():
        return {}

    other = read_run(path.parent)
    if other.recipe != record.recipe:
        raise CheckpointError(
            f"{path} is a checkpoint of {other.recipe}, not of {record.recipe}; to start from its "
            f"weights: --model_name_or_path {path}"
        )

    return refuse_changes(other, record, allowed, place=path.parent)
