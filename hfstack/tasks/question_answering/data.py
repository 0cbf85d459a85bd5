"""Encode questions on a text, in windows, whose answers are spans of it.

A text that is longer than the model reads is cut into windows that overlap by `stride` tokens. Each
window is the question and a part of the text; what lies outside of it has its answer at token 0, as
a question without answer has (Devlin et al. 2018, section 4.3).

Legend: N windows, T tokens of a window, B windows of a batch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from hfstack.data.places import REFUSED, BadRows, RowProblem, refuse_rows, rows_by_line
from hfstack.data.sources import Source
from hfstack.errors import ConfigError, DataError
from hfstack.logs import get_logger
from hfstack.progress import follow
from hfstack.tokens.text_rows import pad_rows, settings_kept

logger = get_logger(__name__)

BadAnswers = Literal["fail", "skip", "repair", "mend"]
_LONGEST_QUESTION = 64  # tokens, as in the original SQuAD scripts


@dataclass
class WindowArgs:
    """How long texts are read, and how long an answer may be."""

    max_length: int | None = None
    """Tokens of a window: question, part of the text, special tokens. By default 384, or what the
    model reads.
    """
    stride: int = 128
    """Tokens by which neighbouring windows of a long text overlap."""
    max_answer_tokens: int = 30
    """Longest answer in tokens."""
    n_best: int = 5
    """Candidates written for each question."""

    def __post_init__(self) -> None:
        for name in ("max_answer_tokens", "n_best"):
            if getattr(self, name) < 1:
                raise ConfigError(f"--{name} must be at least 1, got {getattr(self, name)}")
        if self.stride < 0:
            raise ConfigError(f"--stride must be 0 or more, got {self.stride}")


@dataclass(frozen=True)
class Question:
    """One question on one text."""

    id: str
    question: str
    context: str
    # text and the character of the context at which it begins; none: not answerable
    answers: list[tuple[str, int]]


@dataclass(frozen=True)
class QuestionWindow:
    """A question with a part of its text."""

    question: int
    input_ids: list[int]  # (T,)
    segments: list[int] | None  # (T,), where the model has them
    offsets: list[tuple[int, int] | None]  # (T,): characters of the context, None outside of it
    start: int  # token at which the answer begins; 0 when it is not in this window
    end: int  # its last token


def read_questions(
    rows: Dataset,
    *,
    columns: tuple[str, str, str],
    bad_answers: BadAnswers = "fail",
    name: str,
    sources: Sequence[Source] = (),
    bad_rows: BadRows = REFUSED,
) -> list[Question]:
    """Return the questions of a split, their answers checked against their texts.

    Args:
        columns: of the question, the context and the answers: `{"text": [...], "answer_start":
            [...]}` as in SQuAD, a list of such pairs, or nothing where there is no answer.
        bad_answers: an answer that is not where its row says: fail, skip the row, or repair it (the
            nearest place in the context where it is; without one the row is skipped).
        sources: where the rows come from, so that a bad one can be named by file and line.
        bad_rows: what becomes of other rows that cannot be used; its counts get what is left out.

    Raises:
        ConfigError: `bad_answers` is no such way.
        DataError: a column is missing, a text is empty, an answer is not in its context, or no row
            is left.
    """
    if bad_answers not in get_args(BadAnswers):
        raise ConfigError(
            f"--bad_answers is {bad_answers!r}: choose one of {', '.join(get_args(BadAnswers))}"
        )

    for column in columns:
        if column not in rows.column_names:
            raise DataError(
                f"{name}: no column {column!r}, found {', '.join(rows.column_names)}; set "
                "--question_column, --context_column or --answers_column"
            )

    questions: list[Question] = []
    wrong: list[RowProblem] = []
    misplaced: list[RowProblem] = []
    repaired = 0

    for number, row in enumerate(cast(Any, rows), 1):
        try:
            asked, context, pairs = _read_question(row, columns)
        except DataError as error:
            wrong.append((name, number, str(error)))
            continue

        # "mend" is the name of "repair" before 0.2
        answers, moved, problem = _checked_answers(
            context, pairs, repair=bad_answers in ("repair", "mend")
        )
        repaired += moved

        if problem is None:
            identifier = str(row.get("id", f"{name}-{number}"))
            questions.append(Question(identifier, asked, context, answers))
        else:
            misplaced.append((name, number, problem))

    with rows_by_line({name: cast(Any, rows)}, columns, (), sources):
        bad_rows.settle(name, rows, wrong)
        if bad_answers == "fail":
            refuse_rows(misplaced, "fix such rows, or --bad_answers skip or repair")

    if repaired or misplaced:
        fact = "answers were not where their rows said and are repaired"
        left_out = f"{len(misplaced)} of {len(rows)} rows left out"
        logger.warning("%s: %d %s, %s", name, repaired, fact, left_out)

    if not questions:
        raise DataError(f"{name}: no question is left of {len(rows)}")
    if (row_counts := bad_rows.row_counts) is not None:
        row_counts.leave_out(name, "whose answer is not in its context", len(misplaced))
        row_counts.name_columns(rows.column_names, [*columns, "id"])
    return questions


def _read_question(
    row: Mapping[str, Any], columns: tuple[str, str, str]
) -> tuple[str, str, list[tuple[str, int | None]]]:
    """Return a row's question, context and answers; raise DataError for a bad one."""
    for column in columns[:2]:
        if not isinstance(row[column], str) or not row[column].strip():
            raise DataError(f"the {column} is empty, or no text")

    return row[columns[0]], row[columns[1]], _pairs(row[columns[2]])


def _checked_answers(
    context: str, pairs: Sequence[tuple[str, int | None]], *, repair: bool
) -> tuple[list[tuple[str, int]], int, str | None]:
    """Return a row's answers, how many had to be moved, and what is wrong, or None."""
    answers: list[tuple[str, int]] = []
    moved = 0
    for text, begin in pairs:
        if text and begin is not None and begin >= 0 and context[begin : begin + len(text)] == text:
            answers.append((text, begin))
            continue

        # Places shift when a text is cleaned, or when they were counted in bytes.
        nearest = _nearest(context, text, begin) if repair and text else None
        if nearest is None:
            problem = f"the answer {text[:60]!r} is not in its context at character {begin}"
            if begin is not None:
                problem += f" (there: {context[max(begin, 0) :][: max(len(text), 1)]!r})"
            return [], 0, problem

        answers.append((text, nearest))
        moved += 1

    return answers, moved, None


def _pairs(answers: Any) -> list[tuple[str, int | None]]:
    if not answers:
        return []

    texts: Any = None
    starts: Any = None
    if isinstance(answers, Mapping):
        texts, starts = answers.get("text") or [], answers.get("answer_start") or []
        texts = [texts] if isinstance(texts, str) else texts
        starts = [starts] if isinstance(starts, int) else starts
    elif isinstance(answers, list) and all(isinstance(one, Mapping) for one in answers):
        texts = [one.get("text") for one in answers]
        starts = [one.get("answer_start") for one in answers]

    is_whole = isinstance(texts, list) and isinstance(starts, list)
    if is_whole and all(isinstance(text, str) for text in texts):
        starts = [*starts, *[None] * len(texts)][: len(texts)]
        if all(start is None or type(start) is int for start in starts):
            return list(zip(texts, starts, strict=True))

    raise DataError(
        f"answers are {str(answers)[:60]!r}: write them as {{'text': [...], 'answer_start': [...]}}"
    )


def _nearest(context: str, text: str, begin: int | None) -> int | None:
    places = []
    place = context.find(text)
    while place >= 0:
        places.append(place)
        place = context.find(text, place + 1)
    return min(places, key=lambda found: abs(found - (begin or 0)), default=None)


def encode_questions(
    questions: Sequence[Question],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    stride: int,
    name: str,
) -> list[QuestionWindow]:
    """Cut each question's text into windows, and find the first answer in them.

    Raises:
        ConfigError: the stride leaves no room to advance, or the tokenizer is not a fast one.
    """
    if not tokenizer.is_fast:
        raise ConfigError(
            f"{tokenizer.name_or_path}: answers cannot be found in its tokens; use a fast one"
        )

    longest = min(_LONGEST_QUESTION, max_length // 3)
    # at least so many tokens of the text fit beside question and special tokens
    room = max_length - longest - 4
    if stride >= room:
        raise ConfigError(
            f"--stride {stride} leaves no room in windows of {max_length} tokens: less than {room}"
        )

    asked, cut = [], 0
    for question in questions:
        encoded = tokenizer(
            question.question, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        offsets = cast(list[tuple[int, int]], encoded["offset_mapping"])
        cut += len(offsets) > longest

        asked.append(
            question.question[: offsets[longest - 1][1]]
            if len(offsets) > longest
            else question.question
        )

    windows: list[QuestionWindow] = []
    for number, question in enumerate(
        follow(questions, f"encoding questions of {name}", total=len(questions))
    ):
        with settings_kept(tokenizer):
            encoded: Any = tokenizer(
                asked[number],
                question.context,
                truncation="only_second",
                max_length=max_length,
                stride=stride,
                return_overflowing_tokens=True,
                return_offsets_mapping=True,
                verbose=False,
            )

        for index, ids in enumerate(encoded["input_ids"]):
            sides = encoded.sequence_ids(index)
            pairs = zip(encoded["offset_mapping"][index], sides, strict=True)
            offsets = [tuple(offset) if side == 1 else None for offset, side in pairs]
            start, end = _token_span(offsets, question)
            segments = encoded["token_type_ids"][index] if "token_type_ids" in encoded else None
            windows.append(QuestionWindow(number, ids, segments, offsets, start, end))

    logger.info(
        "%s: %d questions in %d windows of at most %d tokens%s",
        name,
        len(questions),
        len(windows),
        max_length,
        f"; {cut} questions truncated at {longest} tokens" if cut else "",
    )

    return windows


def _token_span(offsets: Sequence[tuple[int, int] | None], question: Question) -> tuple[int, int]:
    """Return the answer's first and last token, or (0, 0) when not in the window."""
    inside = [(token, offset) for token, offset in enumerate(offsets) if offset is not None]
    if not question.answers or not inside:
        return 0, 0
    text, begin = question.answers[0]

    end = begin + len(text)
    if inside[0][1][0] > begin or inside[-1][1][1] < end:
        return 0, 0
    touched = [token for token, (first, last) in inside if last > begin and first < end]

    return (touched[0], touched[-1]) if touched else (0, 0)


def as_span_dataset(windows: Sequence[QuestionWindow]) -> Dataset:
    """Return what the Trainer reads: ids, segments, spans, `length` to batch by."""
    columns: dict[str, list[Any]] = {"input_ids": [window.input_ids for window in windows]}
    if windows and windows[0].segments is not None:
        columns["token_type_ids"] = [window.segments for window in windows]
    columns |= {
        "start_positions": [window.start for window in windows],
        "end_positions": [w.end for w in windows],
    }
    return Dataset.from_dict(columns | {"length": [len(window.input_ids) for window in windows]})


def collate_questions(
    rows: Sequence[Mapping[str, Any]], *, pad_token_id: int
) -> dict[str, torch.Tensor]:
    """Pad windows to the longest, (B, T).

    `start_positions` and `end_positions` (B,) where the rows have them.
    """
    names = ("input_ids", "token_type_ids")
    batch = pad_rows(
        [{name: row[name] for name in names if name in row} for row in rows],
        pad_token_id=pad_token_id,
    )

    for name in ("start_positions", "end_positions"):
        if name in rows[0]:
            batch[name] = torch.tensor([row[name] for row in rows])

    return batch
