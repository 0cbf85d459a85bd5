"""Verify each checkpoint, and keep only as many as asked, whole ones first.

The Trainer rotates and pushes before its callbacks learn that it has saved, so a good checkpoint
can be deleted for one that turns out incomplete. Here the order is: remove the pickled settings,
flush everything to the disk, write the manifest, delete what is too old, push. Training waits for
the first only; the rest runs beside the next steps.
"""

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from hfstack.errors import CheckpointError, ConfigError, MachineError
from hfstack.logs import get_logger
from hfstack.machine_failures import describe_failure, says_disk_is_full
from hfstack.models.adapters import name_magnitudes
from hfstack.models.shards import describe_model, kind_of_shards
from hfstack.runs.checkpoint_files import (
    list_checkpoints,
    refuse_full_disk,
    rotate,
    size_bytes,
)
from hfstack.runs.manifest import MANIFEST, PICKLED_SETTINGS, read_manifest_settings, write_manifest
from hfstack.runs.processes import decide_on_first
from hfstack.runs.run import Run
from hfstack.training.callbacks import StopOnDivergence, StopWhenAsked, WarnOfLongWarmup
from hfstack.training.divergence import SkipSpikes
from hfstack.training.examples import RecordRows

logger = get_logger(__name__)

_VISIBLE_S = 10  # how long a network file system may take to show what another node wrote

# What an optimizer's saved state brings along although the settings name another value now.
_OPTIMIZER_SETTINGS = ("learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon")


def protect(
    run: Run,
    push: Sequence[Callable[[Path], None]] = (),
    *,
    spikes: SkipSpikes | None = None,
) -> list[TrainerCallback]:
    """Return the callbacks that keep a run from being lost, for every training recipe.

    They stop at a loss or gradient that is no finite number, save when the process is asked to
    stop, and see to it that each checkpoint can be verified.

    Args:
        run: the run that is protected.
        push: called with each verified checkpoint's folder, as in `KeepCheckpoints`.
        spikes: what answers a loss spike, `SkipSpikes` or `RollBackSpikes`; None answers none.
    """
    keeper = KeepCheckpoints(run, push)
    callbacks: list[TrainerCallback] = [
        StopOnDivergence(),
        StopWhenAsked(run),
        ContinueCounts(),
        WarnOfLongWarmup(),
        RecordRows(run),
    ]
    if spikes is None:
        return [*callbacks, keeper]

    # first, so that the gradient of a spike is dropped before anybody looks at it
    spikes.use_checkpoints(keeper.wait)
    return [spikes, *callbacks, keeper]


class ContinueCounts(TrainerCallback):
    """Continue `num_tokens` after a resume: TRL 1.16 starts it at 0 again."""

    def __init__(self) -> None:
        self._before = 0.0
        self._resumed_step = 0
        self._restarted: bool | None = None  # unknown before the first count after a resume

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Find the count of the checkpoint: each one falls on a log."""
        self._resumed_step = state.global_step
        counts = [entry["num_tokens"] for entry in state.log_history if "num_tokens" in entry]
        self._before = counts[-1] if counts and self._resumed_step else 0.0

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Add the earlier count, unless the first count after a resume includes it."""
        logs = kwargs["logs"]
        for name in ("num_tokens", "eval_num_tokens"):
            if name not in logs or not self._before:
                continue
            # no step was left to take: what was counted is not new
            if state.global_step == self._resumed_step:
                logs[name] = state.log_history[-1][name] = self._before
                continue

            if self._restarted is None:
                whole = self._before * state.global_step / self._resumed_step
                self._restarted = logs[name] < whole - self._before / 2

            if self._restarted:
                logs[name] += self._before
                state.log_history[-1][name] = logs[name]


class KeepCheckpoints(TrainerCallback):
    """Verify, rotate and push every checkpoint; the last of a Trainer's callbacks.

    Args:
        run: the run whose directory holds the checkpoints.
        push: called one after the other with each checkpoint's folder once it is verified, on the
            first process and beside training; what one raises is logged and does not end the run.

    Raises:
        ConfigError: `--push_to_hub` is set and nothing here would push.
    """

    def __init__(self, run: Run, push: Sequence[Callable[[Path], None]] = ()) -> None:
        if run.asks_to_push and not push:
            raise ConfigError(
                "--push_to_hub: this recipe does not push while it trains; publish the finished run"
            )

        self.run = run
        self.push = list(push)
        self.waited_s = 0.0
        self._limit: int | None = None
        self._pushed_upstream = False

        self._nothing_left = False
        self._reached: tuple[int, Any, int] = (0, None, 0)
        self._worker: threading.Thread | None = None
        self._problem: Exception | None = None
        run.at_exit(self.wait)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take rotation and pushing over from the Trainer; check that two checkpoints fit."""
        self._limit, args.save_total_limit = args.save_total_limit, None
        self._pushed_upstream, args.push_to_hub = args.push_to_hub, False
        source = self.run.resumed_from
        trained = self.run.training_is_done  # also where early stopping has left steps
        self._nothing_left = trained or (
            source is not None and 0 < state.max_steps <= state.global_step
        )
        self._reached = state.global_step, state.epoch, state.num_input_tokens_seen

        if source is not None:
            _follow_settings(args, source, kwargs["optimizer"], kwargs["lr_scheduler"])

        if args.save_strategy != SaveStrategy.NO and state.is_world_process_zero:
            known = size_bytes(source) if source is not None and not trained else 0
            refuse_full_disk(
                self.run.output_dir,
                parameters=_count_saved(kwargs["model"]),
                checkpoint_bytes=known,
            )

            inside = source is not None and source.resolve().parent == self.run.output_dir.resolve()
            if source is not None and inside and not (trained or (source / MANIFEST).exists()):
                write_manifest(source, step=state.global_step, settings=_optimizer_settings(args))
            self.run.expect_manifests()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Undo the step that the Trainer takes even when a resumed run has none left."""
        if self._nothing_left:
            kwargs["model"].zero_grad(set_to_none=True)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Log at each checkpoint, so that a resumed run logs the same numbers."""
        if self._nothing_left:
            state.global_step, state.epoch, state.num_input_tokens_seen = self._reached
            _leave(control)
        elif control.should_save or (
            control.should_evaluate and args.save_strategy == SaveStrategy.BEST
        ):
            control.should_log = control.should_log or args.logging_strategy != IntervalStrategy.NO

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Log at each checkpoint of an epoch's end."""
        if self._nothing_left:
            _leave(control)
        elif control.should_save:
            control.should_log = control.should_log or args.logging_strategy != IntervalStrategy.NO

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Begin to verify what was just saved, once the one before is verified.

        Raises:
            CheckpointError: a process wrote its part where the first one cannot see it, or the one
                before could not be flushed to the disk.
        """
        began = time.perf_counter()
        self._wait_for_all(args)
        path = self.run.output_dir / f"checkpoint-{state.global_step}"
        _see_every_part(path, args)

        if args.should_save:
            (path / PICKLED_SETTINGS).unlink(missing_ok=True)  # with every setting in clear
            name_magnitudes(path)
            if kind_of_shards(path) == "fsdp" and not (path / "config.json").exists():
                # the Trainer saves FSDP's shards and not what they are
                describe_model(kwargs["model"], path)
                if (tokenizer := kwargs.get("processing_class")) is not None:
                    tokenizer.save_pretrained(path)

            best = state.best_model_checkpoint
            self._worker = threading.Thread(
                target=self._verify,
                args=(path, args, state.global_step, best),
                name="verify checkpoint",
                daemon=True,
            )

            self._worker.start()

        self.waited_s += time.perf_counter() - began

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Wait for the last checkpoint and give the Trainer its settings back."""
        self._wait_for_all(args)
        newest = next(iter(list_checkpoints(str(args.output_dir))), None)

        only_shards = (
            newest is not None and kind_of_shards(newest) and not any(newest.glob("*.safetensors"))
        )
        if only_shards and state.is_world_process_zero:
            logger.warning(
                "the weights are in shards: `hfstack run merge_checkpoint --checkpoint %s` makes "
                "one model",
                newest,
            )

        args.save_total_limit, args.push_to_hub = self._limit, self._pushed_upstream

    def wait(self) -> None:
        """Return when the checkpoint that is being verified, if any, has its manifest.

        Raises:
            MachineError: it could not be read or flushed to the disk, which may go away.
            CheckpointError: it cannot be verified, or the disk is full.
        """
        if self._worker is not None:
            self._worker.join()
            self._worker = None
        if self._problem is not None:
            problem, self._problem = self._problem, None
            said = describe_failure(problem)
            passing = said is not None and not says_disk_is_full(problem)
            kind = MachineError if passing else CheckpointError
            raise kind(
                f"a checkpoint was saved but could not be verified: {said or problem}"
            ) from problem

    def _wait_for_all(self, args: TrainingArguments) -> None:
        """Wait on every process, and raise on all what the first one found.

        The others have nothing to verify: they would go on, to wait for the first one in vain.
        """
        decide_on_first(args.process_index, self.wait)
        self.wait()  # with --save_on_each_node every node verifies

    def _verify(self, path: Path, args: TrainingArguments, step: int, best: str | None) -> None:
        """Write the manifest, delete old checkpoints, push: in this order, in a thread."""
        try:
            write_manifest(
                path, step=step, world_size=args.world_size, settings=_optimizer_settings(args)
            )
            rotate(path.parent, keep=self._limit, protected=best)
        except Exception as error:
            self._problem = error
            return

        for hand_over in self.push if args.process_index == 0 else []:
            try:
                hand_over(path)
            except Exception as error:
                logger.warning(
                    "%s is on the disk but was not pushed: %s", path, " ".join(str(error).split())
                )


def _leave(control: TrainerControl) -> None:
    control.should_training_stop = True
    control.should_log = control.should_evaluate = control.should_save = False


def _see_every_part(path: Path, args: TrainingArguments) -> None:
    """Wait until every process has saved its part, and check that each is there."""
    if args.world_size == 1:
        return
    # while a process is still saving, its folder also holds files of names that pass
    torch.distributed.barrier()
    names = {str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()} - {
        PICKLED_SETTINGS
    }

    seen: list[Any] = [None] * args.world_size
    torch.distributed.all_gather_object(seen, sorted(names))

    if not args.save_on_each_node:
        written = sorted(set().union(*seen))
        decide_on_first(args.process_index, lambda: _find_every_part(path, written))


def _find_every_part(path: Path, written: list[str]) -> None:
    """Refuse a checkpoint whose parts do not appear to this process in time."""
    deadline = time.monotonic() + _VISIBLE_S

    def missing() -> list[str]:
        return [name for name in written if not (path / name).is_file()]

    while (unseen := missing()) and time.monotonic() < deadline:
        time.sleep(0.1)

    parts = [name for name in unseen if not name.startswith("rng_state")]
    if parts:
        raise CheckpointError(
            f"{parts[0]} of {path.name} is where the first process cannot see it: set "
            "--output_dir to a folder that all nodes share"
        )

    if unseen:
        logger.warning(
            "%s lies on another node's disk: a resume will not be identical; share --output_dir",
            unseen[0],
        )


def _optimizer_settings(args: TrainingArguments) -> dict[str, float]:
    return {name: getattr(args, name) for name in _OPTIMIZER_SETTINGS}


def _follow_settings(
    args: TrainingArguments, checkpoint: Path, optimizer: Any, scheduler: Any
) -> None:
    """Apply the settings to an optimizer whose saved state has the old ones."""
    now, before = _optimizer_settings(args), read_manifest_settings(checkpoint)
    changed = [name for name in before if name in now and before[name] != now[name]]
    if not changed:
        return

    logger.warning(
        "the optimizer continues with %s",
        ", ".join(f"{n} {before[n]} -> {now[n]}" for n in changed),
    )
    factor = now["learning_rate"] / before["learning_rate"] if before["learning_rate"] else 1.0

    for group in optimizer.param_groups:
        for name in ("lr", "initial_lr"):
            if name in group:
                group[name] *= factor

        if group.get("weight_decay"):  # groups without, such as norms, stay so
            group["weight_decay"] = now["weight_decay"]
        if "betas" in group:
            group["betas"] = (now["adam_beta1"], now["adam_beta2"])
        if "eps" in group:
            group["eps"] = now["adam_epsilon"]

    for name in ("base_lrs", "_last_lr"):
        if hasattr(scheduler, name):
            setattr(scheduler, name, [rate * factor for rate in getattr(scheduler, name)])


def _count_saved(model: torch.nn.Module) -> int:
    """Count the parameters of a checkpoint, of all shards: an adapter's or a model's."""
    only_trained = hasattr(model, "peft_config")
    return sum(
        getattr(parameter, "ds_numel", parameter.numel())
        for parameter in model.parameters()
        if parameter.requires_grad or not only_trained
    )
