"""What a log line may hold, and the end of a process whose output nobody reads any more."""

import subprocess
import sys

from hfstack.logs import escape_controls, shorten

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
