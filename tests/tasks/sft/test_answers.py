"""Answers from token ids, and a loss in which every token counts once."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hfstack.errors import DataError
from hfstack.tasks.causal_lm.generate import generate_from_ids
from hfstack.tasks.sft.answers import answer_loss, answer_pairs, score_answers
from hfstack.tokens.special_tokens import IGNORED_LABEL


@pytest.fixture(scope="module")
def loaded(tiny_llama: Path) -> tuple[Any, Any]:
    return AutoModelForCausalLM.from_pretrained(tiny_llama).eval(), AutoTokenizer.from_pretrained(
        tiny_llama
    )


def test_answers_do_not_depend_on_the_batch(loaded) -> None:
    model, tokenizer = loaded
    prompts = [[20, 21, 22, 23, 24], [40], [30, 31]]
    together = generate_from_ids(model, tokenizer, prompts, max_new_tokens=6)
    alone = [
        generate_from_ids(model, tokenizer, [prompt], max_new_tokens=6)[0] for prompt in prompts
    ]
    assert together == alone and all(one.tokens == 6 and not one.finished for one in together)
    ids, text = torch.tensor([prompts[0]]), ""
    for _ in range(6):
        ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], dim=1)
    text = tokenizer.decode(ids[0, 5:], skip_special_tokens=True)
    assert together[0].completion == text
    assert (
        answer_pairs(model, tokenizer=tokenizer, prompts=prompts[:1], max_new_tokens=6)[0][1]
        == text
    )


def test_every_token_counts_once(loaded) -> None:
    model, tokenizer = loaded
    rows = [
        {
            "input_ids": [20, 21, 22, 23, 24, 25],
            "labels": [IGNORED_LABEL, IGNORED_LABEL, 22, 23, 24, 25],
        },
        {"input_ids": [30, 31, 32], "labels": [IGNORED_LABEL, IGNORED_LABEL, 32]},
    ]
    found = answer_loss(model, tokenizer, rows)
    total = 0.0
    for row in rows:
        scores = model(torch.tensor([row["input_ids"]])).logits[0, :-1].log_softmax(-1)
        total -= sum(
            scores[i, label].item()
            for i, label in enumerate(row["labels"][1:])
            if label != IGNORED_LABEL
        )
    assert found["held_out_tokens"] == 5
    assert found["held_out_loss"] == pytest.approx(total / 5, rel=1e-5)
    assert found["held_out_perplexity"] == pytest.approx(math.exp(total / 5), rel=1e-5)
    assert answer_loss(model, tokenizer, rows, batch_size=1)["held_out_loss"] == pytest.approx(
        total / 5, rel=1e-5
    )


def test_answers_are_scored_and_saved(loaded, tmp_path: Path) -> None:
    model, tokenizer = loaded
    own = generate_from_ids(model, tokenizer, [[20, 21]], max_new_tokens=8)[0].completion
    asked = [([20, 21], own), ([40], "the fox")]
    metrics = score_answers(
        model, tokenizer, asked, max_new_tokens=8, file=tmp_path / "answers.jsonl"
    )
    rows = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert [row["reference"] for row in rows] == [own, "the fox"] and rows[0]["answer"] == own
    assert (
        metrics["answer_rows"] == 2
        and metrics["mean_answer_tokens"] == 8
        and metrics["finished_share"] == 0
    )
    assert set(metrics) >= {"bleu", "chrf", "rouge1", "rouge2", "rougeL", "rougeLsum"}
    for nothing in ([], [([20], None)]):
        with pytest.raises(DataError, match="--answer_rows needs held-out rows"):
            score_answers(model, tokenizer, nothing, max_new_tokens=2)
