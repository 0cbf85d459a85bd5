"""What of the log a person sees, what its file holds, and the end of a process without a reader."""

import logging
import subprocess
import sys
from pathlib import Path

import pytest

from hfstack.errors import ConfigError
from hfstack.logs import (
    NOTICE,
    escape_controls,
    get_logger,
    run_log,
    setup_logging,
    shorten,
)

_SAID = {"a detail": logging.INFO, "step 1": NOTICE, "odd": logging.WARNING}

_PROGRAM = """
import sys
from hfstack.logs import is_reader_gone

assert not is_reader_gone()
print("first", flush=True)
sys.stdin.readline()
try:
    print("second", flush=True)
except BrokenPipeError:
    sys.exit(7 if is_reader_gone() else 8)
"""


def test_only_a_reader_that_has_gone_ends_a_program_quietly() -> None:
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", _PROGRAM]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdin and process.stdout and process.stderr
        assert process.stdout.readline() == "first\n"
        process.stdout.close()
        process.stdin.write("\n")
        process.stdin.close()
        complaints = process.stderr.read()
    assert process.returncode == 7, "the reader is known to have gone"
    assert complaints == "", "nothing is said of what could not be written"


def test_a_terminal_is_not_told_what_to_do_by_a_file() -> None:
    said = "row 3: \x1b]0;title\x07 \x9b2J \u202etxt.exe\r, é 猫\n\tnext"
    shown = "row 3: \\x1b]0;title\\x07 \\x9b2J \\u202etxt.exe\\r, é 猫\n\tnext"
    assert shorten(said) == shown
    assert escape_controls(shown) == shown

    code = (
        "from hfstack.logs import get_logger, setup_logging\n"
        "setup_logging(); get_logger('hfstack.x').warning('read %s', '\\x1b[31m')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "\x1b" not in done.stderr and "read \\x1b[31m" in done.stderr


@pytest.fixture(autouse=True)
def new_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Log as a process does in which no run has been."""
    monkeypatch.setattr(logging.getLogger("hfstack"), "handlers", [])
    monkeypatch.delenv("HFSTACK_LOG", raising=False)


def say_all(folder: Path) -> list[str]:
    """Log one line of each level into a new run's log; return the file's, without their times."""
    logger = get_logger("hfstack.tests")
    logger.info("before the folder is known")
    with run_log(folder, continues=False):
        for text, level in _SAID.items():
            logger.log(level, "%s", text)
    logger.warning("after the run")
    return [line.split(" ", 2)[2] for line in (folder / "run.log").read_text().splitlines()]


def test_a_person_sees_what_matters_and_the_file_holds_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    setup_logging()
    written = say_all(tmp_path)
    shown_too = ["NOTICE step 1", "WARNING odd"]
    assert written == ["INFO before the folder is known", "INFO a detail", *shown_too]
    seen = [line.split(" ", 1)[1] for line in capsys.readouterr().err.splitlines()]
    assert seen == ["step 1", "WARNING odd", "WARNING after the run"]


def test_the_environment_shows_details_or_warnings_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HFSTACK_LOG", "info")
    setup_logging()
    say_all(tmp_path)
    assert "a detail" in capsys.readouterr().err
    monkeypatch.setenv("HFSTACK_LOG", "warning")
    setup_logging()
    assert "INFO a detail" in say_all(tmp_path), "the file has all lines, whatever is shown"
    assert "step 1" not in capsys.readouterr().err
    monkeypatch.setenv("HFSTACK_LOG", "loud")
    with pytest.raises(ConfigError, match="HFSTACK_LOG is 'LOUD': give one of INFO, NOTICE"):
        setup_logging()


def test_a_continued_run_adds_to_its_log_and_secrets_stay_out(tmp_path: Path) -> None:
    setup_logging()
    say_all(tmp_path)
    with run_log(tmp_path, continues=True):
        get_logger("hfstack.tests").info("again, with hf_%s", "abcdefghijklmnopqrstuvwxyzABCDEF12")
    text = (tmp_path / "run.log").read_text()
    assert "a detail" in text and "again" in text and "abcdefgh" not in text


def test_a_run_inside_a_run_has_a_log_of_its_own(tmp_path: Path) -> None:
    setup_logging()
    logger = get_logger("hfstack.tests")
    (tmp_path / "rung").mkdir()
    with run_log(tmp_path, continues=False):
        with run_log(tmp_path / "rung", continues=False):
            logger.info("inside")
        logger.info("around")
    logger.info("after")
    logs = [(folder / "run.log").read_text() for folder in (tmp_path / "rung", tmp_path)]
    assert [text.split()[-1] for text in logs] == ["inside", "around"]


def test_a_log_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    setup_logging()
    with run_log(tmp_path / "is not there", continues=False):
        get_logger("hfstack.tests").info("a detail")
    assert not (tmp_path / "is not there").exists()
