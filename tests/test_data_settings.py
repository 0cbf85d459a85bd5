"""Settings of a YAML file that belong to its own data."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from hfstack.errors import ConfigError
from hfstack.recipe_settings import read_recipe_settings
from hfstack.shipped import RECIPES


def read(recipe: str, *flags: str) -> dict[str, Any]:
    """Return all settings of a shipped recipe as `hfstack run` would read them."""
    settings = read_recipe_settings(RECIPES / f"{recipe}.py", [*flags])
    return {name: value for part in settings for name, value in vars(part).items()}


OWN = ["--datasets", "my.jsonl"]


@pytest.mark.parametrize(
    ("recipe", "flags", "expected"),
    [
        ("tag", OWN, {"eval_datasets": [], "tags_column": None}),
        ("answer", OWN, {"eval_datasets": []}),
        ("classify", OWN, {"task": None, "max_length": None}),
        ("seq2seq", OWN, {"source_prefix": "", "source_column": "source", "eval_fraction": None}),
        ("seq2seq", OWN, {"max_source_length": None, "max_target_length": None}),
        ("seq2seq", ["--target_column", "translation.de"], {"source_prefix": ""}),
        ("preferences", OWN, {"label_noise": 0.0, "conversational": None, "eval_fraction": None}),
        ("explain", OWN, {"texts": []}),
        ("score", ["--task_file", "capitals.yaml"], {"datasets": []}),
        ("score", ["--harness_tasks", "arc_easy"], {"datasets": []}),
        ("safety", ["--harmful_prompts", "mine.txt"], {"harmless_prompts": []}),
        ("safety", ["--training_text", "mine.jsonl"], {"harmful_prompts": []}),
        ("feedback", ["--import_file", "mine.json"], {"stores": []}),
        ("generate", ["--prompts_file", "mine.txt"], {"prompts": []}),
        ("grpo", OWN, {"text_column": "text"}),
        ("grpo", ["--reward_model", "runs/reward"], {"reward_weights": None}),
        ("dpo", OWN, {"on_bad_row": "fail"}),
        ("tokenizer", OWN, {"max_rows": None, "eval_datasets": []}),
        ("evaluate_lm", ["--eval_datasets", "my.jsonl"], {"max_rows": None}),
        ("pretrain_clm", ["--model_name_or_path", "org/model"], {"tokenizer_name_or_path": None}),
    ],
)
def test_what_describes_the_examples_data_does_not_touch_other_data(
    recipe: str,
    flags: list[str],
    expected: dict[str, Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    settings = read(recipe, "--output_dir", "out", *flags)
    assert {name: settings[name] for name in expected} == expected
    for name in expected:
        assert any("left out" in line and name in line for line in caplog.messages)


@pytest.mark.parametrize(
    ("recipe", "flags", "expected"),
    [
        ("seq2seq", [], {"source_prefix": "translate English to French: "}),
        ("preferences", [], {"label_noise": 0.1}),
        # what is given counts
        ("preferences", [*OWN, "--label_noise", "0.2"], {"label_noise": 0.2}),
        ("explain", [*OWN, "--texts", "a film"], {"texts": ["a film"]}),
        # the same data by name
        ("sft", ["--datasets", "trl-lib/Capybara"], {"eval_fraction": 0.02}),
        # an architecture has no tokenizer of its own
        (
            "pretrain_clm",
            ["--model_name_or_path=recipes/architectures/gru-1m.json"],
            {"tokenizer_name_or_path": "runs/tokenizer"},
        ),
    ],
)
def test_what_was_given_or_fits_stays(
    recipe: str, flags: list[str], expected: dict[str, Any]
) -> None:
    settings = read(recipe, "--output_dir", "out", *flags)
    assert {name: settings[name] for name in expected} == expected


def test_answers_are_never_to_the_examples_texts() -> None:
    with pytest.raises(ConfigError, match="1 answers, 0 texts"):
        read("explain", "--output_dir", "out", "--answers", "mine")
    assert read("explain", "--output_dir", "out", "--answers", "a", "--texts", "b")["texts"] == [
        "b"
    ]


def test_every_yaml_with_data_of_its_own_marks_what_belongs_to_it() -> None:
    about_data = {
        "eval_datasets",
        "eval_fraction",
        "source_column",
        "source_prefix",
        "tags_column",
        "target_column",
        "task",
        "text_column",
    }
    for path in sorted(RECIPES.glob("*.yaml")):
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        marked = {name for names in values.get("settings_of", {}).values() for name in names}
        if "datasets" in values and path.stem not in ("clean", "evaluate_lm"):
            assert about_data & set(values) <= marked, path.name


def test_a_copied_yaml_behaves_like_the_shipped_one(tmp_path: Path) -> None:
    copy = tmp_path / "mine.yaml"
    copy.write_text("datasets: [a.jsonl]\nmax_rows: 5\nsettings_of: {datasets: [max_rows]}\n")
    flags = ["--output_dir", "out", "--config", str(copy)]
    assert read("tokenizer", *flags)["max_rows"] == 5
    assert read("tokenizer", *flags, "--datasets", "b.jsonl")["max_rows"] is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("settings_of: [max_rows]\n", r"mine.yaml:1: settings_of maps an option to the list"),
        ("settings_of: {dataset: []}\n", r"mine.yaml:1: settings_of names 'dataset', which is no"),
        (
            "datasets: [a]\nsettings_of: {datasets: [max_row]}\n",
            r"mine.yaml:2: settings_of names 'max_row', which is no option of this recipe",
        ),
    ],
)
def test_wrong_marks_are_named_with_their_line(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read("tokenizer", "--output_dir", "out", "--config", str(path))
