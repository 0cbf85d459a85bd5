"""The feedback recipe: simulated judgements become rows, tables and other tools' JSON."""

import json
from pathlib import Path

import pytest

from hfstack.demo.answers import answers
from hfstack.errors import ConfigError, DataError
from hfstack.runs.record import read_run
from hfstack.tasks.preferences.data import to_pairs
from tests.feedback.feedback_project import judge_items


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project that two simulated people have judged."""
    import sys

    from hfstack.config import parse
    from hfstack.recipe_settings import load_recipe, settings_classes

    folder = tmp_path_factory.mktemp("judged")
    data = folder / "answers.jsonl"
    with data.open("w", encoding="utf-8") as file:
        for index in range(14):
            row, different = answers(3, index, count=2)
            file.write(json.dumps({"prompt": row["prompt"], "completions": different}) + "\n")
    recipe = Path(__file__).parent.parent.parent / "recipes" / "annotate.py"
    flags = f"--datasets {data} --annotators ann ben --overlap 2 --simulate true --port 0 "
    flags += f"--output_dir {folder / 'run'} --annotator_noise 0.2"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(recipe)])
        module = load_recipe(recipe)
        module.main(*parse(*settings_classes(module), argv=flags.split()))
    return folder / "run"


def test_judgements_become_pairs_with_agreement_and_tables(
    run_recipe, judged: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    metrics = run_recipe(
        *("feedback", "--stores", judged, "--formats", "label_studio", "argilla"),
        *("--leave_one_out", "true", "--model_name_or_path", tiny_llama),
        *("--output_dir", tmp_path / "out"),
    )
    assert metrics["items"] == 14 and metrics["judgements"] == 28 and metrics["annotators"] == 2
    left_out = metrics["left_out_ties"] + metrics["left_out_conflicts"]
    assert metrics["kept"] == 14 - left_out
    assert metrics["alpha_nominal_low"] <= metrics["alpha_nominal"] <= metrics["agreement"]

    lines = (tmp_path / "out" / "pairs.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert len(to_pairs(rows)) == len(rows) == metrics["kept"]
    record = read_run(tmp_path / "out")
    people = record.tables["annotators"]["rows"]
    assert {row[0] for row in people} == {"A1", "A2"} and all(row[1] == 14 for row in people)
    assert len(record.tables["leave one annotator out"]["rows"]) == 2
    assert any(parent.endswith("run") for parent in record.parents), "the chain goes on"

    # no name is anywhere in what was written
    written = (path.read_text() for path in (tmp_path / "out").iterdir() if path.is_file())
    assert not any('"ann"' in text or '"ben"' in text for text in written)
    again = run_recipe(
        *("feedback", "--import_file", tmp_path / "out" / "argilla.json", "--with_names", "true"),
        *("--output_dir", tmp_path / "again"),
    )
    assert again["kept"] == metrics["kept"] and again["agreement"] == metrics["agreement"]


def test_mistakes_end_in_one_line(run_recipe, tmp_path: Path) -> None:
    def refused(message: str, error: type[Exception], *flags: object) -> None:
        with pytest.raises(error, match=message):
            run_recipe("feedback", *flags, "--output_dir", tmp_path / "refused")

    refused("name --stores, such as runs/annotate", ConfigError)
    refused("none.sqlite: no such store", DataError, "--stores", tmp_path / "none.sqlite")
    refused("--formats are label_studio, argilla", ConfigError, "--stores", "x", "--formats", "csv")
    judge_items(tmp_path / "thumbs", "thumbs", as_turns=False)
    flags = ("--leave_one_out", "true", "--model_name_or_path", "never read")
    refused("these are of thumbs", DataError, "--stores", tmp_path / "thumbs", *flags)
    refused("cannot be read as JSON", DataError, "--import_file", tmp_path / "none.json")
