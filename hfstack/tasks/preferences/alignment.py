"""Load rows and policy, sample answers and measure pairs, for DPO, KTO and ORPO."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from datasets import Dataset
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainingArguments,
)
from transformers.trainer_utils import TrainOutput
from trl import ModelConfig

from hfstack.data.sources import DataArgs
from hfstack.intervals import share_interval
from hfstack.logs import get_logger
from hfstack.models.adapters import give_pad_token
from hfstack.models.context import context_length
from hfstack.models.loading import load_causal_lm, load_tokenizer
from hfstack.runs.environment import is_sharded
from hfstack.runs.rendering import check_rendering, describe_rendering
from hfstack.runs.run import Run
from hfstack.tasks.preferences.checks import (
    OVERLONG_PROMPT,
    check_starting_policy,
    pair_problems,
    preference_problems,
    prompts_to_show,
)
from hfstack.tasks.preferences.data import (
    follow_model,
    length_statistics,
    length_table,
    load_preferences,
)
from hfstack.tasks.preferences.later_turns import train_answers_alone
from hfstack.tasks.preferences.rows import PreferenceArgs
from hfstack.tasks.sft.answers import answer_pairs
from hfstack.tasks.shared.probe_settings import ProbeArgs
from hfstack.tokens.chat import stop_at_end_of_turn
from hfstack.tokens.seams import opening_for
from hfstack.tokens.special_tokens import require_eos_id
from hfstack.training.callbacks import SampleTable
from hfstack.training.checkpointing import protect
from hfstack.training.preflight import Problems, checked
from hfstack.training.saving import save_trained
from hfstack.training.unread_options import refuse_unread_settings

logger = get_logger(__name__)


@dataclass
class SampleArgs(ProbeArgs):
    """What is generated while training, to look at, and measured before and after."""

    sample_prompts: list[str] = field(default_factory=list)
    """Prompts whose answers are saved to samples.jsonl at each evaluation; three of the held-out
    ones by default.
    """
    sample_tokens: int = 100
    """Longest sample, in tokens."""


@dataclass
class AlignmentParts:
    """What DPO, KTO and ORPO train with, beside their settings."""

    checkpoint: str | None  # where training goes on
    rows: dict[str, Dataset]  # pairs, or answers with a thumb, of each split
    tokenizer: PreTrainedTokenizerBase
    policy: PreTrainedModel
    problems: Problems  # what `checked` refuses to train on

    @property
    def held_out(self) -> Dataset:
        """Return the rows that are not trained on, or those that are where there are none."""
        return self.rows.get("eval", self.rows["train"])


def load_inputs(
    run: Run,
    model_args: ModelConfig,
    data_args: DataArgs,
    preference_args: PreferenceArgs,
    training_args: Any,
    *,
    form: Literal["pairs", "labels"] = "pairs",
) -> AlignmentParts:
    """Load rows and policy, and record in run.json what was read.

    Arguments and errors are those of `load_recorded_preferences` and `load_policy`.

    Args:
        training_args: DPOConfig, KTOConfig or ORPOConfig.
    """
    checkpoint = run.resume_point()
    rows = load_recorded_preferences(
        run, model_args, data_args, preference_args, training_args, form=form
    )
    tokenizer, policy, problems = load_policy(
        run, rows, model_args, data_args, max_length=training_args.max_length
    )
    return AlignmentParts(checkpoint, rows, tokenizer, policy, problems)


def load_pairs(
    run: Run,
    model_args: ModelConfig,
    data_args: DataArgs,
    preference_args: PreferenceArgs,
    training_args: Any,
) -> AlignmentParts:
    """Load pairs and policy as `load_inputs` does, and check the pairs."""
    parts = load_inputs(run, model_args, data_args, preference_args, training_args)
    parts.problems |= pair_problems(parts.rows)
    return parts


def train_and_save(run: Run, trainer: Any, parts: AlignmentParts) -> TrainOutput:
    """Train the assistant's turns from where the run stopped, and save the policy.

    Returns:
        What Trainer says of the training.

    Raises:
        ConfigError: what `checked` found would train silently wrong.
    """
    train_answers_alone(trainer, parts.rows, parts.tokenizer)
    count_rows(run, trainer)
    trained = checked(trainer, parts.tokenizer, parts.problems).train(
        resume_from_checkpoint=parts.checkpoint
    )
    save_trained(run, trainer, partial(load_causal_lm, tokenizer=parts.tokenizer))
    return trained


def train_on_pairs(run: Run, trainer: Any, parts: AlignmentParts) -> dict[str, float]:
    """Train and save as `train_and_save` does, and return the metrics of pairs."""
    trained = train_and_save(run, trainer, parts)
    metrics = {"train_loss": trained.training_loss, "train_pairs": len(trainer.train_dataset)}
    if "eval" in parts.rows:
        metrics |= evaluate_pairs(trainer, pairs=len(trainer.eval_dataset))
    return metrics


def load_recorded_preferences(
    run: Run,
    model_args: ModelConfig,
    data_args: DataArgs,
    preference_args: PreferenceArgs,
    training_args: TrainingArguments,
    *,
    form: Literal["pairs", "labels"] = "pairs",
) -> dict[str, Dataset]:
    """Load the splits, and record in run.json what was read and how long pairs are.

    Args:
        run: of the recipe.
        model_args: name the model that is aligned, which is refused here, before data is read,
            where it cannot be.
        data_args: name the files.
        preference_args: name their columns.
        training_args: say whether the model is trained in shards.
        form: "pairs" of a chosen and a rejected answer, or "labels" of single answers.

    Raises:
        ConfigError: the model answers nothing yet, or the adapter settings contradict each other.
        DataError: a row cannot be used, or a resumed run would read other data.
    """
    refuse_unread_settings(training_args)
    check_starting_policy(model_args, sharded=is_sharded(training_args))
    preference_args = follow_model(preference_args, model_args)
    quarantine = run.output_dir / "quarantine.jsonl"
    rows = load_preferences(
        data_args,
        preference_args,
        form=form,
        quarantine_file=quarantine,
        row_counts=run.record.rows,
    )
    run.record_inputs(
        model_args.model_name_or_path,
        **rows.inputs,
    )

    if form == "pairs":
        lengths = {name: length_statistics(split) for name, split in rows.items()}
        run.add_table("answer lengths", *length_table(lengths))
    return rows


def load_policy(
    run: Run,
    rows: dict[str, Dataset],
    model_args: ModelConfig,
    data_args: DataArgs,
    *,
    max_length: int | None,
) -> tuple[PreTrainedTokenizerBase, PreTrainedModel, Problems]:
    """Load tokenizer and model with pad token and end of turn; check the prompts.

    Args:
        run: of the recipe, whose rendering of rows is recorded.
        rows: pairs or labels of each split.
        model_args: name the model.
        data_args: say whether prompts that do not fit are refused or left out.
        max_length: tokens that training keeps of a prompt with its answer.

    Returns:
        Tokenizer, model, and what `checked` refuses to train on.

    Raises:
        ConfigError: the tokenizer has no pad token, and the embedding no row for one; it has no eos
            token for plain answers;
            `max_length` is more than the model reads; or conversations meet a tokenizer without a
            template or a model that learned on plain text, or the other way round.
    """
    tokenizer = load_tokenizer(model_args)
    chat = not isinstance(rows["train"][0]["prompt"], str)
    check_rendering(model_args.model_name_or_path, tokenizer, chat=chat)
    if not chat:
        require_eos_id(tokenizer)

    model = load_causal_lm(model_args, tokenizer)
    give_pad_token(tokenizer, model, may_grow=False)
    stop_at_end_of_turn(model, tokenizer)
    run.record.rendering = describe_rendering(tokenizer, "chat" if chat else "plain")

    problems = preference_problems(
        rows,
        tokenizer,
        model,
        max_length=max_length,
        on_bad_row=data_args.on_bad_row,
    )
    return tokenizer, model, problems


def callbacks(
    run: Run,
    args: SampleArgs,
    parts: AlignmentParts,
    push: Sequence[Callable[[Path], None]],
) -> list[TrainerCallback]:
    """Return what saves answers at each evaluation, and what protects the run.

    Args:
        run: of the recipe; its samples.jsonl gets the answers.
        args: which prompts.
        parts: the policy that answers.
        push: called with each verified checkpoint's folder.
    """
    rows, tokenizer = parts.rows, parts.tokenizer
    longest = context_length(parts.policy.config)
    if longest is not None:
        longest -= args.sample_tokens

    shown = prompts_to_show(args.sample_prompts, rows, tokenizer, longest=longest)

    run.add_artifact("samples", "samples.jsonl")
    sample = partial(
        answer_pairs,
        tokenizer=tokenizer,
        prompts=shown,
        max_new_tokens=args.sample_tokens,
        opening=opening_for(rows["train"]["prompt"][:1], tokenizer),
    )
    return [SampleTable(run.output_dir / "samples.jsonl", sample), *protect(run, push)]


def count_rows(run: Run, trainer: Any) -> None:
    """Count the rows that TRL's trainer kept: it leaves out prompts that do not fit.

    What its collator truncates of the others is logged: an answer without its end teaches nobody to
    stop, and a prompt without its beginning is another one.
    """
    kept = {"train": trainer.train_dataset, "eval": trainer.eval_dataset or ()}
    limit = trainer.args.max_length
    lost = "their beginning" if _keeps_end(trainer) else "their end"
    for name, rows in kept.items():
        long, equal = count_truncated(rows, limit, keeps_end=_keeps_end(trainer))
        if long:
            logger.warning(
                "%d of %d %s rows are longer than --max_length %d and lose %s%s",
                *(long, len(rows), name, limit, lost),
                f"; the two answers of {equal} are the same without it" if equal else "",
            )

    for name, counts in run.record.rows.splits.items():
        run.record.rows.leave_out(name, OVERLONG_PROMPT, counts.used - len(kept[name]))


def count_truncated(rows: Any, limit: int | None, *, keeps_end: bool) -> tuple[int, int]:
    """Return how many rows are truncated, and of how many no difference is left.

    Args:
        rows: of TRL's DPO or KTO trainer, or of `encode_sides`.
        limit: tokens of a prompt with its answer; None for any.
        keeps_end: of what is too long the end is kept.
    """
    long = equal = 0
    if limit is None:
        return long, equal

    for row in rows:
        prompt = row.get("prompt_ids", [])
        names = ("chosen_ids", "rejected_ids", "completion_ids", "chosen_tokens", "rejected_tokens")
        sides = [[*prompt, *row[name]] for name in names if name in row]
        long += any(len(side) > limit for side in sides)
        left = [side[-limit:] if keeps_end else side[:limit] for side in sides]
        equal += len(sides) == 2 and left[0] == left[1]
    return long, equal


def _keeps_end(trainer: Any) -> bool:
    return getattr(trainer.args, "truncation_mode", "keep_start") == "keep_end"


def evaluate_pairs(trainer: Any, *, pairs: int) -> dict[str, float]:
    """Evaluate on the held-out pairs; return metrics with the accuracy's interval.

    Args:
        pairs: held-out pairs that the trainer kept.
    """
    metrics: dict[str, float] = trainer.evaluate()
    accuracy = metrics["eval_rewards/accuracies"]
    low, high = share_interval([accuracy] * pairs)
    return metrics | {
        "eval_pairs": pairs,
        "eval_accuracy": accuracy,
        "eval_accuracy_low": low,
        "eval_accuracy_high": high,
    }
