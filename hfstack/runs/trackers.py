"""Let trackers continue a run when it is resumed (tensorboard, wandb, trackio).

Upstream gives each start of a process a name and a folder of its own, so that a resumed run looks
like two, with the steps between the checkpoint and the end of the first process twice. What counts
stays trainer_state.json.

TensorBoard can drop what was logged, so those steps are dropped and logged again. wandb and
trackio cannot: upstream's callbacks log to both without a step, so that a number sent twice becomes
two points at one `train/global_step`, and only wandb's servers can rewind a run, where they allow
it. What these two have already is therefore not logged again; it would be the same numbers, since
a resume takes the same steps.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfstack.disk import atomic_write
from hfstack.errors import ConfigError, HfstackError, MissingExtraError, Preempted
from hfstack.logs import get_logger

if TYPE_CHECKING:  # so that a recipe without a Trainer imports no torch
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

logger = get_logger(__name__)

_FOLDER = "tensorboard"
_LOGGED = ".tracked.json"
_APPEND_ONLY = ("wandb", "trackio")
# A tracker that is killed loses what was logged last: wandb writes its file every 15 s.
_DELIVERY_S = 20.0
# wandb takes neither together with WANDB_RESUME
_USERS_OWN_PLACE = ("WANDB_RESUME_FROM", "WANDB_FORK_FROM")

# The names of runs and of environment variables that a run around this one has set, and not the
# user: its settings may have been copied for this one.
_set_by_outer_runs: ContextVar[frozenset[str]] = ContextVar("set_by_outer_runs")


@contextmanager
def tracked(args: "TrainingArguments | None", output_dir: Path, run_id: str) -> Iterator[None]:
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

    # Late, because it imports torch.
    from transformers.integrations import integration_utils

    known = _set_by_outer_runs.get(frozenset())
    named_before = args.run_name
    if not named_before or named_before in known:
        name = args.run_name = f"{output_dir.resolve().name}-{run_id}"
        known |= {name}

    wanted = {"TENSORBOARD_LOGGING_DIR": str(output_dir / _FOLDER), "WANDB_DIR": str(output_dir)}
    if not any(name in os.environ for name in _USERS_OWN_PLACE):
        wanted |= {"WANDB_RUN_ID": run_id, "WANDB_RESUME": "allow"}

    # What the user has set stays; what an outer run has set is replaced, and put back at the end.
    variables = {
        name: value for name, value in wanted.items() if name not in os.environ or name in known
    }
    before = {name: os.environ.get(name) for name in variables}
    outer = _set_by_outer_runs.set(known | variables.keys())
    os.environ.update(variables)

    # The Trainer makes its callbacks from this table of upstream's, and offers no other place to
    # choose them: so they are replaced there before it is built, and put back at the end.
    table = integration_utils.INTEGRATION_TO_CALLBACK
    callbacks = {name: table[name] for name in {*args.report_to, *_APPEND_ONLY} & set(table)}
    logged = LoggedSteps(output_dir / _LOGGED, run_id)
    for name, known in callbacks.items():
        once = _without_repeats(known, logged) if name in _APPEND_ONLY else known
        table[name] = _named_when_it_fails(once, name)

    failed = True
    try:
        yield
        failed = False
    finally:
        table.update(callbacks)
        for close in (lambda: logged.save(everything=True), *logged.at_end):
            with _left_out_when_it_fails("a tracker"):
                close()
        with _left_out_when_it_fails("wandb"):
            _end_wandb(args, failed=failed)

        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        _set_by_outer_runs.reset(outer)
        args.run_name = named_before  # the same settings may serve the next run


def forget_later_steps(args: "TrainingArguments", step: int, *, changed: bool = False) -> None:
    """Drop what the trackers logged after the step that a run resumes from.

    Call it inside `tracked`, before the Trainer is built.

    Args:
        step: of the checkpoint; -1 for a run that starts over.
        changed: settings differ from those of the steps before, so that the same steps give other
            numbers, which every tracker is to log.

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
    """What the trackers have logged: all up to a step, and some names of that step.

    Args:
        file: where it is recorded for the next process.
        run_id: of this run; what was recorded for another one does not count.
    """

    def __init__(self, file: Path, run_id: str) -> None:
        self._file, self._run_id = file, run_id
        self._loaded = False

        # each is the last step that was logged, and the names that were logged of it
        self._before: tuple[int, set[str]] | None = None
        self._now: tuple[int, set[str]] = (-1, set())

        # time, step and names of what a kill could still lose
        self._pending: list[tuple[float, int, set[str]]] = []
        self.at_end: list[Callable[[], None]] = []

    def load(self) -> None:
        """Load what earlier processes logged, once it is known whether that still counts."""
        if self._loaded:
            return
        self._loaded = True

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
        """Return whether all of this was logged by an earlier process."""
        if self._before is None:
            return False
        last, known = self._before
        return step < last or (step == last and names <= known)

    def add(self, step: int, names: set[str]) -> None:
        """Record what was logged just now."""
        self._pending.append((time.monotonic(), step, names))
        self.save()

    def save(self, *, everything: bool = False) -> None:
        """Record what has arrived by now.

        Args:
            everything: the process ends in order, and a tracker sends what it still holds.
        """
        delay_s = 0.0 if everything else _DELIVERY_S
        latest = time.monotonic() - delay_s
        arrived = [entry for entry in self._pending if entry[0] <= latest]
        if not arrived:
            return
        self._pending = self._pending[len(arrived) :]

        for _, step, names in arrived:
            last, known = self._now
            if step == last:
                self._now = step, known | names
            elif step > last:
                self._now = step, names

        values = {"run_id": self._run_id, "step": self._now[0], "names": sorted(self._now[1])}
        # Once a log, so without a flush: a power failure sets the trackers' own files back as well.
        with atomic_write(self._file, durable=False) as file:
            json.dump(values, file)


def _without_repeats(known: Any, logged: LoggedSteps) -> "type[TrainerCallback]":
    """Return a tracker's callback of upstream that leaves out what was logged before."""
    # A run inside another one must not leave out that one's steps.
    upstream: Any = getattr(known, "upstream", known)

    class Continued(upstream):
        """Upstream's callback, which logs each step once."""

        def on_train_begin(
            self,
            args: "TrainingArguments",
            state: "TrainerState",
            control: "TrainerControl",
            **kwargs: Any,
        ) -> None:
            if state.is_world_process_zero:
                logged.load()
            super().on_train_begin(args, state, control, **kwargs)

        def on_log(
            self,
            args: "TrainingArguments",
            state: "TrainerState",
            control: "TrainerControl",
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
            args: "TrainingArguments",
            state: "TrainerState",
            control: "TrainerControl",
            **kwargs: Any,
        ) -> None:
            """Leave the tracker's run open for what is measured after training.

            TRL's own calls to log fail on a closed one.
            """
            logged.at_end.append(
                lambda: upstream.on_train_end(self, args, state, control, **kwargs)
            )

    Continued.upstream = upstream
    return Continued


def _named_when_it_fails(known: Any, name: str) -> "type[TrainerCallback]":
    """Return a tracker's callback that says in one line why it cannot start.

    What fails later, such as a server that went away, ends the tracking and not the training.
    """

    class Named(known):
        """The callback, with its name in front of what it could not do."""

        def on_train_begin(
            self,
            args: "TrainingArguments",
            state: "TrainerState",
            control: "TrainerControl",
            **kwargs: Any,
        ) -> None:
            try:
                super().on_train_begin(args, state, control, **kwargs)
            except HfstackError:
                raise
            # No login, no server, no network: each tracker raises classes of its own.
            except Exception as error:
                raise ConfigError(
                    f"--report_to {name} cannot start: {type(error).__name__}: "
                    f"{' '.join(str(error).split())[:200]}; set it up, or train without it "
                    "(--report_to none)"
                ) from error

    Named.upstream = getattr(known, "upstream", known)
    # Everything that a callback is called for after its start.
    from transformers import TrainerCallback

    later = {event for event in vars(TrainerCallback) if event.startswith("on_")}
    for event in later - {"on_init_end", "on_train_begin"}:
        handle = getattr(known, event)
        if handle is not getattr(TrainerCallback, event):
            setattr(Named, event, _until_it_fails(handle, name))
    return Named


def _until_it_fails(handle: Callable[..., Any], name: str) -> Callable[..., Any]:
    """Return a tracker's answer to an event, left out once the tracker has failed."""

    def call(callback: Any, *args: Any, **kwargs: Any) -> Any:
        if name in vars(callback).setdefault("_failed", set()):
            return None
        with _left_out_when_it_fails(name, callback._failed):
            return handle(callback, *args, **kwargs)

    return call


@contextmanager
def _left_out_when_it_fails(name: str, failed: set[str] | None = None) -> Iterator[None]:
    """Log in one line what a tracker raises, and go on without it.

    Args:
        name: of the tracker.
        failed: where the name is noted then.
    """
    try:
        yield
    # A signal may arrive while a tracker is busy, and memory is not the tracker's own.
    except (HfstackError, Preempted, MemoryError):
        raise
    except Exception as error:
        logger.warning(
            "--report_to %s failed: %s: %s; the run goes on without it, and trainer_state.json has "
            "every number",
            name,
            type(error).__name__,
            " ".join(str(error).split())[:200],
        )
        if failed is not None:
            failed.add(name)


def _end_wandb(args: "TrainingArguments", *, failed: bool) -> None:
    """End wandb's run with ours.

    By itself it ends with the process, and the next run in the process would continue it. wandb
    also reads the environment once in a process, unless it is torn down.
    """
    wandb = sys.modules.get("wandb")
    if "wandb" in (args.report_to or []) and wandb is not None and wandb.run is not None:
        wandb.finish(exit_code=int(failed))
        wandb.teardown()
