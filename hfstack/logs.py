"""Log in one line format, on rank 0 only.

Library code logs; only recipes and the command line print.
"""

import logging
import os
import sys


class _CurrentStderr(logging.StreamHandler):
    """Writes to the current sys.stderr, so that redirecting it redirects the log."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


def get_logger(name: str) -> logging.Logger:
    """Return the logger of one module, a child of the `hfstack` logger.

    Args:
        name: the module's `__name__`; a recipe run as a script is filed under `hfstack.recipe`.
    """
    return logging.getLogger(name if name.startswith("hfstack") else "hfstack.recipe")


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
            logging.Formatter("%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S")
        )
        root.addHandler(handler)
        root.propagate = False

    root.setLevel(level if int(os.environ.get("RANK", "0")) == 0 else max(level, logging.WARNING))
