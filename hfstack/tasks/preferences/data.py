"""Turn pairs, ratings, rankings and thumbs into preference columns.

These are prompt, chosen and rejected, or prompt, completion and label;
`hfstack.tasks.preferences.rows` says which columns each kind has. Whatever the kind, no prompt is
in both train and eval, and duplicates, ties and contradictions are counted and settled.
"""

import itertools
import json
import random
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean, median
from typing import Any, Literal

from accelerate import PartialState
from datasets import Dataset, Features, Json, Value
from trl import ModelConfig

from hfstack.data.places import RowProblem, rows_by_line
from hfstack.data.reading.jsonl import write_jsonl
from hfstack.data.sources import DataArgs, ReadSource, SourceLog, describe_roles, load_mixture
from hfstack.data.splitting import Splits, drop_overlap, hold_out
from hfstack.errors import ConfigError, DataError
from hfstack.intervals import wins
from hfstack.logs import get_logger
from hfstack.row_counts import RowCounts
from hfstack.runs.rendering import follow_rendering
from hfstack.tasks.preferences.rows import (
    PreferenceArgs,
    PreferenceCounts,
    Text,
    answer_text,
    columns_read,
    find_columns_beside,
    kind_of,
    number_columns,
    parts_early,
    read_pair,
    read_row,
    settle_bad_rows,
    turns_of,
)
from hfstack.tasks.preferences.scored import log_scores_beside, scored_by_prompt

logger = get_logger(__name__)

_KEY = "_prompt_key"


def load_preferences(
    data_args: DataArgs,
    args: PreferenceArgs,
    *,
    form: Literal["pairs", "labels"] = "pairs",
    quarantine_file: Path | None = None,
    counts: dict[str, PreferenceCounts] | None = None,
    log: SourceLog | None = None,
    row_counts: RowCounts | None = None,
) -> Splits:
    """Return {"train": rows, "eval": rows} of pairs, or of labelled completions.

    Columns are prompt, chosen and rejected, or prompt, completion and label. No prompt is in both
    splits: rows are held out by prompt, or train rows whose prompt is in eval_datasets go.

    Args:
        form: "pairs", or "labels" for one answer a row with its thumb.
        quarantine_file: where `on_bad_row="quarantine"` writes the rows that cannot be used.
        counts: filled with what was counted, by split as loaded ("train", "eval").
        log: gets the number of rows of each source.
        row_counts: gets the rows of each split, and what was left out.

    Raises:
        DataError: the columns have other names, or a row cannot be used and `on_bad_row` is "fail".
        ConfigError: no dataset is named, or streaming is asked for.
    """
    if not data_args.datasets:
        raise ConfigError(
            "datasets: name at least one file of preferences, e.g. --datasets pairs.jsonl"
        )

    if data_args.streaming:
        raise ConfigError(
            "--streaming cannot be used with preferences: rows are grouped and split by prompt"
        )

    convert = to_pairs if form == "pairs" else to_labels
    splits: dict[str, Dataset] = {}
    log = {} if log is None else log
    row_counts = RowCounts() if row_counts is None else row_counts
    for name, sources in {"train": data_args.datasets, "eval": data_args.eval_datasets}.items():
        if not sources:
            continue

        rows = load_mixture(
            sources,
            seed=data_args.split_seed,
            on_bad_row=data_args.on_bad_row,
            max_rows=data_args.max_rows,
            purpose="preferences",
            columns=columns_read(args),
            numbers=number_columns(args),
            quarantine_file=quarantine_file,
            log=log,
        )

        # A row that reads well may still be no preference, and is treated as any other bad row.
        counted = PreferenceCounts()
        bad: list[dict[str, Any]] = []
        collect = None if data_args.on_bad_row == "fail" else bad
        with rows_by_line({"preference": rows}, [*columns_read(args)], (), sources):
            converted = convert(rows, args, counts=counted, bad=collect, row_counts=row_counts)
        bad_file = quarantine_file if data_args.on_bad_row == "quarantine" else None
        _report(name, counted, bad, bad_file)

        if counts is not None:
            counts[name] = counted
        splits[name] = _as_dataset(converted)
        _count_rows(row_counts, name, [log[one.key] for one in sources], counted, form)

    if "eval" in splits:
        train, evaluation = (_with_key(splits[name]) for name in ("train", "eval"))
        splits["train"] = drop_overlap(train, evaluation, text_column=_KEY).remove_columns(_KEY)
        shared = len(train) - len(splits["train"])
        row_counts.leave_out("train", "with a prompt of eval_datasets", shared)
    else:
        splits = split_pairs(splits["train"], data_args)
        row_counts.hold_out(len(splits.get("eval", ())))

    return Splits(splits, describe_roles(data_args, log))


def follow_model(args: PreferenceArgs, model_args: ModelConfig) -> PreferenceArgs:
    """Return the settings with plain rows as turns where the model learned on turns.

    Raises:
        ConfigError: `--conversational` contradicts the model's run.json.
    """
    chat = follow_rendering(
        model_args.model_name_or_path,
        args.conversational,
        flag="conversational",
        usual=False,
    )
    return replace(args, conversational=chat)


def split_by_prompt(rows: Dataset, fraction: float, seed: int) -> tuple[Dataset, Dataset]:
    """Return (train, eval) with about `fraction` in eval, split by prompt.

    Prompts that differ in white space or letter case count as the same. The choice depends on the
    prompts and `seed`, not on the order of the rows. Raises DataError when a side would be empty.
    """
    train, evaluation = hold_out(_with_key(rows), fraction=fraction, seed=seed, text_column=_KEY)
    return train.remove_columns(_KEY), evaluation.remove_columns(_KEY)


def split_pairs(pairs: Dataset, data_args: DataArgs) -> dict[str, Dataset]:
    """Return {"train": pairs, "eval": pairs} split by prompt, or "train" alone."""
    share = data_args.held_out_share(len(pairs))
    if not share:
        return {"train": pairs}
    train, held_out = split_by_prompt(pairs, share, data_args.split_seed)
    return {"train": train, "eval": held_out}


def to_pairs(
    rows: Iterable[Any],
    args: PreferenceArgs | None = None,
    *,
    counts: PreferenceCounts | None = None,
    bad: list[dict[str, Any]] | None = None,
    row_counts: RowCounts | None = None,
) -> list[dict[str, Any]]:
    """Return rows {"prompt", "chosen", "rejected"} of any kind of preferences.

    All are text, or all conversations. A pair that occurs twice is kept once; of a pair in both
    orders the more frequent one, and neither when they are equally many. Ties make no pair.

    Args:
        counts: filled with what was counted.
        bad: receives {"row", "fault"} of rows that cannot be used; without it they are an error.
        row_counts: gets the names of the columns.

    Raises:
        DataError: the columns have other names; a row cannot be used; nothing is left.
    """
    args, counts = args or PreferenceArgs(), counts or PreferenceCounts()
    kind, rows = kind_of(rows, args)
    pairs: Counter[str] = Counter()

    if kind == "pairs":
        rows = list(rows)
        beside = find_columns_beside(rows, args, kind, row_counts)
        log_scores_beside(rows)
        problems: list[RowProblem] = []
        for number, given in enumerate(rows, 1):
            counts.rows += 1
            row, problem = read_row(given, args, beside)
            pair, problem = read_pair(row, args) if problem is None else ({}, problem)
            if problem is not None:
                problems.append(("preference", number, problem))
                continue

            # as text, so that equal pairs are one key whatever their form
            counts.parted_early += parts_early(pair)
            pairs[_pack(pair)] += 1
        settle_bad_rows(problems, rows, counts, bad)
    else:
        scored = scored_by_prompt(kind, rows, args, counts, bad, row_counts=row_counts)
        for pair in _pairs_of_scored(scored, args, counts):
            pairs[_pack(pair)] += 1

    kept = _majority(pairs, counts)
    counts.prompts = len({_prompt_key(row["prompt"]) for row in kept})
    return _checked_rows(kept, counts, "pairs")


def to_labels(
    rows: Iterable[Any],
    args: PreferenceArgs | None = None,
    *,
    counts: PreferenceCounts | None = None,
    bad: list[dict[str, Any]] | None = None,
    row_counts: RowCounts | None = None,
) -> list[dict[str, Any]]:
    """Return rows {"prompt", "completion", "label"} of any kind of preferences.

    A label of true is good. A pair gives one row of each label. An answer with both labels keeps
    the more frequent one. Ratings need `rating_threshold`. Arguments and errors are those of
    `to_pairs`.
    """
    args, counts = args or PreferenceArgs(), counts or PreferenceCounts()
    kind, rows = kind_of(rows, args, first_choice="thumbs")
    votes: dict[str, list[int]] = {}

    if kind == "pairs":
        unpaired = [
            (_question_of(row), row[side], float(side == "chosen"))
            for row in to_pairs(rows, args, counts=counts, bad=bad, row_counts=row_counts)
            for side in ("chosen", "rejected")
        ]
    else:
        if kind != "thumbs" and args.rating_threshold is None:
            raise ConfigError(
                f"{kind} become good and bad answers only by a limit: set --rating_threshold"
            )

        limit = 1.0 if kind == "thumbs" else float(args.rating_threshold or 0)
        scored = scored_by_prompt(kind, rows, args, counts, bad, row_counts=row_counts)
        unpaired = [
            (json.loads(asked), answer, float(score >= limit))
            for asked, answers in scored.items()
            for answer, score in answers
        ]

    for asked, completion, good in unpaired:
        answer = _pack({**asked, "completion": completion})
        votes.setdefault(answer, [0, 0])[int(good)] += 1

    # An answer with as many thumbs up as down says nothing.
    kept = []
    for packed, (down, up) in votes.items():
        if down and up:
            counts.contradictions += 1
        else:
            counts.duplicates += down + up - 1
        if down != up:
            kept.append(json.loads(packed) | {"label": up > down})

    counts.prompts = len({_prompt_key(row["prompt"]) for row in kept})
    return _checked_rows(kept, counts, "labels")


def add_label_noise(pairs: Dataset, share: float, *, seed: int) -> Dataset:
    """Swap chosen and rejected in `share` of the pairs; column `flipped` says which.

    Exactly round(share * pairs) are swapped, chosen by `seed`. Columns `chosen_score` and
    `rejected_score` stay with their answers.

    Raises ConfigError when the share is not in [0, 0.5].
    """
    if not 0 <= share <= 0.5:
        raise ConfigError(f"label_noise must be in [0, 0.5], got {share}")
    flipped = set(random.Random(seed).sample(range(len(pairs)), round(share * len(pairs))))

    def noisy(row: dict[str, Any], index: int) -> dict[str, Any]:
        swap = {"chosen": "rejected", "rejected": "chosen"}
        swap |= {
            f"{old}_score": f"{new}_score" for old, new in swap.items() if f"{old}_score" in row
        }
        if index not in flipped:
            swap = {}
        return {name: row[swap.get(name, name)] for name in row} | {"flipped": index in flipped}

    return Dataset.from_list([noisy(row, index) for index, row in enumerate(pairs.to_list())])


def judged_pairs(
    scores: dict[tuple[str, str], float],
    args: PreferenceArgs,
    *,
    counts: PreferenceCounts | None = None,
) -> list[dict[str, Any]]:
    """Return the pairs of scored answers, by (prompt, answer), with both scores.

    Of `args` only `max_pairs_per_prompt` and `conversational` matter.
    """
    rows = [
        {"prompt": prompt, "completion": answer, "rating": score}
        for (prompt, answer), score in scores.items()
    ]

    how = PreferenceArgs(
        max_pairs_per_prompt=args.max_pairs_per_prompt, conversational=args.conversational
    )

    pairs = to_pairs(rows, how, counts=counts)
    for pair in pairs:
        for side in ("chosen", "rejected"):
            pair[f"{side}_score"] = scores[answer_text(pair["prompt"]), answer_text(pair[side])]

    return pairs


def length_statistics(rows: Iterable[Any]) -> dict[str, float]:
    """Return the lengths of both sides of pairs, and how often the chosen is longer.

    Keys: chosen_characters_mean, chosen_characters_median, the same of rejected,
    chosen_longer_share (0.5 for equals).
    """
    pairs = [(len(answer_text(row["chosen"])), len(answer_text(row["rejected"]))) for row in rows]
    chosen, rejected = zip(*pairs, strict=True)
    longer = wins([better - worse for better, worse in pairs])

    return {
        "chosen_characters_mean": fmean(chosen),
        "chosen_characters_median": median(chosen),
        "rejected_characters_mean": fmean(rejected),
        "rejected_characters_median": median(rejected),
        "chosen_longer_share": fmean(longer),
    }


def length_table(statistics: dict[str, dict[str, float]]) -> tuple[list[str], list[list[Any]]]:
    """Return a table of `length_statistics`, with a column for each split."""
    first = next(iter(statistics.values()))
    return ["", *statistics], [[key, *(each[key] for each in statistics.values())] for key in first]


def _pairs_of_scored(
    scored: dict[str, list[tuple[Text, float]]], args: PreferenceArgs, counts: PreferenceCounts
) -> Iterator[dict[str, Any]]:
    """Yield every two answers of different scores, the widest gaps if limited."""
    for asked, answers in scored.items():
        found = []
        for (first, first_score), (second, second_score) in itertools.combinations(answers, 2):
            if answer_text(first) == answer_text(second):
                counts.duplicates += 1
            elif first_score == second_score:
                counts.ties += 1
            else:
                chosen, rejected = (
                    (first, second) if first_score > second_score else (second, first)
                )
                found.append((abs(first_score - second_score), chosen, rejected))

        if args.max_pairs_per_prompt is not None:
            found = sorted(found, key=lambda pair: -pair[0])[: args.max_pairs_per_prompt]
        yield from ({**json.loads(asked), "chosen": c, "rejected": r} for _, c, r in found)


def _majority(pairs: Counter[str], counts: PreferenceCounts) -> list[dict[str, Any]]:
    """Return each pair once, in the order that occurs more often, or not if tied."""
    kept = []
    for packed, times in pairs.items():
        row = json.loads(packed)
        counts.duplicates += times - 1

        opposite = pairs.get(
            _pack(row | {"chosen": row["rejected"], "rejected": row["chosen"]}),
            0,
        )
        if times > opposite:
            counts.contradictions += bool(opposite)
            kept.append(row)
        elif times == opposite:
            counts.contradictions += 1 if _pack(row["chosen"]) < _pack(row["rejected"]) else 0

    return kept


def _checked_rows(
    kept: list[dict[str, Any]], counts: PreferenceCounts, form: str
) -> list[dict[str, Any]]:
    counts.kept = len(kept)
    if not kept:
        raise DataError(
            f"no {form} in {counts.rows} rows: {counts.ties} ties, {counts.contradictions} "
            f"contradictions, {counts.bad_rows} bad rows; each prompt needs two answers of "
            "different worth"
        )

    if len({type(row["prompt"]) for row in kept}) > 1:
        raise DataError(
            "some prompts are text and others conversations: set --conversational to make all of "
            "them chats"
        )

    return kept


def _count_rows(
    row_counts: RowCounts,
    split: str,
    read: list[ReadSource],
    counts: PreferenceCounts,
    form: Literal["pairs", "labels"],
) -> None:
    """Count what became of the rows of a split, and what was left out on the way."""
    row_counts.read_sources(split, read)
    reasons = ("bad_rows", "ties", "duplicates", "contradictions")
    for reason in reasons:
        row_counts.leave_out(split, reason.replace("_", " "), getattr(counts, reason))
    row_counts.turn_into(split, "pairs" if form == "pairs" else "answers", counts.kept)


def _report(
    name: str, counts: PreferenceCounts, bad: list[dict[str, Any]], quarantine_file: Path | None
) -> None:
    logger.info(
        "%s preferences: %s",
        name,
        ", ".join(f"{value} {key}" for key, value in asdict(counts).items()),
    )

    if counts.parted_early:
        logger.info(
            "%s: %d pairs diverge before their last turn: of what follows the assistant's turns "
            "are trained, and a reward model reads all of it",
            name,
            counts.parted_early,
        )

    if bad:
        logger.warning(
            "%s: left out %d rows, the first because %s", name, len(bad), bad[0]["fault"]
        )

    # every process reads the rows, and one writes
    if bad and quarantine_file is not None and PartialState().is_main_process:
        with write_jsonl(
            quarantine_file.with_name(f"{quarantine_file.stem}-{name}-preferences.jsonl")
        ) as add:
            for row in bad:
                add(row)


def _as_dataset(rows: list[dict[str, Any]]) -> Dataset:
    """Return rows as a Dataset, turns as JSON.

    Arrow's own types would give every turn the keys of all turns, and templates read them.
    """
    if isinstance(rows[0]["prompt"], str):
        return Dataset.from_list(rows)

    if any("tools" in row for row in rows):
        rows = [row | {"tools": row.get("tools")} for row in rows]
    others = {"label": Value("bool"), "tools": Value("string")}
    features = {column: others.get(column) or Json() for column in rows[0]}
    return Dataset.from_list(rows, features=Features(features))


def _question_of(row: dict[str, Any]) -> dict[str, Any]:
    """Return the prompt of a pair, with its tools where it has any."""
    return {name: row[name] for name in ("prompt", "tools") if name in row}


def _with_key(rows: Dataset) -> Dataset:
    return rows.add_column(_KEY, [_prompt_key(prompt) for prompt in rows["prompt"]])  # pyright: ignore[reportCallIssue]


def _prompt_key(prompt: Text) -> str:
    """Return what makes two prompts equal: their turns without blanks and letter case."""
    turns = turns_of(prompt, "user")
    return json.dumps(
        [[turn.get("role"), " ".join(answer_text([turn]).split()).casefold()] for turn in turns]
    )


def _pack(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)
