"""Log in one line format, on rank 0 only, without secrets.

Library code logs; only recipes and the command line print.
"""

import logging
import os
import re
import select
import sys
import traceback
from types import TracebackType

from hfstack.redaction import redact

# Data and settings are quoted in messages, and one of them may be 64 MiB.
_MOST_CHARACTERS = 2000
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


class _CurrentStderr(logging.StreamHandler):
    """Writes to the current sys.stderr, so that redirecting it redirects the log."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        # On a terminal a line that comes while there is a progress bar is written above it.
        tqdm = sys.modules.get("tqdm")
        if tqdm is None or sys.stderr is None or sys.stderr.closed or not sys.stderr.isatty():
            super().emit(record)
            return
        with tqdm.tqdm.external_write_mode():
            super().emit(record)


class _WithoutSecrets(logging.Formatter):
    """Formats a line, its traceback as well, and redacts what it says."""

    def format(self, record: logging.LogRecord) -> str:
        text = redact(super().format(record))
        return escape_controls(text) if record.exc_info else shorten(text)


def get_logger(name: str) -> logging.Logger:
    """Return the logger of one module, a child of the `hfstack` logger.

    Args:
        name: the module's `__name__`; a recipe run as a script is filed under `hfstack.recipe`.
    """
    return logging.getLogger(name if name.startswith("hfstack") else "hfstack.recipe")


def shorten(message: str) -> str:
    """Return a message of at most 2,000 characters, without control characters.

    What is left out is counted.
    """
    message = escape_controls(message)
    if len(message) <= _MOST_CHARACTERS:
        return message
    left_out = len(message) - _MOST_CHARACTERS
    return f"{message[:_MOST_CHARACTERS]} ... ({left_out:,} more characters)"


def escape_controls(message: str) -> str:
    """Spell out the control characters of a message, line ends and tabs apart.

    What a file holds is quoted in messages, and a terminal would obey it: an escape sequence sets
    the clipboard or the title, and marks of the writing direction show another text than there is.
    """
    return _CONTROLS.sub(lambda found: ascii(found[0])[1:-1], message)


def redact_tracebacks() -> None:
    """Print the tracebacks of this process without secrets."""

    def write(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        sys.stderr.write(redact("".join(traceback.format_exception(kind, error, trace))))

    sys.excepthook = write


def is_reader_gone() -> bool:
    """Return whether the program that stdout is piped into, such as `head`, has ended.

    A lost network connection raises BrokenPipeError as well, and is no reason to end quietly. What
    is still to be written to a reader that has gone is dropped, so that Python does not complain
    of it on exit.
    """
    try:
        stdout = sys.stdout.fileno()
    except (AttributeError, OSError, ValueError):
        return False  # stdout is no file of the system

    poll = select.poll()
    poll.register(stdout, 0)
    if not any(event & select.POLLERR for _, event in poll.poll(0)):
        return False

    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stdout)
    os.close(nowhere)
    return True


def setup_logging(level: int = logging.INFO) -> None:
    """Write hfstack's log lines to stderr, on the process of rank 0 only.

    A second call changes nothing but the level.

    Args:
        level: the lowest level written on rank 0; other ranks write warnings and worse.
    """
    root = logging.getLogger("hfstack")
    if not root.handlers:
        handler = _CurrentStderr()
        handler.setFormatter(
            _WithoutSecrets("%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S")
        )
        root.addHandler(handler)
        root.propagate = False

    root.setLevel(level if int(os.environ.get("RANK", "0")) == 0 else max(level, logging.WARNING))
