"""The win-rate recipe on tiny models: a model against itself, by function and by reward model."""

import json
from pathlib import Path

import pytest
from transformers import LlamaConfig, LlamaForSequenceClassification

from hfstack.errors import CheckpointError, ConfigError, DataError
from hfstack.runs.record import read_run

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def compare(run_recipe, tiny_llama: Path, tmp_path: Path):
    """Call the recipe from its YAML with a tiny model on both sides; keyword arguments override."""
    data = tmp_path / "prompts.jsonl"
    data.write_text(
        "".join(json.dumps({"prompt": f"Tell of fox {number}."}) + "\n" for number in range(12))
    )

    def call(**changes: object) -> dict[str, float]:
        settings = {
            "config": ROOT / "recipes" / "win_rate.yaml",
            "model_name_or_path": tiny_llama,
            "as_chat": "false",
            "reference_model": tiny_llama,
            "datasets": data,
            "eval_fraction": 0,
            "max_new_tokens": 8,
            "output_dir": tmp_path / "out",
        } | changes
        return run_recipe(
            "win_rate", *(flag for key, value in settings.items() for flag in (f"--{key}", value))
        )

    return call


def test_a_model_ties_with_itself(compare, tmp_path: Path) -> None:
    metrics = compare()
    assert metrics["win_rate"] == 0.5 and metrics["ties"] == metrics["prompts"] == 12
    assert metrics["win_rate_low"] < 0.5 < metrics["win_rate_high"]
    assert metrics["win_rate_length_controlled"] == 0.5
    for name in ("answer_characters", "answer_tokens", "ended_share", "distinct_1", "distinct_2"):
        assert metrics[name] == metrics[f"reference_{name}"], "both answer from the same seed"
    assert (
        metrics["perplexity_under_reference"] == metrics["reference_perplexity_under_reference"] > 1
    )
    rows = [
        json.loads(line) for line in (tmp_path / "out" / "answers.jsonl").read_text().splitlines()
    ]
    assert len(rows) == 12 and rows[0].keys() == {"prompt", "answer", "reference_answer", "share"}
    record = read_run(tmp_path / "out")
    assert record.status == "finished" and record.data[0]["role"] == "prompts"
    assert "wins 50.0 % [25.4, 74.6] of 12 prompts" in (tmp_path / "out" / "run.log").read_text()


def test_held_out_prompts_are_those_of_training(compare, caplog) -> None:
    assert compare(eval_fraction=0.25)["prompts"] == 3
    assert "contamination" not in caplog.text, "nothing is trained on"


def test_a_reward_model_judges(compare, tiny_tokenizer, tmp_path: Path) -> None:
    folder = tmp_path / "reward"
    config = LlamaConfig(
        vocab_size=len(tiny_tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=128,
        pad_token_id=tiny_tokenizer.pad_token_id,
    )
    config.num_labels = 1
    LlamaForSequenceClassification(config).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    assert compare(reward_model=folder)["ties"] == 12


def test_mistakes_end_in_one_line(compare, tiny_llama: Path, tmp_path: Path, run_recipe) -> None:
    with pytest.raises(ConfigError, match="--reference_model is required"):
        run_recipe(
            "win_rate", "--model_name_or_path", tiny_llama, "--output_dir", tmp_path / "none"
        )
    with pytest.raises(CheckpointError, match="but a reward model is needed here"):
        compare(reward_model=tiny_llama, output_dir=tmp_path / "judge")
    texts = tmp_path / "texts.jsonl"
    texts.write_text('{"text": "no prompt"}\n')
    with pytest.raises(DataError, match="win_rate needs the columns prompt; found: text"):
        compare(datasets=texts, output_dir=tmp_path / "data")
