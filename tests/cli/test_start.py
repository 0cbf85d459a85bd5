"""What is imported before a recipe's first step, and that it sees what a new interpreter shows."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hfstack.shipped import RECIPES
from tests.cli.test_warm import SHOWS
from tests.conftest import SENTENCES

# run in the process that trains, and ended at its first step
PROGRAM = """
import contextlib, os, sys, time
from hfstack.cli import start

NOT_NEEDED = set(os.environ["NOT_NEEDED"].split())
cheaper_imports = start.cheaper_imports

def tell(*_):
    heavy = sorted(NOT_NEEDED & set(sys.modules))
    print(len(sys.modules), f"{time.process_time():.2f}", heavy, file=sys.stderr)
    os._exit(0)

@contextlib.contextmanager
def then_listen():
    with cheaper_imports():
        yield
    from torch.optim.optimizer import register_optimizer_step_post_hook
    register_optimizer_step_post_hook(tell)

start.cheaper_imports = then_listen
start.main()
"""
# half a second of CPU each, or nothing of them is needed before the first step
NOT_NEEDED = "evaluate requests scipy.stats sklearn matplotlib wandb.sdk pydantic fastapi seqeval"
MOST_MODULES = 4200  # 4,707 before imports went by need, 4,040 since, with torch 2.13


def test_the_first_step_comes_after_few_imports(tmp_path: Path, tiny_llama: Path) -> None:
    """By what is imported, which no other work of the machine changes.

    benchmarks/start_up.py measures the seconds.
    """
    rows = [{"prompt": f"{n}?", "completion": SENTENCES[n % 4]} for n in range(16)]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))

    flags = f"--model_name_or_path {tiny_llama} --datasets {data} --output_dir {tmp_path}/out"
    flags += " --as_chat false --max_steps 1 --max_length 64 --bf16 false --report_to none"
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(RECIPES / "sft.py"), *flags.split()],
        env=os.environ | {"NOT_NEEDED": NOT_NEEDED},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    modules, _, heavy = done.stderr.splitlines()[-1].split(" ", 2)
    assert heavy == "[]"
    assert int(modules) <= MOST_MODULES


def test_a_recipe_sees_what_a_new_interpreter_shows(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(SHOWS)
    seen = []
    for start in ([], ["-P", "-m", "hfstack.cli.start"]):
        command = [sys.executable, *start, str(tmp_path / "program.py"), str(tmp_path / "seen")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (7, "printed\n")
        seen.append(json.loads((tmp_path / "seen").read_text()))
    assert seen[0] == seen[1]


@pytest.mark.parametrize("broken", ["import no_such_module", "def f(:", "from os import nothing"])
def test_a_broken_import_is_reported_as_ever(tmp_path: Path, broken: str) -> None:
    (tmp_path / "program.py").write_text(f"import json\n{broken}\n")
    said = []
    for start in ([], ["-P", "-m", "hfstack.cli.start"]):
        command = [sys.executable, *start, str(tmp_path / "program.py")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 1
        said.append(done.stderr.splitlines()[-1])
    assert said[0] == said[1]


def test_a_tracker_is_loaded_when_it_is_used() -> None:
    """In a process of its own, because this one may have loaded it."""
    program = """
import gc, importlib.metadata, sys
from hfstack.cli.start import cheaper_imports
before = importlib.metadata.packages_distributions
with cheaper_imports():
    from transformers.integrations import is_wandb_available
    assert not gc.isenabled() and is_wandb_available()
    import wandb
assert gc.isenabled() and importlib.metadata.packages_distributions is before
assert "wandb.sdk" not in sys.modules and wandb.run is None
from wandb import Settings
import wandb.sdk.wandb_run
assert wandb.sdk.wandb_settings.Settings is Settings and wandb.__version__
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
