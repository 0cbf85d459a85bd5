"""Save what was trained before it is scored, and check that it loads again.

An evaluation, a sample or a report may fail for a hundred reasons; none of them may cost the
training before it. So the weights are on the disk before the first of them begins:

    trained = checked(trainer, tokenizer, problems).train(resume_from_checkpoint=checkpoint)
    save_trained(run, trainer, read)
    metrics = trainer.evaluate()
    return run.finish(metrics, trainer)

`checked` adds `SaveFirst`, which saves at the last step, before the Trainer itself evaluates that
step. `--resume_from_checkpoint last` finds these weights and trains nothing again.
"""

from pathlib import Path
from typing import Any, cast

from peft import PeftModel
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import IntervalStrategy, SaveStrategy
from trl import ModelConfig

from hfstack.logs import get_logger
from hfstack.models.adapters import merge_adapter, name_magnitudes
from hfstack.models.saved import ProbeLogits, Reader, compare_with_saved, read_logits
from hfstack.runs.checkpoint_files import STATE
from hfstack.runs.environment import is_sharded
from hfstack.runs.manifest import PICKLED_SETTINGS
from hfstack.runs.processes import decide_on_first
from hfstack.runs.resume import ADAPTER_FOLDER
from hfstack.runs.run import Run

logger = get_logger(__name__)

_IN_SHARDS = (
    "the weights are in shards, and no process may have room for a second whole copy; "
    "merge_checkpoint compares the model that it makes of them"
)


class SaveFirst(TrainerCallback):
    """Save the weights at the last step, before they are evaluated or sampled from.

    Where a checkpoint is saved first anyway, that is enough. Shards are left to checkpoints, from
    which alone they can be resumed.

    Args:
        trainer: what trains.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self._saved = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take the mark off the weights of a shorter training, which this one continues."""
        if args.should_save and state.global_step < state.max_steps:
            (resume_folder(self.trainer) / STATE).unlink(missing_ok=True)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Save when no step is left."""
        evaluates = control.should_evaluate or args.eval_strategy == IntervalStrategy.EPOCH
        needed = evaluates or args.save_strategy == SaveStrategy.NO
        if needed and state.global_step >= state.max_steps and not is_sharded(args):
            save_resumable(self.trainer)
            self._saved = True

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Keep what is logged after the last step beside the weights."""
        if self._saved and args.should_save:
            state.save_to_json(str(resume_folder(self.trainer) / STATE))


def save_trained(run: Run, trainer: Trainer, read: Reader | None) -> None:
    """Save the trained weights, and compare them, loaded again, with those in memory.

    Called right after `train`, before anything is scored.

    Args:
        run: of the recipe.
        trainer: one that has trained.
        read: loads the finished model as its users do; None when an adapter is merged at the end,
            by `save_merged`, so that the adapter alone is saved here, to `adapter/`.

    Raises:
        CheckpointError: what was saved gives other logits than what was trained.
    """
    if is_sharded(trainer.args):
        _save_model(trainer, run.output_dir)
        record_check(run, {"skipped": _IN_SHARDS})
        return

    save_resumable(trainer)
    if read is None:
        run.add_artifact("adapter", ADAPTER_FOLDER)
        return

    if resume_folder(trainer) != run.output_dir:
        _save_model(trainer, run.output_dir)
    model = _trained_model(trainer)
    _check(run, trainer, read_logits(model), model, read)


def save_merged(run: Run, trainer: Trainer, model_args: ModelConfig, read: Reader) -> None:
    """Save the model with its adapter merged, and compare it with the unmerged one.

    Weights that were quantised are merged in full, which makes another model of them: there it is
    compared with itself in memory.

    Args:
        run: of the recipe, after `save_trained`.
        trainer: one that has trained an adapter; it holds the merged model afterwards.
        model_args: name the base.
        read: loads the finished model as its users do.

    Raises:
        CheckpointError: what was saved gives other logits than what was trained.
    """
    tuned = cast(PeftModel, _trained_model(trainer))
    trained = read_logits(tuned)
    merged = merge_adapter(tuned, model_args, run.output_dir / ADAPTER_FOLDER)
    if model_args.load_in_4bit or model_args.load_in_8bit:
        trained = read_logits(merged)

    trainer.model = merged
    _save_model(trainer, run.output_dir)
    _check(run, trainer, trained, merged, read, merged=True)


def save_resumable(trainer: Trainer) -> None:
    """Save weights and state to where a run that trains nothing again finds them."""
    folder = resume_folder(trainer)
    _save_model(trainer, folder)
    # last, because it says that the weights are whole
    if trainer.args.should_save:
        trainer.state.save_to_json(str(folder / STATE))


def resume_folder(trainer: Trainer) -> Path:
    """Return the folder to resume a finished training from.

    It is the run's own, or for an adapter one inside it: of the first the Trainer would load the
    adapters of all its checkpoints as well.
    """
    output_dir = Path(str(trainer.args.output_dir))
    model = _trained_model(trainer)
    # a model of sentence-transformers has the transformer, and an adapter on it, inside
    is_adapter = isinstance(getattr(model, "transformers_model", model), PeftModel)
    return output_dir / ADAPTER_FOLDER if is_adapter else output_dir


def _trained_model(trainer: Trainer) -> Any:
    """Return the model that is saved; PPO trains a policy and a critic in one module."""
    model: Any = trainer.accelerator.unwrap_model(cast(Any, trainer.model))
    return getattr(model, "policy", model)


def _save_model(trainer: Trainer, folder: Path) -> None:
    """Save model and tokenizer, without the pickle that upstream leaves beside them."""
    trainer.save_model(str(folder))
    if trainer.args.should_save:
        name_magnitudes(folder)
        # every setting is in it, tokens among them, in clear
        (folder / PICKLED_SETTINGS).unlink(missing_ok=True)


def _check(
    run: Run,
    trainer: Trainer,
    trained: ProbeLogits,
    model: Any,
    read: Reader,
    *,
    merged: bool = False,
) -> None:
    """Compare on the first process, and record the result or raise on all of them."""
    found = decide_on_first(
        trainer.args.process_index,
        lambda: compare_with_saved(trained, model, run.output_dir, read, merged=merged),
    )
    record_check(run, found)


def record_check(run: Run, found: dict[str, Any]) -> None:
    """Record and log how what was saved compares with what was trained.

    Args:
        found: as `compare_with_saved` returns it.
    """
    run.record_save_check(found)
    if "skipped" in found:
        logger.warning(
            "%s was saved, and not loaded again to compare: %s", run.output_dir, found["skipped"]
        )
        return
    logger.info(
        "%s was saved and loaded again: its logits differ from training's by %.2g (allowed: %.2g)",
        run.output_dir,
        found["largest_difference"],
        found["allowed"],
    )
