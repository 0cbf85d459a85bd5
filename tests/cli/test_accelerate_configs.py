"""The shipped launch configurations: each is what accelerate reads, starts what it says, and the
GPU ones train.

The two that start on a CPU, `cpu` and `single`, are started in test_launch.py.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hfstack.cli.launch import LaunchOptions, plan, read_yaml_line
from tests.conftest import ROOT, SENTENCES

CONFIGS = ROOT / "accelerate_configs"
SLURM = CONFIGS / "slurm"
ON_GPUS = ("multi_gpu", "multi_node", "fsdp2", "zero2", "zero3")
ACCELERATE = "accelerate.commands.launch"
ONE_NODE = ["--main_process_port", "0"]
SECOND_OF_TWO = (
    "--num_machines 2 --machine_rank 1 --main_process_ip node-0 --main_process_port 29500".split()
)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_reads_each_config(path: Path):
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import launch_command_parser

    config = load_config_from_file(str(path))
    assert config.distributed_type.value == read_yaml_line(path, "distributed_type")
    assert config.mixed_precision == "no", "the recipe's --bf16 decides"
    options = vars(launch_command_parser().parse_args(["x.py"]))
    nested = {**(config.fsdp_config or {}), **(config.deepspeed_config or {})}
    assert set(nested) <= set(options), "a misspelled key would be ignored in silence"
    assert (config.num_processes == 1) is (config.distributed_type.value == "NO"), (
        "several: --num_processes must be said"
    )


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "train.py"
    path.write_text(
        "from transformers import TrainingArguments\ndef main(training_args: TrainingArguments): "
        "...\n"
    )
    return path


@pytest.mark.parametrize("nodes", [1, 2])
@pytest.mark.parametrize("name", ON_GPUS)
def test_the_command_of_each_gpu_config(
    name: str, nodes: int, recipe: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("hfstack.cli.launch.count_cores", lambda: 32)
    meeting = {"node_rank": 1, "main_address": "node-0:29500"} if nodes == 2 else {}
    config = CONFIGS / f"{name}.yaml"
    options = LaunchOptions(accelerate=config, nodes=nodes, **meeting)  # type: ignore[arg-type]
    launch = plan(recipe, ["--output_dir", "out"], options, accelerate_configs=CONFIGS, gpus=4)
    processes = str(4 * nodes)
    assert launch.command == [
        *(sys.executable, "-m"),
        *([ACCELERATE] if nodes == 2 else ["hfstack.cli.loopback", ACCELERATE]),
        "--config_file",
        str(config),
        "--num_processes",
        processes,
        *(SECOND_OF_TWO if nodes == 2 else ONE_NODE),
        "--tee",
        "3",
        str(recipe),
        "--output_dir",
        "out",
    ]
    assert launch.environment == {
        "HFSTACK_PROCESSES": processes,
        "OMP_NUM_THREADS": "8",
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "600",
        **({} if nodes == 2 else {"GLOO_SOCKET_IFNAME": "lo", "PET_LOCAL_ADDR": "127.0.0.1"}),
    }


@pytest.mark.parametrize("name", ["cpu", "single"])
def test_the_command_of_each_one_process_config(
    name: str, recipe: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("hfstack.cli.launch.count_cores", lambda: 32)
    config = CONFIGS / f"{name}.yaml"
    launch = plan(
        recipe,
        ["--max_steps", "1"],
        LaunchOptions(accelerate=config),
        accelerate_configs=CONFIGS,
        gpus=0,
    )
    assert launch.command == [
        *(sys.executable, "-m", ACCELERATE),
        "--quiet",
        "--config_file",
        str(config),
        str(recipe),
        "--max_steps",
        "1",
    ]
    assert launch.environment == {"HFSTACK_PROCESSES": "1", "OMP_NUM_THREADS": "32"}


def resolved(name: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What accelerate would set for each process started with one of our configs, two where it
    starts several.
    """
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import (
        prepare_deepspeed_cmd_env,
        prepare_multi_gpu_env,
        prepare_simple_launcher_cmd_env,
    )

    several = ["--num_processes", "2", "--main_process_port", "0"] if name in ON_GPUS else []
    command = ["--quiet", "--config_file", str(CONFIGS / f"{name}.yaml"), *several, "recipe.py"]
    for known in [known for known in os.environ if known.startswith(("ACCELERATE_", "FSDP_"))]:
        monkeypatch.delenv(known)
    monkeypatch.setattr(sys, "argv", ["accelerate", "launch", *command])
    arguments, defaults, _ = _validate_launch_command(launch_command_parser().parse_args(command))
    if arguments.use_deepspeed:
        arguments.deepspeed_fields_from_accelerate_config = ",".join(defaults.deepspeed_config)
        environment = prepare_deepspeed_cmd_env(arguments)[1]
    elif name in ON_GPUS:
        environment = prepare_multi_gpu_env(arguments)
    else:
        command, environment = prepare_simple_launcher_cmd_env(arguments)
        assert command[-1] == "recipe.py" and "torch.distributed" not in " ".join(command)
    for key in environment.keys() - os.environ.keys():
        monkeypatch.delenv(key, raising=False)  # accelerate sets some in this process as well
    return {
        key: value
        for key, value in environment.items()
        if key.startswith(("ACCELERATE_", "FSDP_")) and not key.startswith("ACCELERATE_DYNAMO_")
    }


_FSDP = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",
    "FSDP_SYNC_MODULE_STATES": "true",
    "FSDP_OFFLOAD_PARAMS": "false",
    "FSDP_ACTIVATION_CHECKPOINTING": "false",
}
_ZERO = {
    "ACCELERATE_USE_DEEPSPEED": "true",
    "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "none",
    "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": "none",
}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cpu", {"ACCELERATE_USE_CPU": "True"}),
        ("single", {"ACCELERATE_USE_CPU": "False"}),
        ("multi_gpu", {}),
        ("multi_node", {}),
        ("fsdp2", _FSDP),
        (
            "zero2",
            {
                **_ZERO,
                "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2",
                "ACCELERATE_DEEPSPEED_ZERO3_INIT": "false",
            },
        ),
        (
            "zero3",
            {
                **_ZERO,
                "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3",
                "ACCELERATE_DEEPSPEED_ZERO3_INIT": "true",
                "ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL": "true",
            },
        ),
    ],
)
def test_what_each_process_receives(
    name: str, expected: dict[str, str], monkeypatch: pytest.MonkeyPatch
):
    """All of it, but for what version 2 of FSDP and the chosen wrap policy do not read."""
    unread = (
        "FSDP_ACTIVATION_CHECKPOINTING_OFFLOAD",
        "FSDP_FORWARD_PREFETCH",
        "FSDP_MIN_NUM_PARAMS",
    )
    unread += ("FSDP_SHARDING_STRATEGY", "FSDP_USE_ORIG_PARAMS", "ACCELERATE_CONFIG_DS_FIELDS")
    found = {key: value for key, value in resolved(name, monkeypatch).items() if key not in unread}
    # Batch size, accumulation and clipping are not among it: they are the recipe's.
    assert found == {"ACCELERATE_MIXED_PRECISION": "no", **expected}


def test_every_config_is_asserted():
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == {*ON_GPUS, "cpu", "single"}


def test_fsdp2_arrives_as_fsdp2(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    from accelerate.utils import FullyShardedDataParallelPlugin

    environment = resolved("fsdp2", monkeypatch)
    assert environment["ACCELERATE_USE_FSDP"] == "true"
    for name, value in environment.items():
        if name.startswith("FSDP_"):
            monkeypatch.setenv(name, value)
    plugin = FullyShardedDataParallelPlugin()
    assert (plugin.fsdp_version, plugin.reshard_after_forward) == (2, True)
    assert str(plugin.state_dict_type) == "StateDictType.FULL_STATE_DICT", (
        "the run ends with a loadable model"
    )
    assert plugin.auto_wrap_policy is not None and plugin.transformer_cls_names_to_wrap is None
    assert plugin.cpu_ram_efficient_loading
    assert "FSDP2" not in caplog.text, "a setting that version 2 does not know"


@pytest.mark.gpu
@pytest.mark.parametrize("name", ON_GPUS)
def test_each_gpu_config_trains(name: str, tmp_path: Path, tiny_llama: Path):
    """A few steps on all GPUs of this machine, and a model that loads at the end."""
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no GPU here")
    if name.startswith("zero"):
        pytest.importorskip("deepspeed")
    from transformers import AutoModelForCausalLM

    (tmp_path / "rows.jsonl").write_text(
        "".join(json.dumps({"text": text}) + "\n" for text in SENTENCES * 40)
    )
    command = [
        sys.executable,
        "-m",
        "hfstack.cli",
        "run",
        "pretrain_clm",
        "--accelerate",
        name,
        "--model_name_or_path",
        str(tiny_llama),
        "--datasets",
        str(tmp_path / "rows.jsonl"),
        "--max_steps",
        "4",
        "--block_size",
        "16",
        "--per_device_train_batch_size",
        "2",
        "--sample_tokens",
        "2",
        "--save_steps",
        "2",
        "--eval_fraction",
        "0.1",
        "--output_dir",
        str(tmp_path / "out"),
        "--tokenizer_name_or_path",
        str(tiny_llama),
    ]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert (
        json.loads((tmp_path / "out" / "run.json").read_text())["world_size"]
        == torch.cuda.device_count()
    )
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").num_parameters() > 0


@pytest.mark.parametrize("script", sorted(SLURM.glob("*.sbatch")), ids=lambda path: path.stem)
def test_batch_scripts_are_bash(script: Path):
    assert (
        subprocess.run(
            ["bash", "-n", str(script)], capture_output=True, text=True, check=False
        ).stderr
        == ""
    )


# As on two nodes of one GPU each: every task runs the command with its own number, and srun returns
# the worst code.
STAND_INS = {
    "scontrol": (
        'if [ "$1" = show ]; then echo 127.0.0.1; echo 127.0.0.1; else echo "$@" >> requeued; fi'
    ),
    "srun": """while [[ "$1" == --* ]]; do shift; done
for node in $(seq 0 $((SLURM_NNODES - 1))); do SLURM_NODEID=$node "$@" & tasks[node]=$!; done
worst=0
for task in "${tasks[@]}"; do wait "$task"; code=$?; [ "$code" -gt "$worst" ] && worst=$code; done
exit $worst""",
    "hfstack": 'echo "$@" > "node${SLURM_NODEID}.txt"; exit "${END:-0}"',
}


def submit(script: str, *flags: str, folder: Path, without: str = "", **environment: str) -> int:
    """Run a batch script as Slurm would, with stand-ins for Slurm's commands; return its exit
    code."""
    (folder / "bin").mkdir(exist_ok=True)
    for name in STAND_INS.keys() - {without}:
        (folder / "bin" / name).write_text(f"#!/bin/bash\n{STAND_INS[name]}\n")
        (folder / "bin" / name).chmod(0o755)
    given = {
        "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "4242",
        "SLURM_JOB_NODELIST": "n[0-1]",
        "SLURM_NNODES": "2" if script == "multi_node" else "1",
    }
    command = ["bash", str(SLURM / f"{script}.sbatch"), *flags]
    return subprocess.run(
        command, cwd=folder, env=os.environ | environment | given, check=False
    ).returncode


def test_a_batch_script_starts_each_node_and_resumes_when_preempted(tmp_path: Path):
    asked = ("sft", "--accelerate", "fsdp2", "--run_name", "two words")
    assert submit("multi_node", *asked, folder=tmp_path, SLURM_GPUS_ON_NODE="8") == 0
    for node in (0, 1):
        assert (tmp_path / f"node{node}.txt").read_text().split() == (
            f"run sft --accelerate fsdp2 --run_name two words --nodes 2 --node_rank {node} "
            f"--main_address 127.0.0.1:29742 --processes 16 --log_file slurm-4242.node{node}.log "
            "--resume_from_checkpoint last"
        ).split()
    assert not (tmp_path / "requeued").exists()
    assert submit("multi_node", *asked, folder=tmp_path, END="75", SECONDS="3600") == 75
    assert (tmp_path / "requeued").read_text() == "requeue 4242\n"
    assert "--processes 2 " in (tmp_path / "node0.txt").read_text(), (
        "without GPUs one process a node"
    )

    assert submit("single_node", "sft", folder=tmp_path, SLURM_GPUS_ON_NODE="8", END="1") == 1
    assert (
        tmp_path / "node0.txt"
    ).read_text() == "run sft --processes 8 --resume_from_checkpoint last\n"


@pytest.mark.parametrize("script", ["single_node", "multi_node"])
def test_a_job_that_is_stopped_as_it_starts_does_not_come_back(
    script: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    """With a --time of no more than --signal's ten minutes Slurm stops each start before it has got
    anywhere.
    """
    assert submit(script, "sft", folder=tmp_path, END="75", SECONDS="100") == 75
    assert not (tmp_path / "requeued").exists() and "is --time longer" in capfd.readouterr().err
    assert submit(script, "sft", folder=tmp_path, END="75", SECONDS="120") == 75
    assert (tmp_path / "requeued").exists()
