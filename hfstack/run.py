"""The record of one run: `<output_dir>/run.json`, the only thing that later stages read.

    with Run.start(__file__, training_args.output_dir, model_args, data_args, training_args) as run:
        ...
        run.finish(metrics, trainer)
    return run.metrics

Leaving the block writes `finished`, `failed` (with the error) or `preempted`. Model cards, reports and scaling fits
are functions of run.json, so none of them needs a live trainer.
"""

import dataclasses
import hashlib
import json
import os
import shlex
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

import torch
from transformers import Trainer, TrainingArguments, enable_full_determinism, set_seed
from transformers.trainer_utils import get_last_checkpoint

from hfstack.environment import describe_hardware, git_commit, library_versions, redact, refuse_wrong_world_size
from hfstack.errors import AlreadyFinished, CheckpointError, HfstackError, Preempted
from hfstack.logs import get_logger, setup_logging

RUN_FILE = "run.json"
SCHEMA = 1
logger = get_logger(__name__)

# Settings that say where and how loudly a run speaks, not what it computes: they may differ on a resume.
_NOT_IDENTITY = frozenset(
    "output_dir resume_from_checkpoint disable_tqdm report_to run_name log_level log_level_replica project "
    "logging_steps logging_first_step logging_strategy push_to_hub hub_model_id hub_strategy hub_private_repo "
    "hub_revision hub_always_push trackio_space_id trackio_bucket_id trackio_static_space_id save_total_limit "
    "dataloader_num_workers dataloader_pin_memory ddp_timeout do_train do_eval do_predict".split()
)


@dataclass
class RunArgs:
    """What a recipe without a Trainer needs to be a run."""

    output_dir: str | None = None
    """Directory that this run writes to; a new one named after the recipe and the time, under runs/, by default."""
    seed: int = 42
    """Seed of every random generator."""


@dataclass
class RunRecord:
    """What was run, with what, and what came out: the content of run.json."""

    recipe: str
    command: str
    output_dir: str
    commit: str | None
    versions: dict[str, str]
    python: str
    hardware: dict[str, Any]
    world_size: int
    started: str
    config_hash: str
    settings: dict[str, dict[str, Any]]
    schema: int = SCHEMA
    status: str = "running"
    error: str | None = None
    ended: str | None = None
    duration_s: float | None = None
    process: dict[str, Any] = field(default_factory=dict)
    data: list[dict[str, Any]] = field(default_factory=list)
    parents: list[str] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)
    tables: dict[str, dict[str, list[Any]]] = field(default_factory=dict)
    artifacts: dict[str, str] = field(default_factory=dict)
    restarts: list[dict[str, Any]] = field(default_factory=list)


class Run:
    """One run of a recipe, open from `start` to the end of its `with` block."""

    def __init__(self, record: RunRecord, training_args: TrainingArguments | None) -> None:
        self.record = record
        self.output_dir = Path(record.output_dir)
        self._training_args = training_args
        self._rank = int(os.environ.get("RANK", "0"))
        self._began = time.monotonic()
        self._previous_handler: Any = None

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
            ConfigError: the number of processes is not the one that was asked for.
        """
        setup_logging()
        recipe = Path(recipe_file).stem
        if output_dir is None:
            output_dir = Path("runs") / f"{recipe}-{datetime.now():%Y%m%d-%H%M%S}"
        world_size = refuse_wrong_world_size()
        training_args = next((s for s in settings if isinstance(s, TrainingArguments)), None)
        plain = {type(s).__name__: _plain(s) for s in settings}
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
            config_hash=_hash_settings(plain),
            settings=plain,
            process={"pid": os.getpid(), "host": socket.gethostname()},
        )
        run = cls(record, training_args)
        run._agree(lambda: run._claim_directory(replace_own=replace_own))
        seed = next((s["seed"] for s in plain.values() if isinstance(s.get("seed"), int)), 0)
        if training_args is not None and training_args.full_determinism:
            enable_full_determinism(seed)
        else:
            set_seed(seed)
        return run

    def __enter__(self) -> Self:
        self._write()
        try:
            self._previous_handler = signal.signal(signal.SIGTERM, _stop)
        except ValueError:  # not the main thread: signals are somebody else's business
            self._previous_handler = None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        stopped = isinstance(error, KeyboardInterrupt | Preempted)
        if error is not None and (newest := get_last_checkpoint(str(self.output_dir))) is not None:
            self.add_artifact("trainer_state", Path(newest).name + "/trainer_state.json")  # the curves so far
        self.record.status = "finished" if error is None else "preempted" if stopped else "failed"
        if error is not None and not stopped:
            text = str(error) if isinstance(error, HfstackError) else f"{type(error).__name__}: {error}"
            self.record.error = redact(" ".join(text.split()))
        self.record.ended = _now()
        self.record.duration_s = round(time.monotonic() - self._began, 3)
        self._write()
        if self._previous_handler is not None:
            signal.signal(signal.SIGTERM, self._previous_handler)
        if isinstance(error, KeyboardInterrupt):
            raise Preempted(f"stopped; {self.output_dir} is marked preempted") from error

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
        newest = get_last_checkpoint(str(self.output_dir)) if self.output_dir.is_dir() else None
        asked = self._training_args.resume_from_checkpoint
        if asked is None and newest is not None:
            raise CheckpointError(
                f"{self.output_dir} already holds {Path(newest).name}; continue it with "
                "--resume_from_checkpoint last, or choose another --output_dir"
            )
        if asked in ("last", "True", "true"):
            if newest is None:
                logger.warning("no checkpoint in %s yet: starting from the first step", self.output_dir)
            asked = newest
        elif asked is not None and not (Path(asked) / "trainer_state.json").is_file():
            raise CheckpointError(f"--resume_from_checkpoint {asked}: no checkpoint there (no trainer_state.json)")
        if asked is not None:
            step = json.loads((Path(asked) / "trainer_state.json").read_text())["global_step"]
            self.record.restarts.append({"step": step, "time": _now()})
            self._write()
        return asked

    def record_data(self, role: str, records: list[dict[str, Any]]) -> None:
        """Note which data was read: its role (`train`, `eval`, `prompts`), files, sizes and content hashes."""
        for entry in records:
            self.record.data.append({"role": role, **entry})
            for file in entry.get("files", []):
                self.add_parent(Path(file["path"]).parent)
        self._write()

    def add_parent(self, directory: str | Path | None) -> None:
        """Note that this run read what another run wrote; a path without a run.json is not a run and is ignored."""
        if directory is None or not (Path(directory) / RUN_FILE).is_file():
            return
        relative = os.path.relpath(Path(directory).resolve(), self.output_dir.resolve())
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
        """Record the metrics; with a trainer, save the model, the tokenizer and the Trainer's state as well."""
        self.record.metrics |= {k: v for k, v in metrics.items() if isinstance(v, int | float)}
        if trainer is not None:
            trainer.save_model(str(self.output_dir))
            trainer.save_state()
            if self._rank == 0:
                (self.output_dir / "training_args.bin").unlink(missing_ok=True)  # a pickle, with the settings in clear
            self.add_artifact("trainer_state", "trainer_state.json")
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
            if changed := _changed_files(before.data):
                raise CheckpointError(
                    f"{self.output_dir} holds a finished run on other data: {changed} has changed since; "
                    "choose another --output_dir"
                )
            raise AlreadyFinished(f"{self.output_dir}: already finished on {before.ended}, nothing to do")
        self.record.restarts = before.restarts

    def _write(self) -> None:
        """Write run.json whole: a reader sees the old one or the new one."""
        if self._rank != 0:
            return
        temporary = self.output_dir / f"{RUN_FILE}.tmp"
        with temporary.open("w", encoding="utf-8") as file:
            file.write(redact(json.dumps(dataclasses.asdict(self.record), indent=2, ensure_ascii=False, default=str)))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self.output_dir / RUN_FILE)


def read_run(directory: str | Path) -> RunRecord:
    """Read the run.json of a run directory.

    Raises:
        CheckpointError: there is none, it is not whole, or it was written by a newer hfstack.
    """
    path = Path(directory) / RUN_FILE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values["schema"] > SCHEMA:
            raise CheckpointError(f"{path} has schema {values['schema']}, this hfstack reads {SCHEMA}: upgrade hfstack")
        names = {f.name for f in dataclasses.fields(RunRecord)}
        return RunRecord(**{name: value for name, value in values.items() if name in names})
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}; is this the output directory of a run?") from None
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, HfstackError):
            raise
        raise CheckpointError(f"{path} is not a whole run record: {error}") from None


def settings_difference(before: dict[str, dict[str, Any]], now: dict[str, dict[str, Any]]) -> list[str]:
    """Name each setting that changed, as `learning_rate 0.001 -> 0.01`, leaving out what does not alter the result."""
    old, new = _identity(before), _identity(now)
    missing = object()
    names = sorted(name for name in old.keys() | new.keys() if old.get(name, missing) != new.get(name, missing))
    return [f"{name} {old.get(name)!r} -> {new.get(name)!r}" for name in names]


def _identity(settings: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The settings that decide what a run computes, in one flat mapping, as JSON reads them back."""
    flat = {name: value for group in settings.values() for name, value in group.items() if name not in _NOT_IDENTITY}
    return json.loads(json.dumps(flat, default=str))


def _hash_settings(settings: dict[str, dict[str, Any]]) -> str:
    text = json.dumps(_identity(settings), sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _plain(settings: Any) -> dict[str, Any]:
    """A dataclass as plain values, without secrets."""
    values = settings.to_dict() if isinstance(settings, TrainingArguments) else dataclasses.asdict(settings)
    return {name: value for name, value in values.items() if name not in ("hub_token", "push_to_hub_token")}


def _changed_files(data: list[dict[str, Any]]) -> str | None:
    """The first local file whose content is no longer what the record says, or None."""
    for file in (file for entry in data for file in entry.get("files", [])):
        path = Path(file["path"])
        if not path.is_file():
            continue  # moved or cleaned up: nothing to compare with
        if path.stat().st_size != file["bytes"]:
            return str(path)
        with path.open("rb") as stream:
            if hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest() != file["blake2b"]:
                return str(path)
    return None


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


def _stop(signum: int, frame: FrameType | None) -> None:
    signal.signal(signum, signal.SIG_IGN)  # launchers send it again: once is enough, run.json is being written
    raise Preempted(f"stopped by {signal.Signals(signum).name}")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
