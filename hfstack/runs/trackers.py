"""Let trackers continue a run when it is resumed (tensorboard, wandb, trackio).

Upstream gives each start of a process a name and a folder of its own, so that a resumed run looks
like two, with the steps between the checkpoint and the end of the first process twice. What counts
stays trainer_state.json.

TensorBoard can drop what was logged, so those steps are dropped and logged again. wandb and
trackio cannot: upstream's callbacks log to both without a step, so that a number sent twice becomes
two points at one `train/global_step`, and only wandb's servers can rewind a run, where they allow
it. What these two have already is therefore not logged again, which is the same number, since a
resume takes the same steps.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import integration_utils

from hfstack.disk import atomic_write
from hfstack.errors import MissingExtraError
from hfstack.logs import get_logger

logger = get_logger(__name__)

_FOLDER = "tensorboard"
_LOGGED = ".tracked.json"
_KEEP_ALL = ("wandb", "trackio")  # trackers that cannot take anything back
# A tracker that is killed loses what was logged last: wandb writes its file every 15 s.
_ON_ITS_WAY_S = 20.0
# wandb takes neither together with WANDB_RESUME
_USERS_OWN_PLACE = ("WANDB_RESUME_FROM", "WANDB_FORK_FROM")

_given: set[str] = set()  # run names and variables that were set here, and not by the user


@contextmanager
def tracked(args: TrainingArguments | None, output_dir: Path, run_id: str) -> Iterator[None]:
    """Give trackers the run's name, id and folder, which a resume finds again.

    What the user has set (`--run_name`, TENSORBOARD_LOGGING_DIR, WANDB_RUN_ID ...) is left as it
    is. A run inside another one, such as a rung of a ladder, is tracked as a run of its own.

    Args:
        args: the settings of a run that trains, whose `run_name` is filled in; None for other runs.
        run_id: as in run.json; a resumed run has that of the run it continues.
    """
    if args is None or not args.report_to:
        yield
        return

    if not args.run_name or args.run_name in _given:
        args.run_name = f"{output_dir.resolve().name}-{run_id}"
        _given.add(args.run_name)

    wanted = {"TENSORBOARD_LOGGING_DIR": str(output_dir / _FOLDER), "WANDB_DIR": str(output_dir)}
    if not any(name in os.environ for name in _USERS_OWN_PLACE):
        wanted |= {"WANDB_RUN_ID": run_id, "WANDB_RESUME": "allow"}

    # What the user has set stays; what an outer run has set is replaced, and put back at the end.
    names = {
        name: value for name, value in wanted.items() if name not in os.environ or name in _given
    }
    before = {name: os.environ.get(name) for name in names}
    _given.update(names)
    os.environ.update(names)

    # The Trainer makes its callbacks from this table, so they are replaced before it is built.
    callbacks = {name: integration_utils.INTEGRATION_TO_CALLBACK[name] for name in _KEEP_ALL}
    logged = LoggedSteps(output_dir / _LOGGED, run_id)
    integration_utils.INTEGRATION_TO_CALLBACK.update(
        {name: _once(known, logged) for name, known in callbacks.items()}
    )

    failed = True
    try:
        yield
        failed = False
    finally:
        integration_utils.INTEGRATION_TO_CALLBACK.update(callbacks)
        logged.keep(everything=True)
        for close in logged.at_end:
            close()
        _end_wandb(args, failed=failed)

        for name, value in before.items():
            if value is None:
                del os.environ[name]
                _given.discard(name)
            else:
                os.environ[name] = value


def forget_later_steps(args: TrainingArguments, step: int, *, changed: bool = False) -> None:
    """Prepare the trackers for a run that resumes at a step before what they logged.

    Call it inside `tracked`, before the Trainer is built.

    Args:
        step: of the checkpoint; -1 for a run that starts over.
        changed: settings differ from those of the steps before: what is logged from here on is news
            to every tracker.

    Raises:
        MissingExtraError: tensorboard is asked for and not installed.
    """
    if changed:
        (Path(str(args.output_dir)) / _LOGGED).unlink(missing_ok=True)
    folder = os.environ.get("TENSORBOARD_LOGGING_DIR")
    if "tensorboard" not in (args.report_to or []) or folder is None or not Path(folder).is_dir():
        return

    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise MissingExtraError("tensorboard", "tracking") from None

    SummaryWriter(log_dir=folder, purge_step=step + 1).close()


class LoggedSteps:
    """What the trackers know: everything up to a step, and some names of that step.

    Args:
        file: where it is kept for the next process.
        run_id: a file of another run counts for nothing.
    """

    def __init__(self, file: Path, run_id: str) -> None:
        self._file, self._run_id = file, run_id
        self._begun = False
        self._before: tuple[int, set[str]] | None = None
        self._now: tuple[int, set[str]] = (-1, set())
        self._on_their_way: list[tuple[float, int, set[str]]] = []
        self.at_end: list[Callable[[], None]] = []

    def begin(self) -> None:
        """Read what earlier processes logged, once it is known whether that still counts."""
        if self._begun:
            return
        self._begun = True

        try:
            values = json.loads(self._file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return

        if values["run_id"] == self._run_id:
            self._before = self._now = values["step"], set(values["names"])
            logger.info(
                "the trackers have everything up to step %d, which is not logged twice",
                values["step"],
            )

    def knows(self, step: int, names: set[str]) -> bool:
        """Whether all of this was logged by an earlier process."""
        if self._before is None:
            return False
        last, known = self._before
        return step < last or (step == last and names <= known)

    def add(self, step: int, names: set[str]) -> None:
        """Record what was logged just now."""
        self._on_their_way.append((time.monotonic(), step, names))
        self.keep()

    def keep(self, *, everything: bool = False) -> None:
        """Write what has arrived by now.

        Args:
            everything: the process ends in order, and a tracker sends what it still holds.
        """
        latest = time.monotonic() - (0.0 if everything else _ON_ITS_WAY_S)
        arrived = [entry for entry in self._on_their_way if entry[0] <= latest]
        if not arrived:
            return
        self._on_their_way = self._on_their_way[len(arrived) :]

        for _, step, names in arrived:
            if step >= self._now[0]:
                self._now = step, names | (self._now[1] if step == self._now[0] else set())

        values = {"run_id": self._run_id, "step": self._now[0], "names": sorted(self._now[1])}
        # Once a log, so without a flush: a power failure sets the trackers' own files back as well.
        with atomic_write(self._file, durable=False) as file:
            json.dump(values, file)


def _once(known: Any, logged: LoggedSteps) -> type[TrainerCallback]:
    """Return a tracker's callback of upstream that leaves out what was logged before."""
    # a run inside another one does not ask for that one's steps
    upstream: Any = getattr(known, "upstream", known)

    class Continued(upstream):
        """Logs each step once."""

        def on_train_begin(
            self,
            args: TrainingArguments,
            state: TrainerState,
            control: TrainerControl,
            **kwargs: Any,
        ) -> None:
            if state.is_world_process_zero:
                logged.begin()
            super().on_train_begin(args, state, control, **kwargs)

        def on_log(
            self,
            args: TrainingArguments,
            state: TrainerState,
            control: TrainerControl,
            **kwargs: Any,
        ) -> None:
            names = set(kwargs["logs"])
            if logged.knows(state.global_step, names):
                return
            super().on_log(args, state, control, **kwargs)
            if state.is_world_process_zero:
                logged.add(state.global_step, names)

        def on_train_end(
            self,
            args: TrainingArguments,
            state: TrainerState,
            control: TrainerControl,
            **kwargs: Any,
        ) -> None:
            """Leave the tracker's run open for what is measured after training.

            TRL's own log calls fail on a closed one.
            """
            logged.at_end.append(
                lambda: upstream.on_train_end(self, args, state, control, **kwargs)
            )

    Continued.upstream = upstream
    return Continued


def _end_wandb(args: TrainingArguments, *, failed: bool) -> None:
    """End wandb's run with ours.

    By itself it ends with the process, and takes the next run for the same one.

    It also reads the environment once a process, unless it is torn down.
    """
    wandb = sys.modules.get("wandb")
    if "wandb" in (args.report_to or []) and wandb is not None and wandb.run is not None:
        wandb.finish(exit_code=int(failed))
        wandb.teardown()
