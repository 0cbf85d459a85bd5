"""Read ratings, rankings and thumbs: answers with their scores, by prompt."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

from hfstack.data.places import RowProblem
from hfstack.logs import get_logger
from hfstack.row_counts import RowCounts
from hfstack.tasks.preferences.rows import (
    PreferenceArgs,
    PreferenceCounts,
    Text,
    find_columns_beside,
    problem_of_answer,
    read_row,
    settle_bad_rows,
    turns_of,
)

logger = get_logger(__name__)

_YES_OR_NO = {"true": True, "false": False, "1": True, "0": False}


def scored_by_prompt(
    kind: str,
    rows: Iterable[Any],
    args: PreferenceArgs,
    counts: PreferenceCounts,
    bad: list[dict[str, Any]] | None,
    *,
    row_counts: RowCounts | None = None,
) -> dict[str, list[tuple[Text, float]]]:
    """Return answers with their scores, in the order of the file.

    Keys are JSON text of {prompt}, with `tools` where the rows have any.
    """
    rows = list(rows)
    beside = find_columns_beside(rows, args, kind, row_counts)
    scored: dict[str, list[tuple[Text, float]]] = {}
    problems: list[RowProblem] = []
    for number, given in enumerate(rows, 1):
        counts.rows += 1
        row, unreadable = read_row(given, args, beside)
        if unreadable is not None:
            problems.append(("preference", number, unreadable))
            continue
        prompt = row[args.prompt_column]
        answers, scores = _answers_and_scores(kind, row, args)
        # an empty prompt is one: texts that begin from nothing can be compared too
        problem = problem_of_answer(prompt, args.prompt_column) if prompt != "" else None
        column = args.completions_column if len(answers) != 1 else args.completion_column
        if len(answers) != len(scores):
            problem = f"{len(answers)} {args.completions_column} but {len(scores)} scores"

        for answer, score in zip(answers, scores, strict=False):
            problem = problem or problem_of_answer(answer, column)
            if problem is None and kind == "thumbs" and score not in (0, 1):
                problem = f"{args.label_column} is {score!r}, no thumb: write true or false"
            if problem is None and not isinstance(score, int | float):
                problem = f"a score must be a number (or true, false), got {score!r}"

        if problem is not None:
            problems.append(("preference", number, problem))
            continue

        plain = isinstance(prompt, str) and all(isinstance(answer, str) for answer in answers)
        if args.conversational or not plain:
            prompt = turns_of(prompt, "user")
            answers = [turns_of(answer, "assistant") for answer in answers]

        asked = {"prompt": prompt} | ({"tools": row["tools"]} if "tools" in row else {})
        answers_so_far = scored.setdefault(json.dumps(asked, ensure_ascii=False), [])
        answers_so_far += zip(answers, map(float, scores), strict=True)

    settle_bad_rows(problems, rows, counts, bad)
    return scored


def log_scores_beside(pairs: Sequence[Any]) -> None:
    """Log what columns of scores beside pairs say, which no loss reads.

    Such are `score_chosen` and `score_rejected`, or `margin`, which TRL's reward trainer subtracts.
    """
    columns = list(dict.fromkeys(name for pair in pairs for name in pair))
    if "margin" in columns:
        logger.warning("the column 'margin' is not read: the losses have no margin of a pair")

    for better in columns:
        worse = better.replace("chosen", "rejected")
        if better in ("chosen", worse) or worse not in columns:
            continue
        try:
            scores = [(float(pair[better]), float(pair[worse])) for pair in pairs]
        except (KeyError, TypeError, ValueError):
            continue  # no numbers

        against = sum(chosen < rejected for chosen, rejected in scores)
        equal = sum(chosen == rejected for chosen, rejected in scores)
        if against or equal:
            logger.warning(
                "%s and %s are not read: of %d pairs %d have the higher score on the rejected side,"
                " and %d equal ones",
                better,
                worse,
                len(scores),
                against,
                equal,
            )


def _answers_and_scores(kind: str, row: Any, args: PreferenceArgs) -> tuple[list[Any], list[Any]]:
    if kind == "ratings":
        return [row[args.completion_column]], [row[args.rating_column]]
    if kind == "thumbs":
        label = row[args.label_column]
        # a column of a table holds the words, since what is no number is text there
        label = _YES_OR_NO.get(label.strip().casefold(), label) if isinstance(label, str) else label
        return [row[args.completion_column]], [label]
    answers = list(row[args.completions_column] or [])

    if kind == "rankings":
        ranks = list(row[args.ranks_column] or [])
        return answers, [-rank if isinstance(rank, int | float) else rank for rank in ranks]

    return answers, list(row[args.rating_column] or [])
