"""Two processes compute what one computes at the same global batch, and a wrong number of processes is refused."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, SENTENCES


def launch(processes: int, output_dir: Path, rows: Path, model: Path, home: Path) -> subprocess.CompletedProcess:
    command = [
        sys.executable, "-m", "hfstack.cli", "run", "pretrain_clm", "--processes", str(processes),
        "--model_name_or_path", str(model), "--tokenizer_name_or_path", str(model), "--datasets", str(rows),
        "--output_dir", str(output_dir),
        "--eval_fraction", "0.3", "--block_size", "16", "--max_steps", "6", "--learning_rate", "0.01",
        "--warmup_steps", "0", "--per_device_train_batch_size", str(4 // processes), "--logging_steps", "1",
        "--per_device_eval_batch_size", "1", "--eval_steps", "3", "--save_strategy", "no", "--bf16", "false",
        "--sample_tokens", "2", "--use_cpu", "true",
    ]  # fmt: skip
    environment = os.environ | {"HF_HOME": str(home), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)


def losses(folder: Path, name: str) -> list[float]:
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [entry[name] for entry in history if name in entry]


def test_two_processes_equal_one(tmp_path: Path, tiny_llama: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": f"{i} {SENTENCES[i % 4]}"}) + "\n" for i in range(60)))
    for processes in (1, 2):
        done = launch(processes, tmp_path / str(processes), rows, tiny_llama, tmp_path / "hf")
        assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((tmp_path / "2" / "run.json").read_text())["world_size"] == 2
    for name in ("loss", "grad_norm"):
        one, two = losses(tmp_path / "1", name), losses(tmp_path / "2", name)
        assert len(one) == len(two) == 6
        assert two == pytest.approx(one, rel=1e-5, abs=1e-5), name
    # Repeated, both processes say that there is nothing to do.
    again = launch(2, tmp_path / "2", rows, tiny_llama, tmp_path / "hf")
    assert again.returncode == 0 and "already finished" in again.stderr


def test_a_launcher_that_starts_fewer_is_refused(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "recipes" / "pretrain_clm.py"), "--output_dir", str(tmp_path / "out")]
    environment = os.environ | {"HFSTACK_PROCESSES": "2", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("pretrain_clm.py: 2 processes were asked for but 1 started")
    assert not (tmp_path / "out").exists()
