"""Evaluation of a model through the recipe."""

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer, XLNetConfig, XLNetLMHeadModel

from hfstack.data.packing.blocks import pack
from hfstack.errors import ConfigError, DataError
from hfstack.runs.record import read_run
from tests.conftest import SENTENCES


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in SENTENCES))
    return path


def test_measures_and_records(run_recipe, tiny_llama: Path, rows: Path, tmp_path: Path) -> None:
    metrics = run_recipe(
        "evaluate_lm",
        "--model_name_or_path",
        tiny_llama,
        "--eval_datasets",
        rows,
        "--output_dir",
        tmp_path / "out",
    )
    assert metrics["eval_loss"] == pytest.approx(5.7, abs=0.3)  # untrained: about ln 300
    assert metrics["eval_loss_low"] <= metrics["eval_loss"] <= metrics["eval_loss_high"]
    assert metrics["bits_per_byte_low"] <= metrics["bits_per_byte"] <= metrics["bits_per_byte_high"]
    assert metrics["documents"] == 4
    record = read_run(tmp_path / "out")
    assert record.status == "finished" and record.data[0]["rows"] == 4
    scores = [
        json.loads(line)
        for line in (tmp_path / "out" / record.artifacts["documents"]).read_text().splitlines()
    ]
    assert sum(score["nll"] for score in scores) / metrics["tokens"] == pytest.approx(
        metrics["eval_loss"]
    )
    assert "over 4 documents" in (tmp_path / "out" / "run.log").read_text()


def test_short_windows_and_joined_documents(
    run_recipe, tiny_llama: Path, rows: Path, tmp_path: Path
) -> None:
    common = ["--model_name_or_path", tiny_llama, "--eval_datasets", rows]
    short = run_recipe(
        "evaluate_lm", *common, "--max_length", 8, "--stride", 4, "--output_dir", tmp_path / "a"
    )
    whole = run_recipe("evaluate_lm", *common, "--output_dir", tmp_path / "b")
    joined = run_recipe(
        "evaluate_lm", *common, "--across_documents", "--output_dir", tmp_path / "c"
    )
    assert short["tokens"] == whole["tokens"] < joined["tokens"]
    assert joined["documents"] == 1 and "eval_loss_low" not in joined


@pytest.mark.parametrize(
    ("flags", "error", "message"),
    [
        (
            ["--max_length", 129],
            ConfigError,
            "--max_length 129 is longer than the model's context of 128 tokens",
        ),
        (
            ["--max_length", 8, "--stride", 8],
            ConfigError,
            "--stride 8 must be at least 1 and less than --max_length 8",
        ),
        (["--text_column", "body"], DataError, "body"),
    ],
)
def test_mistakes(
    run_recipe, tiny_llama: Path, rows: Path, tmp_path: Path, flags, error, message: str
) -> None:
    with pytest.raises(error, match=message):
        run_recipe(
            "evaluate_lm",
            "--model_name_or_path",
            tiny_llama,
            "--eval_datasets",
            rows,
            "--output_dir",
            tmp_path / "out",
            *flags,
        )
    assert read_run(tmp_path / "out").status == "failed"


def test_a_model_that_sees_what_it_is_to_predict_is_refused(
    run_recipe, tiny_llama: Path, rows: Path, tmp_path: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    size = len(tokenizer)
    config = XLNetConfig(vocab_size=size, d_model=16, n_layer=1, n_head=2, d_inner=32)
    XLNetLMHeadModel(config).save_pretrained(tmp_path / "both_ways")
    tokenizer.save_pretrained(tmp_path / "both_ways")
    with pytest.raises(
        ConfigError, match="XLNetLMHeadModel reads what follows a position .*copying"
    ):
        run_recipe(
            "evaluate_lm",
            "--model_name_or_path",
            tmp_path / "both_ways",
            "--eval_datasets",
            rows,
            "--output_dir",
            tmp_path / "out",
        )


@pytest.mark.shared
def test_a_pretrained_model_on_real_text(run_recipe, shared_data: Path, tmp_path: Path) -> None:
    metrics = run_recipe(
        "evaluate_lm",
        "--model_name_or_path",
        shared_data / "models/stories260k",
        "--eval_datasets",
        shared_data / "lm/tinystories_lower.jsonl.gz",
        "--max_rows",
        60,
        "--output_dir",
        tmp_path,
    )
    assert metrics["eval_loss"] == pytest.approx(2.224, abs=0.01)  # all 3,836 stories: 2.254


def test_sizes_below_one_are_refused(run_recipe, tiny_llama: Path, rows: Path) -> None:
    for option in ("--batch_size", "--stride", "--max_length", "--max_rows"):
        with pytest.raises(ConfigError, match=f"{option} must be at least 1, got 0"):
            run_recipe(
                "evaluate_lm",
                "--model_name_or_path",
                tiny_llama,
                "--eval_datasets",
                rows,
                option,
                0,
            )


def test_rows_are_looked_for_in_training_text(
    run_recipe, tiny_llama: Path, rows: Path, tmp_path: Path
) -> None:
    """Two of four rows are planted, one whole and one with its beginning; a packed cache too."""
    train = tmp_path / "train.txt"
    begins = " ".join(SENTENCES[0].split()[:13])
    train.write_text(f"Before. {SENTENCES[1].upper()} Behind.\n\n{begins} hill.\n")
    common = ["--model_name_or_path", tiny_llama, "--eval_datasets", rows, "--training_text"]
    run_recipe("evaluate_lm", *common, train, "--output_dir", tmp_path / "files")
    record = read_run(tmp_path / "files")
    found = record.rows.contamination
    assert (found["overlapping"], found["whole"], found["eval_rows"]) == (2, 1, 4)
    assert [entry["path"] for entry in record.data if entry["role"] == "text"] == [str(train)]

    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    settings = {"cache_dir": tmp_path, "data_hash": "x", "drop_last": False}
    packed = pack([SENTENCES[2]], tokenizer, block_size=16, **settings).folder
    run_recipe("evaluate_lm", *common, packed, "--output_dir", tmp_path / "packed")
    assert read_run(tmp_path / "packed").rows.contamination["whole"] == 1

    with pytest.raises(DataError, match="--training_text runs: the runs behind"):
        run_recipe("evaluate_lm", *common, "runs", "--output_dir", tmp_path / "none")
