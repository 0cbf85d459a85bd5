"""A mistake is found before a recipe is started, by the source of its settings alone."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from hfstack.cli.launch import Launch
from hfstack.cli.precheck import check_options, say_finished
from hfstack.disk import describe_file
from hfstack.errors import HfstackError
from hfstack.runs.record import RunRecord

RECIPE = """
from dataclasses import dataclass

@dataclass
class Settings:
    learning_rate: float = 1.0
    max_steps: int = 1
    shuffle: bool = True

def main(settings: Settings) -> dict[str, float]: ...
"""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe that never ran, in the current folder."""
    monkeypatch.chdir(tmp_path)
    file = Path("mine.py")
    file.write_text(RECIPE)
    return file


def refusal(call: Callable[[], Any]) -> str:
    with pytest.raises(HfstackError) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        ("--learning_rat 1", "unknown option '--learning_rat'; did you mean '--learning_rate'?"),
        ("--lr 1", "unknown option '--lr'; did you mean '--learning_rate'?"),
        ("--no_max_steps", "unknown option '--no_max_steps'"),
        ("--max_steps ten", "--max_steps: invalid int value: 'ten'"),
        ("--learning-rate=x", "--learning_rate: invalid float value: 'x'"),
        ("--learning_rate -1", "--learning_rate must be 0 or above, got -1"),
        ("--config range.yaml", "range.yaml:2: --max_steps must be "),
        ("--config none.yaml", "--config none.yaml: no such file"),
        ("--config torn.yaml", "torn.yaml:2:1: not YAML"),
        ("--config typo.yaml", "typo.yaml:2: unknown key 'epoch'"),
        ("--config twice.yaml", "twice.yaml:2: max_steps is already set in line 1"),
    ],
)
def test_options_are_checked(recipe: Path, flags: str, line: str) -> None:
    Path("torn.yaml").write_text("max_steps: 'open\n")
    Path("typo.yaml").write_text("max_steps: 1\nepoch: 1\n")
    Path("twice.yaml").write_text("max_steps: 1\nmax_steps: 2\n")
    Path("range.yaml").write_text("learning_rate: 1\nmax_steps: -3\n")
    assert line in refusal(lambda: check_options(flags.split(), recipe))


@pytest.mark.parametrize(
    "flags",
    [
        "--learning-rate=1e-3 --max_steps 3 --no_shuffle --allow_changed max_steps",
        "--max_steps -1 --shuffle false --config good.yaml",
        "--learning_rate 2 --config replaced.yaml",  # the command line's own value counts
        "--config good.yaml --config good.yaml",  # the recipe says that once is enough
    ],
)
def test_what_the_recipe_takes_passes(recipe: Path, flags: str) -> None:
    Path("replaced.yaml").write_text("learning_rate: -1\n")
    Path("good.yaml").write_text("settings_of:\n  max_steps: [shuffle]\nmax_steps: 3\n")
    assert check_options(flags.split(), recipe) is None


def test_where_the_source_does_not_say_names_are_left_to_the_recipe(recipe: Path) -> None:
    other = Path("other.py")
    other.touch()
    Path("own.yaml").write_text("whatever: 1\n")
    assert check_options(["--whatever", "1", "--config", "own.yaml"], other) is None
    Path("own.yaml").write_text("whatever: 'open\n")
    assert "not YAML" in refusal(lambda: check_options(["--config", "own.yaml"], other))


def test_files_runs_and_models_that_are_not_there(recipe: Path) -> None:
    other = Path("other.py")
    other.touch()
    Path("rows.jsonl").touch()
    Path("runs").mkdir()
    Path("report.yaml").write_text("runs: [runs/story]\n")

    def line(*flags: str) -> str:
        return refusal(lambda: check_options([*flags], other))

    # in a YAML file as on the command line, and a package before anything is imported
    Path("gone.yaml").write_text("datasets: [gone.csv]\n")
    Path("place.yaml").write_text("datasets: [$HFSTACK_NOWHERE/a.csv]\n")
    assert line("--config", "gone.yaml").startswith("gone.yaml:1: datasets gone.csv: no such")
    assert "$HFSTACK_NOWHERE/a.csv: the environment" in line("--config", "place.yaml")
    assert line("--report_to", "clearml").startswith("--report_to clearml: clearml is not")

    assert line("--datasets", "rows.jsonl", "row.jsonl").startswith(
        "--datasets row.jsonl: no such file; did you mean rows.jsonl?"
    )
    assert "--runs runs/x: no such directory" in line("--runs", "runs/x", "--config", "report.yaml")
    assert "--runs runs/story: no such directory" in line("--config", "report.yaml")
    assert "runs/sft: no such folder" in line("--model_name_or_path", "runs/sft")
    fine = ["--datasets", "some/dataset", "--eval_datasets", "rows.jsonl"]
    assert check_options(fine, other) is None


def test_a_table_of_one_class_is_refused_before_anything_is_imported(recipe: Path) -> None:
    fields = {"datasets", "label_column", "labels", "kind", "max_rows", "task"}
    lines = "\n    ".join(f"{name}: str = ''" for name in sorted(fields))
    classify = recipe.rename("classify.py")
    classify.write_text(RECIPE.replace("shuffle:", f"{lines}\n    shuffle:"))
    Path("one.csv").write_text('text,label,mood\n"a, b",bad,bad\nc,bad,good\n')
    Path("number.csv").write_text("text,label\na,0.5\nb,0.5\n")
    Path("gap.csv").write_text("text,label\na,bad\nb\n")
    Path("mine.yaml").write_text("labels: [bad, good]\n")

    line = refusal(lambda: check_options(["--datasets", "one.csv"], classify))
    assert line.startswith("column 'label' has 1 class only ('bad'): a classifier needs at least")

    # two classes, numbers, a bad row, and labels that come from elsewhere are for the recipe
    for flags in (
        ["one.csv", "--label_column", "mood"],
        ["one.csv", "--label_column", "none"],
        ["one.csv", "--config", "mine.yaml"],
        ["one.csv", "--max_rows", "1"],
        ["one.csv", "one.csv"],
        ["number.csv"],
        ["gap.csv"],
    ):
        assert check_options(["--datasets", *flags], classify) is None
    assert check_options(["--datasets", "one.csv"], classify.rename("mine.py")) is None


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--model_name_or_path nowhere", "--model_name_or_path nowhere: no such folder, nor a mod"),
        ("--reference_model a/b", "a/b: no such folder, nor a model of"),
        ("--model_name_or_path sft", "HF_HUB_OFFLINE is set; did you mean runs/sft?"),
        ("--reward_model runs/sft/weights", "is a file: name its folder, runs/sft"),
        ("--model_name_or_path llama-1.json", "no such file; shipped architectures: bart-5m"),
        ("--model_name_or_path llama-1m.json", "is an architecture, whose weights are random"),
        ("--config model.yaml", "model.yaml:2: tokenizer_name_or_path runs/none: no such folder"),
        ("--run runs/none", "--run runs/none: no such folder"),
        ("--index runs/none", "--index runs/none: no such folder"),
        ("--prompts_file none.txt", "--prompts_file none.txt: no such file"),
    ],
)
def test_models_and_folders_of_every_option(recipe: Path, flags: str, said: str) -> None:
    names = {"run", "index", "prompts_file", "tokenizer_name_or_path", "reference_model"}
    fields = "\n    ".join(f"{name}: str = ''" for name in sorted(names | {"reward_model"}))
    recipe.write_text(
        RECIPE.replace("shuffle:", f"model_name_or_path: str = ''\n    {fields}\n    x:")
    )
    Path("runs/sft").mkdir(parents=True)
    Path("runs/sft/weights").touch()
    Path("model.yaml").write_text("max_steps: 3\ntokenizer_name_or_path: runs/none\n")
    assert said in refusal(lambda: check_options(flags.split(), recipe))

    given = ["--config", "model.yaml", "--tokenizer_name_or_path", "", "--index", "runs/sft"]
    fine = [*given, "--reward_model", "http://127.0.0.1:1/v1", "--model_name_or_path", "runs/sft"]
    assert check_options(fine, recipe) is None


def test_a_tokenizer_that_belongs_to_another_model_is_not_asked_for(recipe: Path) -> None:
    fields = "tokenizer_name_or_path: str = ''\n    model_name_or_path: str = ''\n    shuffle:"
    recipe.write_text(RECIPE.replace("shuffle:", fields))
    Path("mine").mkdir()
    lines = ["model_name_or_path: llama-1m.json", "tokenizer_name_or_path: runs/none"]
    lines += ["settings_of:", "  model_name_or_path: [tokenizer_name_or_path]"]
    Path("mine.yaml").write_text("\n".join(lines))
    flags = ["--config", "mine.yaml", "--model_name_or_path", "mine"]
    assert check_options(flags, recipe) is None
    assert "runs/none" in refusal(lambda: check_options(flags[:2], recipe))


@pytest.fixture
def finished(recipe: Path) -> tuple[Launch, Callable[..., None]]:
    """A launch that has finished before, and a function that rewrites its record."""
    Path("rows.jsonl").write_text("{}\n")
    Path("mine.yaml").touch()
    folder = Path("run")
    folder.mkdir()
    command = [sys.executable, "mine.py", "--config", "mine.yaml", "--output_dir", "run"]
    launch = Launch(command, {}, "python", 1, folder)

    for path in (recipe, Path("mine.yaml")):
        os.utime(path, (time.time() - 60,) * 2)
    record = RunRecord(
        recipe="mine",
        command="mine.py --config mine.yaml --output_dir run",
        output_dir="run",
        commit=None,
        versions={},
        python="3.11",
        hardware={},
        world_size=1,
        started=time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime()),
        config_hash="",
        settings={},
        status="finished",
        ended="2026-01-01T00:00:00+00:00",
        data=[{"path": "rows.jsonl", "files": [describe_file(Path("rows.jsonl"))]}],
    )

    def write(**changes: Any) -> None:
        (folder / "run.json").write_text(json.dumps(asdict(record) | changes))

    write()
    return launch, write


def test_the_same_command_has_finished(
    recipe: Path, finished: tuple[Launch, Callable[..., None]]
) -> None:
    launch, write = finished
    line = "run: already finished on 2026-01-01T00:00:00+00:00, nothing to do"
    assert say_finished(launch, recipe) == line

    for changes in (
        {"command": "mine.py --output_dir run"},
        {"status": "failed"},
        {"world_size": 2},
        {"versions": {"torch": "0.1"}},
    ):
        write(**changes)
        assert say_finished(launch, recipe) is None, changes
    write()
    assert say_finished(launch, recipe) == line
    (Path("run") / "run.json").write_text("{")
    assert say_finished(launch, recipe) is None, "the recipe says what is wrong with it"


@pytest.mark.parametrize("file", ["mine.py", "mine.yaml", "rows.jsonl"])
def test_it_has_not_where_a_file_has_changed_since(
    recipe: Path, finished: tuple[Launch, Callable[..., None]], file: str
) -> None:
    launch, _ = finished
    with Path(file).open("a") as stream:
        stream.write("\n")
    os.utime(file, (time.time() + 5,) * 2)
    assert say_finished(launch, recipe) is None


def test_a_view_of_other_runs_is_made_again(
    recipe: Path, finished: tuple[Launch, Callable[..., None]]
) -> None:
    recipe.write_text("Run.start(replace_own=True)")
    os.utime(recipe, (time.time() - 60,) * 2)
    assert say_finished(finished[0], recipe) is None


@pytest.mark.parametrize(
    ("argv", "said", "most_s"),
    [
        (["run", "ppo", "--learning_rat", "1"], "did you mean '--learning_rate'?", 0.5),
        (["chat", "nowhere"], "nowhere: no such folder, nor a model of", 1.0),
        (["serve", "nowhere"], "nowhere: no such folder, nor a model of", 1.0),
        (["run", "win_rate", "--model_name_or_path", "nowhere"], "nor a model of", 1.0),
    ],
)
def test_a_mistake_takes_less_than_a_second_and_imports_nothing_heavy(
    argv: list[str], said: str, most_s: float
) -> None:
    """Child CPU seconds, user and system, of the whole process; ppo's settings have six files."""
    program = (
        "import sys, time; from hfstack.cli import main as cli\n"
        f"code = cli.main({argv})\n"
        "heavy = {'torch', 'transformers', 'numpy', 'datasets'} & set(sys.modules)\n"
        "print(code, time.process_time(), sorted(heavy))"
    )
    seconds = []
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True
        )
        assert said in done.stderr
        code, spent, heavy = done.stdout.split(maxsplit=2)
        assert (code, heavy.strip()) == ("1", "[]")
        seconds.append(float(spent))
    assert min(seconds) <= most_s


def test_one_value_may_look_like_options(recipe: Path) -> None:
    """As of `plan --recipe_options "--model_name_or_path x --max_length 8"`."""
    recipe.write_text(RECIPE.replace("shuffle:", "note: str = ''\n    shuffle:"))
    assert check_options(["--note", "--max_steps many --nothing 3"], recipe) is None
