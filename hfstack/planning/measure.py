"""Take real training steps in a fresh process and read what they cost.

That corrects what `memory` and `counting` predict. The steps are those of `memory.run_steps`: the
same model, loss and optimizer, on random weights and made-up tokens.
"""

import ctypes
import multiprocessing
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig

from hfstack.errors import ConfigError
from hfstack.planning.memory import TrainingStep, build_step_model, run_steps

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class MeasuredStep:
    """What real steps cost."""

    seconds: float
    """Of the fastest optimizer step after the first, which pays for warm-up."""
    peak_bytes: int | None
    """On an accelerator what its allocator held at most; on a CPU the growth of the resident set
    over the moment before the model was built, on Linux; None elsewhere."""


def measure_step(
    config: PreTrainedConfig, step: TrainingStep, *, device: str, steps: int = 3
) -> MeasuredStep:
    """Take `steps` optimizer steps in a new process, on a device of this machine.

    Raises:
        ConfigError: the process did not finish, as when memory ran out.
    """
    # A fork would share pages with this process and count them once.
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(
        target=_measure, args=(config, step, device, steps, sender), daemon=True
    )
    child.start()
    sender.close()

    try:
        outcome = receiver.recv()
    except EOFError:
        code = child.exitcode
        outcome = f"the process ended with code {code}" if code else "the process was killed"
    finally:
        child.join()

    if isinstance(outcome, str):
        raise ConfigError(
            f"the step could not be measured, {outcome}: most often too little memory; "
            "use a smaller one"
        )
    return outcome


def _measure(
    config: PreTrainedConfig, step: TrainingStep, device: str, steps: int, sender: Any
) -> None:
    """Build the model, take steps and send what they cost: what the child does."""
    try:
        # The libraries' own memory must be there before the peak is reset.
        square = torch.ones(256, 256, device=device)
        _ = (square @ square).sum().item()
        before = _begin_peak(device)
        with torch.device(device):
            model = build_step_model(config, step)

        seconds, began = [], time.perf_counter()
        for _ in run_steps(model, step, steps=steps):
            if torch.device(device).type != "cpu":
                torch.accelerator.synchronize()
            seconds.append(time.perf_counter() - began)
            began = time.perf_counter()

        sender.send(MeasuredStep(min(seconds[1:] or seconds), _peak(device, before)))
    except (RuntimeError, MemoryError) as error:  # torch raises RuntimeError when memory runs out
        sender.send(" ".join(str(error).split())[:200])


def _begin_peak(device: str) -> int:
    """Reset the highest memory so far and return what is held now, in bytes."""
    if torch.device(device).type != "cpu":
        torch.accelerator.reset_peak_memory_stats()
        return 0
    if sys.platform != "linux":
        return 0

    # What importing left behind would otherwise be filled first, and not be seen.
    ctypes.CDLL(None).malloc_trim(0)
    _CLEAR.write_text("5", encoding="ascii")  # resets VmHWM, see proc(5)
    return _status_bytes("VmRSS")


def _peak(device: str, before: int) -> int | None:
    if torch.device(device).type != "cpu":
        return int(torch.accelerator.max_memory_reserved())
    return _status_bytes("VmHWM") - before if sys.platform == "linux" else None


def _status_bytes(field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB", _STATUS.read_text(encoding="ascii"), re.MULTILINE)
    assert found, f"{_STATUS} has no {field}"
    return int(found[1]) * 1024
