"""Define the errors that a user can cause and fix.

Everything else is a bug of ours and is raised as itself.

Each class also inherits the builtin that a caller would expect, so `except ValueError` keeps
working. A message says, in one line: what is wrong, the value, where it came from, and what to do.
"""

import contextlib
import traceback
from collections.abc import Iterator
from pathlib import Path


class HfstackError(Exception):
    """Base class of errors that the command line prints as one line, with exit code 1."""


class ConfigError(HfstackError, ValueError):
    """A flag or a YAML key is unknown, mistyped, or contradicts another."""


class DataError(HfstackError, ValueError):
    """A dataset is missing, empty or malformed, or holds a value that cannot be used."""


class CheckpointError(HfstackError, RuntimeError):
    """A checkpoint or run directory is missing, incomplete, or of something else."""


class MachineError(HfstackError, OSError):
    """The machine failed a run: its disk, its memory, or a limit of the system.

    Unlike the others it may go away by itself, so that a launch may be tried again.
    """


class ProcessError(HfstackError, RuntimeError):
    """Other processes of the run have ended, or do not answer."""

    def __init__(self, message: str, first_left: int) -> None:
        super().__init__(message)
        self.first_left = first_left


class MissingExtraError(HfstackError, ImportError):
    """An optional dependency is not installed; the message names the extra to install."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(
            f"{package} is not installed; install it with: pip install 'hfstack[{extra}]'"
        )


class AlreadyFinished(Exception):
    """Not a mistake: the same run has finished before, so there is nothing to do.

    The command line exits with 0.
    """


class ExamplesShown(Exception):
    """Not a mistake: `--show` asked for no more than rows as they are trained.

    The command line prints them, and exits with 0.
    """


class Preempted(Exception):
    """Not a mistake: the process was asked to stop; the command line exits with 75."""


class DivergedError(HfstackError, ArithmeticError):
    """Training diverged: the loss or the gradient norm is NaN or infinite."""


class HubError(HfstackError, ConnectionError):
    """The Hub refused a request, cannot be reached, or holds something unexpected."""


@contextlib.contextmanager
def refusals_of_upstream() -> Iterator[None]:
    """Turn what upstream refuses while a Trainer is built into a one-line ConfigError.

    What a line of ours raises is a bug, and keeps its traceback.
    """
    try:
        yield
    except HfstackError:
        raise
    except (ValueError, ImportError, RuntimeError) as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        if Path(last.filename).is_relative_to(Path(__file__).parent):
            raise
        raise ConfigError(
            f"refused by the Trainer: {' '.join(str(error).split())[:300]}"
        ) from error
