"""Align Trainer's saving, evaluating and stopping with the ends of rollouts."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import DefaultFlowCallback

from hfstack.tasks.rl.ppo.config import PPOConfig

_WAITING = ("should_save", "should_evaluate", "should_log", "should_training_stop")


class RolloutBoundary(TrainerCallback):
    """Hold back what other callbacks ask for until the updates of a rollout are over.

    Must be the last callback.

    A checkpoint in the middle of a rollout could not be continued from: its completions are not
    part of it. When `target_kl` ends the updates of a rollout early, the steps that were left out
    count as taken, so that schedule, intervals and resuming keep to rollouts.
    """

    def __init__(self) -> None:
        self.skipped_steps = 0
        self._asked: set[str] = set()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Within a rollout remember what was asked for, at its end ask for it."""
        assert isinstance(args, PPOConfig)
        if state.global_step % args.steps_per_rollout == 0:
            self._ask(control)
            return
        for name in _WAITING:
            if getattr(control, name):
                self._asked.add(name)
                setattr(control, name, False)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Count the steps that `target_kl` skipped, and request what is due now."""
        assert isinstance(args, PPOConfig)
        skipped = args.whole_rollouts(state.global_step) - state.global_step
        if skipped == 0:
            return
        self.skipped_steps += skipped

        state.global_step += skipped
        state.epoch = state.global_step / args.steps_per_rollout

        for _ in range(skipped):
            kwargs["lr_scheduler"].step()
        DefaultFlowCallback().on_step_end(args, state, control)
        self._ask(control)

    def _ask(self, control: TrainerControl) -> None:
        for name in self._asked:
            setattr(control, name, True)
        self._asked.clear()


class CompletionLog(TrainerCallback):
    """Write completions of each rollout to a file of JSON lines.

    A resumed run goes on where its checkpoint was.

    Args:
        path: the file; rows are {"step", "prompt", "completion", "reward"}.
        count: completions of a rollout.
    """

    def __init__(self, path: Path, count: int) -> None:
        self.path = path
        self.count = count

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Forget the completions of steps that will be taken again."""
        if state.is_world_process_zero and self.path.is_file():
            rows = [line for line in self.path.read_text(encoding="utf-8").split("\n") if line]
            kept = [line for line in rows if json.loads(line)["step"] < state.global_step]
            self.path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")

    def write(
        self,
        step: int,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        rewards: Sequence[float | None],
    ) -> None:
        """Append the first completions of a rollout, sampled after `step` optimizer steps."""
        with self.path.open("a", encoding="utf-8") as file:
            for prompt, completion, reward in list(zip(prompts, completions, rewards, strict=True))[
                : self.count
            ]:
                row = {"step": step, "prompt": prompt, "completion": completion, "reward": reward}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
