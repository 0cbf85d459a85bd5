"""Handle SIGTERM and Ctrl-C during a run: save first where a trainer can."""

import contextlib
import math
import signal
import time
from pathlib import Path
from types import FrameType
from typing import Any

from hfstack.errors import Preempted
from hfstack.logs import get_logger

logger = get_logger(__name__)

_SAME_STOP_S = 5.0  # a SIGTERM that comes so soon after one is that one, sent twice


class StopSignals:
    """Handles the two signals that end a run, from `install` to `restore`.

    Args:
        output_dir: of the run, which the message names.
    """

    def __init__(self, output_dir: Path) -> None:
        self._output_dir = output_dir
        self._previous_handlers: dict[int, Any] = {}
        self._asked_at = -math.inf

        # whether the first signal only asks: a trainer is there that can save
        self.deferred = False
        self.asked = False
        self.at_once = False

    def install(self) -> None:
        """Take both signals from now on."""
        for signum in (signal.SIGTERM, signal.SIGINT):
            # Outside the main thread Python lets nobody handle signals.
            with contextlib.suppress(ValueError):
                self._previous_handlers[signum] = signal.signal(signum, self._handle)

    def ignore(self) -> None:
        """Ignore both from now on: launchers send a signal again while a run is closed."""
        for signum in self._previous_handlers:
            signal.signal(signum, signal.SIG_IGN)

    def restore(self) -> None:
        """Give both signals back to whoever handled them before."""
        for signum, handler in self._previous_handlers.items():
            signal.signal(signum, handler)

    def ask(self) -> None:
        """Ask the trainer to save and stop; the first to ask says when it was."""
        if not self.asked:
            self.asked = True
            self._asked_at = time.monotonic()

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        """Ask for a stop after this step, or raise Preempted to stop at once."""
        name = signal.Signals(signum).name
        if self.deferred and not self.asked:
            self.ask()
            logger.warning(
                "%s: saving a checkpoint after this step, then stopping; again to stop at once",
                name,
            )
            return

        # Schedulers send SIGTERM to every process of a job, and launchers forward theirs: what
        # follows within seconds is no second request.
        if signum == signal.SIGTERM and time.monotonic() - self._asked_at < _SAME_STOP_S:
            return

        self.at_once = True
        raise Preempted(f"stopped by {name}; {self._output_dir} is marked preempted")
