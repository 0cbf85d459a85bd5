"""Score a finished model on labelled rows, alone or beside another, and by group.

    accelerate launch recipes/score.py --config recipes/score.yaml --datasets test.jsonl
    hfstack run score --model_name_or_path runs/classify --datasets test.jsonl  # the same, shorter

Nothing is trained. Metrics, intervals and baselines are those of training, by its own functions,
chosen by what the model is: a classifier, a tagger, a model that answers by spans, an
encoder-decoder, a causal or masked language model, or a reward model.

reads   a run, a checkpoint, an adapter or a Hub id; rows with what is right, or task files
writes  rows.jsonl (what the model said of each row), parted.jsonl (rows where it and
        --reference_model part) and run.json in --output_dir
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from datasets import Dataset
from trl import ModelConfig

from hfstack.config import command_line
from hfstack.data.sources import Source, SourceLog, as_sources, describe_sources, load_mixture
from hfstack.errors import ConfigError
from hfstack.evidence.score_classifier import load_classifier_scorer
from hfstack.evidence.score_code import CodeArgs, record_code
from hfstack.evidence.score_judge import JudgeArgs
from hfstack.evidence.score_language import load_causal_scorer, load_masked_scorer
from hfstack.evidence.score_record import (
    describe_score,
    record_comparison,
    record_groups,
    record_judgements,
    record_rows,
)
from hfstack.evidence.score_reward import load_reward_scorer
from hfstack.evidence.score_spans import load_span_scorer
from hfstack.evidence.score_tagger import load_tag_scorer
from hfstack.evidence.score_tasks import TaskArgs, record_tasks
from hfstack.evidence.score_texts import load_text_scorer
from hfstack.evidence.scored import ScoreArgs, Scorer, scored_kind
from hfstack.models.contents import ModelKind
from hfstack.runs.run import Run, RunArgs

# What a model is -> what loads it, with its settings and the rows that a baseline learns from.
TASKS: dict[ModelKind, Callable[..., Scorer]] = {
    "sequence classifier": load_classifier_scorer,
    "token classifier": load_tag_scorer,
    "question answering model": load_span_scorer,
    "encoder-decoder": load_text_scorer,
    "causal language model": load_causal_scorer,
    "masked language model": load_masked_scorer,
    "reward model": load_reward_scorer,
}


@dataclass
class CompareArgs(TaskArgs, CodeArgs):
    """What the scores are put beside, and what a language model is asked."""

    reference_model: str | None = None
    """Model to compare with on the same rows: a folder or a Hub id, for the same task."""
    group_column: str | None = None
    """Column that names the group of each row: every metric is given for each group too."""
    train_datasets: list[Source] = field(default_factory=list)
    """Rows that the baselines of tag and reward learn from: those of training."""
    answer_rows: int = 100
    """Rows of prompts with answers that a causal language model answers, to be compared with their
    answers; 0 for none.
    """
    answer_tokens: int = 200
    """Tokens of the longest answer."""

    def __post_init__(self) -> None:
        TaskArgs.__post_init__(self)
        CodeArgs.__post_init__(self)
        self.train_datasets = as_sources(self.train_datasets)


def main(
    model_args: ModelConfig,
    score_args: ScoreArgs,
    compare_args: CompareArgs,
    judge_args: JudgeArgs,
    run_args: RunArgs,
) -> dict[str, float]:
    """Score the rows, write them and return the metrics."""
    settings = (model_args, score_args, compare_args, judge_args, run_args)
    if not score_args.datasets and not compare_args.asks:
        raise ConfigError("--datasets: name at least one file of labelled rows, or a --task_file")

    with Run.start(__file__, run_args.output_dir, *settings) as run:
        run.record_inputs(model_args.model_name_or_path, compare_args.reference_model)
        metrics, lines = {}, []

        # tasks, with worked examples
        if compare_args.asks:
            metrics, lines = record_tasks(
                run,
                model_args,
                compare_args,
                reference_model=compare_args.reference_model,
                max_rows=score_args.max_rows,
                batch_size=score_args.batch_size,
                seed=run_args.seed,
            )

        # programs, which are run
        if is_code := compare_args.task == "code":
            models = (model_args, compare_args.reference_model)
            found, shown = record_code(run, models, compare_args, score_args, seed=run_args.seed)
            metrics, lines = metrics | found, [*lines, *shown]
        if not score_args.datasets or is_code:
            print("\n".join(lines))
            return run.finish(metrics)

        # models
        kind = scored_kind(model_args, TASKS)
        extra = extra_settings(kind, score_args, compare_args)
        scorers = [TASKS[kind](model_args, score_args, **extra)]
        if compare_args.reference_model is not None:
            named = {"model_name_or_path": compare_args.reference_model, "model_revision": "main"}
            reference_args = replace(model_args, **named)
            scored_kind(reference_args, [kind])
            scorers.append(TASKS[kind](reference_args, score_args, **extra))

        # data
        log: SourceLog = {}
        group = compare_args.group_column
        columns = set[str]().union([group] if group else [], *(one.columns for one in scorers))
        rows = load_mixture(
            score_args.datasets,
            on_bad_row=score_args.on_bad_row,
            max_rows=score_args.max_rows,
            purpose=scorers[0].purpose,
            columns=columns,
            numbers=frozenset().union(*(scorer.numbers for scorer in scorers)),
            quarantine_file=run.output_dir / "quarantine.jsonl",
            log=log,
        )
        run.record_inputs(eval=describe_sources(score_args.datasets, log))

        # evaluate
        ours, *theirs = [scorer.score(rows) for scorer in scorers]
        metrics |= record_rows(run, ours, rows, group_column=group)
        lines.append(describe_score(ours, len(rows)))
        if group is not None:
            found, line = record_groups(run, ours, rows, group)
            metrics, lines = metrics | found, [*lines, line]
        for other in theirs:
            found, line = record_comparison(run, ours, other, seed=run_args.seed)
            metrics, lines = metrics | found, [*lines, line]
        if judge_args.judge_url is not None:
            found, line = record_judgements(run, judge_args, ours, next(iter(theirs), None))
            metrics, lines = metrics | found, [*lines, line]

        print("\n".join(lines))
        return run.finish(metrics)


def extra_settings(
    kind: ModelKind, score_args: ScoreArgs, compare_args: CompareArgs
) -> dict[str, object]:
    """Return what one task needs beside the others' settings."""
    if kind == "causal language model":
        return {
            "answer_rows": compare_args.answer_rows,
            "answer_tokens": compare_args.answer_tokens,
        }
    if kind in ("token classifier", "reward model") and compare_args.train_datasets:
        train: Dataset = load_mixture(
            compare_args.train_datasets,
            on_bad_row=score_args.on_bad_row,
            purpose="preferences" if kind == "reward model" else "rows",
        )
        return {"train": train}
    return {}


if __name__ == "__main__":
    command_line(main)
