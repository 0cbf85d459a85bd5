"""Compute the loss of spans among the tokens that are read, without the padding.

Models of transformers spread the probability of a span's begin and end over the padding too (5.23,
BertForQuestionAnswering), so that a row's loss changes with the rows that it shares a batch with.

Legend: B rows of a batch, T tokens of the longest.
"""

from typing import Any

import torch
from torch.nn.functional import cross_entropy

from hfstack.tasks.shared.token_tasks import InOrderTrainer


def span_loss(outputs: Any, inputs: Any) -> torch.Tensor:
    """Return the mean cross-entropy of begins and ends over the rows of a batch.

    Args:
        outputs: with `start_logits` and `end_logits`, (B, T).
        inputs: with `attention_mask` (B, T), `start_positions` and `end_positions` (B,).
    """
    padding = inputs["attention_mask"] == 0  # (B, T)
    losses = [
        cross_entropy(
            outputs[f"{end}_logits"].float().masked_fill(padding, -torch.inf),
            inputs[f"{end}_positions"],
        )
        for end in ("start", "end")
    ]
    return torch.stack(losses).mean()


class SpanTrainer(InOrderTrainer):
    """Trainer of models that point at a span, by `span_loss`."""

    def compute_loss(
        self,
        model: Any,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Return the loss of a batch, with the outputs where they are asked for."""
        outputs = model(**inputs)
        loss = span_loss(outputs, inputs)
        return (loss, outputs) if return_outputs else loss
