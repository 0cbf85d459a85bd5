"""How a launch is decided, and what `hfstack run` returns and shows: with small recipes of this
file's own.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hfstack.cli.launch import (
    LaunchOptions,
    count_gpus,
    plan,
    read_setting,
    read_yaml_line,
    trains_a_model,
)
from hfstack.cli.supervise import outcome
from hfstack.errors import ConfigError

CONFIGS = Path(__file__).parent.parent.parent / "accelerate_configs"
# A recipe without torch: it ends the way its flags say, on the rank they say, and writes run.json
# as a Run would.
RECIPE = '''
"""Pretend to train."""
import json, os, signal, sys, time
from pathlib import Path

class TrainingArguments: ...

def main(training_args: TrainingArguments): ...

flags = dict(zip(sys.argv[1::2], sys.argv[2::2]))
rank = int(os.environ.get("RANK", "0"))
out = Path(flags["--output_dir"])

def listening(pid):
    """Addresses at which a process waits for connections, as /proc/net says them."""
    links = [os.readlink(one) for one in Path(f"/proc/{pid}/fd").iterdir() if one.is_symlink()]
    rows = [
        line.split()
        for name in ("tcp", "tcp6")
        for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]
    ]
    return [row[1] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in links]

def write(status):
    if rank == 0:
        out.mkdir(parents=True, exist_ok=True)
        (out / "run.json").write_text(json.dumps({
            "status": status, "world_size": os.environ.get("WORLD_SIZE"),
            "asked": os.environ["HFSTACK_PROCESSES"],
            "threads": os.environ.get("OMP_NUM_THREADS"),
            "listening": listening(os.getppid()) if "WORLD_SIZE" in os.environ else None,
            "gloo": os.environ.get("GLOO_SOCKET_IFNAME"),
        }))

def stop(number, frame):
    time.sleep(0.5)  # saving takes a while, and a second signal must not come
    write("preempted")
    print(f"saved after {signal.Signals(number).name}", file=sys.stderr)
    sys.exit(75)

signal.signal(signal.SIGTERM, stop)
print(f"step 1 of rank {rank}", file=sys.stderr)
print(f"result of rank {rank}")
end = flags["--end"] if flags.get("--rank", str(rank)) == str(rank) else "wait"
if end == "wait":
    write("running")
    (out / "ready").touch()
    time.sleep(60)
elif end == "mistake":
    write("failed")
    print("train.py: eval_fraction 7 is not below 1", file=sys.stderr)
    sys.exit(1)
elif end == "silent_mistake":
    print("train.py: no such file", file=sys.stderr)
    sys.exit(1)
elif end == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
elif end == "preempted":
    write("preempted")
    sys.exit(75)
else:
    write("finished")
'''


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "train.py"
    path.write_text(RECIPE)
    return path


def start(recipe: Path, *flags: str, **environment: str) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        "-m",
        "hfstack.cli",
        "run",
        recipe.name,
        "--output_dir",
        "out",
        *flags,
    ]
    clean = {
        name: value
        for name, value in os.environ.items()
        if name not in ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")
    }
    return subprocess.Popen(
        command,
        cwd=recipe.parent,
        env={**clean, "CUDA_VISIBLE_DEVICES": "", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(recipe: Path, *flags: str, **environment: str) -> tuple[int, str, str]:
    with start(recipe, *flags, **environment) as process:
        out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("end", "code"), [("finished", 0), ("mistake", 1), ("preempted", 75), ("kill", 137)]
)
def test_one_process_returns_the_recipes_own_code(recipe: Path, end: str, code: int):
    returned, out, err = run(recipe, "--end", end)
    assert returned == code
    assert out == "result of rank 0\n"
    command = err.splitlines()[0]
    assert command.startswith("+ HFSTACK_PROCESSES=1 ") and command.endswith(
        f" train.py --output_dir out --end {end}"
    )
    assert "Traceback" not in err and not (recipe.parent / "out.launch.log").exists()


def test_two_processes_on_a_cpu_form_one_group(recipe: Path):
    returned, out, err = run(recipe, "--end", "finished", "--processes", "2")
    assert returned == 0
    loopback = "-m hfstack.cli.loopback torch.distributed.run --nproc_per_node 2 --standalone"
    assert loopback in err.splitlines()[0]
    assert err.splitlines()[0].endswith(
        "train.py --output_dir out --end finished --use_cpu true --ddp_backend gloo"
    )
    record = json.loads((recipe.parent / "out" / "run.json").read_text())
    assert (record["world_size"], record["asked"]) == ("2", "2")
    cores = len(os.sched_getaffinity(0))
    assert int(record["threads"]) == max(1, cores // 2), (
        "torchrun alone would leave one thread a process"
    )
    # The launcher keeps two stores; torch would let every machine around write to them.
    addresses = {row.partition(":")[0] for row in record["listening"]}
    assert len(record["listening"]) >= 2 and addresses == {"0100007F"}, record["listening"]
    assert record["gloo"] == "lo"
    assert out == "result of rank 0\n", "the first process speaks, the others are in the log"
    assert err.splitlines()[1:] == ["step 1 of rank 0"]
    assert "[default1]:step 1 of rank 1" in (recipe.parent / "out.launch.log").read_text()


def test_a_mistake_in_two_processes_is_one_line_and_the_report_is_in_the_log(recipe: Path):
    returned, _, err = run(
        recipe, "--end", "mistake", "--processes", "2", "--log_file", "logs/launch.log"
    )
    assert returned == 1
    assert err.splitlines()[1:] == [
        "step 1 of rank 0",
        "train.py: eval_fraction 7 is not below 1",
        "hfstack: the launcher's report and the output of every process are in logs/launch.log",
    ]
    assert "ChildFailedError" in (recipe.parent / "logs" / "launch.log").read_text()


def test_a_failure_of_another_process_is_shown_and_is_no_preemption(recipe: Path):
    # Rank 0 waits, is told to stop by torchrun because rank 1 failed, and writes "preempted": the
    # outcome is a mistake.
    returned, _, err = run(recipe, "--end", "silent_mistake", "--rank", "1", "--processes", "2")
    assert json.loads((recipe.parent / "out" / "run.json").read_text())["status"] == "preempted"
    assert returned == 1
    assert err.count("train.py: no such file") == 1


def test_stopping_two_processes_waits_for_them_to_save(recipe: Path):
    with start(recipe, "--end", "wait", "--processes", "2") as process:
        wait_for(recipe.parent / "out" / "ready")
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 75
    assert err.count("saved after SIGTERM") == 1
    assert "hfstack: SIGTERM handed to the recipe; waiting while it saves" in err


@pytest.mark.parametrize("through", [(), ("--accelerate", "cpu")])
def test_stopping_one_process_hands_the_signal_on_once(recipe: Path, through: tuple[str, ...]):
    with start(recipe, "--end", "wait", *through) as process:
        wait_for(recipe.parent / "out" / "ready")
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 75
    assert err.count("saved after SIGTERM") == 1
    assert "Traceback" not in err


def test_ctrl_c_before_the_recipe_can_save_is_a_preemption_too(recipe: Path):
    with start(recipe, "--end", "wait") as process:
        wait_for(recipe.parent / "out" / "ready")
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert process.returncode == 75


@pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux tells a child of its parent's death"
)
def test_a_killed_hfstack_leaves_no_recipe_behind(recipe: Path):
    with start(recipe, "--end", "wait") as process:
        wait_for(recipe.parent / "out" / "ready")
        process.kill()
        _, err = process.communicate(timeout=60)  # ends when the last holder of the pipe has ended
    assert json.loads((recipe.parent / "out" / "run.json").read_text())["status"] == "preempted"
    assert "saved after SIGTERM" in err


def test_accelerate_keeps_the_code_and_an_old_run_json_does_not_decide(recipe: Path):
    (recipe.parent / "out").mkdir()
    (recipe.parent / "out" / "run.json").write_text('{"status": "finished"}')
    returned, _, err = run(recipe, "--end", "silent_mistake", "--accelerate", "single")
    assert returned == 1
    assert "accelerate.commands.launch --quiet --config_file" in err.splitlines()[0]
    assert err.splitlines()[1:] == ["step 1 of rank 0", "train.py: no such file"]


def test_a_log_of_one_process_is_a_copy_of_its_output(recipe: Path):
    returned, out, err = run(recipe, "--end", "finished", "--log_file", "one.log")
    assert (returned, out) == (0, "result of rank 0\n")
    assert "step 1 of rank 0\n" in err
    log = (recipe.parent / "one.log").read_text()
    assert "step 1 of rank 0\n" in log and "result of rank 0\n" in log and "--end finished" in log


def test_an_unwritable_log_is_one_line(recipe: Path):
    (recipe.parent / "file").touch()
    returned, _, err = run(recipe, "--end", "finished", "--log_file", "file/launch.log")
    assert returned == 1
    assert err.splitlines()[1:] == [
        "hfstack: the log file/launch.log cannot be written: its folder is a file; choose another "
        "--log_file"
    ]


def test_two_nodes_meet(recipe: Path):
    """Two nodes on one machine, each with one process of two."""
    shared = (
        "--end",
        "finished",
        "--nodes",
        "2",
        "--processes",
        "2",
        "--main_address",
        "localhost:29741",
    )
    second = start(recipe, *shared, "--node_rank", "1", "--log_file", "second.log")
    with second:
        assert run(recipe, *shared, "--node_rank", "0")[0] == 0
        second.communicate(timeout=60)
    assert second.returncode == 0
    assert json.loads((recipe.parent / "out" / "run.json").read_text())["world_size"] == "2"


@pytest.mark.parametrize(
    ("code", "status", "report", "stopped", "expected"),
    [
        (0, None, "", False, 0),
        (
            0,
            "running",
            "",
            False,
            0,
        ),  # already finished before: the recipe wrote nothing and returned 0
        (1, None, "", False, 1),  # a mistake before the run began; an old run.json counts as None
        (1, "running", "", False, 1),  # killed
        (1, "failed", "", False, 1),
        (1, "preempted", "", False, 75),
        (1, "finished", "", False, 0),  # the launcher stumbled while it shut down
        (
            1,
            "preempted",
            "Root Cause (first observed failure):\n rank : 1 (local_rank: 1)\n exitcode : 75",
            False,
            75,
        ),
        (
            1,
            "preempted",
            "Root Cause (first observed failure):\n rank : 1 (local_rank: 1)\n exitcode : -9",
            False,
            1,
        ),
        (
            1,
            "preempted",
            "Root Cause (first observed failure):\n rank : 1 (local_rank: 1)\n exitcode : 1",
            False,
            1,
        ),
        (1, None, "", True, 75),  # stopped before the run began
        (1, "running", "", True, 75),
        (1, "failed", "", True, 1),
    ],
)
def test_the_outcome_of_a_launcher(
    code: int, status: str | None, report: str, stopped: bool, expected: int
):
    assert outcome(code, status, report, stopped=stopped) == expected


def decide(recipe: Path, *flags: str, gpus: int = 0, **options: object):
    return plan(recipe, [*flags], LaunchOptions(**options), accelerate_configs=CONFIGS, gpus=gpus)  # type: ignore[arg-type]


def test_gpus_are_used_through_accelerate(recipe: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    launch = decide(recipe, "--output_dir", "runs/a", gpus=4, processes=4)
    text = str(launch)
    assert f"--config_file {CONFIGS}/multi_gpu.yaml --num_processes 4 --main_process_port 0" in text
    assert "gloo" not in text and "CUDA_VISIBLE_DEVICES" not in launch.environment
    assert launch.log_file == Path("runs/a.launch.log")
    assert decide(recipe, gpus=4, accelerate=CONFIGS / "fsdp2.yaml").processes == 4, (
        "a sharded config takes all GPUs"
    )


def test_one_process_sees_one_gpu(recipe: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert decide(recipe, gpus=2).environment["CUDA_VISIBLE_DEVICES"] == "3"
    assert (
        decide(recipe, gpus=2, accelerate=CONFIGS / "single.yaml").environment[
            "CUDA_VISIBLE_DEVICES"
        ]
        == "3"
    )
    assert "CUDA_VISIBLE_DEVICES" not in decide(recipe, "--use_cpu", gpus=2).environment


def test_processes_of_one_node_meet_on_its_loopback_address(recipe: Path, monkeypatch) -> None:
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    for gpus, module in [(2, "accelerate.commands.launch"), (0, "torch.distributed.run")]:
        launch = decide(recipe, gpus=gpus, processes=2)
        assert launch.command[1:4] == ["-m", "hfstack.cli.loopback", module]
        assert launch.environment["PET_LOCAL_ADDR"] == "127.0.0.1"
        far = decide(recipe, gpus=gpus, processes=2, nodes=2, main_address="node-0:29500")
        assert far.command[1:3] == ["-m", module] and "PET_LOCAL_ADDR" not in far.environment
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth1")
    assert decide(recipe, processes=2).environment["GLOO_SOCKET_IFNAME"] == "eth1"


def test_use_cpu_takes_torchrun_on_a_machine_with_gpus(recipe: Path):
    launch = decide(recipe, "--use_cpu", gpus=2, processes=2)
    assert launch.launcher == "torchrun" and "torch.distributed.run" in str(launch)
    assert str(launch).endswith("--use_cpu --ddp_backend gloo")


def test_several_nodes_in_accelerates_words(recipe: Path):
    text = str(
        decide(
            recipe,
            gpus=8,
            processes=16,
            nodes=2,
            node_rank=1,
            main_address="node-0:29500",
            accelerate=CONFIGS / "multi_node.yaml",
        )
    )
    assert (
        "--num_processes 16 --num_machines 2 --machine_rank 1 --main_process_ip node-0 "
        "--main_process_port 29500" in text
    )


@pytest.mark.parametrize(
    ("options", "gpus", "message"),
    [
        ({"processes": 4}, 2, "--processes 4 but 2 GPUs are visible on this node"),
        (
            {"processes": 2, "accelerate": CONFIGS / "cpu.yaml"},
            0,
            "accelerate starts one process, not 2",
        ),
        (
            {"accelerate": CONFIGS / "fsdp2.yaml"},
            0,
            "distributed_type FSDP needs a GPU and none is in use",
        ),
        ({"accelerate": CONFIGS / "zero3.yaml"}, 0, "distributed_type DEEPSPEED needs a GPU"),
        (
            {"processes": 3, "nodes": 2, "main_address": "a:1"},
            0,
            "--processes 3 do not spread evenly over --nodes 2",
        ),
        ({"processes": 2, "nodes": 2}, 0, "--nodes needs --main_address HOST:PORT"),
        (
            {"processes": 2, "nodes": 2, "main_address": "a"},
            0,
            "--main_address a: expected HOST:PORT",
        ),
        (
            {"processes": 2, "nodes": 2, "main_address": "a:1", "node_rank": 2},
            0,
            "--node_rank 2 is not one of 0 to 1",
        ),
    ],
)
def test_what_would_silently_start_something_else_is_refused(
    recipe: Path, options: dict, gpus: int, message: str
):
    with pytest.raises(ConfigError, match=message):
        decide(recipe, gpus=gpus, **options)


def test_a_recipe_without_training_arguments_runs_alone(tmp_path: Path):
    path = tmp_path / "clean.py"
    path.write_text("def main(args: CleanArgs): ...\n")
    assert decide(path, "--output_dir", "out").launcher == "python"
    with pytest.raises(
        ConfigError, match="clean takes no TrainingArguments, so it runs in one plain process"
    ):
        decide(path, processes=2)


@pytest.mark.parametrize(
    ("source", "trains"),
    [
        (
            "from transformers import TrainingArguments\ndef main(a: X, b: TrainingArguments): ...",
            True,
        ),
        (
            "from trl import SFTConfig, ModelConfig\ndef main(a: ModelConfig, b: SFTConfig): ...",
            True,
        ),
        ("from hfstack.tasks.rl.ppo.config import PPOConfig\ndef main(a: PPOConfig): ...", True),
        ("from trl import ModelConfig\ndef main(a: ModelConfig): ...", False),
        ("from transformers import GenerationConfig\ndef main(a: GenerationConfig): ...", False),
    ],
)
def test_training_recipes_are_recognised_by_their_source(tmp_path: Path, source: str, trains: bool):
    path = tmp_path / "x.py"
    path.write_text(source)
    assert trains_a_model(path) is trains


@pytest.mark.parametrize(
    ("source", "message"), [("def main(:", "not a Python file"), ("x = 1", "no function main")]
)
def test_a_file_that_is_no_recipe(tmp_path: Path, source: str, message: str):
    path = tmp_path / "x.py"
    path.write_text(source)
    with pytest.raises(ConfigError, match=message):
        trains_a_model(path)


def test_settings_are_found_in_flags_and_yaml(tmp_path: Path):
    config = tmp_path / "a.yaml"
    config.write_text(
        "output_dir: runs/a b  # where\nquoted: 'x # y'\nempty:\nnothing: null\nuse_cpu: "
        "true\nnested:\n  inner: 1\n"
    )
    assert read_yaml_line(config, "output_dir") == "runs/a b"
    assert read_yaml_line(config, "quoted") == "x # y"
    assert read_yaml_line(config, "inner") is None
    assert [read_yaml_line(config, key) for key in ("empty", "nothing", "absent")] == [
        None,
        None,
        None,
    ]
    flags = ["--config", str(config)]
    assert read_setting("output_dir", flags) == "runs/a b"
    assert read_setting("output_dir", [*flags, "--output_dir", "b", "--output-dir=c"]) == "c"
    assert read_setting("use_cpu", ["--use_cpu", "--output_dir", "b"]) == "true"
    assert read_setting("output_dir", ["--config", str(tmp_path / "none.yaml")]) is None


def test_gpus_are_counted_without_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fake_smi(listing: str) -> None:
        (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\ncat <<'END'\n{listing}\nEND\n")
        (tmp_path / "nvidia-smi").chmod(0o755)

    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    fake_smi("GPU 0: NVIDIA H200 (UUID: GPU-1)\nGPU 1: NVIDIA H200 (UUID: GPU-2)")
    assert count_gpus({}) == 2
    assert count_gpus({"CUDA_VISIBLE_DEVICES": "1"}) == 1
    assert count_gpus({"CUDA_VISIBLE_DEVICES": ""}) == 0
    assert count_gpus({"CUDA_VISIBLE_DEVICES": "1,-1,0"}) == 1
    assert count_gpus({"CUDA_VISIBLE_DEVICES": "GPU-1,GPU-2"}) == 2
    fake_smi(
        "GPU 0: NVIDIA H200 (UUID: GPU-1)\n  MIG 1g.18gb Device 0: (UUID: MIG-1)\n  MIG 1g.18gb "
        "Device 1: (UUID: MIG-2)"
    )
    assert count_gpus({}) == 2
    fake_smi("No devices found.")
    assert count_gpus({}) == 0
    monkeypatch.setenv("PATH", "/nonexistent")
    assert count_gpus({}) == 0
