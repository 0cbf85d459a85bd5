"""A process that stops: the others end within the timeout, and say which one it was."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import torch.distributed as dist

from hfstack.runs.processes import name_silent
from tests.conftest import ROOT

TIMEOUT_S = 6
RECIPE = """
import os, signal, sys
import torch
from transformers import TrainingArguments
from hfstack.config import command_line
from hfstack.runs.run import Run

def main(training_args: TrainingArguments):
    with Run.start(__file__, training_args.output_dir, training_args):
        for step in range(3):
            if step == 1 and os.environ["RANK"] == os.environ["SILENT"]:
                print("at step 1", flush=True)
                os.kill(os.getpid(), getattr(signal, os.environ["SIGNAL"]))
            torch.distributed.all_reduce(torch.ones(4))

command_line(main)
"""


@contextlib.contextmanager
def two_processes(folder: Path, silent: int, number: str) -> Iterator[list[subprocess.Popen[str]]]:
    """Start two processes of a recipe, with a store that a launcher keeps, as torchrun does."""
    recipe = folder / "train.py"
    recipe.write_text(RECIPE)
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, timeout=timedelta(seconds=60))
    environment = os.environ | {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "WORLD_SIZE": "2",
        "PYTHONPATH": str(ROOT),
        "SILENT": str(silent),
        "SIGNAL": number,
        "GLOO_SOCKET_IFNAME": "lo",
    }
    command = [sys.executable, str(recipe), "--output_dir", str(folder / "out")]
    command += ["--use_cpu", "true", "--ddp_backend", "gloo", "--ddp_timeout", str(TIMEOUT_S)]
    processes = [
        subprocess.Popen(
            command,
            env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


@pytest.mark.parametrize(
    ("silent", "number", "message"),
    [
        (1, "SIGSTOP", "process 1 of 2 (counted from 0) did not answer within --ddp_timeout"),
        # then the other one writes run.json
        pytest.param(
            0,
            "SIGSTOP",
            "process 0 of 2 (counted from 0) did not answer within --ddp_timeout",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            1, "SIGKILL", "process 1 of 2 (counted from 0) has ended", marks=pytest.mark.slow
        ),
    ],
)
def test_the_process_that_does_not_answer_is_named(
    tmp_path: Path, silent: int, number: str, message: str
) -> None:
    with two_processes(tmp_path, silent, number) as processes:
        stdout = processes[silent].stdout
        assert stdout is not None and stdout.readline() == "at step 1\n"
        began = time.monotonic()
        _, err = processes[1 - silent].communicate(timeout=120)
        took = time.monotonic() - began
    assert processes[1 - silent].returncode == 1, err
    assert took < 10 * TIMEOUT_S, "gloo alone waits for 30 minutes"
    last = err.strip().splitlines()[-1]
    assert last.startswith(f"train.py: {message}") and "Traceback" not in err
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["status"] == "failed" and record["error_kind"] == "ProcessError"
    assert record["error"].startswith(message)


def test_only_what_a_collective_raises_is_about_processes() -> None:
    assert name_silent(0, RuntimeError("Timed out waiting 1000ms for recv")) is None, "one process"
    assert signal.SIGSTOP
