"""Roll back to a checkpoint when the loss spikes, and skip the data around it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import TrainingArguments
from transformers.trainer_utils import SaveStrategy

from hfstack.errors import CheckpointError, ConfigError, DivergedError
from hfstack.logs import get_logger
from hfstack.runs.checkpoint_files import find_damage, list_checkpoints, step_of
from hfstack.runs.environment import is_sharded
from hfstack.training.divergence import SkipSpikes

logger = get_logger(__name__)

_OPTIMIZER = "optimizer.pt"
_ADAPTER, _MODEL_SHARDS = "adapter_model.safetensors", "model*.safetensors"


class RollBackSpikes(SkipSpikes):
    """Roll back on a loss spike, as PaLM did, and continue with other data.

    PaLM went back about 100 steps before a spike and left out 200 to 500 batches around it
    (Chowdhery et al. 2022, section 5.1). Here the run does it by itself: weights and moments become
    those of the checkpoint, and the steps up to `steps_left_out` after it change nothing, so their
    batches are left out. Steps, learning rate and data continue in their order: no step is
    there twice, and a resume ends at the same weights. PaLM's schedule went back as well.

    What is a spike is decided as in `SkipSpikes`. Where no checkpoint is old enough, only the spike
    itself is skipped. Off unless it is given to `protect`, as `spikes`.

    Args:
        sigmas: how many standard deviations are a spike.
        window: steps that are looked back on; nothing is done before half of them are known.
        steps_before: how many steps before the spike the checkpoint must be.
        steps_left_out: how many steps after the checkpoint's are left out, the spike among them in
            any case.
        most: how often a run may go back before it is given up.
    """

    def __init__(
        self,
        sigmas: float = 6.0,
        window: int = 128,
        *,
        steps_before: int = 100,
        steps_left_out: int = 300,
        most: int = 20,
    ) -> None:
        super().__init__(sigmas, window)
        if min(steps_before, steps_left_out, most) < 1:
            raise ConfigError(
                "RollBackSpikes needs steps_before, steps_left_out and most of at least 1, got "
                f"{steps_before}, {steps_left_out} and {most}"
            )

        self.steps_before, self.steps_left_out, self.most = steps_before, steps_left_out, most
        # of each the step of the spike and the step of the checkpoint
        self.roll_backs: list[list[int]] = []
        self._wait: Callable[[], None] | None = None

    def use_checkpoints(self, wait: Callable[[], None]) -> None:
        """Take what waits until no checkpoint is being verified, or deleted as too old."""
        self._wait = wait

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps of this callback."""
        kept = super().state()
        kept["args"] |= {
            "steps_before": self.steps_before,
            "steps_left_out": self.steps_left_out,
            "most": self.most,
        }
        kept["attributes"]["roll_backs"] = self.roll_backs
        return kept

    def restore(self, attributes: dict[str, Any]) -> None:
        """Take over what a checkpoint kept, as `state` gave it."""
        super().restore(attributes)
        self.roll_backs = attributes["roll_backs"]

    def on_train_begin(self, args: TrainingArguments, *rest: Any, **kwargs: Any) -> None:
        """Refuse a run that cannot go back; then watch the model.

        Raises:
            ConfigError: the run saves no checkpoints, or only such as cannot be loaded again; or
                nobody said how to wait for them.
        """
        if args.save_strategy == SaveStrategy.NO or args.save_only_model:
            raise ConfigError(
                "RollBackSpikes goes back to a checkpoint: it needs --save_strategy steps and no "
                "--save_only_model"
            )

        if is_sharded(args):
            raise ConfigError(
                "RollBackSpikes does not work with FSDP and DeepSpeed; use SkipSpikes, or leave it "
                "out"
            )

        if self._wait is None:
            raise ConfigError(
                "RollBackSpikes has to know when a checkpoint is verified: give it to protect(run, "
                "spikes=...), and leave out --restore_callback_states_from_checkpoint"
            )

        super().on_train_begin(args, *rest, **kwargs)

    def on_log(self, *given: Any, **kwargs: Any) -> None:
        """Log how many steps were left out so far, and how often the run went back."""
        super().on_log(*given, **kwargs)
        if "loss" in kwargs["logs"]:
            kwargs["logs"]["roll_backs"] = len(self.roll_backs)
            given[1].log_history[-1]["roll_backs"] = len(self.roll_backs)

    def answer_spike(self, step: int, args: TrainingArguments, model: Any, optimizer: Any) -> int:
        """Load a checkpoint's weights and moments, and return the last step to skip.

        Raises:
            DivergedError: the run went back too often.
            CheckpointError: the checkpoint's weights are not those of this model.
        """
        # The newest checkpoint may still be on its way to the disk.
        assert self._wait is not None
        self._wait()

        # one process chooses: the others may not see the same files yet
        chosen: list[str | None] = [None]
        if args.process_index == 0:
            found = self._choose(Path(str(args.output_dir)), step)
            chosen[0] = None if found is None else str(found)
        if args.world_size > 1:
            torch.distributed.broadcast_object_list(chosen)

        if chosen[0] is None:
            logger.warning(
                "no complete checkpoint is %d steps older, so nothing but this step is left out; "
                "keep more of them by --save_total_limit",
                self.steps_before,
            )
            return step

        if len(self.roll_backs) == self.most:
            raise DivergedError(
                f"the loss spiked again at step {step}, after going back {self.most} times: lower "
                "--learning_rate, lengthen --warmup_steps, or look at the data"
            )

        checkpoint = Path(chosen[0])
        load_weights_and_moments(checkpoint, model, optimizer)
        self.roll_backs.append([step, step_of(checkpoint)])
        last = max(step, step_of(checkpoint) + self.steps_left_out)
        logger.warning("back to %s; what is read up to step %d is left out", checkpoint.name, last)

        return last

    def _choose(self, directory: Path, step: int) -> Path | None:
        """Return the newest whole checkpoint old enough, and not of steps already undone."""
        for path in list_checkpoints(directory):
            undone = any(to < step_of(path) < spike for spike, to in self.roll_backs)
            old_enough = step_of(path) <= step - self.steps_before
            if old_enough and not undone and find_damage(path, needs_manifest=True) is None:
                return path
        return None


def load_weights_and_moments(checkpoint: Path, model: Any, optimizer: Any) -> None:
    """Load a checkpoint's weights, or its adapter's, and its moments.

    Raises:
        CheckpointError: the weights are not those of this model.
    """
    adapted = hasattr(model, "peft_config")
    weights: dict[str, torch.Tensor] = {}
    for file in sorted(checkpoint.glob(_ADAPTER if adapted else _MODEL_SHARDS)):
        weights |= load_file(file)

    if adapted:
        result = set_peft_model_state_dict(model, weights, adapter_name=model.active_adapter)
        wrong = list(result.unexpected_keys)  # missing are all weights of the base
    else:
        # a tied weight is in the file once, under the name that it is tied to
        result = model.load_state_dict(weights, strict=False)
        missing = set(result.missing_keys) - set(model.all_tied_weights_keys)
        wrong = [*missing, *result.unexpected_keys]

    if wrong or not weights:
        raise CheckpointError(
            f"{checkpoint} does not hold the weights of this model: "
            f"{', '.join(wrong[:3]) or 'none'}"
        )

    # Moments go back and the schedule goes on: the learning rate of now stays.
    now = [
        {name: value for name, value in group.items() if name != "params"}
        for group in optimizer.param_groups
    ]
    moments = torch.load(checkpoint / _OPTIMIZER, map_location="cpu", weights_only=True)
    optimizer.load_state_dict(moments)
    for group, settings in zip(optimizer.param_groups, now, strict=True):
        group.update(settings)
