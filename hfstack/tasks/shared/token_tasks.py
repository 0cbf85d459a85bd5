"""Compute the loss of token models over all tokens of an optimizer step.

For models that label or generate tokens.

Most such models of transformers 5.23 (BertForTokenClassification, BartForConditionalGeneration, T5
and others) take `num_items_in_batch` and average over their own part of the batch all the same, so
that N accumulated parts give a loss and gradients N times as large. Here the sum over a part is
divided by the tokens of all parts.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from transformers import Trainer

from hfstack.tokens.special_tokens import IGNORED_LABEL
from hfstack.training.token_average import EachTokenCounts


def token_loss(
    outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None
) -> torch.Tensor:
    """Return the cross-entropy of the scored tokens, summed or averaged.

    Their mean, or their sum over `num_items_in_batch`.

    Args:
        outputs: with `logits` (B, T, C), one row for each label: nothing is shifted.
        labels: (B, T) int64; -100 is not scored.
        num_items_in_batch: scored tokens of the whole batch, of which this may be a part.
    """
    logits = outputs["logits"].float()  # (B, T, C)
    total = cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
    return total / (
        (labels != IGNORED_LABEL).sum() if num_items_in_batch is None else num_items_in_batch
    )


def token_loss_func(label_smoothing_factor: float) -> Callable[..., torch.Tensor] | None:
    """Return `token_loss` for a Trainer's `compute_loss_func`.

    None with smoothed labels, where upstream divides so.
    """
    return None if label_smoothing_factor else token_loss


class InOrderTrainer(EachTokenCounts, Trainer):
    """Trainer that evaluates rows in their order, and counts each token once.

    With `train_sampling_strategy` group_by_length upstream shuffles the evaluation rows as well
    (transformers 5.23, `Trainer._get_eval_sampler`), so that predictions could not be put beside
    the words and texts that they are of.
    """

    def _get_eval_sampler(self, eval_dataset: Any) -> torch.utils.data.Sampler | None:
        """Read rows one after another.

        Several processes share them out and gather them in order by themselves.
        """
        return (
            torch.utils.data.SequentialSampler(eval_dataset) if self.args.world_size <= 1 else None
        )
