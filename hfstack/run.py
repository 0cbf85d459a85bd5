"""The record of one run: `<output_dir>/run.json`, the only thing that later stages read.

    with Run.start(__file__, training_args.output_dir, model_args, data_args, training_args) as run:
        ...
        run.finish(metrics, trainer)
    return run.metrics

Leaving the block writes `finished`, `failed` (with the error) or `preempted`. Model cards, reports and scaling fits
are functions of run.json, so none of them needs a live trainer.
"""

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import secrets
import shlex
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

import torch
from transformers import Trainer, TrainingArguments, enable_full_determinism, set_seed

from hfstack.checkpoints import check_checkpoint, newest_checkpoint
from hfstack.environment import describe_hardware, git_commit, library_versions, refuse_wrong_world_size
from hfstack.errors import AlreadyFinished, CheckpointError, ConfigError, DivergedError, HfstackError, Preempted
from hfstack.logs import get_logger, setup_logging
from hfstack.redaction import redact, redact_values
from hfstack.run_record import (
    RUN_FILE,
    RunRecord,
    changed_files,
    describe_outputs,
    hash_settings,
    read_run,
    settings_difference,
)

logger = get_logger(__name__)


@dataclass
class RunArgs:
    """What a recipe without a Trainer needs to be a run."""

    output_dir: str | None = None
    """Directory that this run writes to; a new one named after the recipe and the time, under runs/, by default."""
    seed: int = 42
    """Seed of every random generator."""


class Run:
    """One run of a recipe, open from `start` to the end of its `with` block."""

    def __init__(self, record: RunRecord, training_args: TrainingArguments | None) -> None:
        self.record = record
        self.output_dir = Path(record.output_dir)
        self._training_args = training_args
        self._rank = int(os.environ.get("RANK", "0"))
        self._began = time.monotonic()
        self._previous_handlers: dict[int, Any] = {}
        self._before: RunRecord | None = None
        self._resumes = False
        self._defers_stop = False
        self.stop_asked = False

    @classmethod
    def start(cls, recipe_file: str, output_dir: str | Path | None, *settings: Any, replace_own: bool = False) -> Self:
        """Check the output directory, seed every generator and write the first run.json.

        Args:
            recipe_file: the recipe's `__file__`.
            output_dir: the directory that this run owns from now on; None for a new `runs/<recipe>-<time>`.
            settings: the recipe's dataclasses, as `main` received them.
            replace_own: an earlier run of the same recipe may be replaced, because what it wrote is a view of other
                runs (a report) that can be made again at any time.

        Raises:
            CheckpointError: the directory cannot be written, or belongs to another run.
            AlreadyFinished: the same run, with the same settings and data, has finished here before.
            ConfigError: the seed is out of range, or the number of processes is not the one that was asked for.
        """
        setup_logging()
        recipe = Path(recipe_file).stem
        if output_dir is None:
            output_dir = Path("runs") / f"{recipe}-{datetime.now():%Y%m%d-%H%M%S}"
        if not str(output_dir).strip():
            raise ConfigError("--output_dir is empty: name a directory, or leave it out")
        world_size = refuse_wrong_world_size()
        training_args = next((s for s in settings if isinstance(s, TrainingArguments)), None)
        plain = {type(s).__name__: _plain(s) for s in settings}
        plain["Launch"] = {"world_size": world_size}  # another number of processes is another global batch
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
            started=_now(),
            config_hash=hash_settings(plain),
            settings=plain,
            process={"pid": os.getpid(), "host": socket.gethostname()},
            run_id=secrets.token_hex(4),
        )
        run = cls(record, training_args)
        run._agree(lambda: run._claim_directory(replace_own=replace_own))
        if training_args is not None and training_args.full_determinism:
            enable_full_determinism(seed)
        else:
            set_seed(seed)
        return run

    def __enter__(self) -> Self:
        self._write()
        for signum in (signal.SIGTERM, signal.SIGINT):
            with contextlib.suppress(ValueError):  # not the main thread: signals are somebody else's business
                self._previous_handlers[signum] = signal.signal(signum, self._on_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        stopped = isinstance(error, KeyboardInterrupt | Preempted)
        for signum in self._previous_handlers:  # launchers send a signal again: run.json is written all the same
            signal.signal(signum, signal.SIG_IGN)
        if error is not None and (newest := newest_checkpoint(self.output_dir)) is not None:
            self.add_artifact("trainer_state", f"{newest.name}/trainer_state.json")  # the curves so far
        self.record.status = "finished" if error is None else "preempted" if stopped else "failed"
        if error is not None and not stopped:
            text = str(error) if isinstance(error, HfstackError) else f"{type(error).__name__}: {error}"
            self.record.error = redact(" ".join(text.split()))
        self.record.ended = _now()
        self.record.duration_s = round(time.monotonic() - self._began, 3)
        self._write()
        for signum, handler in self._previous_handlers.items():
            signal.signal(signum, handler)
        if isinstance(error, KeyboardInterrupt):
            raise Preempted(f"stopped; {self.output_dir} is marked preempted") from error

    def defer_stop(self, defers: bool) -> None:
        """While it defers, the first SIGTERM or Ctrl-C only sets `stop_asked`, so that a trainer can save first."""
        self._defers_stop = defers

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        name = signal.Signals(signum).name
        if self._defers_stop and not self.stop_asked:
            self.stop_asked = True
            logger.warning("%s: saving a checkpoint after this step, then stopping; again to stop at once", name)
            return
        raise Preempted(f"stopped by {name}; {self.output_dir} is marked preempted")

    @property
    def metrics(self) -> dict[str, float]:
        """The numbers of this run: plain floats and ints, each key documented in docs/metrics.md."""
        return self.record.metrics

    @property
    def checkpoint(self) -> str | None:
        """Where to resume from: nothing, a given checkpoint, or the newest for `--resume_from_checkpoint last`.

        Raises:
            CheckpointError: the directory holds checkpoints and nothing said whether to continue them, or the
                checkpoint asked for is not there.
        """
        assert self._training_args is not None, "only a recipe that trains has checkpoints"
        newest = newest_checkpoint(self.output_dir)
        asked = self._training_args.resume_from_checkpoint
        if asked is None and newest is not None:
            raise CheckpointError(
                f"{self.output_dir} already holds {newest.name}; continue it with "
                "--resume_from_checkpoint last, or choose another --output_dir"
            )
        if asked in ("last", "True", "true"):
            if newest is None:
                logger.warning("no whole checkpoint in %s yet: starting from the first step", self.output_dir)
            asked = None if newest is None else str(newest)
        if asked is not None:
            self._resumes = True
            self.record.restarts.append({"step": check_checkpoint(Path(asked)), "time": _now()})
            self._write()
        return asked

    def record_data(self, role: str, records: list[dict[str, Any]]) -> None:
        """Note which data was read: its role (`train`, `eval`, `prompts`), files, sizes and content hashes.

        Raises:
            CheckpointError: a resumed run would go on with other data than it began with.
        """
        before = {f["path"]: f["blake2b"] for entry in self._before.data for f in entry.get("files", [])} if (
            self._resumes and self._before
        ) else {}  # fmt: skip
        for entry in records:
            for file in entry.get("files", []):
                if before and before.get(file["path"]) != file["blake2b"]:
                    raise CheckpointError(
                        f"{file['path']} is not what this run began with; restore it, or start anew in another "
                        "--output_dir"
                    )
                self.add_parent(Path(file["path"]).parent)
            self.record.data.append({"role": role, **entry})
        self._write()

    def add_parent(self, directory: str | Path | None) -> None:
        """Note a model, tokenizer or data directory that this run reads: its files, and the run that wrote it.

        A Hub id, or a directory without a run.json, is no run; what identifies a local model is kept all the same, so
        that a finished run is not taken for this one when the model has changed.
        """
        if directory is None or not Path(directory).is_dir():
            return
        folder = Path(directory)
        names = ("*.safetensors", "config.json", "tokenizer.json")
        for path in sorted(path for name in names for path in folder.glob(name)):
            if not any(known["path"] == str(path) for known in self.record.models):
                with path.open("rb") as stream:
                    digest = hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
                self.record.models.append({"path": str(path), "bytes": path.stat().st_size, "blake2b": digest})
        if (folder / RUN_FILE).is_file():
            relative = os.path.relpath(folder.resolve(), self.output_dir.resolve())
            if relative not in self.record.parents:
                self.record.parents.append(relative)

    def add_table(self, name: str, columns: list[str], rows: list[list[Any]]) -> None:
        """Keep a small table that the report shows under the heading `name`."""
        self.record.tables[name] = {"columns": columns, "rows": rows}

    def add_artifact(self, name: str, path: str | Path) -> None:
        """List a file of this run, by its path relative to the output directory, so that readers may open it."""
        relative = os.path.relpath(self.output_dir / path, self.output_dir) if not Path(path).is_absolute() else None
        self.record.artifacts[name] = relative or os.path.relpath(path, self.output_dir)

    def finish(self, metrics: dict[str, Any], trainer: Trainer | None = None) -> dict[str, float]:
        """Record the metrics; with a trainer, save the model, the tokenizer and the Trainer's state as well.

        Raises:
            DivergedError: a loss is not a finite number, so that there is no model worth saving.
        """
        numbers = {name: value for name, value in metrics.items() if isinstance(value, int | float)}
        for name, value in numbers.items():
            if name.endswith("loss") and not math.isfinite(value):
                raise DivergedError(
                    f"{name} is {value}: training diverged; lower --learning_rate, lengthen --warmup_steps"
                )
        self.record.metrics |= {name: value for name, value in numbers.items() if math.isfinite(value)}
        if trainer is not None:
            trainer.save_model(str(self.output_dir))
            trainer.save_state()
            if self._rank == 0:  # pickles, with the settings in clear
                for pickled in self.output_dir.glob("**/training_args.bin"):
                    pickled.unlink(missing_ok=True)
            self.add_artifact("trainer_state", "trainer_state.json")
        if self._rank == 0:
            self.record.outputs = describe_outputs(self.output_dir)
        self._write()
        if self._rank == 0:
            logger.info("saved %s", self.output_dir)
        return self.metrics

    def _agree(self, decide: Callable[[], None]) -> None:
        """Let rank 0 decide and raise what it raises on every process: the others would see its own run.json."""
        refusal: list[Exception | None] = [None]
        if self._rank == 0:
            try:
                decide()
            except (HfstackError, AlreadyFinished) as error:
                refusal[0] = error
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.broadcast_object_list(refusal)
        if refusal[0] is not None:
            raise refusal[0]

    def _claim_directory(self, *, replace_own: bool) -> None:
        """Make the directory ours, or say whose it is."""
        path = self.output_dir / RUN_FILE
        try:
            self.output_dir.mkdir(parents=True, exist_ok=True)
            (probe := self.output_dir / f".{RUN_FILE}.{os.getpid()}").touch()
            probe.unlink()
        except OSError as error:
            raise CheckpointError(
                f"--output_dir {self.output_dir} cannot be written: {error.strerror}; choose another"
            ) from None
        if not path.is_file():
            foreign = sorted(entry.name for entry in self.output_dir.iterdir() if not entry.name.startswith("."))
            if foreign:
                raise CheckpointError(
                    f"{self.output_dir} holds {foreign[0]} but no run.json, so its files are not ours to replace; "
                    "choose another --output_dir"
                )
            return
        before = read_run(self.output_dir)
        owner = before.process
        if before.status == "running" and owner.get("host") == socket.gethostname() and _alive(owner.get("pid")):
            raise CheckpointError(
                f"{self.output_dir} is being written by process {owner['pid']}; wait for it or stop it"
            )
        if before.recipe != self.record.recipe:
            raise CheckpointError(
                f"{self.output_dir} holds a run of {before.recipe}, not of {self.record.recipe}; "
                "choose another --output_dir"
            )
        if replace_own:
            return
        if before.config_hash != self.record.config_hash:
            changed = "; ".join(settings_difference(before.settings, self.record.settings)) or "its settings"
            raise CheckpointError(
                f"{self.output_dir} holds another run of {before.recipe}, which differs in {changed}; "
                "choose another --output_dir"
            )
        if before.status == "finished":
            if changed := changed_files([*before.data, {"files": before.models}]):
                raise CheckpointError(
                    f"{self.output_dir} holds a finished run on other data: {changed} has changed since; "
                    "choose another --output_dir"
                )
            raise AlreadyFinished(f"{self.output_dir}: already finished on {before.ended}, nothing to do")
        self.record.restarts = before.restarts
        self.record.run_id = before.run_id or self.record.run_id
        self._before = before

    def _write(self) -> None:
        """Write run.json whole: a reader sees the old one or the new one."""
        if self._rank != 0:
            return
        temporary = self.output_dir / f"{RUN_FILE}.tmp"
        with temporary.open("w", encoding="utf-8") as file:
            values = redact_values(dataclasses.asdict(self.record))
            json.dump(values, file, indent=2, ensure_ascii=False, default=lambda value: redact(str(value)))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self.output_dir / RUN_FILE)


def _plain(settings: Any) -> dict[str, Any]:
    """A dataclass as plain values, without secrets."""
    values = settings.to_dict() if isinstance(settings, TrainingArguments) else dataclasses.asdict(settings)
    return {name: value for name, value in values.items() if name not in ("hub_token", "push_to_hub_token")}


def _alive(pid: int | None) -> bool:
    """Whether another process with this id exists."""
    if pid is None or pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
