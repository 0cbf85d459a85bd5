"""Ask a causal model the rows of a task file, with k worked examples before each.

A task is a YAML file, or rows of JSON with `prompt`, `answer` and perhaps `choices`. Choices are
scored by the log-probability of each behind the prompt (Brown et al. 2020, section 2.4), summed, or
divided by its tokens or bytes; which, the result says. Without choices the model answers greedily,
and the answer is compared with the right one.

Legend: N rows, C choices of the row with most.
"""

import json
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

import numpy
import yaml
from datasets import Dataset

from hfstack.bounded_yaml import compose, construct
from hfstack.data.sources import as_sources, load_mixture
from hfstack.errors import ConfigError, DataError
from hfstack.evidence.scored import Scored, Scorer, named
from hfstack.intervals import share_interval
from hfstack.logs import get_logger
from hfstack.models.context import context_length
from hfstack.tasks.causal_lm.prompt_format import PromptKind, encode_prompt
from hfstack.tasks.classification.calibration import cross_fitted_temperatures
from hfstack.tasks.classification.metrics import SINGLE, measure
from hfstack.tasks.sft.answers import answer_greedily, answer_losses
from hfstack.tokens.seams import answer_opening, encode_behind
from hfstack.tokens.special_tokens import IGNORED_LABEL

logger = get_logger(__name__)

Normalise = Literal["none", "tokens", "bytes"]

_COLUMN = re.compile(r"\{(\w+)\}")
_NO_CHOICE = -1e9  # log-probability of a choice that a row does not have


@dataclass(frozen=True)
class FewShotTask:
    """What is asked of a model, as a task file says it."""

    name: str
    datasets: tuple[str, ...]
    prompt: str
    """Template of a question; {column} stands for what a row has there."""
    answer: str
    """Column of what is right: the text, or the place among the choices from 0."""
    choices: tuple[str, ...] | str = ()
    """The choices of all rows, or the column that holds each row's list; none: a text is
    generated."""
    examples: int = 0
    """Worked examples in front of each question."""
    examples_from: str | None = None
    """Rows that the examples are drawn from; by default the first rows, which are not asked."""
    normalise: Normalise = "none"
    """What a choice's log-probability is divided by."""
    delimiter: str = " "
    """Between a question and its answer, where it is no conversation."""
    separator: str = "\n\n"
    """Between examples."""
    max_new_tokens: int = 0
    """Of a generated answer."""
    stop: tuple[str, ...] = ("\n",)
    """What ends a generated answer."""
    seed: int = 0
    folder: Path = field(default_factory=Path)

    @property
    def generates(self) -> bool:
        """Return whether an answer is generated rather than chosen."""
        return not self.choices


def read_task(path: str | Path) -> FewShotTask:
    """Read a task file.

    Raises:
        ConfigError: it is not there, is no YAML or JSON, has an unknown entry, or says neither what
            to choose from nor how much to generate.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise ConfigError(f"--task_file {path}: no such file")
    if file.name.endswith((".jsonl", ".jsonl.gz")):
        return _task_of_rows(file)

    try:
        node = compose(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"--task_file {path}: {' '.join(str(error).split())[:200]}") from None
    values = construct(node, str(path)) if node is not None else None
    if not isinstance(values, dict):
        raise ConfigError(f"--task_file {path}: not a mapping of settings")
    return _checked(values, file)


def load_task_scorer(
    model: Any, tokenizer: Any, task: FewShotTask, *, kind: PromptKind = "document"
) -> Scorer:
    """Return what asks a model the rows of a task.

    Args:
        model: a causal language model, in evaluation mode.
        kind: of the model's PromptFormat: as a conversation, or as plain text.
    """

    def score(rows: Dataset) -> Scored:
        examples, asked, places = _choose_examples(rows, task)
        prompts = _encode_with_examples(asked, examples, tokenizer, task, kind=kind)
        if task.generates:
            return _score_texts(model, tokenizer, task, asked, prompts, places=places, kind=kind)
        return _score_choices(model, tokenizer, task, asked, prompts, places=places, kind=kind)

    return Scorer(_columns(task), score, numbers=frozenset(_columns(task)))


def load_task_rows(task: FewShotTask, max_rows: int | None = None) -> Dataset:
    """Load the rows of a task, at most so many of those that are asked."""
    count = None if max_rows is None else max_rows + (0 if task.examples_from else task.examples)
    columns = _columns(task)
    return load_mixture(
        as_sources(list(task.datasets)), columns=columns, numbers=columns, max_rows=count
    )


def _task_of_rows(file: Path) -> FewShotTask:
    """Return the task of a file of rows that are whole questions."""
    with file.open(encoding="utf-8") as lines:
        try:
            first = json.loads(lines.readline() or "{}")
        except (ValueError, UnicodeDecodeError):
            first = {}
    if not isinstance(first, dict) or not {"prompt", "answer"} <= set(first):
        found = ", ".join(first) if isinstance(first, dict) and first else "no row"
        raise ConfigError(
            f"--task_file {file}: rows need `prompt`, `answer` and perhaps `choices`, found {found}"
        )
    values = {"datasets": file.name, "prompt": "{prompt}", "answer": "answer"}
    extra = {"choices": "choices"} if "choices" in first else {"max_new_tokens": 64}
    return _checked(values | extra, file)


def _checked(values: dict[str, Any], file: Path) -> FewShotTask:
    """Return the task of some settings, or say what is wrong with them."""
    known = {one.name for one in fields(FewShotTask)} - {"folder"}
    if unknown := [name for name in values if name not in known]:
        raise ConfigError(
            f"--task_file {file}: unknown entry {unknown[0]!r}; known: {', '.join(sorted(known))}"
        )
    if absent := [name for name in ("datasets", "prompt", "answer") if not values.get(name)]:
        raise ConfigError(f"--task_file {file}: no entry {absent[0]!r}")
    if not values.get("choices") and not values.get("max_new_tokens"):
        raise ConfigError(
            f"--task_file {file}: names no choices (a list, or a column of lists), and no "
            "max_new_tokens of an answer to generate"
        )
    if values.get("normalise", "none") not in get_args(Normalise):
        raise ConfigError(
            f"--task_file {file}: normalise is {values['normalise']!r}, not one of "
            f"{', '.join(get_args(Normalise))}"
        )

    paths = values["datasets"]
    paths = [paths] if isinstance(paths, str) else paths
    given = dict(values) | {"datasets": tuple(_beside(file, path) for path in paths)}
    if values.get("examples_from"):
        given["examples_from"] = _beside(file, values["examples_from"])
    for name in ("choices", "stop"):
        if isinstance(given.get(name), list):
            given[name] = tuple(str(value) for value in given[name])
    if isinstance(given.get("stop"), str):
        given["stop"] = (given["stop"],)

    for name, least in {"examples": 0, "max_new_tokens": 0, "seed": 0}.items():
        value = given.get(name, least)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ConfigError(f"--task_file {file}: {name} must be {least} or more, got {value!r}")
    task: dict[str, Any] = {"name": file.name.partition(".")[0], "folder": file.parent} | given
    return FewShotTask(**task)


def _beside(file: Path, path: str) -> str:
    """Return a path that a task file names, which begins at its folder."""
    beside = file.parent / Path(path).expanduser()
    return str(beside) if beside.exists() else path


def _columns(task: FewShotTask) -> set[str]:
    """Return the columns that a task reads."""
    own = {task.choices} if isinstance(task.choices, str) else set()
    return {*_COLUMN.findall(task.prompt), task.answer} | own


def _choose_examples(
    rows: Dataset, task: FewShotTask
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[int]]:
    """Return the examples, the rows to ask, and the places of these in the file."""
    listed = rows.to_list()
    if absent := sorted(_columns(task) - set(rows.column_names)):
        raise DataError(
            f"task {task.name}: no column {absent[0]!r}, found {', '.join(rows.column_names)}"
        )
    if not task.examples:
        return [], listed, list(range(len(listed)))

    if task.examples_from is None:
        if len(listed) <= task.examples:
            raise DataError(
                f"task {task.name}: {len(listed)} rows are too few for {task.examples} examples "
                "and a question"
            )
        places = list(range(task.examples, len(listed)))
        return listed[: task.examples], listed[task.examples :], places

    columns = _columns(task)
    pool = load_mixture(
        as_sources([task.examples_from]), columns=columns, numbers=columns
    ).to_list()
    if len(pool) < task.examples:
        raise DataError(
            f"task {task.name}: {task.examples_from} has {len(pool)} rows, too few for "
            f"{task.examples} examples"
        )
    chosen = random.Random(task.seed).sample(pool, task.examples)
    return chosen, listed, list(range(len(listed)))


def _encode_with_examples(
    rows: Sequence[dict[str, Any]],
    examples: Sequence[dict[str, Any]],
    tokenizer: Any,
    task: FewShotTask,
    *,
    kind: PromptKind,
) -> list[list[int]]:
    """Return the ids of each question behind the examples, up to its answer."""
    shown = [(_write_question(row, task), _right_text(row, task)) for row in examples]
    if kind == "chat":
        turns = [
            {"role": role, "content": text}
            for pair in shown
            for role, text in zip(("user", "assistant"), pair, strict=True)
        ]
        asked = [[*turns, {"role": "user", "content": _write_question(row, task)}] for row in rows]
        return [encode_prompt(tokenizer, prompt, kind) for prompt in asked]

    before = "".join(
        f"{question}{task.delimiter}{answer}{task.separator}" for question, answer in shown
    )
    return [encode_prompt(tokenizer, before + _write_question(row, task), kind) for row in rows]


def _write_question(row: dict[str, Any], task: FewShotTask) -> str:
    """Return the question of a row."""
    return _COLUMN.sub(lambda match: str(row[match[1]]), task.prompt)


def _choices(row: dict[str, Any], task: FewShotTask) -> list[str]:
    """Return the choices of a row."""
    found = row[task.choices] if isinstance(task.choices, str) else list(task.choices)
    if not isinstance(found, list) or len(found) < 2:
        raise DataError(
            f"task {task.name}: {task.choices} is {str(found)[:60]!r}, not a list of two choices "
            "or more"
        )
    return [str(choice) for choice in found]


def _right_place(row: dict[str, Any], task: FewShotTask) -> int:
    """Return the place of the right choice of a row."""
    choices, answer = _choices(row, task), row[task.answer]
    if isinstance(answer, int) and not isinstance(answer, bool) and str(answer) not in choices:
        if 0 <= answer < len(choices):
            return answer
    elif str(answer) in choices:
        return choices.index(str(answer))
    raise DataError(
        f"task {task.name}: {task.answer} is {answer!r}, which is none of the choices "
        f"{', '.join(choices)[:80]}, nor a place among them from 0"
    )


def _right_text(row: dict[str, Any], task: FewShotTask) -> str:
    """Return the right answer of a row; the first of several."""
    if not task.generates:
        return _choices(row, task)[_right_place(row, task)]
    return _references(row, task)[0]


def _references(row: dict[str, Any], task: FewShotTask) -> list[str]:
    answer = row[task.answer]
    found = answer if isinstance(answer, list) else [answer]
    if not found or any(value is None or not str(value).strip() for value in found):
        raise DataError(f"task {task.name}: {task.answer} is {answer!r}, not an answer")
    return [str(value) for value in found]


def score_behind(
    model: Any, tokenizer: Any, pairs: Sequence[tuple[list[int], list[int]]]
) -> list[tuple[float, int]]:
    """Return the log-probability of each answer behind its prompt, and its tokens.

    Args:
        pairs: ids of prompts and answers.

    Raises:
        DataError: one is longer than the model reads.
    """
    context = context_length(model.config)
    longest = max(len(prompt) + len(answer) for prompt, answer in pairs)
    if context is not None and longest > context:
        raise DataError(
            f"a question with its examples and choice has {longest} tokens, more than the model's "
            f"{context}: ask with fewer examples"
        )
    rows = [
        {"input_ids": [*prompt, *answer], "labels": [IGNORED_LABEL] * len(prompt) + list(answer)}
        for prompt, answer in pairs
    ]
    return [(-loss, tokens) for loss, tokens in answer_losses(model, tokenizer, rows)]


def _score_choices(
    model: Any,
    tokenizer: Any,
    task: FewShotTask,
    rows: list[dict[str, Any]],
    prompts: list[list[int]],
    *,
    places: list[int],
    kind: PromptKind,
) -> Scored:
    """Score every choice of every row."""
    before = answer_opening(tokenizer) if kind == "chat" else task.delimiter
    choices = [_choices(row, task) for row in rows]
    pairs = [
        (prompt, encode_behind(tokenizer, prompt, before + choice))
        for prompt, own in zip(prompts, choices, strict=True)
        for choice in own
    ]
    found = iter(score_behind(model, tokenizer, pairs))

    width = max(map(len, choices))
    logits = numpy.full((len(rows), width), _NO_CHOICE)  # (N, C)
    for index, own in enumerate(choices):
        for place, choice in enumerate(own):
            total, tokens = next(found)
            sizes = {"none": 1, "tokens": tokens, "bytes": len(choice.encode())}
            logits[index, place] = total / max(sizes[task.normalise], 1)

    targets = numpy.array([_right_place(row, task) for row in rows])
    said = logits.argmax(axis=1)
    answers = [
        {
            "question": _write_question(row, task),
            "choices": own,
            "true": own[target],
            "chosen": own[choice],
            "log_probs": [round(float(value), 6) for value in scores[: len(own)]],
        }
        for row, own, target, choice, scores in zip(
            rows, choices, targets, said, logits, strict=True
        )
    ]
    chance = numpy.array([1 / len(own) for own in choices])
    return _choices_as_scored(logits, targets, chance, answers, places=places, task=task)


def _choices_as_scored(
    logits: numpy.ndarray[Any, Any],
    targets: numpy.ndarray[Any, Any],
    chance: numpy.ndarray[Any, Any],
    answers: list[dict[str, Any]],
    *,
    places: list[int],
    task: FewShotTask,
) -> Scored:
    right = logits.argmax(axis=1) == targets

    def measure_rows(indices: Sequence[int]) -> dict[str, float]:
        part = numpy.asarray(indices)
        temperature: Any = 1.0
        try:
            temperature = cross_fitted_temperatures(
                logits[part], targets[part], SINGLE, seed=task.seed
            )
        except DataError as error:
            logger.info("no temperature is fitted to %s: %s", task.name, error)
        found = measure(logits[part], targets[part], SINGLE, temperature=temperature)
        names = ("accuracy", "baseline_accuracy", "calibration_error", "log_loss")
        kept = {name: value for name, value in found.items() if name.startswith(names)}
        return kept | {"chance_accuracy": float(chance[part].mean()), "rows": len(part)}

    return Scored(
        metrics=named(measure_rows(range(len(targets)))),
        main="accuracy",
        places=places,
        answers=answers,
        measure=measure_rows,
        resample=lambda index: {"accuracy": float(right[index].mean())},
        right=right.tolist(),
    )


def _score_texts(
    model: Any,
    tokenizer: Any,
    task: FewShotTask,
    rows: list[dict[str, Any]],
    prompts: list[list[int]],
    *,
    places: list[int],
    kind: PromptKind,
) -> Scored:
    """Let the model answer every row, and compare with what is right."""
    opening = answer_opening(tokenizer) if kind == "chat" else ""
    context = context_length(model.config)
    longest = max(map(len, prompts)) + task.max_new_tokens
    if context is not None and longest > context:
        raise DataError(
            f"task {task.name}: a question and its answer have {longest} tokens, more than the "
            f"model's {context}: ask with fewer examples, or lower max_new_tokens"
        )
    answers = answer_greedily(
        model, tokenizer, prompts, max_new_tokens=task.max_new_tokens, opening=opening
    )
    texts = [_until(one.completion, task.stop) for one in answers]
    references = [_references(row, task) for row in rows]
    right = numpy.array([text in own for text, own in zip(texts, references, strict=True)])

    # evaluate takes half a second to import, and choices do without it
    from hfstack.tasks.shared.text_overlap import text_overlap

    def measure_rows(indices: Sequence[int]) -> dict[str, float]:
        hits = [float(right[i]) for i in indices]
        low, high = share_interval(hits)
        found = {"exact_match": sum(hits) / len(hits), "exact_match_low": low}
        found |= {"exact_match_high": high, "rows": len(hits)}
        return found | text_overlap([texts[i] for i in indices], [references[i] for i in indices])

    return Scored(
        metrics=named(measure_rows(range(len(texts)))),
        main="exact_match",
        places=places,
        answers=[
            {"question": _write_question(row, task), "true": own, "answer": text}
            for row, own, text in zip(rows, references, texts, strict=True)
        ],
        measure=measure_rows,
        resample=lambda index: {"exact_match": float(right[index].mean())},
        right=right.tolist(),
    )


def _until(text: str, stop: Sequence[str]) -> str:
    """Return an answer up to what ends it, without white space around."""
    text = text.strip()
    for end in stop:
        text = text.partition(end)[0] if end else text
    return text.strip()
