"""Pseudo-perplexity and masked accuracy, against numbers taken by hand from the logits."""

import math

import numpy as np
import pytest
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer, EvalPrediction

from hfstack.errors import DataError
from hfstack.tasks.masked_lm.masking import MaskedBlocks
from hfstack.tasks.masked_lm.metrics import (
    MaskedAccuracy,
    baseline_metrics,
    masked_metrics,
    pseudo_log_likelihoods,
    pseudo_perplexity,
)
from tests.conftest import SENTENCES
from tests.tiny_encoder import save_tiny_bert


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory):
    folder = save_tiny_bert(tmp_path_factory.mktemp("bert"))
    return AutoModelForMaskedLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(
        folder
    )


def test_each_token_is_masked_in_turn(bert) -> None:
    model, tokenizer = bert
    text = "The owl was kind."
    ids = tokenizer(text, return_tensors="pt")["input_ids"][0]
    expected, right = 0.0, 0
    for place in range(1, len(ids) - 1):
        masked = ids.clone()
        masked[place] = tokenizer.mask_token_id
        with torch.no_grad():
            row = model(masked[None]).logits[0, place].log_softmax(-1)
        expected -= row[ids[place]].item()
        right += int(row.argmax() == ids[place])
    for batch_size in (1, 4, 32):
        (score,) = pseudo_log_likelihoods(
            model, tokenizer, [text], max_length=64, batch_size=batch_size
        )
        assert score.nll == pytest.approx(expected, rel=1e-5)
        assert (score.tokens, score.correct, score.utf8_bytes) == (len(ids) - 2, right, len(text))
    assert pseudo_perplexity([score]) == pytest.approx(
        math.exp(expected / (len(ids) - 2)), rel=1e-5
    )


def test_long_texts_are_truncated_and_empty_ones_left_out(bert) -> None:
    model, tokenizer = bert
    scores = pseudo_log_likelihoods(model, tokenizer, ["", " ".join(SENTENCES)], max_length=12)
    assert [score.tokens for score in scores] == [10]
    assert " ".join(SENTENCES)[: scores[0].utf8_bytes] == "Once upon a time a small fox found a red"
    with pytest.raises(DataError, match="none of the 1 texts"):
        pseudo_log_likelihoods(model, tokenizer, [""], max_length=12)


def test_masked_accuracy_and_perplexity_by_hand() -> None:
    counts = np.array([[2.0, 1, 4], [4.0, 2, 2]])
    found = masked_metrics(EvalPrediction(predictions=counts, label_ids=None))
    assert found == pytest.approx({"masked_accuracy": 0.5, "masked_perplexity": math.e})
    assert MaskedAccuracy().compute(correct=[0], tokens=[0]) == {"masked_accuracy": 0.0}


def test_the_guess_that_reads_nothing_by_hand(bert) -> None:
    _, tokenizer = bert
    size, (often, seldom, never) = max(tokenizer.get_vocab().values()) + 1, (50, 51, 52)
    settings: dict = {"tokenizer": tokenizer, "probability": 0.99, "seed": 0}
    train = MaskedBlocks(
        np.array([[often] * 6 + [seldom] * 3 + [tokenizer.sep_token_id]]), **settings
    )
    counts = train.token_counts(9)
    assert (counts[often], counts[seldom], counts.sum()) == (6, 3, 9), (
        "the end of a document is no token to guess"
    )
    held = MaskedBlocks(np.array([[often, seldom, never, often] * 25]), **settings, fixed=True)
    labels, visible = held[0]["labels"], held[0]["input_ids"]
    frequency = {often: 7 / (9 + size), seldom: 4 / (9 + size), never: 1 / (9 + size)}
    right, nats, kinds = 0, 0.0, set()
    for label, seen in zip(labels.tolist(), visible.tolist(), strict=True):
        if label < 0:
            continue
        if seen == tokenizer.mask_token_id:
            kinds.add("masked")
            right += label == often
            nats -= math.log(frequency[label])
        elif seen == label:
            kinds.add("kept")
            right += 1
            nats -= math.log(0.5 + frequency[label] / 2)
        else:
            kinds.add("another")
            nats -= math.log(frequency[label] / 2)
    count = int((labels >= 0).sum())
    found = baseline_metrics(train, held)
    assert kinds == {"masked", "kept", "another"} and count > 90
    assert found["baseline_masked_accuracy"] == pytest.approx(right / count)
    assert found["baseline_masked_perplexity"] == pytest.approx(math.exp(nats / count))
