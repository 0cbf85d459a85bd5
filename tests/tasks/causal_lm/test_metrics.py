"""Strided scores count every token once, never look into another document, and give the right
numbers.
"""

import math
import warnings
from pathlib import Path

import evaluate
import pytest
import torch
from transformers import AutoModelForCausalLM

from hfstack.errors import DataError
from hfstack.tasks.causal_lm.document_scores import (
    DocumentScore,
    bootstrap_interval,
    derived_metrics,
    score_documents,
    split_into_windows,
)
from hfstack.tasks.causal_lm.metrics import (
    BitsPerByte,
    Perplexity,
    TokenAccuracy,
    compute_metrics,
)
from tests.conftest import SENTENCES


@pytest.fixture(scope="module")
def model(tiny_llama: Path):
    return AutoModelForCausalLM.from_pretrained(tiny_llama).eval()


def reference(model, tokenizer, text: str) -> float:
    """The summed loss of one text after eos, in one forward pass."""
    ids = torch.tensor([[tokenizer.eos_token_id, *tokenizer(text)["input_ids"]]])
    with torch.no_grad():
        logits = model(ids).logits[0, :-1].double()
    return torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum").item()


@pytest.mark.parametrize(
    ("length", "max_length", "stride"), [(1, 8, 4), (2, 8, 4), (9, 8, 4), (40, 8, 3), (8, 8, 7)]
)
def test_windows_score_each_token_once_with_enough_context(
    length: int, max_length: int, stride: int
) -> None:
    ids = list(range(length))
    scored: list[int] = []
    for window in split_into_windows(0, ids, max_length, stride):
        assert len(window.token_ids) <= max_length
        scored += window.token_ids[-window.scored :]
        if scored[0] != window.token_ids[-window.scored]:  # every window but the first
            assert (
                len(window.token_ids) - window.scored >= max_length - stride
                or window.token_ids[0] == 0
            )
    assert scored == ids[1:]


def test_whole_documents_equal_one_forward_pass(model, tiny_tokenizer) -> None:
    scores = score_documents(
        model, tiny_tokenizer, SENTENCES, max_length=128, stride=64, batch_size=3
    )
    for text, score in zip(SENTENCES, scores, strict=True):
        assert score.nll == pytest.approx(reference(model, tiny_tokenizer, text), rel=1e-5)
        assert score.tokens == len(tiny_tokenizer(text)["input_ids"])
        assert score.utf8_bytes == len(text.encode())


def test_documents_do_not_see_each_other(model, tiny_tokenizer) -> None:
    settings = {"max_length": 16, "stride": 8, "batch_size": 4}
    alone = score_documents(model, tiny_tokenizer, [SENTENCES[1]], **settings)[0]
    among = score_documents(model, tiny_tokenizer, SENTENCES, **settings)[1]
    assert among.nll == pytest.approx(alone.nll, rel=1e-5)
    joined = score_documents(model, tiny_tokenizer, SENTENCES, across_documents=True, **settings)
    assert len(joined) == 1
    assert (
        joined[0].tokens
        == sum(len(tiny_tokenizer(t)["input_ids"]) for t in SENTENCES) + len(SENTENCES) - 1
    )


def test_chinese_bytes_are_utf8_bytes(model, tiny_tokenizer) -> None:
    score = score_documents(model, tiny_tokenizer, ["春眠不觉晓"], max_length=64, stride=32)[0]
    assert score.utf8_bytes == 15


def test_nothing_to_score(model, tiny_tokenizer) -> None:
    with pytest.raises(DataError, match="none of the documents"):
        score_documents(model, tiny_tokenizer, [""], max_length=8, stride=4)
    scores = score_documents(model, tiny_tokenizer, ["", "a"], max_length=8, stride=4)
    assert len(scores) == 1


def test_hand_worked_metrics() -> None:
    scores = [DocumentScore(nll=2 * math.log(2), tokens=2, utf8_bytes=4, correct=1)] * 2
    assert compute_metrics(scores) == pytest.approx(
        {"eval_loss": math.log(2), "perplexity": 2.0, "bits_per_byte": 0.5, "token_accuracy": 0.5}
    )
    assert derived_metrics(math.log(2), tokens_per_byte=0.5) == pytest.approx(
        {"perplexity": 2.0, "bits_per_byte": 0.5}
    )
    assert derived_metrics(1e4, tokens_per_byte=1)["perplexity"] == math.inf


def test_metrics_combine_offline() -> None:
    columns = {"nll": [1.0], "tokens": [2], "utf8_bytes": [3], "correct": [1]}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        together = evaluate.combine([Perplexity(), BitsPerByte(), TokenAccuracy()]).compute(
            **columns
        )
    assert together is not None
    assert together["perplexity"] == pytest.approx(math.exp(0.5))
    assert Perplexity().compute(**columns)["eval_loss"] == 0.5


def test_interval_holds_the_value_and_shrinks() -> None:
    generator = torch.Generator().manual_seed(0)
    nll = (torch.rand(400, generator=generator) + 1).tolist()
    scores = [DocumentScore(value, 1, 4, 0) for value in nll]
    wide, narrow = bootstrap_interval(scores[:20]), bootstrap_interval(scores)
    assert narrow["eval_loss_low"] < compute_metrics(scores)["eval_loss"] < narrow["eval_loss_high"]
    assert (
        narrow["eval_loss_high"] - narrow["eval_loss_low"]
        < wide["eval_loss_high"] - wide["eval_loss_low"]
    )
