"""Log in one line format, on rank 0 only, without secrets.

Library code logs; only recipes and the command line print.
"""

import logging
import os
import sys
import traceback
from types import TracebackType

from hfstack.redaction import redact


class _CurrentStderr(logging.StreamHandler):
    """Writes to the current sys.stderr, so that redirecting it redirects the log."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


class _WithoutSecrets(logging.Formatter):
    """Formats a line, its traceback as well, and redacts what it says."""

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


def get_logger(name: str) -> logging.Logger:
    """Return the logger of one module, a child of the `hfstack` logger.

    Args:
        name: the module's `__name__`; a recipe run as a script is filed under `hfstack.recipe`.
    """
    return logging.getLogger(name if name.startswith("hfstack") else "hfstack.recipe")


def redact_tracebacks() -> None:
    """Print the tracebacks of this process without secrets."""

    def write(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        sys.stderr.write(redact("".join(traceback.format_exception(kind, error, trace))))

    sys.excepthook = write


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
