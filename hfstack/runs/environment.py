"""Describe where a run happens: versions, hardware, commit, number of processes."""

import os
import platform
import random
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy
import psutil
from packaging.requirements import Requirement
from packaging.version import Version

from hfstack.errors import ConfigError
from hfstack.logs import get_logger
from hfstack.machine import count_cores, processor_name

if TYPE_CHECKING:  # so that a recipe without a model imports no torch
    import torch
    from transformers import TrainingArguments

logger = get_logger(__name__)

_LIBRARIES = (
    "hfstack torch transformers trl peft datasets accelerate evaluate tokenizers safetensors "
    "huggingface_hub numpy"
).split()


def library_versions() -> dict[str, str]:
    """Return the installed version of each library that can change a result."""
    found: dict[str, str] = {}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            # hfstack itself, run from a checkout that is on the path but not installed.
            continue
    return found


def outside_their_range() -> list[str]:
    """Return each installed library that hfstack's own dependencies do not allow.

    pip refuses such an installation, but a later `pip install --upgrade` of another package only
    warns.
    """
    try:
        dependencies = requires("hfstack") or []
    except PackageNotFoundError:
        return []

    found = []
    for line in dependencies:
        wanted = Requirement(line)
        if wanted.name not in _LIBRARIES or wanted.marker is not None:
            continue
        installed = version(wanted.name)
        # A container's build of torch is a pre-release by name (2.8.0a0+...).
        if not wanted.specifier.contains(Version(installed).base_version):
            found.append(f"{wanted.name} {installed} ({wanted.specifier})")
    return found


def warn_outside_their_range() -> None:
    """Name the libraries that hfstack was not tested with, in one line."""
    if outside := outside_their_range():
        logger.warning(
            "outside of the versions that hfstack is tested with: %s; `hfstack doctor` says what "
            "to install",
            ", ".join(outside),
        )


def training_settings(settings: Sequence[Any]) -> "TrainingArguments | None":
    """Return the settings of a Trainer among those of a recipe."""
    # Who made them has imported their module; nobody else needs it.
    module = sys.modules.get("transformers.training_args")
    if module is None:
        return None
    return next((one for one in settings if isinstance(one, module.TrainingArguments)), None)


def seed_generators(seed: int, *, deterministic: bool) -> None:
    """Seed every random generator that this process has.

    Args:
        deterministic: also choose only kernels that give the same bits each time.
    """
    if "torch" not in sys.modules:
        random.seed(seed)
        numpy.random.seed(seed)
        return

    from transformers import enable_full_determinism, set_seed

    (enable_full_determinism if deterministic else set_seed)(seed)


def describe_hardware(device: "torch.device | None" = None) -> dict[str, Any]:
    """Return processor, cores, memory in GiB, accelerators, and the device in use.

    Args:
        device: where a Trainer computes; the CPU for a recipe without one.
    """
    # A recipe that has not imported torch uses neither accelerators nor its threads.
    torch = sys.modules.get("torch")
    accelerators, threads = [], count_cores()
    if torch is not None:
        count = torch.cuda.device_count()
        accelerators = [torch.cuda.get_device_name(index) for index in range(count)]
        threads = torch.get_num_threads()

    return {
        "cpu": processor_name(),
        "cores": count_cores(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "device": device.type if device is not None else "cpu",
        "accelerators": accelerators,
        "platform": platform.platform(),
        "threads": threads,
    }


def git_commit(folder: Path) -> str | None:
    """Return the commit of the checkout that holds `folder`, or None outside one.

    It ends in `-dirty` when tracked files differ from it.
    """

    def git(*arguments: str) -> str | None:
        command = ["git", "-C", str(folder), *arguments]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except OSError:
            # There is no git on this machine.
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git("rev-parse", "HEAD")
    changed = commit and git("status", "--porcelain", "--untracked-files=no")
    return f"{commit}-dirty" if changed else commit


def refuse_wrong_world_size(counted: int | None = None) -> int:
    """Return the number of processes of this launch.

    Args:
        counted: how many the Trainer counts, where there is one.

    Raises:
        ConfigError: it is not the number that was asked for. `accelerate launch --cpu
            --num_processes 2` starts one process and says nothing: it leaves MASTER_ADDR but no
            WORLD_SIZE. `hfstack run --processes` exports HFSTACK_PROCESSES to compare with.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    asked = os.environ.get("HFSTACK_PROCESSES")
    if asked is not None and int(asked) != world_size:
        raise ConfigError(
            f"{asked} processes were asked for but {world_size} started; launch with `hfstack run "
            f"--processes {asked}`"
        )

    on_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("true", "1", "yes")
    if on_cpu and "MASTER_ADDR" in os.environ and "WORLD_SIZE" not in os.environ:
        raise ConfigError(
            "accelerate was asked for several CPU processes and started one; use `hfstack run "
            "--processes N` or `torchrun --nproc_per_node N ... --ddp_backend gloo`"
        )

    if counted not in (None, world_size):
        raise ConfigError(
            f"{world_size} processes started, but the Trainer counts {counted}, so each would "
            "train alone on all rows: DeepSpeed needs a GPU"
        )

    return world_size


def uses_deepspeed(args: Any) -> bool:
    """Return whether DeepSpeed trains.

    `accelerate launch` says so in the environment and leaves `args.deepspeed` None.

    Args:
        args: a TrainingArguments.
    """
    return args.deepspeed_plugin is not None


def uses_fsdp(args: Any) -> bool:
    """Return whether FSDP shards the model.

    `accelerate launch` says so in the environment and leaves `args.fsdp` None.

    Args:
        args: a TrainingArguments.
    """
    launched = os.environ.get("ACCELERATE_USE_FSDP", "").lower() in ("true", "1", "yes")
    return bool(args.fsdp) or launched


def is_sharded(args: Any) -> bool:
    """Return whether the model is sharded, so that a forward pass needs all processes.

    Args:
        args: a TrainingArguments.
    """
    return uses_fsdp(args) or uses_deepspeed(args)
