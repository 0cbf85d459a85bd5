"""Measure a masked LM: masked tokens of fixed blocks, every token of whole texts.

Masked accuracy and loss depend on which tokens are masked and on how many, so they compare between
evaluations that mask the same ones. Pseudo-perplexity masks each token of a text in turn (Salazar
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
from hfstack.tasks.causal_lm.document_scores import DocumentScore, perplexity
from hfstack.tasks.masked_lm.masking import MaskedBlocks
from hfstack.tokens.special_tokens import IGNORED_LABEL


class MaskedAccuracy(evaluate.Metric):
    """Share of masked tokens that were the model's first choice.

    `compute(correct=[...], tokens=[...])`.
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=(type(self).__doc__ or "").splitlines()[0],
            citation="",
            inputs_description="Right first choices and masked tokens, one value a block.",
            features=Features({"correct": Value("int64"), "tokens": Value("int64")}),
        )

    def _compute(
        self, *, predictions: Any = None, references: Any = None, **counts: Any
    ) -> dict[str, float]:
        return {"masked_accuracy": sum(counts["correct"]) / max(sum(counts["tokens"]), 1)}


def masked_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """Return masked accuracy and perplexity for the Trainer's `compute_metrics`.

    Args:
        prediction: its predictions are (B, 3): summed loss in nats, right first choices, masked
            tokens of each block, as `model.score_only_masked` gives them.
    """
    losses, correct, tokens = np.asarray(prediction.predictions, dtype=np.float64).T  # (B,) each
    counts = {"correct": correct.astype(int).tolist(), "tokens": tokens.astype(int).tolist()}
    found = MaskedAccuracy().compute(**counts) or {}
    loss = losses.sum() / max(tokens.sum(), 1)
    return {
        "masked_accuracy": float(found["masked_accuracy"]),
        "masked_perplexity": perplexity(float(loss)),
    }


def baseline_metrics(
    train: MaskedBlocks, held_out: MaskedBlocks, *, blocks: int = 20_000
) -> dict[str, float]:
    """Return accuracy and perplexity of a guess that ignores the context.

    Where a token was replaced by the mask, each is as likely as it is frequent. Of those that were
    not, half stayed as they are, so the visible token is the first choice there: a model that has
    learned only these two things stays at these numbers, whatever its loss fell from.

    Args:
        train: its first blocks are counted, each token once more than it is there.
        held_out: the blocks whose masked tokens are guessed.
        blocks: how many of each are read.
    """
    counts = train.token_counts(blocks) + 1  # (V,)
    share = counts / counts.sum()

    rows = [held_out[block] for block in range(min(blocks, len(held_out)))]
    labels = np.concatenate([row["labels"].numpy() for row in rows])
    inputs = np.concatenate([row["input_ids"].numpy() for row in rows])
    scored = labels != IGNORED_LABEL
    labels, visible = labels[scored], inputs[scored]  # (n,) each

    masked = visible == held_out.mask_id
    guess = np.where(masked, counts.argmax(), visible)
    chance = np.where(masked, share[labels], (share[labels] + (visible == labels)) / 2)
    return {
        "baseline_masked_accuracy": float((labels == guess).mean()),
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
    """Score each text by masking one token at a time and reading its probability.

    A text of n tokens costs n passes of the model over it. Longer ones are scored up to
    `max_length` tokens, [CLS] and [SEP] included. `nll` is minus the pseudo-log-likelihood, in
    nats.

    Args:
        model: a masked language model, in eval mode; its forward without labels gives logits.
        max_length: tokens read of a text.
        batch_size: masked copies of a text per pass.

    Raises:
        DataError: the tokenizer has no mask token, or no text has a token.
    """
    mask_id = cast(int | None, tokenizer.mask_token_id)
    if mask_id is None:
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
        positions = [index for index, token in enumerate(ids.tolist()) if token not in special]
        if not positions:
            continue

        nll, correct = 0.0, 0
        for first in range(0, len(positions), batch_size):
            batch = torch.tensor(positions[first : first + batch_size])  # (B,)
            loss, hits = _score_positions(model, ids, batch, mask_id=mask_id)
            nll, correct = nll + loss, correct + hits

        # A truncated text counts with the bytes that were read.
        offsets: Any = encoded["offset_mapping"]
        size = len(text[: offsets[positions[-1]][1]].encode())
        scores.append(DocumentScore(nll, len(positions), size, correct))

    if not scores:
        raise DataError(f"none of the {len(texts)} texts to score has a token")
    return scores


@torch.no_grad()
def _score_positions(
    model: PreTrainedModel, ids: torch.Tensor, positions: torch.Tensor, *, mask_id: int
) -> tuple[float, int]:
    """Return the summed loss in nats and the right first choices at some positions.

    Args:
        ids: (T,) of one text.
        positions: (B,), each masked in a copy of the text of its own.
    """
    rows = torch.arange(len(positions))
    masked = ids.repeat(len(positions), 1)  # (B, T)
    masked[rows, positions] = mask_id

    logits = model(input_ids=masked.to(model.device)).logits  # (B, T, V)
    logits = logits[rows, positions].float().cpu()  # (B, V)
    targets = ids[positions]  # (B,)
    loss = torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
    return float(loss), int((logits.argmax(-1) == targets).sum())


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

    The mean is over all tokens of all texts (equation 2).
    """
    tokens = sum(score.tokens for score in scores)
    return perplexity(math.fsum(score.nll for score in scores) / tokens)
