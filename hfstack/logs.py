"""Log to the run's file, and what a person needs to stderr, on rank 0.

No secrets are written. Library code logs; only recipes and the command line print. A line of level
INFO is a detail, which is looked up when something is odd: it goes to the run's log file. NOTICE is
what a person waits for: progress, results, where the page is. Warnings are shown as well.
"""

import contextlib
import logging
import os
import re
import select
import sys
import traceback
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import TextIO

from hfstack.errors import ConfigError
from hfstack.redaction import redact

# "normal but significant", between INFO and WARNING as in syslog (RFC 5424)
NOTICE = 25
LOG_FILE = "run.log"
_SHOWN_FROM = "HFSTACK_LOG"  # environment: what stderr shows; the file has all

# Data and settings are quoted in messages, and one of them may be 64 MiB.
_MOST_CHARACTERS = 2000
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
# that are kept until it is known which folder the run has
_MOST_EARLY_LINES = 1000


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


class _RunLog(logging.Handler):
    """Writes all lines to the file of the open run; earlier ones wait for the first."""

    def __init__(self) -> None:
        super().__init__()
        self._early: deque[str] | None = deque(maxlen=_MOST_EARLY_LINES)
        self._file: TextIO | None = None

    def open(self, path: Path, *, continues: bool) -> TextIO | None:
        """Write to this file from now on; return the one before, of a run around this one."""
        outer, self._file = self._file, None
        # A log that cannot be written is no reason to stop, and a full disk is found elsewhere.
        with contextlib.suppress(OSError):
            mode = "a" if continues else "w"
            self._file = path.open(mode, encoding="utf-8", errors="backslashreplace")
        early, self._early = self._early or (), None
        for text in early:
            self._write(text)
        return outer

    def go_back(self, outer: TextIO | None) -> None:
        """Close the file, and write to another one again."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
        self._file = outer

    def emit(self, record: logging.LogRecord) -> None:
        text = self.format(record)
        if self._early is not None:
            self._early.append(text)
        self._write(text)

    def _write(self, text: str) -> None:
        if self._file is None:
            return
        try:
            self._file.write(text + "\n")
            self._file.flush()
        except OSError:
            self.go_back(None)


class _WithoutSecrets(logging.Formatter):
    """Formats a line, its traceback as well, and redacts what it says."""

    def format(self, record: logging.LogRecord) -> str:
        text = redact(super().format(record))
        return escape_controls(text) if record.exc_info else shorten(text)


class _ForScreen(_WithoutSecrets):
    """Names the level of warnings and worse alone."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - of logging
        level = f"{record.levelname} " if record.levelno >= logging.WARNING else ""
        return f"{record.asctime} {level}{record.message}"


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


def setup_logging(level: int | None = None) -> None:
    """Write hfstack's log lines to stderr, on the process of rank 0 only.

    A second call changes nothing but the level.

    Args:
        level: the lowest level shown on rank 0, by default NOTICE, or that which the environment
            variable HFSTACK_LOG names; other ranks show warnings and worse.

    Raises:
        ConfigError: HFSTACK_LOG names no level.
    """
    logging.addLevelName(NOTICE, "NOTICE")
    root = logging.getLogger("hfstack")
    if not root.handlers:
        for handler, formatter in (
            (_CurrentStderr(), _ForScreen("%(asctime)s %(message)s", datefmt="%H:%M:%S")),
            (_RunLog(), _WithoutSecrets("%(asctime)s %(levelname)s %(message)s")),
        ):
            handler.setFormatter(formatter)
            root.addHandler(handler)
        root.propagate = False

    if level is None:
        level = _level_of_environment()
    is_first = int(os.environ.get("RANK", "0")) == 0
    root.setLevel(logging.INFO if is_first else logging.WARNING)
    for handler in root.handlers:
        if isinstance(handler, _CurrentStderr):
            handler.setLevel(level)


@contextlib.contextmanager
def run_log(folder: Path, *, continues: bool) -> Iterator[None]:
    """Write all lines to the log file of a run, those from before it as well.

    Args:
        folder: the run's.
        continues: whether an earlier run is continued, whose lines are kept.
    """
    handlers = logging.getLogger("hfstack").handlers
    log = next((one for one in handlers if isinstance(one, _RunLog)), None)
    if log is None or int(os.environ.get("RANK", "0")) != 0:
        yield
        return

    outer = log.open(folder / LOG_FILE, continues=continues)
    try:
        yield
    finally:
        log.go_back(outer)


def _level_of_environment() -> int:
    name = os.environ.get(_SHOWN_FROM, "NOTICE").upper()
    levels = {"INFO": logging.INFO, "NOTICE": NOTICE, "WARNING": logging.WARNING}
    if name not in levels:
        raise ConfigError(f"{_SHOWN_FROM} is {name!r}: give one of {', '.join(levels)}")
    return levels[name]
