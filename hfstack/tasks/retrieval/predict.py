"""Predict rows: the vector of a text, or how well two texts match."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from trl import ModelConfig

from hfstack.models.loading import require_model_name
from hfstack.tasks.retrieval.evaluation import score_pairs
from hfstack.tasks.retrieval.model import load_embedder, load_reranker
from hfstack.tasks.retrieval.rows import TextPair
from hfstack.tasks.retrieval.search import embed_texts
from hfstack.tasks.shared.predict import Predictor, answer_usable, problem_of_texts
from hfstack.tasks.shared.task_models import read_task_file

_DIGITS = 6


def load_embed_predictor(
    args: ModelConfig,
    *,
    columns: tuple[str | None, str | None],
    batch_size: int,
    max_length: int | None,
) -> Predictor:
    """Load an embedding model, and return what predicts rows.

    The `embedding` of a text; with a second column the `score` of the two, their cosine.

    Args:
        columns: of the text, by default the passage that the model was trained on, and of a second
            one, or None.
        max_length: tokens after which a text is truncated; None for what the model is set to.

    Raises:
        CheckpointError: there is no whole embedding model.
        ConfigError: `max_length` is more than the model reads.
        MissingExtraError: sentence-transformers is not installed.
    """
    model = load_embedder(args, max_length=max_length).to(Accelerator().device)
    text = columns[0] or trained_column(args, "query" if columns[1] else "passage")
    second = columns[1]

    def predict(rows: Sequence[dict[str, Any]], first_row: int = 1) -> list[dict[str, Any]]:
        if second is not None:
            pairs = [TextPair(row[text], row[second]) for row in rows]
            return _as_scores(score_pairs(model, pairs, batch_size))
        texts = [row[text] for row in rows]
        found = embed_texts(model, texts, batch_size, are_queries=False)
        return [{"embedding": [round(float(n), _DIGITS) for n in vector]} for vector in found]

    names = [text] if second is None else [text, second]
    return answer_usable(predict, problem_of_texts(names, "--text_column or --text_pair_column"))


def load_rerank_predictor(
    args: ModelConfig,
    *,
    columns: tuple[str | None, str | None],
    batch_size: int,
    max_length: int | None,
) -> Predictor:
    """Load a reranker, and return what predicts rows: the `score` of two texts.

    Args:
        columns: of the two texts; None for those that the model was trained on.
        max_length: tokens after which a pair is truncated; None for what the model is set to.

    Raises:
        CheckpointError: there is no whole reranker.
        ConfigError: `max_length` is more than the model reads.
        MissingExtraError: sentence-transformers is not installed.
    """
    model = load_reranker(args, max_length=max_length).to(Accelerator().device)
    names = [
        columns[0] or trained_column(args, "query"),
        columns[1] or trained_column(args, "passage"),
    ]

    def predict(rows: Sequence[dict[str, Any]], first_row: int = 1) -> list[dict[str, Any]]:
        pairs = [TextPair(row[names[0]], row[names[1]]) for row in rows]
        return _as_scores(score_pairs(model, pairs, batch_size))

    return answer_usable(predict, problem_of_texts(names, "--text_column or --text_pair_column"))


def trained_column(args: ModelConfig, role: str) -> str:
    """Return the column that a model was trained on, or the usual one."""
    task = read_task_file(Path(require_model_name(args))) or {}
    return task.get("columns", {}).get(role, role)


def _as_scores(scores: Any) -> list[dict[str, Any]]:
    return [{"score": round(float(score), _DIGITS)} for score in scores]
