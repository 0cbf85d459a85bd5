"""The verbs of the command line, called in this process; `doctor` and the launches have tests of
their own.
"""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from hfstack.cli import main as cli

ROOT = Path(__file__).parent.parent.parent
FIRST = '"""Do the first thing.\n\nMore.\n"""\n\n\ndef main(args: Args) -> dict: ...\n'
SECOND = (
    '"""Print what it was given."""\nimport sys\n\n\n'
    "def main(args: dict) -> dict: ...\n\n\nprint(sys.argv[1:])\n"
)


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as it is shipped, with two recipes, in place of the real one; the current directory
    is empty.
    """
    (tmp_path / "recipes").mkdir()
    (tmp_path / "reference").mkdir()
    (tmp_path / "recipes" / "first.py").write_text(FIRST)
    (tmp_path / "recipes" / "first.yaml").write_text("output_dir: runs/first\n")
    (tmp_path / "recipes" / "second_one.py").write_text(SECOND)
    (tmp_path / "recipes" / "second_one.yaml").write_text("output_dir: runs/second\n")
    (tmp_path / "reference" / "first.md").write_text("# first\n\n```text\n--output_dir PATH\n```\n")
    monkeypatch.setattr(cli, "RECIPES", tmp_path / "recipes")
    monkeypatch.setattr(cli, "REFERENCE", tmp_path / "reference")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path


def mistake(capfd: pytest.CaptureFixture[str], *argv: str) -> str:
    """Run the command line, check that it refuses with one line and exit code 1, and return the
    line.
    """
    assert cli.main([*argv]) == 1
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("hfstack: ") and err.count("\n") == 1, err
    return err.strip()


def test_list_prints_names_and_what_they_do(shipped: Path, capfd: pytest.CaptureFixture[str]):
    assert cli.main(["list"]) == 0
    assert (
        capfd.readouterr().out
        == "Others\n  first       Do the first thing.\n  second_one  Print what it was given.\n"
    )


def test_copy_brings_the_recipe_and_its_yaml(shipped: Path, capfd: pytest.CaptureFixture[str]):
    assert cli.main(["copy", "first"]) == 0
    out, err = capfd.readouterr()
    assert out == "first.py\nfirst.yaml\n"
    assert err == "hfstack: edit, then: hfstack run ./first.py\n"
    assert Path("first.py").read_text() == FIRST and Path("first.yaml").is_file()


def test_copy_into_a_folder_makes_it(shipped: Path, capfd: pytest.CaptureFixture[str]):
    assert cli.main(["copy", "first", "mine/recipes"]) == 0
    assert Path("mine/recipes/first.yaml").is_file()
    assert "hfstack run mine/recipes/first.py" in capfd.readouterr().err


def test_copy_brings_the_script_of_the_story(shipped: Path, capfd: pytest.CaptureFixture[str]):
    (shipped / "recipes" / "full_story.sh").write_text("echo\n")
    assert cli.main(["copy", "full_story"]) == 0
    out, err = capfd.readouterr()
    assert out == "full_story.sh\n" and err == "hfstack: edit, then: bash ./full_story.sh\n"
    assert Path("full_story.sh").read_text() == "echo\n"


def test_copy_never_overwrites_and_copies_nothing_then(
    shipped: Path, capfd: pytest.CaptureFixture[str]
):
    Path("first.yaml").write_text("mine: 1\n")
    line = mistake(capfd, "copy", "first")
    assert (
        line == "hfstack: first.yaml exists and is never overwritten: "
        "choose another folder, or remove it"
    )
    assert Path("first.yaml").read_text() == "mine: 1\n" and not Path("first.py").exists()


def test_copy_to_where_nothing_can_be_written(shipped: Path, capfd: pytest.CaptureFixture[str]):
    Path("file").touch()
    assert mistake(capfd, "copy", "first", "file/folder").startswith(
        "hfstack: cannot copy to file/folder: "
    )


def test_run_adds_the_sibling_yaml_and_prints_the_command(
    shipped: Path, capfd: pytest.CaptureFixture[str]
):
    assert cli.main(["run", "second_one", "--epochs", "3", "--text", "a b"]) == 0
    out, err = capfd.readouterr()
    yaml = shipped / "recipes" / "second_one.yaml"
    assert out == f"{['--config', str(yaml), '--epochs', '3', '--text', 'a b']}\n"
    assert (
        err == f"+ HFSTACK_PROCESSES=1 {sys.executable} {yaml.with_suffix('.py')} --config {yaml} "
        "--epochs 3 --text 'a b'\n"
    )


@pytest.mark.parametrize("given", [("--config", "mine.yaml"), ("--config=mine.yaml",)])
def test_run_takes_a_given_config_instead(
    shipped: Path, capfd: pytest.CaptureFixture[str], given: tuple[str, ...]
):
    Path("mine.yaml").touch()
    assert cli.main(["run", "second_one", *given]) == 0
    assert capfd.readouterr().out == f"{[*given]}\n"


def test_run_starts_a_recipe_by_path_with_the_yaml_beside_it_if_any(
    shipped: Path, capfd: pytest.CaptureFixture[str]
):
    Path("mine.py").write_text(SECOND)
    assert cli.main(["run", "./mine.py", "--a", "1"]) == 0
    assert capfd.readouterr().out == "['--a', '1']\n"
    Path("mine.yaml").touch()
    assert cli.main(["run", "mine.py"]) == 0
    assert capfd.readouterr().out == "['--config', 'mine.yaml']\n"


def test_run_points_to_an_edited_copy_that_it_does_not_run(
    shipped: Path, capfd: pytest.CaptureFixture[str]
):
    cli.main(["copy", "second_one"])
    capfd.readouterr()
    assert cli.main(["run", "second_one"]) == 0
    assert (
        "hfstack: second_one.py is here as well; to run that one: hfstack run ./second_one.py"
        in capfd.readouterr().err
    )


@pytest.mark.parametrize(
    "argv",
    [
        ("--processes", "2", "second_one", "--epochs", "3"),
        ("second_one", "--processes", "2", "--epochs", "3"),
        ("second_one", "--epochs", "3", "--processes=2"),
    ],
)
def test_launcher_options_come_before_or_after_the_name(argv: tuple[str, ...]):
    assert cli._split([*argv]) == ("second_one", ["--epochs", "3"], {"processes": "2"})


def test_after_a_double_dash_everything_is_the_recipes():
    assert cli._split(["x", "--a", "1", "--", "--processes", "8"]) == (
        "x",
        ["--a", "1", "--processes", "8"],
        {},
    )


def test_help_of_a_recipe_is_its_generated_reference(
    shipped: Path, capfd: pytest.CaptureFixture[str]
):
    assert cli.main(["run", "first", "--help"]) == 0
    assert capfd.readouterr() == ("--output_dir PATH\n", "")
    assert cli.main(["run", "--help", "first"]) == 0
    assert capfd.readouterr().out == "--output_dir PATH\n"
    assert "second_one.md is missing; make it with: python -m hfstack.cli.reference" in mistake(
        capfd, "run", "second_one", "-h"
    )


def test_help_of_run_itself(shipped: Path, capfd: pytest.CaptureFixture[str]):
    assert cli.main(["run", "--help"]) == 0
    text = capfd.readouterr().out
    assert all(f"--{name}" in text for name in cli._LAUNCHER_OPTIONS)
    assert "cpu, fsdp2, multi_gpu, multi_node, single, zero2, zero3" in text


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (
            ("run", "frist"),
            "no recipe 'frist'; did you mean 'first'? (there are: first, second_one)",
        ),
        (("copy", "zzz"), "no recipe 'zzz' (there are: first, second_one)"),
        (("run",), "run needs the name of a recipe (see: hfstack list)"),
        (("run", "./none.py"), "./none.py: no such file"),
        (
            ("run", "first", "--processes", "two"),
            "--processes takes a whole number of at least 1, got 'two'",
        ),
        (
            ("run", "first", "--processes", "0"),
            "--processes takes a whole number of at least 1, got '0'",
        ),
        (("run", "first", "--processes"), "--processes needs a value (see: hfstack run --help)"),
        (
            ("run", "first", "--processes", "2", "--processes=4"),
            "--processes may be given once, got 2 and 4",
        ),
        (
            ("run", "first", "--accelerate", "fsdp"),
            "no accelerate config 'fsdp'; did you mean 'fsdp2'?",
        ),
        (
            ("run", "--proceses", "2", "first"),
            "unknown option '--proceses'; did you mean '--processes'?",
        ),
        (
            ("run", "first", "--processes", "2"),
            "first takes no TrainingArguments, so it runs in one plain process",
        ),
        (("lst",), "no command 'lst'; did you mean 'list'? (there are: list, copy, run, chat,"),
        (("first",), "first is no command but a recipe: hfstack run first"),
        (("run", "chat"), "chat is no recipe but a command: hfstack chat --help"),
        (("list", "--jsn"), "unrecognized arguments: --jsn"),
        ((), "the following arguments are required"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_1(
    shipped: Path, capfd: pytest.CaptureFixture[str], argv: tuple[str, ...], line: str
):
    assert line in mistake(capfd, *argv)


def test_help_imports_nothing_heavy_and_takes_a_quarter_of_a_second():
    """Child CPU seconds, user and system, of the whole process; torch alone would take more than
    one.
    """
    program = (
        "import sys, time; from hfstack.cli import main as cli\n"
        "try: cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'yaml', 'numpy', 'datasets'} & set(sys.modules)\n"
        "print(time.process_time(), sorted(heavy), file=sys.stderr)"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
    seconds = []
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            check=True,
            env=environment,
        )
        assert "list | copy | run | chat | serve | doctor" in done.stdout
        spent, _, heavy = done.stderr.partition(" ")
        assert heavy.strip() == "[]"
        seconds.append(float(spent))
    assert min(seconds) <= 0.25


def test_help_of_a_shipped_recipe_imports_no_torch():
    program = (
        "import sys; from hfstack.cli import main as cli; cli.main(sys.argv[1:]); assert "
        "'torch' not in sys.modules"
    )
    command = [sys.executable, "-c", program, "run", "pretrain_clm", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--learning_rate" in done.stdout and "--datasets" in done.stdout


def test_the_wheel_carries_what_the_commands_need(tmp_path: Path):
    """Built here and run from another folder, as after `pip install`."""
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        wheel.extractall(tmp_path / "installed")
    assert not list((tmp_path / "installed").rglob("*.pyc"))
    (tmp_path / "here").mkdir()

    def hfstack(*argv: str) -> str:
        environment = {**os.environ, "PYTHONPATH": str(tmp_path / "installed")}
        command = [sys.executable, "-m", "hfstack.cli", *argv]
        done = subprocess.run(
            command,
            cwd=tmp_path / "here",
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    names = [line.split()[0] for line in hfstack("list").splitlines() if line.startswith("  ")]
    assert sorted(names) == sorted(path.stem for path in (ROOT / "recipes").glob("*.py"))
    assert hfstack("copy", "pretrain_clm").split() == ["pretrain_clm.py", "pretrain_clm.yaml"]
    assert "--learning_rate" in hfstack("run", "pretrain_clm", "--help")
    assert "multi_gpu" in hfstack("run", "--help")
    shipped = tmp_path / "installed" / "hfstack" / "_shipped"
    assert (shipped / "constraints.txt").read_text() == (ROOT / "constraints.txt").read_text()


def test_a_folder_that_was_deleted_is_one_line(
    shipped: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    Path.cwd().rmdir()
    assert "the current folder was deleted" in mistake(capfd, "run", "first")
