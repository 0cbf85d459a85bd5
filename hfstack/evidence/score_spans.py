"""Score a model that answers by spans by the functions of its training."""

from collections.abc import Hashable, Sequence
from functools import partial
from typing import Any

import numpy
from accelerate import Accelerator
from datasets import Dataset
from transformers import TrainingArguments
from trl import ModelConfig

from hfstack.evidence.scored import (
    ScoreArgs,
    Scored,
    Scorer,
    evaluation_settings,
    named,
    predict_held_out,
)
from hfstack.models.heads import padding_id
from hfstack.tasks.question_answering import data as qa
from hfstack.tasks.question_answering import metrics as qa_metrics
from hfstack.tasks.question_answering.loss import SpanTrainer
from hfstack.tasks.shared.metrics import CmrcAnswers, SquadAnswers
from hfstack.tasks.shared.task_models import check_length, load_finished


def load_span_scorer(args: ModelConfig, how: ScoreArgs) -> Scorer:
    """Load a finished model that answers questions by spans.

    Raises:
        CheckpointError: there is no whole model.
    """
    model, tokenizer, info = load_finished(args, "QuestionAnswering")
    model.to(Accelerator().device)  # pyright: ignore[reportArgumentType]
    length = check_length(how.max_length or info.get("max_length", 384), model.config, tokenizer)
    columns = (
        how.text_column or info.get("question_column", "question"),
        how.text_pair_column or info.get("context_column", "context"),
        how.label("answers"),
    )
    choice = {
        "max_answer_tokens": info.get("max_answer_tokens", 30),
        "n_best": info.get("n_best", 5),
        "no_answer": info.get("no_answer", False),
        "threshold": info.get("threshold", 0.0),
    }

    def score(rows: Dataset) -> Scored:
        questions = qa.read_questions(rows, columns=columns, name="eval", sources=how.datasets)
        stride = min(int(info.get("stride", 128)), length // 4)
        windows = qa.encode_questions(
            questions, tokenizer, max_length=length, stride=stride, name="eval"
        )
        trainer = SpanTrainer(
            model=model,
            args=TrainingArguments(**evaluation_settings(how.batch_size)),
            processing_class=tokenizer,
            data_collator=partial(qa.collate_questions, pad_token_id=padding_id(tokenizer)),
        )
        losses, logits = predict_held_out(trainer, qa.as_span_dataset(windows))
        return _spans_as_scored(
            questions, qa_metrics.find_answers(logits, windows, questions, **choice), losses
        )

    return Scorer({"id", *columns}, score)


def _spans_as_scored(
    questions: list[qa.Question], found: list[list[qa_metrics.Candidate]], losses: dict[str, float]
) -> Scored:
    metric: SquadAnswers | CmrcAnswers = qa_metrics.answer_metric("auto", questions)
    texts = qa_metrics.best_texts(found)
    # (N, 2): exact match and F1 of each question
    each = numpy.array(
        [
            metric.score(text, [answer for answer, _ in question.answers])
            for question, text in zip(questions, texts, strict=True)
        ]
    )
    units: list[Hashable] = [question.context for question in questions]

    def measure(indices: Sequence[int]) -> dict[str, float]:
        asked, said = [questions[i] for i in indices], [texts[i] for i in indices]
        measured = qa_metrics.answer_metrics(metric, asked, said)
        measured |= qa_metrics.answer_intervals(metric, asked, said)
        return measured | {"questions": len(asked)}

    def resample(index: numpy.ndarray[Any, Any]) -> dict[str, float]:
        exact, f1 = 100 * each[index].mean(axis=0)
        return {"exact_match": float(exact), "answer_f1": float(f1)}

    metrics = losses | named(qa_metrics.answer_metrics(metric, questions, texts))
    answers = [
        {
            "id": question.id,
            "question": question.question,
            **qa_metrics.as_row(candidates),
            "answers": [text for text, _ in question.answers],
        }
        for question, candidates in zip(questions, found, strict=True)
    ]
    return Scored(
        metrics=metrics | qa_metrics.beside_baselines(metric, questions, texts),
        main="answer_f1",
        places=list(range(len(questions))),
        answers=answers,
        measure=measure,
        resample=resample,
        right=[bool(exact) for exact, _ in each],
        units=units if len(set(units)) < len(units) else None,
    )
