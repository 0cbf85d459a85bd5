"""Record a run in `<output_dir>/run.json`, the only thing that later stages read.

    with Run.start(__file__, training_args.output_dir, model_args, data_args, training_args) as run:
        ...
        run.finish(metrics, trainer)
    return run.metrics

Leaving the block writes `finished`, `failed` (with the error) or `preempted`. Model cards, reports
and scaling fits are functions of run.json, so none of them needs a live trainer.
"""

import contextlib
import dataclasses
import json
import math
import os
import secrets
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from hfstack.config import allowed_changes
from hfstack.disk import atomic_write, describe_os_error
from hfstack.errors import (
    CheckpointError,
    ConfigError,
    DivergedError,
    ExamplesShown,
    MachineError,
    Preempted,
    ProcessError,
)
from hfstack.json_forms import without_nul
from hfstack.logs import NOTICE, get_logger, run_log, setup_logging
from hfstack.machine import describe_threads
from hfstack.redaction import redact, redact_values
from hfstack.runs.checkpoint_files import newest_checkpoint
from hfstack.runs.claim import claim_directory, describe_process
from hfstack.runs.ending import describe_ending
from hfstack.runs.environment import (
    describe_hardware,
    git_commit,
    library_versions,
    refuse_wrong_world_size,
    seed_generators,
    training_settings,
    warn_outside_their_range,
)
from hfstack.runs.inputs import (
    describe_folder,
    record_commits,
    refuse_changed_data,
    relative_parent,
)
from hfstack.runs.processes import decide_on_first, hold_timeout, name_silent
from hfstack.runs.record import (
    RUN_FILE,
    RunRecord,
    continue_record,
    describe_outputs,
    hash_settings,
    put_back,
    record_error,
    refuse_no_step,
    settings_as_dict,
    utc_now,
)
from hfstack.runs.resume import (
    ADAPTER_FOLDER,
    choose_checkpoint,
    count_every_step,
    drop_repeated_evaluations,
    explain_failure,
    say_what_is_trained,
)
from hfstack.runs.stop_signals import StopSignals
from hfstack.runs.trackers import forget_later_steps, tracked

if TYPE_CHECKING:  # so that a recipe without a Trainer imports no torch
    from transformers import Trainer, TrainingArguments

logger = get_logger(__name__)


@dataclass
class RunArgs:
    """What a recipe without a Trainer needs to be a run."""

    output_dir: str | None = None
    """Directory that this run writes to; a new one named after the recipe and the time, under
    runs/, by default.
    """
    seed: int = 42
    """Seed of every random generator."""


class Run:
    """One run of a recipe, open from `start` to the end of its `with` block."""

    def __init__(
        self,
        record: RunRecord,
        training_args: "TrainingArguments | None",
        allow_changed: frozenset[str] = frozenset(),
    ) -> None:
        self.record = record
        self.output_dir = Path(record.output_dir)
        self._training_args = training_args
        self._rank = int(os.environ.get("RANK", "0"))
        self._writes = self._rank == 0
        self._began, self._began_time = time.monotonic(), time.time()

        # the run that this one continues, and from where
        self._before: RunRecord | None = None
        self._allow_changed = allow_changed
        self._changed: dict[str, tuple[Any, Any]] = {}
        self._roles: set[str] = set()
        self.resumed_from: Path | None = None
        self._resume_point: str | None = None
        self._resume_point_chosen = False

        # what the end of the `with` block closes
        self._signals = StopSignals(self.output_dir)
        self._trackers = contextlib.ExitStack()
        self._at_exit: list[Callable[[], None]] = []

    @classmethod
    def start(
        cls,
        recipe_file: str,
        output_dir: str | Path | None,
        *settings: Any,
        replace_own: bool = False,
        allow_changed: Collection[str] | None = None,
    ) -> Self:
        """Check the output directory, seed every generator and write the first run.json.

        Args:
            recipe_file: the recipe's `__file__`.
            output_dir: the directory that this run owns from now on; None for a new
                `runs/<recipe>-<time>`.
            settings: the recipe's dataclasses, as `main` received them.
            replace_own: an earlier run of the same recipe may be replaced, because what it wrote is
                a view of other runs (a report) that can be made again at any time.
            allow_changed: settings and files, by name, that may differ from the run that is
                resumed; by default those that the command line names with `--allow_changed`.

        Raises:
            CheckpointError: the directory cannot be written, or belongs to another run.
            AlreadyFinished: the same run, with the same settings, inputs and code, has finished
                here before.
            ConfigError: the seed is out of range, or the number of processes is not the one that
                was asked for.
        """
        setup_logging()
        recipe = Path(recipe_file).stem

        if output_dir is None:
            output_dir = Path("runs") / f"{recipe}-{datetime.now():%Y%m%d-%H%M%S}"
        if not str(output_dir).strip():
            raise ConfigError("--output_dir is empty: name a directory, or leave it out")

        training_args = training_settings(settings)
        world_size = refuse_wrong_world_size(training_args.world_size if training_args else None)
        if training_args is not None:
            hold_timeout(training_args.ddp_timeout)

        plain = {type(s).__name__: settings_as_dict(s) for s in settings}
        # Part of what is hashed: another number of processes is another global batch.
        plain["Launch"] = {"world_size": world_size}
        seed = next((s["seed"] for s in plain.values() if isinstance(s.get("seed"), int)), 0)
        if not 0 <= seed < 2**32:
            raise ConfigError(f"--seed must be in [0, 2**32), got {seed}")

        record = RunRecord(
            recipe=recipe,
            command=redact(shlex.join(sys.argv)),
            output_dir=str(Path(output_dir)),
            commit=git_commit(Path(recipe_file).parent),
            versions=library_versions(),
            python=sys.version.split()[0],
            hardware=describe_hardware(training_args.device if training_args else None),
            world_size=world_size,
            started=utc_now(),
            config_hash=hash_settings(plain),
            settings=plain,
            process=describe_process(),
            run_id=secrets.token_hex(4),
        )

        # Nothing is written before it is known whose directory this is.
        allowed = allowed_changes() if allow_changed is None else frozenset(allow_changed)
        run = cls(record, training_args, allowed)
        file = Path(recipe_file)
        run._before, record.models, run._changed = decide_on_first(
            run._rank,
            lambda: claim_directory(record, recipe=file, replace_own=replace_own, allowed=allowed),
        )

        if run._before is not None:
            continue_record(record, run._before)
        full = training_args is not None and training_args.full_determinism
        seed_generators(seed, deterministic=full)
        return run

    def __enter__(self) -> Self:
        if self._rank == 0 and (threads := describe_threads(os.environ)):
            logger.info("%s", threads)
        warn_outside_their_range()
        self._write()
        self._trackers.enter_context(run_log(self.output_dir, continues=self._before is not None))
        self._trackers.enter_context(
            tracked(self._training_args, self.output_dir, self.record.run_id)
        )
        self._signals.install()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if isinstance(error, ExamplesShown):
            if self._rank == 0:
                put_back(self.output_dir, self._before)
            self._signals.restore()
            self._trackers.__exit__(kind, error, traceback)
            return

        stopped = isinstance(error, KeyboardInterrupt | Preempted)
        # Launchers may send a signal again, and run.json is written all the same.
        self._signals.ignore()
        self._close_checkpoints(error)
        refusal = explain_failure(self.record, error, clears=self._rank == 0)
        refusal = refusal or name_silent(self._rank, error)
        if isinstance(refusal, ProcessError):
            self._writes = self._rank == refusal.first_left

        # A report of a failed run shows the curves up to its newest checkpoint.
        if error is not None:
            self._list_last_curves()

        if error is None:
            self.record.status = "finished"
        elif stopped:
            self.record.status = "preempted"
        else:
            self.record.status = "failed"
            record_error(self.record, refusal or error)
        if error is not None and self._rank == 0:
            # A hint, on a disk that may be the one that failed.
            with contextlib.suppress(OSError):
                say_what_is_trained(self.output_dir, since=self._began_time)

        self.record.ended = utc_now()
        self.record.duration_s = round(time.monotonic() - self._began, 3)

        try:
            self._write()
        except OSError as unwritten:
            # The run's own error matters more.
            if error is not None:
                logger.warning("run.json could not be written: %s", describe_os_error(unwritten))
            elif (refusal := explain_failure(self.record, unwritten)) is None:
                raise
        finally:
            self._signals.restore()
            # Last, because a tracker may wait for its server.
            self._trackers.__exit__(kind, error, traceback)

        if refusal is not None:
            raise refusal from error
        if isinstance(error, KeyboardInterrupt):
            raise Preempted(f"stopped; {self.output_dir} is marked preempted") from error

    def _list_last_curves(self) -> None:
        """List the state of the newest checkpoint, which has the curves up to it."""
        strict = self.record.verified_checkpoints
        try:
            newest = newest_checkpoint(self.output_dir, needs_manifest=strict)
        except CheckpointError as unreadable:
            # The run's own error matters more.
            logger.warning("no curves are listed: %s", unreadable)
            return
        if newest is not None:
            self.add_artifact("trainer_state", f"{newest.name}/trainer_state.json")

    def _close_checkpoints(self, error: BaseException | None) -> None:
        """Wait for a checkpoint that is being verified."""
        to_finish = [] if self._signals.at_once else self._at_exit
        for finish in to_finish:
            try:
                finish()
            except (CheckpointError, MachineError) as unfinished:
                if error is None:
                    raise
                logger.warning("%s", unfinished)

    @property
    def asks_to_push(self) -> bool:
        """Return whether `--push_to_hub` is set."""
        return self._training_args is not None and self._training_args.push_to_hub

    def at_exit(self, finish: Callable[[], None]) -> None:
        """Call a function before the last run.json is written, unless stopped at once."""
        self._at_exit.append(finish)

    def expect_manifests(self) -> None:
        """Record that whole checkpoints have a manifest from now on: one without is torn."""
        self.record.verified_checkpoints = True
        record_commits(self.record, self._before)
        self._write()

    def defer_stop(self, defers: bool) -> None:
        """Set whether the first SIGTERM or Ctrl-C only sets `stop_asked`.

        A trainer can then save first.
        """
        self._signals.deferred = defers

    def ask_to_stop(self) -> None:
        """Ask the trainer to save and stop; the first to ask says when it was."""
        self._signals.ask()

    @property
    def stop_asked(self) -> bool:
        """Return whether a process of this run was signalled to save and stop."""
        return self._signals.asked

    @property
    def metrics(self) -> dict[str, float]:
        """Return the numbers of this run; docs/metrics.md explains each."""
        return self.record.metrics

    @property
    def training_is_done(self) -> bool:
        """Return whether this run resumes from trained weights, after their last step."""
        return self.resumed_from in (self.output_dir, self.output_dir / ADAPTER_FOLDER)

    def resume_point(self) -> str | None:
        """Choose the checkpoint to resume from, record it, and return it.

        The first call may set torn checkpoints aside and writes run.json; later calls return the
        same answer.

        Returns:
            None to start at the first step, the checkpoint that was named, or the newest for
            `--resume_from_checkpoint last`.

        Raises:
            CheckpointError: the directory holds checkpoints and nothing said whether to continue
                them, or the checkpoint asked for is not there.
        """
        if not self._resume_point_chosen:
            self._resume_point = self._choose_resume_point()
            self._resume_point_chosen = True
        return self._resume_point

    def _choose_resume_point(self) -> str | None:
        """Choose and record the checkpoint; prepare the trackers for its step."""
        assert self._training_args is not None, "only a recipe that trains has checkpoints"
        asked = self._training_args.resume_from_checkpoint
        chosen = decide_on_first(
            self._rank,
            lambda: choose_checkpoint(self.record, asked, self._allow_changed, before=self._before),
        )
        if chosen is None:
            # What starts at the first step is a run that was never stopped.
            self.record.restarts = []
            if self._rank == 0:
                forget_later_steps(self._training_args, -1, changed=bool(self._changed))
            return None

        self.resumed_from, step, changed = chosen
        self._changed |= changed
        if self._rank == 0:
            forget_later_steps(self._training_args, step, changed=bool(self._changed))

        restart: dict[str, Any] = {"step": step, "time": utc_now()}
        if self._changed:
            restart["changed"] = {name: list(values) for name, values in self._changed.items()}
            shown = (f"{name} {old!r} -> {new!r}" for name, (old, new) in self._changed.items())
            logger.warning("continuing with %s", "; ".join(shown))

        self.record.restarts.append(restart)
        self._write()
        return str(self.resumed_from)

    def record_inputs(self, *folders: str | Path | None, **data: Sequence[dict[str, Any]]) -> None:
        """Record what this run reads beside what its settings name.

        The latter `start` has recorded. A folder that another run wrote makes that run a parent of
        this one.

        Args:
            folders: of models, tokenizers and adapters; None, an empty name and a Hub id are left
                out.
            data: `train=`, `eval=`, `prompts=` ...: the sources of each role, as `describe_sources`
                gives them.

        Raises:
            CheckpointError: a resumed run would continue with other data than it began with.
        """
        places = [Path(folder) for folder in folders if folder and Path(folder).is_dir()]
        for folder in places:
            self.record.models += describe_folder(folder, self.record.models)

        for role, records in data.items():
            if self.resumed_from is not None and self._before is not None:
                allowed = self._allow_changed
                self._changed |= refuse_changed_data(self._before, role, records, allowed)
            self._roles.add(role)
            kept = [entry for entry in self.record.data if entry["role"] != role]
            self.record.data = [*kept, *({"role": role, **entry} for entry in records)]
            # a folder once, not for each of the thousands of documents in it
            files = [file["path"] for entry in records for file in entry.get("files", [])]
            places += dict.fromkeys(Path(file).parent for file in files)

        for folder in places:
            parent = relative_parent(folder, self.output_dir)
            if parent is not None and parent not in self.record.parents:
                self.record.parents.append(parent)
        self._write()

    def add_table(self, name: str, columns: list[str], rows: list[list[Any]]) -> None:
        """Keep a small table that the report shows under the heading `name`."""
        self.record.tables[name] = {"columns": columns, "rows": without_nul(rows)}

    def add_artifact(self, name: str, path: str | Path) -> None:
        """List a file for readers to open, relative to the output directory or absolute."""
        self.record.artifacts[name] = os.path.relpath(self.output_dir / path, self.output_dir)

    def record_save_check(self, found: dict[str, Any]) -> None:
        """Record how what was saved compares with what was trained."""
        self.record.save_check = found
        self._write()

    def finish(self, metrics: dict[str, Any], trainer: "Trainer | None" = None) -> dict[str, float]:
        """Record the metrics and, of a trainer, the state; its model is saved already.

        Raises:
            DivergedError: a loss is not a finite number, so that there is no model worth saving.
            ConfigError: the trainer has taken no step, so that nothing was trained.
        """
        if trainer is not None:
            refuse_no_step(trainer.state.global_step)
        numbers = {name: value for name, value in metrics.items() if isinstance(value, int | float)}

        # The Trainer's mean counts only the steps of its own process.
        if trainer is not None and self.resumed_from is not None:
            count_every_step(numbers, trainer.state, self.record.restarts[-1]["step"])

        for name, value in numbers.items():
            if name.endswith("loss") and not math.isfinite(value):
                raise DivergedError(
                    f"{name} is {value}: training diverged; lower --learning_rate, lengthen "
                    "--warmup_steps"
                )

        self.record.metrics |= {
            name: value for name, value in numbers.items() if math.isfinite(value)
        }

        # what an earlier start has read and this one has not
        self.record.data = [entry for entry in self.record.data if entry["role"] in self._roles]
        record_commits(self.record, None)
        if trainer is not None:
            assert self.record.save_check, "what was trained is saved before it is scored"
            drop_repeated_evaluations(trainer.state)
            trainer.save_state()
            self.add_artifact("trainer_state", "trainer_state.json")
            # kept so far to resume from; the same adapter lies beside run.json
            if self._rank == 0 and ADAPTER_FOLDER not in self.record.artifacts:
                shutil.rmtree(self.output_dir / ADAPTER_FOLDER, ignore_errors=True)

        if self._rank == 0:
            self.record.outputs = describe_outputs(self.output_dir)
            logger.info("saved %s", self.output_dir)
            for line in describe_ending(self.record):
                logger.log(NOTICE, "%s", line)
        self._write()
        return self.metrics

    def _write(self) -> None:
        """Write run.json; a reader sees the old one or the new one."""
        if not self._writes:
            return
        values = redact_values(dataclasses.asdict(self.record))
        with atomic_write(self.output_dir / RUN_FILE) as file:
            json.dump(
                values, file, indent=2, ensure_ascii=False, default=lambda value: redact(str(value))
            )
