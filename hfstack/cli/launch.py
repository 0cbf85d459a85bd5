"""Decide which launcher starts a recipe, with how many processes.

One process is plain `python recipe.py`: no launcher in between, all cores, and the recipe's own
exit code. Several are started by torchrun on a CPU and by accelerate on GPUs. Standard library
only: importing torch would take seconds.
"""

import ast
import dataclasses
import os
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from hfstack.errors import ConfigError
from hfstack.machine import count_cores
from hfstack.places import expand_place

# torchrun kills a worker that has not ended this long after a stop; its own default is 30.
_SAVE_TIMEOUT_S = 600
_TORCHRUN = "torch.distributed.run"
# on one node: see its docstring
_LOOPBACK = [sys.executable, "-m", "hfstack.cli.loopback"]
_ACCELERATE = [sys.executable, "-m", "accelerate.commands.launch"]
_TRAINER_PACKAGES = ("trl", "hfstack.tasks.rl")  # whose ...Config classes are TrainingArguments
_TRUE_WORDS = ("true", "1", "yes", "y", "t")  # those of transformers' parser


@dataclasses.dataclass(frozen=True)
class LaunchOptions:
    """The launcher's own options of `hfstack run`.

    Everything else on its command line belongs to the recipe.
    """

    processes: int | None = None
    accelerate: Path | None = None
    log_file: Path | None = None
    nodes: int = 1
    node_rank: int = 0
    main_address: str | None = None
    retries: int = 0


@dataclasses.dataclass(frozen=True)
class Launch:
    """A launch: the command, and what is added to its environment."""

    command: list[str]
    environment: dict[str, str]
    launcher: Literal["python", "accelerate", "torchrun"]
    processes: int
    output_dir: Path | None
    log_file: Path | None = None
    retries: int = 0
    resume_flags: tuple[str, ...] = ()

    def resumed(self) -> "Launch":
        """Return the same launch, resumed from its last checkpoint.

        It is the launch itself where it cannot resume or was given a checkpoint to resume from.
        """
        return dataclasses.replace(
            self, command=[*self.command, *self.resume_flags], resume_flags=()
        )

    def __str__(self) -> str:
        """Return a line that a shell runs to the same effect."""
        settings = [f"{name}={shlex.quote(value)}" for name, value in self.environment.items()]
        return " ".join([*settings, shlex.join(self.command)])


def plan(
    recipe: Path,
    flags: list[str],
    options: LaunchOptions,
    *,
    accelerate_configs: Path,
    gpus: int | None = None,
) -> Launch:
    """Decide how to start a recipe.

    Args:
        recipe: the recipe's file.
        flags: the recipe's own flags, `--config` among them.
        options: the launcher's options.
        accelerate_configs: the folder of `multi_gpu.yaml`.
        gpus: how many GPUs to count on; by default what this machine shows.

    Raises:
        ConfigError: the recipe runs in one process only, or the launcher asked for would not start
            what was asked.
    """
    trains = trains_a_model(recipe)
    if not trains and ((options.processes or 1) > 1 or options.accelerate or options.nodes > 1):
        raise ConfigError(
            f"{recipe.stem} takes no TrainingArguments, so it runs in one plain process: "
            "leave out --processes, --accelerate and --nodes"
        )

    if gpus is None:
        gpus = count_gpus() if trains else 0
    if (read_setting("use_cpu", flags) or "").lower() in _TRUE_WORDS:
        gpus = 0
    processes = options.processes or _default_processes(options, gpus)
    _check_counts(options, processes, gpus)

    output_dir = read_setting("output_dir", flags)
    launch = Launch(
        command=[],
        environment={"HFSTACK_PROCESSES": str(processes)},
        launcher="python",
        processes=processes,
        output_dir=Path(expand_place(output_dir)) if output_dir else None,
        retries=options.retries,
    )
    if trains and options.retries and read_setting("resume_from_checkpoint", flags) is None:
        launch = dataclasses.replace(launch, resume_flags=("--resume_from_checkpoint", "last"))

    # Shown several GPUs, one process of the Trainer would use torch.nn.DataParallel on all.
    alone = options.accelerate is None or _distributed_type(options.accelerate) == "NO"
    if processes == 1 and alone and trains and gpus > 1:
        shown = os.environ.get("CUDA_VISIBLE_DEVICES", "0")
        launch.environment["CUDA_VISIBLE_DEVICES"] = shown.split(",")[0]

    if processes == 1 and options.accelerate is None:
        command = [sys.executable, str(recipe), *flags]
        return dataclasses.replace(launch, command=command, log_file=options.log_file)

    # Both launchers would give each process a single thread.
    threads = max(1, count_cores() * options.nodes // processes)
    launch.environment["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", str(threads))

    if options.accelerate and alone:
        config = ["--config_file", str(options.accelerate)]
        command = [*_ACCELERATE, "--quiet", *config, str(recipe), *flags]
        return dataclasses.replace(
            launch, command=command, launcher="accelerate", log_file=options.log_file
        )

    log_file = options.log_file or Path(f"{output_dir or 'hfstack-' + recipe.stem}.launch.log")
    launch.environment.update(_meeting_environment(options))
    if options.accelerate or gpus:
        config_file = options.accelerate or accelerate_configs / "multi_gpu.yaml"
        start = _accelerate_start(config_file, processes, options)
    else:
        start = _torchrun_start(processes, options)
        for name, value in (("use_cpu", "true"), ("ddp_backend", "gloo")):
            flags = flags if read_setting(name, flags) else [*flags, f"--{name}", value]

    command = [*start, "--tee", "3", str(recipe), *flags]
    return dataclasses.replace(launch, command=command, launcher="torchrun", log_file=log_file)


def _accelerate_start(config_file: Path, processes: int, options: LaunchOptions) -> list[str]:
    """Return how accelerate is called for several processes."""
    meeting = _rendezvous(
        options, "--num_machines", "--machine_rank", "--main_process_ip", "--main_process_port"
    )
    counts = ["--config_file", str(config_file), "--num_processes", str(processes)]
    if options.nodes > 1:
        return [*_ACCELERATE, *counts, *meeting]
    return [*_LOOPBACK, _ACCELERATE[-1], *counts, "--main_process_port", "0"]


def _torchrun_start(processes: int, options: LaunchOptions) -> list[str]:
    """Return how torchrun is called for several processes on CPUs."""
    meeting = _rendezvous(options, "--nnodes", "--node_rank", "--master_addr", "--master_port")
    counts = ["--nproc_per_node", str(processes // options.nodes)]
    if options.nodes > 1:
        return [sys.executable, "-m", _TORCHRUN, *counts, *meeting]
    return [*_LOOPBACK, _TORCHRUN, *counts, "--standalone"]


def _meeting_environment(options: LaunchOptions) -> dict[str, str]:
    """Return the environment in which several processes start, talk and end.

    Those of one node talk on its loopback interface; NCCL connects GPUs in its own way. What the
    user has set stays.
    """
    environment = {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(_SAVE_TIMEOUT_S)}
    if options.nodes > 1:
        return environment
    names = (name for _, name in socket.if_nameindex() if name.startswith("lo"))
    loopback = {"GLOO_SOCKET_IFNAME": next(names, "lo"), "PET_LOCAL_ADDR": "127.0.0.1"}
    return environment | {name: os.environ.get(name, value) for name, value in loopback.items()}


def _default_processes(options: LaunchOptions, gpus: int) -> int:
    """Return how many processes to start when none were asked for.

    One, unless an accelerate config gives a number or asks for all GPUs of the nodes.
    """
    if options.accelerate is None:
        return options.nodes

    configured = read_yaml_line(options.accelerate, "num_processes")
    if configured and configured.isdigit():
        return int(configured)
    distributed = _distributed_type(options.accelerate) != "NO"
    return max(1, gpus * options.nodes) if distributed else 1


def _check_counts(options: LaunchOptions, processes: int, gpus: int) -> None:
    """Refuse launches that would silently start something else than was asked for."""
    if options.accelerate:
        # accelerate itself trains with fewer processes or on the CPU, without a word.
        kind = _distributed_type(options.accelerate)
        if kind == "MULTI_CPU" or (kind == "NO" and processes > 1):
            raise ConfigError(
                f"--accelerate {options.accelerate}: with distributed_type {kind} accelerate "
                f"starts one process, not {processes}; leave out --accelerate and give --processes "
                f"{processes}"
            )

        if kind not in ("NO", "MULTI_CPU") and gpus == 0:
            raise ConfigError(
                f"--accelerate {options.accelerate}: distributed_type {kind} needs a GPU and none "
                "is in use here; several processes on a CPU start with --processes N alone"
            )

    if processes % options.nodes:
        raise ConfigError(
            f"--processes {processes} do not spread evenly over --nodes {options.nodes}"
        )

    if options.nodes > 1 and options.main_address is None:
        raise ConfigError(
            "--nodes needs --main_address HOST:PORT, the address of node 0, the same on every node"
        )

    if not 0 <= options.node_rank < options.nodes:
        raise ConfigError(
            f"--node_rank {options.node_rank} is not one of 0 to {options.nodes - 1} (--nodes)"
        )

    # NCCL refuses two processes on one GPU, but only once the model is loaded.
    if gpus and processes > gpus * options.nodes:
        raise ConfigError(
            f"--processes {processes} but {gpus} {'GPU is' if gpus == 1 else 'GPUs are'} visible "
            f"on this node: give at most {gpus * options.nodes}, or --use_cpu true to train on the "
            "CPU"
        )


def _distributed_type(config: Path) -> str:
    """Return what an accelerate config starts: NO for one process, MULTI_GPU, FSDP ..."""
    return read_yaml_line(config, "distributed_type") or "NO"


def _rendezvous(options: LaunchOptions, *names: str) -> list[str]:
    """Return the launcher's flags for where the processes of several nodes meet.

    Empty on one node.
    """
    if options.nodes == 1:
        return []
    host, _, port = (options.main_address or "").rpartition(":")
    if not host or not port.isdigit():
        raise ConfigError(
            f"--main_address {options.main_address}: expected HOST:PORT, such as node-0:29500"
        )

    values = str(options.nodes), str(options.node_rank), host, port
    return [part for pair in zip(names, values, strict=True) for part in pair]


def trains_a_model(recipe: Path) -> bool:
    """Return whether a recipe's `main` takes TrainingArguments, from its source alone.

    A class counts by its name: `...TrainingArguments`, or a `...Config` of trl or of
    `hfstack.tasks.rl`.
    """
    try:
        tree = ast.parse(recipe.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError) as error:
        raise ConfigError(f"{recipe} is not a Python file: {error}") from None

    # The module behind each name, since `SFTConfig` alone does not say whose it is.
    origin = {
        alias.asname or alias.name: node.module or ""
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }

    main = next(
        (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "main"),
        None,
    )
    if main is None:
        raise ConfigError(f"{recipe} is not a recipe: it has no function main")

    def is_training(name: str) -> bool:
        if name.endswith("TrainingArguments"):
            return True
        # trl's ModelConfig names the model, and almost every recipe takes it.
        is_config = name.endswith("Config") and name != "ModelConfig"
        return is_config and origin.get(name, "").startswith(_TRAINER_PACKAGES)

    annotations = [argument.annotation for argument in main.args.args if argument.annotation]
    return any(is_training(ast.unparse(annotation)) for annotation in annotations)


def read_setting(name: str, flags: list[str]) -> str | None:
    """Return one option's value from the flags, else from the YAML of `--config`.

    The last flag of that name counts. The YAML is read by lines: a value that spans lines, or comes
    from an anchor, is not seen.
    """
    found = None
    for position, flag in enumerate(flags):
        option, equals, value = flag.partition("=")
        if option.startswith("--") and option[2:].replace("-", "_") == name:
            following = flags[position + 1] if position + 1 < len(flags) else "--"
            if equals:
                found = value
            elif following.startswith("--"):
                found = "true"
            else:
                found = following

    if found is not None or name == "config":
        return found
    config = read_setting("config", flags)
    return read_yaml_line(Path(config), name) if config else None


def read_yaml_line(path: Path, key: str) -> str | None:
    """Return the value of a top-level `key: value` line of a YAML file, or None.

    Quotes and comments are removed.
    """
    # What is wrong with a file that cannot be read is reported by the recipe, or by accelerate.
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return None

    setting = re.compile(rf"{re.escape(key)}\s*:\s+(?:'([^']*)'|\"([^\"]*)\"|([^#]*?))\s*(?:#.*)?$")
    for line in lines:
        if match := setting.match(line):
            value = next((group for group in match.groups() if group is not None), "")
            return None if value in ("", "null", "~") else value

    return None


def count_gpus(environment: Mapping[str, str] = os.environ) -> int:
    """Count the NVIDIA GPUs that a process started here would see.

    By nvidia-smi and CUDA_VISIBLE_DEVICES.
    """
    try:
        listing = subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, text=True, check=False, timeout=30
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return 0

    # A partitioned GPU is listed with its slices below it, and CUDA sees the slices.
    slices = len(re.findall(r"^\s+MIG ", listing, re.MULTILINE))
    present = slices or len(re.findall(r"^GPU \d+:", listing, re.MULTILINE))
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is None or present == 0:
        return present

    # CUDA stops at the first name that is not a device.
    count = 0
    for name in visible.split(","):
        name = name.strip()
        if not name.startswith(("GPU-", "MIG-")) and not (name.isdigit() and int(name) < present):
            break
        count += 1

    return count
