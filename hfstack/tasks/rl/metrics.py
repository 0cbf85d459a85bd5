"""Compute the metrics of completions, and summarise an online run."""

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hfstack.errors import DataError
from hfstack.logs import get_logger

logger = get_logger(__name__)

_FEW_ENDED = 0.05  # below this share of completions that end by themselves, warn

_SUMMARIZED = (
    "reward",
    "reward_std",
    "kl",
    "kl_per_completion",
    "ended_share",
    "completions/mean_length",
    "entropy",
)


class CompletionMetrics(TrainerCallback):
    """Adds `ended_share` and `kl_per_completion` to the logs of TRL's online trainers.

    `kl_per_completion` is the KL to the reference in nats, summed over a completion: TRL's KL per
    token times the mean length, which is exact for one batch. Warns when hardly any completion
    ends.
    """

    def __init__(self) -> None:
        self._warned = False

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Derive both from what was just logged."""
        logs = kwargs["logs"]
        for prefix in ("", "eval_"):
            truncated_share = logs.get(f"{prefix}completions/clipped_ratio")
            if truncated_share is None:
                continue

            ended_share = 1 - truncated_share
            metrics = {f"{prefix}ended_share": round(ended_share, 4)}
            kl = logs.get(f"{prefix}kl")
            if kl is not None:
                length = logs[f"{prefix}completions/mean_length"]
                metrics[f"{prefix}kl_per_completion"] = kl * length

            logs.update(metrics)
            state.log_history[-1].update(metrics)
            if ended_share < _FEW_ENDED:
                self._warn_once(state.global_step, ended_share)

    def _warn_once(self, step: int, ended_share: float) -> None:
        if not self._warned:
            self._warned = True
            logger.warning(
                "step %d: %.0f %% of the completions end by themselves; the others are truncated "
                "at --max_completion_length: allow longer ones, or train the model to stop first "
                "(logged once)",
                step,
                100 * ended_share,
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
        trainer: a PPO, RLOO or GRPO trainer that has trained.
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
