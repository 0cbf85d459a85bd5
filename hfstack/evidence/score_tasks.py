"""Score a causal model on task files and on tasks of lm-eval, in run.json's form."""

from dataclasses import dataclass, field, replace
from typing import Any

from accelerate import Accelerator
from trl import ModelConfig

from hfstack.data.reading.jsonl import write_jsonl
from hfstack.data.sources import as_sources, describe_sources
from hfstack.errors import ConfigError
from hfstack.evidence.fewshot import FewShotTask, load_task_rows, load_task_scorer, read_task
from hfstack.evidence.harness import harness_metrics, harness_version, run_harness
from hfstack.evidence.score_compare import compare
from hfstack.evidence.score_record import describe_score
from hfstack.evidence.scored import Scored, scored_kind
from hfstack.models.loading import load_causal_lm, load_tokenizer
from hfstack.runs.run import Run
from hfstack.tasks.causal_lm.prompt_format import find_prompt_format
from hfstack.tokens.chat import stop_at_end_of_turn


@dataclass
class TaskArgs:
    """Tasks that a causal language model is asked, with a few worked examples."""

    task_file: list[str] = field(default_factory=list)
    """Task files (YAML, or rows of prompt, answer and perhaps choices) in place of datasets."""
    harness_tasks: list[str] = field(default_factory=list)
    """Tasks of EleutherAI's lm-eval by name (extra `harness`)."""
    harness_folder: str | None = None
    """Folder of task files of lm-eval's form, beside those that it has."""
    harness_examples: int | None = None
    """Worked examples of each question of lm-eval's tasks; by default the task's own number."""
    task_as_chat: bool | None = None
    """Ask through the chat template; by default as the model was trained."""

    @property
    def asks(self) -> bool:
        """Return whether there is any task."""
        return bool(self.task_file or self.harness_tasks)

    def __post_init__(self) -> None:
        for name in ("task_file", "harness_tasks"):
            if isinstance(getattr(self, name), str):  # a YAML names one without a list
                setattr(self, name, [getattr(self, name)])


def record_tasks(
    run: Run,
    model_args: ModelConfig,
    args: TaskArgs,
    *,
    reference_model: str | None,
    max_rows: int | None,
    batch_size: int | None,
    seed: int,
) -> tuple[dict[str, float], list[str]]:
    """Ask a model, and a reference, all tasks; return metrics and lines about them.

    Args:
        max_rows: of each task; None for all.
        batch_size: of lm-eval's requests.
        seed: of the intervals of differences.

    Raises:
        CheckpointError: a model is no causal language model.
        ConfigError: a task file cannot be used, or a task is not known.
        DataError: a task's rows cannot be asked.
        MissingExtraError: lm-eval is asked for and not installed.
    """
    if args.harness_tasks:
        run.record.versions["lm_eval"] = harness_version()
    tasks = [read_task(path) for path in args.task_file]
    names = [task.name for task in tasks]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError(f"--task_file: two tasks are named {twice!r}; give one another `name`")
    sources = [source for task in tasks for source in as_sources(list(task.datasets))]
    run.record_inputs(eval=describe_sources(sources))

    ours, harness = _ask_all(model_args, tasks, args, max_rows=max_rows, batch_size=batch_size)
    metrics: dict[str, float] = {}
    lines: list[str] = []
    for task, scored in zip(tasks, ours, strict=True):
        metrics |= _named(task, scored.metrics)
        lines.append(f"{task.name}: {describe_score(scored, len(scored.places))}")
        _write_answers_of_tasks(run, task, scored)

    found, table = harness_metrics(harness) if harness else ({}, [])
    metrics |= found
    if table:
        columns = ["task", "metric", "value", "95 % interval", "examples", "rows", "version"]
        run.add_table(f"lm-eval {harness_version()}", columns, table)
        lines += [f"{row[0]}: {row[1]} {row[2]} ({row[3]})" for row in table]

    if reference_model is not None:
        other = replace(model_args, model_name_or_path=reference_model, model_revision="main")
        theirs, _ = _ask_all(other, tasks, args, max_rows=max_rows, harness=False)
        for task, mine, its in zip(tasks, ours, theirs, strict=True):
            compared = compare(mine, its, seed=seed)
            metrics |= _named(task, compared.metrics())
            run.add_table(f"{task.name} beside the reference", *compared.table())
            lines.append(f"{task.name}: {compared.verdict}")
    return metrics, lines


def _ask_all(
    model_args: ModelConfig,
    tasks: list[FewShotTask],
    args: TaskArgs,
    *,
    max_rows: int | None,
    batch_size: int | None = None,
    harness: bool = True,
) -> tuple[list[Scored], dict[str, Any]]:
    """Ask one model all tasks; return what it did, and what lm-eval measured."""
    scored_kind(model_args, ["causal language model"])
    tokenizer = load_tokenizer(model_args)
    model: Any = load_causal_lm(model_args, tokenizer)
    model.to(Accelerator().device).eval()
    name = model_args.model_name_or_path or ""
    kind = find_prompt_format(name, tokenizer, as_chat=args.task_as_chat).kind
    if kind == "chat":
        stop_at_end_of_turn(model, tokenizer)

    scored = [
        load_task_scorer(model, tokenizer, task, kind=kind).score(load_task_rows(task, max_rows))
        for task in tasks
    ]
    found: dict[str, Any] = {}
    if harness and args.harness_tasks:
        found = run_harness(
            model,
            tokenizer,
            args.harness_tasks,
            folder=args.harness_folder,
            examples=args.harness_examples,
            max_rows=max_rows,
            batch_size=batch_size or 8,
            as_chat=bool(args.task_as_chat),
        )
    return scored, found


def _named(task: FewShotTask, metrics: dict[str, float]) -> dict[str, float]:
    return {f"{task.name}_{name.removeprefix('eval_')}": value for name, value in metrics.items()}


def _write_answers_of_tasks(run: Run, task: FewShotTask, scored: Scored) -> None:
    """Write what the model said of each row of a task."""
    file = f"{task.name}.jsonl"
    with write_jsonl(run.output_dir / file) as add:
        for place, answer, right in zip(
            scored.places, scored.answers, scored.right or [], strict=True
        ):
            add({"row": place + 1, **answer, "right": right})
    run.add_artifact(f"answers to {task.name}", file)
