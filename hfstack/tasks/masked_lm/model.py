"""Compute a masked language model's head only where a token is to be predicted.

The head of a small model is most of its cost: with V tokens and width d it is d * (d + V)
multiply-adds a position, and only 15 % of the positions are scored. Stock models compute it
everywhere, and keep (B, T, V) logits for the backward pass.

Legend: B rows, T positions, n scored positions of the batch, d hidden size, V vocabulary.
"""

import functools
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from hfstack.errors import ConfigError
from hfstack.logs import get_logger
from hfstack.models.context import check_block_size
from hfstack.tokens.special_tokens import IGNORED_LABEL

logger = get_logger(__name__)

# Models whose logits are these modules, one after the other, over the hidden states, position by
# position.
HEADS = {
    "bert": ("cls",),
    "roberta": ("lm_head",),
    "xlm-roberta": ("lm_head",),
    "camembert": ("lm_head",),
    "modernbert": ("head", "decoder"),
}


@dataclass
class ScoredTokens(ModelOutput):
    """Loss and counts of the masked tokens of a batch."""

    loss: Tensor | None = None
    """mean over the scored tokens, nats"""
    counts: Tensor | None = None
    """(B, 3) in evaluation: summed loss in nats, first choices that were right, tokens scored"""


def logits_where(
    model: PreTrainedModel,
    scored: Tensor,
    *,
    forward: Callable[..., Any] | None = None,
    **inputs: Any,
) -> Tensor:
    """Return the logits (n, V) at some positions, computing the head there alone.

    A model that is not in `HEADS` computes it everywhere.

    Args:
        scored: (B, T), which positions.
        forward: the model's own, where it was replaced.
        inputs: `input_ids` and what else the model reads.
    """
    names = HEADS.get(model.config.model_type)
    # A PeftModel's base has the head in it.
    if names is None or not isinstance(model, PreTrainedModel):
        return (forward or model)(**inputs).logits[scored]

    rows = model.base_model(**inputs)[0][scored]  # (n, d)
    for name in names:
        rows = model.get_submodule(name)(rows)  # (n, V) in the end
    return rows


def score_only_masked(model: PreTrainedModel) -> bool:
    """Make a forward with labels return a loss, and counts in evaluation, not logits.

    The loss is the mean over all scored tokens of an optimizer step, also when gradients are
    accumulated. A model that is not in `HEADS` computes its own logits first, and False is
    returned. A forward without labels is unchanged.
    """
    stock_forward = model.forward

    # the Trainer reads the signature to know which columns to keep
    @functools.wraps(type(model).forward)
    def forward(
        self: PreTrainedModel,
        input_ids: Tensor | None = None,
        *,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **inputs: Any,
    ) -> Any:
        if labels is None:
            return stock_forward(input_ids=input_ids, **inputs)

        scored = labels != IGNORED_LABEL  # (B, T)
        rows = logits_where(self, scored, forward=stock_forward, input_ids=input_ids, **inputs)
        targets = labels[scored]  # (n,)
        losses = torch.nn.functional.cross_entropy(rows.float(), targets, reduction="none")  # (n,)
        count = num_items_in_batch if num_items_in_batch is not None else scored.sum()
        loss = losses.sum() / count

        if self.training:
            return ScoredTokens(loss=loss)

        hits = (rows.argmax(-1) == targets).float()
        each = torch.stack([losses, hits, torch.ones_like(losses)], dim=1)  # (n, 3)
        counts = torch.zeros(len(labels), 3, device=each.device)  # (B, 3)
        counts.index_add_(0, scored.nonzero()[:, 0], each)
        return ScoredTokens(loss=loss, counts=counts)

    model.forward = types.MethodType(forward, model)
    return model.config.model_type in HEADS


def training_flops_per_token(
    model: PreTrainedModel, sequence_length: int, *, scored_share: float
) -> float:
    """Return the FLOPs of training on one token, with the head at a share of tokens.

    Forward and backward, counted as in `models.counting`: 2 for each multiply-add of a matrix
    product, 3 times the forward. An architecture without the fields of BERT is counted as 2 for
    each parameter outside its embeddings.
    """
    config: Any = model.config
    if not all(
        hasattr(config, field)
        for field in ("hidden_size", "intermediate_size", "num_hidden_layers")
    ):
        table = model.get_input_embeddings().weight
        return 6.0 * (model.num_parameters() - torch.as_tensor(table).numel())

    width = config.hidden_size
    projections = 2 * 4 * width * width
    attention = 2 * 2 * sequence_length * width
    feed_forward = 2 * 2 * width * config.intermediate_size
    layer = projections + attention + feed_forward
    head = 2 * width * (width + config.get_text_config().vocab_size)
    return 3.0 * (config.num_hidden_layers * layer + scored_share * head)


def check_masked_model(model: PreTrainedModel, *, block_size: int, isolate_documents: bool) -> None:
    """Refuse a block that the model cannot read, or isolation that attention ignores.

    RoBERTa and its relatives number positions from the pad token's id on, so their context is
    shorter than their table.

    Raises:
        ConfigError: with the option and what it may be.
    """
    check_block_size(block_size, model.config)
    if isolate_documents and model.config._attn_implementation != "sdpa":
        raise ConfigError(
            f"--isolate_documents needs attention sdpa, not {model.config._attn_implementation}; "
            "leave one of them out"
        )

    if isolate_documents and getattr(model.config, "local_attention", None):
        raise ConfigError(
            f"--isolate_documents would replace the local attention of {model.config.model_type}; "
            "leave it out"
        )
