"""Score a finished model on labelled rows, alone or beside another, and by group.

    accelerate launch recipes/score.py --config recipes/score.yaml --datasets test.jsonl
    hfstack run score --model_name_or_path runs/classify --datasets test.jsonl  # the same, shorter

Nothing is trained. Metrics, intervals and baselines are those of training, by its own functions,
chosen by what the model is: a classifier, a tagger, a model that answers by spans, an
encoder-decoder, a causal or masked language model, a reward model, or a model of search.

reads   a run, a checkpoint, an adapter or a Hub id; rows with what is right, or task files
writes  rows.jsonl (what the model said of each row), parted.jsonl (rows where it and
        --reference_model part) and run.json in --output_dir
"""

from dataclasses import dataclass, field, replace

from trl import ModelConfig

from hfstack.config import command_line
from hfstack.data.sources import Source, SourceLog, as_sources, describe_sources, load_mixture
from hfstack.errors import ConfigError
from hfstack.evidence.score_code import CodeArgs, record_code
from hfstack.evidence.score_judge import JudgeArgs
from hfstack.evidence.score_record import (
    describe_score,
    record_comparison,
    record_groups,
    record_judgements,
    record_rows,
)
from hfstack.evidence.score_tasks import TaskArgs, record_tasks
from hfstack.evidence.scored import ScoreArgs, scored_kind
from hfstack.evidence.scorers import SCORERS, load_scorer
from hfstack.runs.run import Run, RunArgs


@dataclass
class CompareArgs(TaskArgs, CodeArgs):
    """What the scores are put beside, and what a language model is asked."""

    reference_model: str | None = None
    """Model to compare with on the same rows: a folder or a Hub id, for the same task."""
    group_column: str | None = None
    """Column that names the group of each row: every metric is given for each group too."""
    train_datasets: list[Source] = field(default_factory=list)
    """Rows of training: the baselines of tag and reward learn from them, and of embed their
    passages are searched too.
    """
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
            both = (model_args, compare_args.reference_model)
            found, shown = record_code(run, both, compare_args, score_args, seed=run_args.seed)
            metrics, lines = metrics | found, [*lines, *shown]
        if not score_args.datasets or is_code:
            print("\n".join(lines))
            return run.finish(metrics)

        # models
        kind = scored_kind(model_args, SCORERS)
        models = [model_args]
        if compare_args.reference_model is not None:
            named = {"model_name_or_path": compare_args.reference_model, "model_revision": "main"}
            models.append(replace(model_args, **named))
            scored_kind(models[-1], [kind])
        scorers = [
            load_scorer(
                kind,
                args,
                score_args,
                train_datasets=compare_args.train_datasets,
                answer_rows=compare_args.answer_rows,
                answer_tokens=compare_args.answer_tokens,
            )
            for args in models
        ]

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


if __name__ == "__main__":
    command_line(main)
