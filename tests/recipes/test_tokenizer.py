"""The tokenizer recipe, called in-process."""

import json

import pytest
from transformers import AutoTokenizer

from hfstack.errors import ConfigError, DataError
from hfstack.runs.record import read_run

STORIES = [
    f"{who} {did} a {what} on day {day}."
    for who in ("The fox", "An owl", "The cat")
    for did in ("found", "lost", "painted")
    for what in ("ball", "boat", "leaf")
    for day in range(8)
]


@pytest.fixture
def stories(tmp_path):
    path = tmp_path / "stories.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in STORIES))
    return path


@pytest.mark.parametrize(("kind", "size"), [("bpe", 300), ("unigram", 80), ("wordpiece", 80)])
def test_it_trains_measures_and_saves(run_recipe, stories, tmp_path, kind, size):
    out = tmp_path / "out"
    options = [
        "--kind",
        kind,
        "--vocab_size",
        size,
        "--eval_fraction",
        0.2,
        "--model_max_length",
        32,
    ]
    metrics = run_recipe("tokenizer", "--datasets", stories, "--output_dir", out, *options)
    run = read_run(out)
    assert run.status == "finished"
    assert run.metrics == metrics
    assert metrics["vocab_size"] == len(AutoTokenizer.from_pretrained(out)) <= size
    assert AutoTokenizer.from_pretrained(out).model_max_length == 32
    assert 0 < metrics["document_count"] < len(STORIES) / 2
    assert metrics["bytes_per_token"] > 1
    assert metrics["unknown_rate"] == 0
    assert kind == "wordpiece" or metrics["round_trip_rate"] == 1
    token, count = run.tables["most_frequent_tokens"]["rows"][0]
    assert token.startswith("'")
    assert count >= metrics["document_count"]
    lengths = [length for _, length in run.tables["longest_tokens"]["rows"]]
    assert lengths == sorted(lengths, reverse=True)
    assert [(entry["role"], entry["rows"]) for entry in run.data] == [("train", len(STORIES))]


def test_held_out_text_is_not_trained_on_and_eval_datasets_replace_it(
    run_recipe, stories, tmp_path
):
    odd = tmp_path / "odd.jsonl"
    odd.write_text(json.dumps({"story": "狐狸 fox"}) + "\n")
    renamed = tmp_path / "renamed.jsonl"
    renamed.write_text(stories.read_text().replace('"text"', '"story"'))
    metrics = run_recipe(
        *("tokenizer", "--datasets", renamed, "--eval_datasets", odd, "--text_column", "story"),
        *("--kind", "wordpiece", "--vocab_size", 80, "--output_dir", tmp_path / "out"),
    )
    assert metrics["document_count"] == 1
    assert metrics["unknown_rate"] == pytest.approx(2 / 3)  # the two Chinese characters, and "fox"
    assert {entry["role"] for entry in read_run(tmp_path / "out").data} == {"train", "eval"}


def test_without_held_out_text_there_is_only_the_size(run_recipe, stories, tmp_path):
    metrics = run_recipe(
        "tokenizer",
        "--datasets",
        stories,
        "--eval_fraction",
        0,
        "--vocab_size",
        290,
        "--output_dir",
        tmp_path / "out",
    )
    assert metrics == {"vocab_size": 290}


@pytest.mark.parametrize(
    ("options", "error", "problem"),
    [
        (["--text_column", "story"], DataError, "story"),
        (["--vocab_size", 100], ConfigError, "vocab_size is 100: bpe needs at least 262"),
        (["--kind", "bert"], ConfigError, "kind"),
        (["--eval_fraction", 0.000001], DataError, "no held-out text in 0 documents"),
    ],
)
def test_mistakes_end_in_one_line_and_a_failed_run(
    run_recipe, stories, tmp_path, options, error, problem
):
    defaults = ["--datasets", stories, "--vocab_size", 290, "--output_dir", tmp_path / "out"]
    with pytest.raises(error, match=problem):
        run_recipe("tokenizer", *defaults, *options)
    if (tmp_path / "out" / "run.json").exists():  # a wrong flag stops before there is a run
        assert read_run(tmp_path / "out").status == "failed"


def test_a_number_where_text_should_be_is_refused(run_recipe, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": null}\n{"text": "two"}\n')
    with pytest.raises(DataError, match="text"):
        run_recipe(
            "tokenizer", "--datasets", path, "--vocab_size", 290, "--output_dir", tmp_path / "out"
        )
    with pytest.raises(ConfigError, match="datasets: name at least one"):
        run_recipe("tokenizer", "--output_dir", tmp_path / "other")
