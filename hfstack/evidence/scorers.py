"""Choose what scores a finished model, by what the model is."""

from collections.abc import Callable, Sequence
from typing import Any

from trl import ModelConfig

from hfstack.data.sources import Source, load_mixture
from hfstack.evidence.score_classifier import load_classifier_scorer
from hfstack.evidence.score_language import load_causal_scorer, load_masked_scorer
from hfstack.evidence.score_retrieval import load_retrieval_scorer
from hfstack.evidence.score_reward import load_reward_scorer
from hfstack.evidence.score_spans import load_span_scorer
from hfstack.evidence.score_tagger import load_tag_scorer
from hfstack.evidence.score_texts import load_text_scorer
from hfstack.evidence.scored import ScoreArgs, Scorer
from hfstack.models.contents import ModelKind

SCORERS: dict[ModelKind, Callable[..., Scorer]] = {
    "sequence classifier": load_classifier_scorer,
    "token classifier": load_tag_scorer,
    "question answering model": load_span_scorer,
    "encoder-decoder": load_text_scorer,
    "causal language model": load_causal_scorer,
    "masked language model": load_masked_scorer,
    "reward model": load_reward_scorer,
    "embedding model": load_retrieval_scorer,
    "reranker": load_retrieval_scorer,
}

# those that learn, or search, something of the rows of training
_READ_TRAINING = ("token classifier", "reward model", "embedding model", "reranker")


def load_scorer(
    kind: ModelKind,
    args: ModelConfig,
    how: ScoreArgs,
    *,
    train_datasets: Sequence[Source],
    answer_rows: int,
    answer_tokens: int,
) -> Scorer:
    """Load a finished model with what scores it.

    Args:
        kind: what the model is.
        args: names the model.
        how: which rows are scored, and how they are read.
        train_datasets: rows of training, for the baselines that learn from them.
        answer_rows: prompts that a causal language model answers.
        answer_tokens: longest answer.
    """
    extra: dict[str, Any] = {}
    if kind == "causal language model":
        extra = {"answer_rows": answer_rows, "answer_tokens": answer_tokens}

    if kind in _READ_TRAINING and train_datasets:
        extra["train"] = load_mixture(
            list(train_datasets),
            on_bad_row=how.on_bad_row,
            purpose="preferences" if kind == "reward model" else "rows",
        )
    return SCORERS[kind](args, how, **extra)
