"""`hfstack run --retries`: what is started again, from where, and when it is given up."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hfstack.cli import retry as retrying
from hfstack.cli.launch import LaunchOptions, plan
from hfstack.cli.main import main
from hfstack.errors import ConfigError

# A recipe without torch. Each start follows the next word of --plan: it writes checkpoint-<number>,
# then ends so.
RECIPE = '''
"""Pretend to train."""
import json, os, signal, sys, time
from pathlib import Path

class TrainingArguments: ...

def main(training_args: TrainingArguments): ...

out = Path(sys.argv[sys.argv.index("--output_dir") + 1])
started = out / "starts"
out.mkdir(exist_ok=True)
with started.open("a") as file:
    file.write(" ".join(sys.argv[1:]) + chr(10))
number = len(started.read_text().splitlines()) - 1
word, _, step = sys.argv[sys.argv.index("--plan") + 1].split(",")[number].partition(":")

def write(status, **more):
    (out / "run.json").write_text(json.dumps({"status": status, "number": number, **more}))

if step:
    (out / f"checkpoint-{step}").mkdir()
    state = out / f"checkpoint-{step}" / "trainer_state.json"
    state.write_text(json.dumps({"global_step": int(step)}))
if word == "early":
    sys.exit("train.py: unknown option")
write("running")
if word == "wait":
    time.sleep(60)
if word == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
if word == "preempted":
    write("preempted")
    sys.exit(75)
if word in ("RuntimeError", "DataError"):
    write("failed", error_kind=word)
    sys.exit(1)
write("finished")
'''


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):
    """Run the recipe in this process's launcher with a plan; return the code, the lines said, the
    starts' flags.
    """
    monkeypatch.setattr(retrying, "_PAUSES_BETWEEN_STARTS_S", (0, 0.01, 0.02))
    monkeypatch.chdir(tmp_path)
    Path("train.py").write_text(RECIPE)

    def call(words: str, retries: int) -> tuple[int, str, list[str]]:
        code = main(
            ["run", "train.py", "--output_dir", "out", "--retries", str(retries), "--plan", words]
        )
        return code, capfd.readouterr().err, Path("out/starts").read_text().splitlines()

    return call


def test_crashes_and_preemptions_are_started_again_from_the_last_checkpoint(start) -> None:
    code, said, starts = start("killed:5,preempted:9,RuntimeError:12,finished", 3)
    assert code == 0 and len(starts) == 4
    assert not starts[0].endswith("last") and all(
        flags.endswith("--resume_from_checkpoint last") for flags in starts[1:]
    )
    assert (
        "start 1 of 4 was killed by SIGKILL (out of memory?); the next, in 0 s, is from "
        "checkpoint-5" in said
    )
    assert "start 2 of 4 was preempted; the next, in 0 s, is from checkpoint-9" in said
    assert "start 3 of 4 failed with exit code 1; the next, in 0 s, is from checkpoint-12" in said


def test_the_number_of_retries_is_the_limit(start) -> None:
    code, said, starts = start("killed:1,killed:2,killed:3", 1)
    assert code == 137 and len(starts) == 2
    assert (
        "start 2 of 2 was killed by SIGKILL (out of memory?); it can resume from checkpoint-2"
        in said
    )


def test_three_starts_without_progress_are_enough(start) -> None:
    code, said, starts = start("killed:4,killed,killed,killed,finished", 9)
    assert code == 137 and len(starts) == 4
    assert (
        "start 4 was killed by SIGKILL (out of memory?), the third in a row without a new "
        "checkpoint" in said
    )
    assert (
        "in 0.01 s, is from checkpoint-4" in said and "in 0.02 s, is from checkpoint-4" in said
    ), "it backs off"


@pytest.mark.parametrize(
    ("word", "reason"),
    [("DataError", "DataError would come again"), ("early", "it failed before the run began")],
)
def test_a_mistake_is_not_tried_again(start, word: str, reason: str) -> None:
    code, said, starts = start(f"{word},finished", 5)
    assert code == 1 and len(starts) == 1
    assert f"hfstack: not started again: {reason}" in said


def test_the_same_command_resumes_what_an_earlier_one_left(start) -> None:
    assert start("killed:3,finished", 0)[0] == 137
    code, _, starts = start("killed:3,finished", 1)
    assert code == 0 and starts[1].endswith("--resume_from_checkpoint last")


def test_retries_need_to_know_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("train.py").write_text(RECIPE)
    launch = plan(
        Path("train.py"), [], LaunchOptions(retries=2), accelerate_configs=tmp_path, gpus=0
    )
    with pytest.raises(ConfigError, match="--retries needs --output_dir"):
        retrying.execute_again(launch)
    assert main(["run", "train.py", "--retries", "many"]) == 1


def in_background(folder: Path, words: str, *flags: str) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        "-m",
        "hfstack.cli",
        "run",
        "train.py",
        "--output_dir",
        "out",
        "--plan",
        words,
        *flags,
    ]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent.parent)}
    return subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True)


def test_who_asks_to_stop_is_not_started_again(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(RECIPE)
    with in_background(tmp_path, "wait,finished", "--retries", "3") as process:
        deadline = time.monotonic() + 60
        while not (tmp_path / "out" / "run.json").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert process.returncode == 75
    assert len((tmp_path / "out" / "starts").read_text().splitlines()) == 1


def test_ctrl_c_during_imports_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(
        "import time\nfrom pathlib import Path\nPath('importing').touch()\ntime.sleep(60)\n"
        "class TrainingArguments: ...\ndef main(training_args: TrainingArguments): ...\n"
    )
    with in_background(tmp_path, "x", "--retries", "3") as process:
        deadline = time.monotonic() + 60
        while not (tmp_path / "importing").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.splitlines()[1:] == ["hfstack: stopped before the run began"]
    assert "Traceback" not in said
