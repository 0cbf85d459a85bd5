"""Summarise an online run, and stop one whose answers all get the same reward."""

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hfstack.errors import DataError

_SUMMARIZED = (
    "reward",
    "reward_std",
    "kl",
    "kl_per_completion",
    "ended_share",
    "completions/mean_length",
    "entropy",
)


class StopWithoutSpread(TrainerCallback):
    """Stops when the first evaluation gave every answer one and the same reward.

    Nothing can be learned from it: most often a reward was made for other prompts, or a threshold
    is never met.
    """

    def __init__(self) -> None:
        self._looked = False

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Look at the spread of the first evaluation.

        Raises:
            DataError: there is none.
        """
        metrics = kwargs.get("metrics") or {}
        if self._looked or "eval_reward_std" not in metrics:
            return

        # After the last step there is a model to save, and nothing left to stop.
        self._looked = True
        if metrics["eval_reward_std"] == 0 and state.global_step < state.max_steps:
            raise DataError(
                f"all held-out answers got the same reward, {metrics['eval_reward']:g}, at step "
                f"{state.global_step}: there is nothing to learn from it; check that the reward "
                "fits these prompts, or train without evaluation (--eval_strategy no)"
            )


def evaluate_policy(trainer: Any) -> dict[str, float]:
    """Return start and end of the curves, and an evaluation after the last step.

    Generating completions is slow, so an evaluation that was made after the last step is not
    repeated, unless another checkpoint was loaded since (`--load_best_model_at_end`). Without
    held-out prompts there is none.

    Args:
        trainer: a PPOTrainer that has trained.
    """
    history, steps = trainer.state.log_history, trainer.state.global_step
    metrics = summarize_history(history) | {"steps": steps}
    if trainer.eval_dataset is None:
        return metrics

    best_step = trainer.state.best_global_step
    went_back = trainer.args.load_best_model_at_end and best_step not in (None, steps)
    evaluated = None if went_back else last_evaluation(history, steps)
    return metrics | (evaluated or trainer.evaluate())


def summarize_history(history: list[dict[str, Any]]) -> dict[str, float]:
    """Return where the curves start and end.

    `start_reward` and the other `start_` metrics are of the evaluation before the first step
    (`--eval_on_start`), `reward` and the others of the last training log.
    """
    start = next((row for row in history if "eval_reward" in row and row["step"] == 0), {})
    end = next((row for row in reversed(history) if "reward" in row), {})

    found = {f"start_{name.rpartition('/')[2]}": start.get(f"eval_{name}") for name in _SUMMARIZED}
    found |= {name: end.get(name) for name in _SUMMARIZED}
    return {name: value for name, value in found.items() if value is not None}


def last_evaluation(history: list[dict[str, Any]], step: int) -> dict[str, float] | None:
    """Return the metrics of an evaluation after this very step, or None."""
    row = next((row for row in reversed(history) if "eval_reward" in row), {})
    if row.get("step") != step:
        return None
    return {name: value for name, value in row.items() if name != "step"}
