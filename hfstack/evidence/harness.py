"""Run tasks of EleutherAI's lm-eval by name, on a model that hfstack has loaded.

Its own class for models of transformers wraps ours, so that the numbers are the harness's own. It
is the extra `harness`, imported when a task is asked for.
"""

import importlib
import importlib.metadata
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from hfstack.errors import ConfigError, DataError, HfstackError, MissingExtraError
from hfstack.models.context import context_length
from hfstack.tasks.causal_lm.sampling import set_aside_settings

PACKAGE = "lm_eval"
_STANDARD_ERRORS = 1.959964  # of a 95 % interval


def harness_version() -> str:
    """Return the version of lm-eval.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        return importlib.metadata.version(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        raise MissingExtraError(PACKAGE, "harness") from None


def run_harness(
    model: Any,
    tokenizer: Any,
    tasks: Sequence[str],
    *,
    folder: str | None = None,
    examples: int | None = None,
    max_rows: int | None = None,
    batch_size: int = 8,
    as_chat: bool = False,
) -> dict[str, Any]:
    """Return what lm-eval measures of a model on tasks by name.

    Args:
        model: a causal language model, in evaluation mode.
        tasks: names of tasks or groups.
        folder: of task files beside those that lm-eval knows.
        examples: worked examples of each question; None for the task's own number.
        max_rows: of each task.
        as_chat: ask through the chat template.

    Raises:
        MissingExtraError: lm-eval is not installed.
        ConfigError: a task is not known.
        DataError: a task's data cannot be read, most often because they are on the Hub.
    """
    harness_version()
    evaluator, manager, models = (
        importlib.import_module(f"{PACKAGE}.{part}")
        for part in ("evaluator", "tasks", "models.huggingface")
    )
    with _quiet():
        known = manager.TaskManager(include_path=folder)
        if unknown := [name for name in tasks if name not in known.all_tasks]:
            place = f" (--harness_folder {folder})" if folder else ""
            raise ConfigError(
                f"--harness_tasks {unknown[0]}: no such task of lm-eval {harness_version()}{place}"
            )

        # the harness's own class around our model
        wrapped = models.HFLM(
            pretrained=model,
            tokenizer=tokenizer,
            batch_size=batch_size,
            max_length=context_length(model.config),
        )

        # a task says how it decodes; the model's own penalties and suppressed tokens would join in
        try:
            with set_aside_settings(model):
                return evaluator.simple_evaluate(
                    model=wrapped,
                    tasks=list(tasks),
                    num_fewshot=examples,
                    limit=max_rows,
                    task_manager=known,
                    apply_chat_template=as_chat,
                    bootstrap_iters=1000,
                    log_samples=False,
                )
        except HfstackError:
            raise
        except (OSError, ConnectionError, ValueError) as error:
            cause = " ".join(str(error).split())[:200]
            raise DataError(f"--harness_tasks {' '.join(tasks)}: {cause}") from error


def harness_metrics(found: dict[str, Any]) -> tuple[dict[str, float], list[list[Any]]]:
    """Return the numbers for run.json, with intervals, and the rows of their table.

    Args:
        found: from `run_harness`.
    """
    metrics: dict[str, float] = {}
    table: list[list[Any]] = []
    for task, values in found["results"].items():
        count = found.get("n-samples", {}).get(task, {}).get("effective", "")
        shots = found.get("n-shot", {}).get(task, "")
        version = found.get("versions", {}).get(task, "")
        for key, value in values.items():
            name, _, filtered = key.partition(",")
            if not isinstance(value, int | float) or name.endswith("_stderr") or not filtered:
                continue

            own = f"{task}_{name}" + ("" if filtered == "none" else f"_{filtered}")
            metrics[own] = float(value)
            error = values.get(f"{name}_stderr,{filtered}")
            interval = "–"
            if isinstance(error, int | float):
                low, high = value - _STANDARD_ERRORS * error, value + _STANDARD_ERRORS * error
                metrics[f"{own}_low"], metrics[f"{own}_high"] = low, high
                interval = f"{low:.4g} to {high:.4g}"
            table.append([task, name, f"{value:.6g}", interval, shots, count, str(version)])
    return metrics, table


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep lm-eval's own log and bars out of ours for a while."""
    logger, disabled = logging.getLogger(PACKAGE), os.environ.get("TQDM_DISABLE")
    level = logger.level
    logger.setLevel(logging.ERROR)
    os.environ["TQDM_DISABLE"] = "1"
    try:
        yield
    finally:
        logger.setLevel(level)
        if disabled is None:
            del os.environ["TQDM_DISABLE"]
        else:
            os.environ["TQDM_DISABLE"] = disabled
