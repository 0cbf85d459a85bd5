"""Two processes compute what one does at the same global batch; a wrong number is refused."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.test_accelerate_configs import submit
from tests.conftest import ROOT, SENTENCES


def recipe_flags(processes: int, rows: Path, model: Path) -> list[str]:
    return [
        "--model_name_or_path",
        str(model),
        "--tokenizer_name_or_path",
        str(model),
        "--datasets",
        str(rows),
        "--eval_fraction",
        "0.3",
        "--block_size",
        "16",
        "--max_steps",
        "6",
        "--learning_rate",
        "0.01",
        "--warmup_steps",
        "0",
        "--per_device_train_batch_size",
        str(4 // processes),
        "--logging_steps",
        "1",
        "--per_device_eval_batch_size",
        "1",
        "--eval_steps",
        "3",
        "--save_strategy",
        "no",
        "--bf16",
        "false",
        "--sample_tokens",
        "2",
        "--use_cpu",
        "true",
    ]


def surroundings(home: Path) -> dict[str, str]:
    return os.environ | {"HF_HOME": str(home), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def launch(
    processes: int, output_dir: Path, rows: Path, model: Path, home: Path
) -> subprocess.CompletedProcess:
    command = [
        sys.executable,
        "-m",
        "hfstack.cli",
        "run",
        "pretrain_clm",
        "--processes",
        str(processes),
        "--output_dir",
        str(output_dir),
        *recipe_flags(processes, rows, model),
    ]
    return subprocess.run(
        command, env=surroundings(home), capture_output=True, text=True, timeout=300, check=False
    )


def write_rows(path: Path) -> Path:
    path.write_text(
        "".join(json.dumps({"text": f"{i} {SENTENCES[i % 4]}"}) + "\n" for i in range(60))
    )
    return path


def check_same(one: Path, two: Path) -> None:
    """The losses and gradients of each step, and of both evaluations, whatever number of processes
    there was.
    """
    for name, count in (("loss", 6), ("grad_norm", 6), ("eval_loss", 2)):
        alone, together = losses(one, name), losses(two, name)
        assert len(alone) == len(together) == count, name
        assert together == pytest.approx(alone, rel=1e-5, abs=1e-5), name


def losses(folder: Path, name: str) -> list[float]:
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [entry[name] for entry in history if name in entry]


def test_two_processes_equal_one(tmp_path: Path, tiny_llama: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl")
    for processes in (1, 2):
        done = launch(processes, tmp_path / str(processes), rows, tiny_llama, tmp_path / "hf")
        assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((tmp_path / "2" / "run.json").read_text())["world_size"] == 2
    check_same(tmp_path / "1", tmp_path / "2")
    # Repeated, both processes say that there is nothing to do.
    again = launch(2, tmp_path / "2", rows, tiny_llama, tmp_path / "hf")
    assert again.returncode == 0 and "already finished" in again.stderr


def test_a_launcher_that_starts_fewer_is_refused(tmp_path: Path) -> None:
    command = [
        sys.executable,
        str(ROOT / "recipes" / "pretrain_clm.py"),
        "--output_dir",
        str(tmp_path / "out"),
    ]
    environment = os.environ | {"HFSTACK_PROCESSES": "2", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(
        "pretrain_clm.py: 2 processes were asked for but 1 started"
    )
    assert not (tmp_path / "out").exists()


def with_torchrun(folder: Path, flags: list[str], environment: dict[str, str]) -> None:
    """Two agents, as on two nodes, that find each other by a rendezvous of torch (c10d)."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nnodes",
        "2",
        "--nproc_per_node",
        "1",
        "--rdzv_id",
        "clm",
        "--rdzv_backend",
        "c10d",
        "--rdzv_endpoint",
        f"127.0.0.1:{port}",
        str(ROOT / "recipes" / "pretrain_clm.py"),
        "--config",
        str(ROOT / "recipes" / "pretrain_clm.yaml"),
        *flags,
        "--ddp_backend",
        "gloo",
    ]
    nodes = [
        subprocess.Popen(command, cwd=folder, env=environment | {"HFSTACK_PROCESSES": "2"})
        for _ in range(2)
    ]
    assert [node.wait(timeout=300) for node in nodes] == [0, 0]


def with_slurm(folder: Path, flags: list[str], environment: dict[str, str]) -> None:
    """The batch script for several nodes, with stand-ins for Slurm's own commands."""
    (folder / "bin").mkdir()
    (folder / "bin" / "hfstack").write_text(
        f'#!/bin/bash\nexec {sys.executable} -m hfstack.cli "$@"\n'
    )
    (folder / "bin" / "hfstack").chmod(0o755)
    assert (
        submit(
            "multi_node", "pretrain_clm", *flags, folder=folder, without="hfstack", **environment
        )
        == 0
    )
    assert sorted(path.name for path in folder.glob("slurm-*")) == [
        "slurm-4242.node0.log",
        "slurm-4242.node1.log",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("start", [with_torchrun, with_slurm])
def test_two_nodes_equal_one_process(
    start: Callable[..., None], tmp_path: Path, tiny_llama: Path
) -> None:
    """Two nodes on the loopback of this machine, with one process each."""
    rows = write_rows(tmp_path / "rows.jsonl")
    assert launch(1, tmp_path / "one", rows, tiny_llama, tmp_path / "hf").returncode == 0
    flags = ["--output_dir", str(tmp_path / "two"), *recipe_flags(2, rows, tiny_llama)]
    start(tmp_path, flags, surroundings(tmp_path / "hf"))
    assert json.loads((tmp_path / "two" / "run.json").read_text())["world_size"] == 2
    check_same(tmp_path / "one", tmp_path / "two")
