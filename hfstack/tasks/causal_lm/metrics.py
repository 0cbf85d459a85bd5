"""Turn the scores of documents into numbers, with local `evaluate.Metric` classes.

They are used alone or together through `evaluate.combine`, and nothing is fetched from anywhere.
"""

import math
from collections.abc import Sequence
from typing import Any

import datasets
import evaluate

from hfstack.tasks.causal_lm.document_scores import DocumentScore, perplexity

_FEATURES = {
    "nll": datasets.Value("float64"),
    "tokens": datasets.Value("int64"),
    "utf8_bytes": datasets.Value("int64"),
    "correct": datasets.Value("int64"),
}


class _LanguageModelMetric(evaluate.Metric):
    """Base of the metrics over document scores.

    `compute(nll=[...], tokens=[...], utf8_bytes=[...], correct=[...])`.
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=(type(self).__doc__ or "").splitlines()[0],
            citation="",
            inputs_description="One value a document, as in DocumentScore.",
            features=datasets.Features(_FEATURES),
        )


class Perplexity(_LanguageModelMetric):
    """exp of the mean loss per token.

    Also the loss itself, in nats per token, as `eval_loss`.
    """

    def _compute(
        self, *, predictions: Any = None, references: Any = None, **scores: Any
    ) -> dict[str, float]:
        loss = sum(scores["nll"]) / sum(scores["tokens"])
        return {"eval_loss": loss, "perplexity": perplexity(loss)}


class BitsPerByte(_LanguageModelMetric):
    """Loss in bits per UTF-8 byte, comparable between models of any tokenizer."""

    def _compute(
        self, *, predictions: Any = None, references: Any = None, **scores: Any
    ) -> dict[str, float]:
        return {"bits_per_byte": sum(scores["nll"]) / math.log(2) / sum(scores["utf8_bytes"])}


class TokenAccuracy(_LanguageModelMetric):
    """Share of tokens that were the model's first choice."""

    def _compute(
        self, *, predictions: Any = None, references: Any = None, **scores: Any
    ) -> dict[str, float]:
        return {"token_accuracy": sum(scores["correct"]) / sum(scores["tokens"])}


def compute_metrics(scores: Sequence[DocumentScore]) -> dict[str, float]:
    """Return eval_loss, perplexity, bits_per_byte and token_accuracy of all documents."""
    metric = evaluate.combine([Perplexity(), BitsPerByte(), TokenAccuracy()])
    columns: dict[str, list[Any]] = {
        name: [getattr(score, name) for score in scores] for name in _FEATURES
    }
    return {name: float(value) for name, value in (metric.compute(**columns) or {}).items()}
