"""A small soak of real SIGKILLs, at any moment and while a checkpoint is written; the whole one is
the benchmark.
"""

import re
import subprocess
import sys

import pytest

from tests.conftest import ROOT

RECIPES = ("pretrain_clm", "sft", "reward", "ppo")


@pytest.mark.slow
def test_runs_that_are_killed_end_as_those_that_are_not() -> None:
    command = [
        sys.executable,
        "benchmarks/kill_soak.py",
        "--recipes",
        *RECIPES,
        "--kills",
        "8",
        "--kills_per_run",
        "2",
        "--steps",
        "8",
    ]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=1800, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    summary = done.stdout.splitlines()[-1]
    last = re.fullmatch(r"(\d+) kills, \d+ torn checkpoints set aside, 0 runs that differ", summary)
    assert last and int(last[1]) >= 8
    assert done.stdout.count("weights and log equal") == len(RECIPES)
