"""Name the tasks of GLUE: columns, labels and metrics.

Wang et al. 2019.

Source: arXiv:1804.07461, and the dataset nyu-mll/glue of the Hub.

The diagnostic set and WNLI, whose held-out rows contradict its train rows, are left out.
"""

from dataclasses import dataclass

from hfstack.errors import ConfigError

GLUE_ID = "nyu-mll/glue"


@dataclass(frozen=True)
class GlueTask:
    """One task. `metrics` are what the benchmark averages to the task's score."""

    columns: tuple[str, str | None]
    labels: tuple[str, ...]
    """Names in order of the ids; none where a number is predicted."""
    metrics: tuple[str, ...]
    eval_splits: tuple[str, ...] = ("validation",)


_ENTAILMENT = ("entailment", "not_entailment")
TASKS = {
    "sst2": GlueTask(("sentence", None), ("negative", "positive"), ("accuracy",)),
    "cola": GlueTask(("sentence", None), ("unacceptable", "acceptable"), ("matthews",)),
    "mrpc": GlueTask(
        ("sentence1", "sentence2"), ("not_equivalent", "equivalent"), ("accuracy", "f1")
    ),
    "rte": GlueTask(("sentence1", "sentence2"), _ENTAILMENT, ("accuracy",)),
    "stsb": GlueTask(("sentence1", "sentence2"), (), ("pearson", "spearman")),
    "qqp": GlueTask(("question1", "question2"), ("not_duplicate", "duplicate"), ("accuracy", "f1")),
    "mnli": GlueTask(
        ("premise", "hypothesis"),
        ("entailment", "neutral", "contradiction"),
        ("accuracy",),
        ("validation_matched", "validation_mismatched"),
    ),
    "qnli": GlueTask(("question", "sentence"), _ENTAILMENT, ("accuracy",)),
}


def glue_task(name: str) -> GlueTask:
    """Return a task by its name.

    Raises:
        ConfigError: there is no such task.
    """
    if name not in TASKS:
        raise ConfigError(
            f"--task {name!r}: choose one of {', '.join(TASKS)}, or leave it out for data of your "
            "own"
        )
    return TASKS[name]
