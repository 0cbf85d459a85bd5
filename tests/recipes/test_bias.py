"""The recipe bias: numbers of both kinds of model, what is recorded, and the card that reads it."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from hfstack.errors import CheckpointError, ConfigError
from hfstack.publishing.card.author import AuthorFacts
from hfstack.publishing.card.render import render_card
from hfstack.publishing.files import detect_kind
from hfstack.publishing.lineage import follow_chain
from hfstack.reporting.page import render_page
from hfstack.reporting.runs import load_runs
from hfstack.runs.record import read_run
from hfstack.runs.run import Run
from tests.tiny_encoder import save_tiny_bert


@pytest.fixture
def pairs_file(tmp_path: Path) -> Path:
    rows = [
        {"worse": f"The {one} was low.", "better": f"The {other} was low.", "topic": one}
        for one, other in (("fox", "owl"), ("rabbit", "sun"), ("hill", "forest"))
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_pairs_of_ones_own_are_measured_recorded_and_on_the_card(
    run_recipe, tiny_llama: Path, pairs_file: Path, tmp_path: Path, capsys
) -> None:
    folder = tmp_path / "runs"
    with Run.start("recipes/sft.py", folder / "sft") as made:
        (folder / "sft" / "config.json").write_bytes((tiny_llama / "config.json").read_bytes())
        made.finish({"eval_loss": 2.0})
    for name in ("model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        (folder / "sft" / name).write_bytes((tiny_llama / name).read_bytes())

    def card() -> str:
        chain = follow_chain(folder / "sft")
        kind = detect_kind(folder / "sft", chain.last.record.artifacts)
        made = datetime(2026, 1, 2, tzinfo=UTC)
        return render_card(chain, kind, AuthorFacts(), repo="a/b", made=made)

    assert "Bias was not measured." in card()
    metrics = run_recipe(
        "bias",
        *("--model_name_or_path", folder / "sft", "--datasets", pairs_file),
        *("--pair_columns", "worse", "better", "--category_column", "topic"),
        *("--output_dir", folder / "bias"),
    )
    assert metrics["pairs_sentence_pairs"] == 3 and "pairs_sentence_share_low" in metrics
    record = read_run(folder / "bias")
    assert record.parents[0] == "../sft" and len(record.tables["pairs_sentence"]["rows"]) == 3
    lines = (folder / "bias" / record.artifacts["scores"]).read_text().splitlines()
    preferred = [one["scores"][0] > one["scores"][1] for one in map(json.loads, lines)]
    assert metrics["pairs_sentence_share"] == pytest.approx(sum(preferred) / 3)
    said = capsys.readouterr()
    assert "pairs_sentence_share: " in said.out and "too few rows to say much" in said.err

    page = render_page(load_runs([str(folder / "bias")]), title="x", made=datetime.now(UTC))
    assert "<h4>Pairs sentence</h4>" in page and "Shorter share" in page

    text = card()
    assert "Pairs sentence share (`pairs_sentence_share`)" in text.split("### Bias")[1]
    assert "Blodgett et al. 2021" in text and "Bias was not measured." not in text


def test_a_masked_model_and_what_is_refused(run_recipe, pairs_file: Path, tmp_path: Path) -> None:
    folder = save_tiny_bert(tmp_path / "bert")
    flags = ["--model_name_or_path", folder, "--datasets", pairs_file]
    columns = ["--pair_columns", "worse", "better"]
    metrics = run_recipe(
        "bias", *flags, *columns, "--max_rows", 2, "--output_dir", tmp_path / "masked"
    )
    assert metrics["pairs_pairs"] == 2 and not any("sentence" in name for name in metrics)

    with pytest.raises(ConfigError, match="--pair_columns takes two columns"):
        run_recipe("bias", *flags, "--pair_columns", "worse")
    config = json.loads((folder / "config.json").read_text())
    config["architectures"] = ["BertForTokenClassification"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="a causal language model is needed here"):
        run_recipe("bias", *flags, *columns, "--output_dir", tmp_path / "tagger")


@pytest.mark.slow
def test_real_sets_through_a_pretrained_model(
    run_recipe, shared_data: Path, tmp_path: Path
) -> None:
    names = ("crows_pairs", "winobias", "winogender", "winogender_occupation_stats", "bbq_6cats")
    files = [shared_data / "bias" / f"{name}.jsonl.gz" for name in names]
    metrics = run_recipe(
        "bias",
        *("--model_name_or_path", shared_data / "models" / "stories260k"),
        *("--datasets", *files, "--max_rows", 40, "--max_new_tokens", 6),
        *("--output_dir", tmp_path / "out"),
    )
    for name in ("crows_pairs_sentence_share", "winobias_sentence_share", "winogender_correlation"):
        name = name.replace("winogender_c", "winogender_sentence_c")
        assert metrics[f"{name}_low"] <= metrics[name] <= metrics[f"{name}_high"]
    assert metrics["bbq_questions"] == 40 and metrics["bbq_without_target"] == 0
    assert metrics["winobias_generated_neither_share"] < 1
    tables = read_run(tmp_path / "out").tables
    assert len(tables["bbq"]["rows"]) >= 6 and "kind" in tables["bbq"]["columns"]
