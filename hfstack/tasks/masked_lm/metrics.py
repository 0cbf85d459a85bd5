"""Measure a masked LM: masked tokens of fixed blocks, every token of whole texts.

Masked accuracy and loss depend on which tokens are hidden and on how many, so they compare between
evaluations that hide the same ones. Pseudo-perplexity hides each token of a text in turn (Salazar
et al. 2020, arXiv:1910.14659, equations 1 and 2): it is slower by the length of a text, and needs
no choice of tokens. It is not a perplexity: do not compare it with one of a causal model.

Legend: B rows, T tokens of a row, V vocabulary, n tokens of one text.
"""

import math
from collections.abc import Sequence
from typing import Any, cast

import evaluate
import numpy as np
import torch
from datasets import Features, Value
from transformers import EvalPrediction, PreTrainedModel, PreTrainedTokenizerBase

from hfstack.errors import DataError
from hfstack.tasks.causal_lm.metrics import DocumentScore, perplexity
from hfstack.tasks.masked_lm.masking import MaskedBlocks


class MaskedAccuracy(evaluate.Metric):
    """Share of masked tokens that were the model's first choice.

    `compute(correct=[...], tokens=[...])`.
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=(type(self).__doc__ or "").splitlines()[0],
            citation="",
            inputs_description="Right first choices and hidden tokens, one value a block.",
            features=Features({"correct": Value("int64"), "tokens": Value("int64")}),
        )

    def _compute(
        self, *, predictions: Any = None, references: Any = None, **counts: Any
    ) -> dict[str, float]:
        return {"masked_accuracy": sum(counts["correct"]) / max(sum(counts["tokens"]), 1)}


def masked_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """Return masked accuracy and perplexity for the Trainer's `compute_metrics`.

    Args:
        prediction: its predictions are (B, 3): summed loss in nats, right first choices, hidden
            tokens of each block, as `models.masked_head.score_only_masked` gives them.
    """
    counts = np.asarray(prediction.predictions, dtype=np.float64)
    correct, tokens = counts[:, 1].astype(int).tolist(), counts[:, 2].astype(int).tolist()
    found = MaskedAccuracy().compute(correct=correct, tokens=tokens) or {}
    loss = counts[:, 0].sum() / max(counts[:, 2].sum(), 1)
    return {
        "masked_accuracy": float(found["masked_accuracy"]),
        "masked_perplexity": perplexity(float(loss)),
    }


def baseline_metrics(
    train: MaskedBlocks, held_out: MaskedBlocks, *, blocks: int = 20_000
) -> dict[str, float]:
    """Return accuracy and perplexity of a guess that does not look at the context.

    Where a token was replaced by the mask, each is as likely as it is frequent. Of those that were
    not, half stayed as they are, so the visible token is the first choice there: a model that has
    learned only these two things stays at these numbers, whatever its loss fell from.

    Args:
        train: its first blocks are counted, each token once more than it is there.
        held_out: the blocks whose hidden tokens are guessed.
        blocks: how many of each are read.
    """
    counts = train.token_counts(blocks) + 1  # (V,)
    share = counts / counts.sum()
    rows = [held_out[block] for block in range(min(blocks, len(held_out)))]
    labels = np.concatenate([row["labels"].numpy() for row in rows])
    visible = np.concatenate([row["input_ids"].numpy() for row in rows])[labels >= 0]  # (n,)

    labels = labels[labels >= 0]  # (n,)
    masked = visible == held_out.mask_id
    chance = np.where(masked, share[labels], (share[labels] + (visible == labels)) / 2)
    return {
        "baseline_masked_accuracy": float(
            (labels == np.where(masked, counts.argmax(), visible)).mean()
        ),
        "baseline_masked_perplexity": perplexity(float(-np.log(chance).mean())),
    }


def pseudo_log_likelihoods(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    max_length: int,
    batch_size: int = 32,
) -> list[DocumentScore]:
    """Score each text by hiding one token at a time and reading off its probability.

    A text of n tokens costs n passes of the model over it. Longer ones are scored up to
    `max_length` tokens, [CLS] and [SEP] included. `nll` is minus the pseudo-log-likelihood, in
    nats.

    Args:
        model: a masked language model, in eval mode; its forward without labels gives logits.
        max_length: tokens read of a text.
        batch_size: hidden copies of a text per pass.

    Raises:
        DataError: the tokenizer has no mask token, or no text has a token.
    """
    if tokenizer.mask_token_id is None:
        raise DataError(
            f"{tokenizer.name_or_path}: the tokenizer has no mask token, so it is not of a masked "
            "model"
        )

    special = {*tokenizer.all_special_ids}
    scores = []

    for text in texts:
        encoded = tokenizer(
            text, truncation=True, max_length=max_length, return_offsets_mapping=True
        )
        ids = torch.tensor(encoded["input_ids"])  # (T,)

        places = [place for place, token in enumerate(ids.tolist()) if token not in special]
        if not places:
            continue
        nll, correct = 0.0, 0

        for first in range(0, len(places), batch_size):
            here = torch.tensor(places[first : first + batch_size])  # (B,)
            rows = torch.arange(len(here))
            hidden = ids.repeat(len(here), 1)  # (B, T)
            hidden[rows, here] = cast(int, tokenizer.mask_token_id)

            with torch.no_grad():
                # (B, V)
                logits = model(input_ids=hidden.to(model.device)).logits[rows, here].float().cpu()

            targets = ids[here]  # (B,)
            nll += float(torch.nn.functional.cross_entropy(logits, targets, reduction="sum"))
            correct += int((logits.argmax(-1) == targets).sum())

        offsets: Any = encoded["offset_mapping"]
        size = len(text[: offsets[places[-1]][1]].encode())
        scores.append(DocumentScore(nll, len(places), size, correct))

    if not scores:
        raise DataError(f"none of the {len(texts)} texts to score has a token")
    return scores


def pseudo_metrics(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    max_length: int,
) -> dict[str, float]:
    """Return the pseudo-perplexity of texts, and how many of them have a token.

    The arguments are those of `pseudo_log_likelihoods`; without texts there is nothing to return.
    """
    if not texts:
        return {}
    scores = pseudo_log_likelihoods(model, tokenizer, texts, max_length=max_length)
    return {"pseudo_perplexity": pseudo_perplexity(scores), "texts_scored": len(scores)}


def pseudo_perplexity(scores: Sequence[DocumentScore]) -> float:
    """Return pseudo-perplexity: exp of minus the mean pseudo-log-likelihood a token.

    Over all tokens of all texts (equation 2).
    """
    return perplexity(
        math.fsum(score.nll for score in scores) / sum(score.tokens for score in scores)
    )
