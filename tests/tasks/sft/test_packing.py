"""Documents are packed whole, and packed documents do not read each other."""

from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, PreTrainedModel

from hfstack.errors import ConfigError
from hfstack.tasks.sft.packing import PackedCollator, pack_documents
from hfstack.tokens.special_tokens import IGNORED_LABEL
from tests.packed_rows import FIRST, SECOND, packed_row


@pytest.fixture(params=["sdpa", "eager"])
def model(request: pytest.FixtureRequest, tiny_llama: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(
        tiny_llama, attn_implementation=request.param
    ).eval()


def test_packing_keeps_documents_whole() -> None:
    rows = Dataset.from_list([{"input_ids": [n] * n, "labels": [n] * n} for n in (3, 5, 2, 6, 4)])
    packed = pack_documents(rows, max_length=8, strategy="bfd")
    assert sorted(map(sorted, packed["seq_lengths"])) == [[2, 6], [3, 5], [4]]
    for row in packed:
        assert row["input_ids"] == [length for length in row["seq_lengths"] for _ in range(length)]
    with pytest.raises(ConfigError, match="wrapped lets packed documents read each other"):
        pack_documents(rows, max_length=8, strategy="wrapped")


def test_collator_restarts_positions_and_gives_no_mask() -> None:
    batch = PackedCollator(pad_id=9)([packed_row(FIRST, SECOND), packed_row(SECOND)])
    # an attention mask of ones would undo the isolation
    assert set(batch) == {"input_ids", "labels", "position_ids"}
    assert batch["position_ids"].tolist() == [
        [0, 1, 2, 3, 4, 5, 0, 1, 2, 3],
        [0, 1, 2, 3, 0, 1, 2, 3, 4, 5],
    ]
    assert batch["input_ids"][1].tolist() == SECOND + [9] * 6
    off = IGNORED_LABEL
    assert batch["labels"].tolist() == [
        [off, *FIRST[1:], off, *SECOND[1:]],
        [off, *SECOND[1:], *[off] * 6],
    ]


def test_documents_do_not_leak(model: PreTrainedModel) -> None:
    """The second document's logits and gradients are the same whatever stands before it, in a batch
    with other rows.
    """
    collator = PackedCollator(pad_id=1)
    inputs = [
        collator([packed_row(first, SECOND), packed_row(FIRST)]) for first in (FIRST, FIRST[::-1])
    ]
    logits = [
        model(
            input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False
        ).logits[0, 6:]
        for batch in inputs
    ]
    alone = model(input_ids=torch.tensor([SECOND])).logits[0]
    assert torch.allclose(logits[0], logits[1], atol=1e-6) and torch.allclose(
        logits[0], alone, atol=1e-5
    )
    embedded = model.get_input_embeddings()(inputs[0]["input_ids"]).detach().requires_grad_()
    found = model(
        inputs_embeds=embedded, position_ids=inputs[0]["position_ids"], use_cache=False
    ).logits[0, 6:]
    found.sum().backward()
    assert embedded.grad is not None
    assert (
        embedded.grad[0, :6].abs().max() == 0
        and embedded.grad[0, 6:].abs().min(dim=0).values.max() > 0
    )
