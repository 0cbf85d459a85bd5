"""Turn an encoder's begin and end logits into answers, and score them.

Beside naive baselines.

Legend: N windows, T tokens of the longest, n candidates of a question.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy
import torch
from accelerate import Accelerator, PartialState
from trl import ModelConfig

from hfstack.data.reading.jsonl import write_jsonl
from hfstack.intervals import at_least_wilson, bootstrap_intervals
from hfstack.models.heads import padding_id
from hfstack.tasks.question_answering.data import (
    Question,
    QuestionWindow,
    collate_questions,
    encode_questions,
)
from hfstack.tasks.shared.metrics import CmrcAnswers, SquadAnswers
from hfstack.tasks.shared.predict import (
    Predictor,
    answer_usable,
    by_length,
    problem_of_texts,
)
from hfstack.tasks.shared.task_models import check_length, load_finished

Rules = Literal["auto", "squad", "cmrc"]
SpanLogits = tuple[Sequence[numpy.ndarray[Any, Any]], Sequence[numpy.ndarray[Any, Any]]]
"""Begin and end logits: N rows of at least T."""

_HAN = re.compile(r"[\u3400-\u9fff]")
SENTENCE_END = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])")


@dataclass(frozen=True)
class Candidate:
    """A stretch of the text that may be the answer."""

    text: str
    start: int  # character of the context; -1 for "no answer"
    score: (
        float  # begin logit + end logit, less those of token 0 in the same window: 0 is "no answer"
    )
    probability: float  # softmax over the candidates of this question


def find_answers(
    logits: SpanLogits,
    windows: Sequence[QuestionWindow],
    questions: Sequence[Question],
    *,
    max_answer_tokens: int,
    n_best: int,
    no_answer: bool,
    threshold: float = 0.0,
) -> list[list[Candidate]]:
    """Return the candidates of each question over all its windows, the answer first.

    A stretch scores what it has above token 0, which stands for "not in this window". The scripts
    of BERT compare the bare sums of logits; a window's logits are only right up to a constant, so
    one without the answer may win there.

    Args:
        no_answer: a question may have none.
        threshold: how much "no answer" must score above the best stretch to be chosen.
    """
    found: list[dict[tuple[int, int], float]] = [{} for _ in questions]
    begin_logits, end_logits = logits[:2]  # BART's family puts its encoder's states behind them
    for window, begins, ends in zip(windows, begin_logits, end_logits, strict=True):
        length = len(window.input_ids)
        begin = numpy.asarray(begins[:length], dtype=float)
        end = numpy.asarray(ends[:length], dtype=float)
        begin, end = begin - begin[0], end - end[0]

        best = found[window.question]
        for first, last, score in _best_spans(begin, end, window, max_answer_tokens, n_best):
            span = (window.offsets[first][0], window.offsets[last][1])  # type: ignore[index]  # inside the context
            best[span] = max(score, best.get(span, -numpy.inf))

    return [
        _ranked(question, spans, n_best=n_best, no_answer=no_answer, threshold=threshold)
        for question, spans in zip(questions, found, strict=True)
    ]


def _best_spans(
    begin: numpy.ndarray[Any, Any],
    end: numpy.ndarray[Any, Any],
    window: QuestionWindow,
    longest: int,
    count: int,
) -> list[tuple[int, int, float]]:
    """Return the best stretches of a window's context: first token, last token, score."""
    inside = numpy.array(
        [token for token, offset in enumerate(window.offsets) if offset is not None], dtype=int
    )
    if not len(inside):
        return []

    scores = begin[inside][:, None] + end[inside][None, :]  # (c, c) for c tokens of the context
    ahead = inside[None, :] - inside[:, None]
    scores[(ahead < 0) | (ahead >= longest)] = -numpy.inf
    flat = scores.ravel()
    top = numpy.argpartition(-flat, min(count, len(flat)) - 1)[:count]
    spans = [
        (int(place) // len(inside), int(place) % len(inside))
        for place in top
        if numpy.isfinite(flat[place])
    ]

    return [(int(inside[a]), int(inside[b]), float(scores[a, b])) for a, b in spans]


def _ranked(
    question: Question,
    spans: dict[tuple[int, int], float],
    *,
    n_best: int,
    no_answer: bool,
    threshold: float,
) -> list[Candidate]:
    ranked = sorted(spans.items(), key=lambda item: -item[1])[:n_best]
    rows = [(question.context[begin:end], begin, score) for (begin, end), score in ranked]
    if not rows or (no_answer and -rows[0][2] > threshold):
        rows.insert(0, ("", -1, 0.0))
    elif no_answer:
        rows[1:] = sorted([*rows[1:], ("", -1, 0.0)], key=lambda row: -row[2])

    scores = numpy.array([score for _, _, score in rows])
    chance = numpy.exp(scores - scores.max())
    chance /= chance.sum()
    return [Candidate(*row, round(float(each), 6)) for row, each in zip(rows, chance, strict=True)]


def answer_metric(rules: Rules, questions: Sequence[Question]) -> SquadAnswers | CmrcAnswers:
    """Return the answer metric: CMRC's for mostly Chinese texts, else SQuAD's."""
    if rules == "auto":
        chinese = sum(len(_HAN.findall(q.context)) > len(q.context) / 3 for q in questions)
        rules = "cmrc" if 2 * chinese > len(questions) else "squad"
    return CmrcAnswers() if rules == "cmrc" else SquadAnswers()


def answer_metrics(
    metric: SquadAnswers | CmrcAnswers, questions: Sequence[Question], texts: Sequence[str]
) -> dict[str, float]:
    """Return exact match and F1 in percent.

    Also of answerable and unanswerable questions where there are both.
    """
    columns: dict[str, list[Any]] = {
        "predictions": [{"id": str(i), "prediction_text": text} for i, text in enumerate(texts)],
        "references": [
            {
                "id": str(i),
                "answers": {
                    "text": [t for t, _ in q.answers],
                    "answer_start": [s for _, s in q.answers],
                },
            }
            for i, q in enumerate(questions)
        ],
    }

    return {name: float(value) for name, value in (metric.compute(**columns) or {}).items()}


def answer_intervals(
    metric: SquadAnswers | CmrcAnswers, questions: Sequence[Question], texts: Sequence[str]
) -> dict[str, float]:
    """Return 95 % intervals of exact match and F1 in percent, resampling whole texts.

    Questions of one text are not independent.
    """
    scores = [
        metric.score(text, [t for t, _ in q.answers])
        for q, text in zip(questions, texts, strict=True)
    ]

    groups: dict[str, list[int]] = {}
    for index, question in enumerate(questions):
        groups.setdefault(question.context, []).append(index)

    # (texts, 3)
    sums = numpy.array(
        [[len(g), *numpy.sum([scores[i] for i in g], axis=0)] for g in groups.values()]
    )

    def score(drawn: numpy.ndarray[Any, Any]) -> dict[str, float]:
        count, exact, f1 = sums[drawn].sum(0)
        return {"exact_match": 100 * exact / count, "answer_f1": 100 * f1 / count}

    found = bootstrap_intervals(score, len(sums))
    for name, share in score(numpy.arange(len(sums))).items():
        low, high = at_least_wilson(
            (found[name][0] / 100, found[name][1] / 100), share / 100, len(sums)
        )
        found[name] = 100 * low, 100 * high
    return {
        f"{name}_{side}": pair[i]
        for name, pair in found.items()
        for i, side in enumerate(("low", "high"))
    }


def baseline_answers(questions: Sequence[Question]) -> dict[str, list[str]]:
    """Return two naive answers: the first sentence, and the most similar one."""
    found: dict[str, list[str]] = {"first_sentence": [], "likest_sentence": []}
    for question in questions:
        sentences = [part for part in SENTENCE_END.split(question.context) if part.strip()]
        wanted = _units(question.question)
        found["first_sentence"].append(sentences[0])
        found["likest_sentence"].append(
            max(sentences, key=lambda sentence: len(wanted & _units(sentence)))
        )

    return found


def _units(text: str) -> set[str]:
    return {*_HAN.findall(text), *re.findall(r"\w+", _HAN.sub(" ", text.lower()))}


def beside_baselines(
    metric: SquadAnswers | CmrcAnswers, questions: Sequence[Question], texts: Sequence[str]
) -> dict[str, float]:
    """Return the scores of naive answers (`baseline_`), and the real ones' intervals."""
    found = {
        f"eval_{name}": value for name, value in answer_intervals(metric, questions, texts).items()
    }
    found["eval_questions"] = len(questions)
    for name, naive in baseline_answers(questions).items():
        scores = answer_metrics(metric, questions, naive)
        found |= {f"baseline_{name}_{key}": scores[key] for key in ("exact_match", "answer_f1")}
    return found


def best_texts(found: Sequence[Sequence[Candidate]]) -> list[str]:
    """Return the answer to each question."""
    return [candidates[0].text for candidates in found]


def write_answers(
    path: Path, questions: Sequence[Question], found: Sequence[list[Candidate]]
) -> None:
    """Save each question with its answer, candidates and true answers, on rank 0."""
    if not PartialState().is_main_process:
        return
    with write_jsonl(path) as add:
        for question, candidates in zip(questions, found, strict=True):
            row = {"id": question.id, "question": question.question, **as_row(candidates)}
            add(row | {"answers": [text for text, _ in question.answers]})


def as_row(candidates: Sequence[Candidate]) -> dict[str, Any]:
    """Return what is saved of a question: answer, where it begins, and candidates."""
    return {
        "answer": candidates[0].text,
        "start": candidates[0].start,
        "probability": candidates[0].probability,
        "candidates": [vars(candidate) for candidate in candidates],
    }


@torch.no_grad()
def answer_logits(
    model: torch.nn.Module,
    windows: Sequence[QuestionWindow],
    *,
    pad_token_id: int,
    batch_size: int = 32,
) -> SpanLogits:
    """Return the begin and end logits of windows, in order.

    Computed in batches of about one length.
    """
    device = next(model.parameters()).device

    def score(batch: list[QuestionWindow]) -> list[Any]:
        rows = [
            {"input_ids": window.input_ids}
            | ({} if window.segments is None else {"token_type_ids": window.segments})
            for window in batch
        ]

        inputs = collate_questions(rows, pad_token_id=pad_token_id)
        output = model(**{name: tensor.to(device) for name, tensor in inputs.items()})
        pair = torch.stack([output.start_logits, output.end_logits], dim=1)  # (B, 2, T)
        return list(pair.float().cpu().numpy())

    found = by_length(windows, [len(window.input_ids) for window in windows], score, batch_size)
    return [both[0] for both in found], [both[1] for both in found]


def load_answer_predictor(
    args: ModelConfig,
    *,
    columns: tuple[str | None, str | None],
    batch_size: int,
    max_length: int | None,
) -> Predictor:
    """Load a finished model, and return what predicts rows: answers and candidates.

    Args:
        columns: of the question and the context; None for those that the model was trained on.
        max_length: tokens of a window; None for what it was trained with.

    Raises:
        CheckpointError: there is no whole model.
        ConfigError: `max_length` is more than the model reads.
    """
    model, tokenizer, info = load_finished(args, "QuestionAnswering")
    model.to(Accelerator().device)  # pyright: ignore[reportArgumentType]
    limit = check_length(max_length or info.get("max_length", 384), model.config, tokenizer)
    names = (
        columns[0] or info.get("question_column", "question"),
        columns[1] or info.get("context_column", "context"),
    )

    pad = padding_id(tokenizer)
    stride = min(int(info.get("stride", 128)), limit // 4)
    settings = {
        "max_answer_tokens": info.get("max_answer_tokens", 30),
        "n_best": info.get("n_best", 5),
    }

    settings |= {"no_answer": info.get("no_answer", False), "threshold": info.get("threshold", 0.0)}

    def predict(rows: Sequence[dict[str, Any]], first_row: int = 1) -> list[dict[str, Any]]:
        questions = [
            Question(str(number), row[names[0]], row[names[1]], [])
            for number, row in enumerate(rows, first_row)
        ]
        windows = encode_questions(
            questions, tokenizer, max_length=limit, stride=stride, name="rows"
        )
        logits = answer_logits(model, windows, pad_token_id=pad, batch_size=batch_size)

        return [
            as_row(candidates)
            for candidates in find_answers(logits, windows, questions, **settings)
        ]

    flags = "--text_column (question) and --text_pair_column (context)"
    return answer_usable(predict, problem_of_texts(names, flags))
