"""Align Trainer's saving, evaluating and stopping with the ends of rollouts."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch.optim.lr_scheduler import ReduceLROnPlateau
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import DefaultFlowCallback

from hfstack.disk import atomic_write
from hfstack.tasks.rl.ppo.config import PPOConfig

_DEFERRED = ("should_save", "should_evaluate", "should_log", "should_training_stop")


class RolloutBoundary(TrainerCallback):
    """Defers the requests of other callbacks to the end of the rollout's updates.

    Must be the last callback.

    A checkpoint in the middle of a rollout could not be resumed from: its completions are not part
    of it. When `target_kl` ends the updates of a rollout early, the skipped steps count as taken,
    so that schedule, intervals and resuming stay aligned with rollouts.
    """

    def __init__(self) -> None:
        self._skipped_steps = 0
        self._requested: set[str] = set()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Remember what was requested within a rollout, and request it at its end."""
        assert isinstance(args, PPOConfig)
        if state.global_step % args.steps_per_rollout == 0:
            self._request(control)
            return

        for name in _DEFERRED:
            if getattr(control, name):
                self._requested.add(name)
                setattr(control, name, False)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Count the steps that `target_kl` skipped, and request what is due now."""
        assert isinstance(args, PPOConfig)
        skipped = args.whole_rollouts(state.global_step) - state.global_step
        if skipped == 0:
            return

        self._skipped_steps += skipped
        state.global_step += skipped
        state.epoch = state.global_step / args.steps_per_rollout
        scheduler = kwargs["lr_scheduler"]
        if not isinstance(scheduler, ReduceLROnPlateau):  # it counts evaluations, not steps
            for _ in range(skipped):
                scheduler.step()

        # Saving, evaluating and logging by steps may fall on the steps that were skipped.
        DefaultFlowCallback().on_step_end(args, state, control)
        self._request(control)

    def pop_skipped_steps(self) -> int:
        """Return the steps skipped since the last call, and count from 0 again."""
        skipped, self._skipped_steps = self._skipped_steps, 0
        return skipped

    def _request(self, control: TrainerControl) -> None:
        for name in self._requested:
            setattr(control, name, True)
        self._requested.clear()


class CompletionLog(TrainerCallback):
    """Logs completions of each rollout to a file of JSON lines.

    A resumed run continues from the step of its checkpoint.

    Args:
        path: the file; rows are {"step", "prompt", "completion", "reward"}.
        count: completions that are logged of a rollout.
    """

    def __init__(self, path: Path, count: int) -> None:
        self.path = path
        self.count = count

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Drop the completions of steps that will be taken again."""
        if state.is_world_process_zero and self.path.is_file():
            rows = [line for line in self.path.read_text(encoding="utf-8").split("\n") if line]
            kept = [line for line in rows if json.loads(line)["step"] < state.global_step]
            with atomic_write(self.path) as file:
                file.writelines(f"{line}\n" for line in kept)

    def append(
        self,
        step: int,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        rewards: Sequence[float | None],
    ) -> None:
        """Append the first completions of a rollout, sampled after `step` optimizer steps."""
        episodes = list(zip(prompts, completions, rewards, strict=True))
        with self.path.open("a", encoding="utf-8") as file:
            for prompt, completion, reward in episodes[: self.count]:
                row = {"step": step, "prompt": prompt, "completion": completion, "reward": reward}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
