"""Restart a launch after a crash or preemption, from its last checkpoint.

Standard library only.
"""

import signal
import sys
import time

from hfstack import errors
from hfstack.cli.launch import Launch
from hfstack.cli.supervise import (
    EXIT_INTERRUPTED,
    EXIT_MISTAKE,
    EXIT_PREEMPTED,
    Ending,
    execute,
    say,
)
from hfstack.errors import ConfigError, HfstackError
from hfstack.redaction import redact
from hfstack.runs.checkpoint_files import newest_checkpoint, step_of

# The pause before the next start, by how many in a row have brought no new checkpoint.
_PAUSES_BETWEEN_STARTS_S = (1, 10, 60)
_FRUITLESS_STARTS = 3
_MISTAKES = {
    name
    for name, value in vars(errors).items()
    if isinstance(value, type) and issubclass(value, HfstackError)
} - {errors.MachineError.__name__}


def execute_again(launch: Launch) -> int:
    """Run a launch, again after each crash, and return the last exit code.

    It is run at most `launch.retries` times again: not when it is done, when it was asked to stop,
    when the user made a mistake, or when three starts in a row brought no new checkpoint.

    Raises:
        ConfigError: retries are asked for and no --output_dir says where the checkpoints are.
    """
    if launch.retries and launch.output_dir is None:
        raise ConfigError("--retries needs --output_dir, where the run to continue is looked for")

    code = 0
    fruitless = 0  # starts in a row that brought no new checkpoint
    reached = _last_step(launch)
    for start in range(1, launch.retries + 2):
        # The first start resumes as well: a scheduler that requeues a job sends the same command.
        current = launch.resumed() if launch.retries and _has_begun(launch) else launch
        sys.stderr.write(f"+ {redact(str(current))}\n")
        sys.stderr.flush()
        ending = execute(current)

        code = ending.code
        if code == 0 or ending.stopped or not launch.retries:
            return code
        reason = _mistake(ending)
        if reason is not None:
            say(f"not started again: {reason}")
            return code

        # A crash that comes before the next checkpoint each time is no accident.
        step = _last_step(launch)
        fruitless = 0 if step > reached else fruitless + 1
        reached = max(reached, step)
        place = "the first step, because there is no checkpoint yet"
        if reached >= 0:
            place = f"checkpoint-{reached}"

        if start > launch.retries:
            say(f"start {start} of {start} {_describe_ending(code)}; it can resume from {place}")
        elif fruitless == _FRUITLESS_STARTS:
            say(
                f"start {start} {_describe_ending(code)}, the third in a row without a new "
                "checkpoint: not started again"
            )
            return code
        else:
            pause_s = _PAUSES_BETWEEN_STARTS_S[min(fruitless, len(_PAUSES_BETWEEN_STARTS_S) - 1)]
            say(
                f"start {start} of {launch.retries + 1} {_describe_ending(code)}; the next, in "
                f"{pause_s} s, is from {place}"
            )
            try:
                time.sleep(pause_s)
            except KeyboardInterrupt:
                say("stopped between two starts")
                return EXIT_INTERRUPTED

    return code


def _mistake(ending: Ending) -> str | None:
    """Return why an ending is the user's mistake, or None when it is a crash."""
    if ending.error_kind in _MISTAKES:
        return f"{ending.error_kind} would come again"
    if ending.code == EXIT_MISTAKE and ending.status is None:
        return "it failed before the run began"
    return None


def _describe_ending(code: int) -> str:
    """Return how a start ended, as words that follow its number."""
    if code == EXIT_PREEMPTED:
        return "was preempted"
    if code > 128:
        name = signal.Signals(code - 128).name
        guess = " (out of memory?)" if name == "SIGKILL" else ""
        return f"was killed by {name}{guess}"

    return f"failed with exit code {code}"


def _has_begun(launch: Launch) -> bool:
    """Return whether an earlier start left a run to continue."""
    return launch.output_dir is not None and (launch.output_dir / "run.json").is_file()


def _last_step(launch: Launch) -> int:
    """Return the step of the newest checkpoint, or -1."""
    newest = newest_checkpoint(launch.output_dir) if launch.output_dir else None
    return -1 if newest is None else step_of(newest)
