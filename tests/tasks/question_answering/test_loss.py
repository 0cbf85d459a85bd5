"""The loss of a span is that of its tokens, whatever the batch is padded to."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertForQuestionAnswering, set_seed

from hfstack.tasks.question_answering.data import collate_questions
from hfstack.tasks.question_answering.loss import span_loss


def test_by_hand_padding_gets_no_probability() -> None:
    logits = torch.tensor([[0.0, math.log(3), 50.0]])
    inputs = {
        "attention_mask": torch.tensor([[1, 1, 0]]),
        "start_positions": torch.tensor([1]),
        "end_positions": torch.tensor([0]),
    }
    found: Any = {"start_logits": logits, "end_logits": logits}
    expected = (math.log(4 / 3) + math.log(4)) / 2
    assert span_loss(found, inputs).item() == pytest.approx(expected)


def test_a_row_has_one_loss_in_every_batch() -> None:
    set_seed(0)
    size: Any = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = BertForQuestionAnswering(BertConfig(vocab_size=40, intermediate_size=16, **size)).eval()
    rows = [
        {"input_ids": list(range(2, length)), "start_positions": 1, "end_positions": 2}
        for length in (6, 12, 30)
    ]

    def loss(batch: list[Any]) -> tuple[float, float]:
        inputs = collate_questions(batch, pad_token_id=0)
        with torch.no_grad():
            outputs = model(**inputs)
        read: Any = SimpleNamespace(**outputs)
        return span_loss(outputs, inputs).item(), read.loss.item()

    alone, upstream = zip(*(loss([row]) for row in rows), strict=True)
    together, upstream_together = loss(rows)
    assert together == pytest.approx(sum(alone) / 3, abs=1e-6)
    assert abs(upstream_together - sum(upstream) / 3) > 0.01  # why it is ours
