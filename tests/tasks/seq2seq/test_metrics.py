"""Naive texts, decoding, and how scores are recorded in run.json."""

import json
from pathlib import Path

import numpy
import pytest
from datasets import Dataset
from transformers import TrainingArguments

from hfstack.runs.run import Run
from hfstack.tasks.seq2seq.data import EncodedPairs, Pair
from hfstack.tasks.seq2seq.metrics import (
    decode_texts,
    first_sentence,
    naive_texts,
    overlap_metrics,
    record_text_scores,
)


def test_naive_texts() -> None:
    assert first_sentence("It is 3.5 m long. It is red! Is it?") == "It is 3.5 m long."
    assert (
        first_sentence("它很红。它很长。") == "它很红。"
        and first_sentence(" no mark ") == "no mark"
    )
    pairs = [Pair("One. Two.", ["one"]), Pair("Three", ["three"])]
    assert naive_texts(pairs) == {"copy": ["One. Two.", "Three"], "lead": ["One.", "Three"]}
    assert naive_texts(pairs[1:]) == {"copy": ["Three"]}


def test_padding_and_special_tokens_are_no_text(tiny_tokenizer) -> None:
    ids = [
        *tiny_tokenizer(" the fox")["input_ids"],
        tiny_tokenizer.eos_token_id,
        tiny_tokenizer.pad_token_id,
        -100,
    ]
    assert decode_texts(numpy.array([ids]), tiny_tokenizer) == ["the fox"]


def test_the_best_of_several_targets_counts() -> None:
    pairs = [Pair("s", ["the small fox ran home", "an owl was kind to us"])]
    assert overlap_metrics(["an owl was kind to us"], pairs)["rougeL"] == 1
    assert overlap_metrics(["an owl was kind to us"], pairs)["bleu"] == pytest.approx(100)


def test_results_are_in_the_order_of_the_rows(tmp_path: Path) -> None:
    pairs = [
        Pair("a b. c", ["x y"]),
        Pair("the fox. The owl", ["the fox", "a fox"]),
        Pair("z", ["z"]),
    ]
    order = [1, 0, 2]
    held = EncodedPairs(
        Dataset.from_dict({"input_ids": [[1]] * 3}), [pairs[place] for place in order], order
    )
    settings = TrainingArguments(str(tmp_path / "out"), use_cpu=True, report_to="none")
    with Run.start(str(tmp_path / "made_up.py"), tmp_path / "out", settings) as run:
        metrics = record_text_scores(run, ["the fox", "x", "z"], held)
        tables = run.record.tables
    rows = [
        json.loads(line)
        for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()
    ]
    assert [(row["source"], row["text"]) for row in rows] == [
        ("a b. c", "x"),
        (pairs[1].source, "the fox"),
        ("z", "z"),
    ]
    assert tables["samples"]["rows"][1] == [pairs[1].source, "the fox", "the fox"]
    assert tables["scores"]["columns"] == ["score", "model", "copy", "lead", "signature"]
    assert metrics["eval_rows"] == 3 and metrics["eval_length_ratio"] == pytest.approx(
        (1 + 7 + 1) / (3 + 7 + 1)
    )
    assert metrics["baseline_lead_rouge1"] == pytest.approx((0 + 1 + 1) / 3)
    assert metrics["eval_bleu_low"] <= metrics["eval_bleu"] <= metrics["eval_bleu_high"]
