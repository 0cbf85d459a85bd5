"""Compare a workload with a machine: does it fit, what would help, how long it is."""

import csv
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import torch

from hfstack.errors import CheckpointError, ConfigError
from hfstack.logs import get_logger
from hfstack.models.counting import datasheet_tflops, peak_flops_per_s
from hfstack.planning.measure import MeasuredStep
from hfstack.planning.memory import can_checkpoint, trained_parameters
from hfstack.planning.workload import Needs, Workload, assess
from hfstack.runs.record import read_run
from hfstack.scaling.budget import CHINCHILLA
from hfstack.scaling.parametric import PARAMETERS, Law

logger = get_logger(__name__)

MIB = 2**20
_MOST_SHARDS = 64
_LORA_RANK = 16

CPU_RESIDENT_FACTOR = 1.28
"""Resident bytes of a CPU process for each byte in tensors: its allocator keeps freed blocks.

Of the 22 measured steps in docs/recipes/plan.md 20 lie within 20 % of it; the median is 1.27.
"""

CUDA_CONTEXT = 512 * 2**20
"""Bytes of a GPU that a process takes before its first tensor: the context, the kernels that are
loaded, and cuBLAS's workspace. An estimate: it differs between cards and drivers."""


@dataclass
class DeviceArgs:
    """What computes."""

    device_name: str | None = None
    """As the vendor calls it, such as "NVIDIA H200"; this machine's by default."""
    memory_gib: float | None = None
    """Memory of one device; what is free here by default."""
    devices: int = 1
    """How many there are."""
    utilization: float = 0.4
    """Share of the peak that training reaches; --measure finds it out."""
    measure: bool = False
    """Take 3 real steps of the recipe's model on this machine, and correct the plan by them."""

    def __post_init__(self) -> None:
        if self.devices < 1:
            raise ConfigError(f"--devices must be at least 1, got {self.devices}")


@dataclass(frozen=True)
class Device:
    """One device to plan for."""

    name: str
    kind: str
    """As torch calls it: `cpu`, `cuda`."""
    memory_bytes: int
    """That a process may take; on a CPU what is free now."""
    peak_flops_per_s: float

    def with_allocator(self, workload: Workload) -> Workload:
        """Return the workload with what this device's allocator keeps beside the tensors."""
        if self.kind == "cuda":
            return replace(workload, context=CUDA_CONTEXT)
        if self.kind == "cpu":
            return replace(workload, resident_factor=CPU_RESIDENT_FACTOR)
        return workload


def find_device(name: str | None, *, memory_gib: float | None, bf16: bool) -> Device:
    """Return the device of this machine, or one that is named.

    Args:
        name: as `torch.cuda.get_device_name` has it, such as "NVIDIA H200"; None for what is here.
        memory_gib: in place of what is found; needed for a device that is not here.
        bf16: whether matrix products run in bf16.

    Raises:
        ConfigError: the peak of the named device is not known, or its memory was not given.
    """
    if memory_gib is not None and not 0 < memory_gib < math.inf:
        raise ConfigError(f"--memory_gib must be above 0, got {memory_gib:g}")
    given = None if memory_gib is None else int(memory_gib * 2**30)
    if name is not None:
        peak = datasheet_tflops(name, "bfloat16" if bf16 else "float32")
        if peak is None:
            raise ConfigError(
                f"--device_name {name!r}: its peak is not known; leave it out to use this machine's"
            )
        if given is None:
            raise ConfigError(f"--device_name {name!r} needs --memory_gib, what one of them has")
        return Device(name, "cuda", given, peak * 1e12)

    kind = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    device = kind or torch.device("cpu")
    peak = peak_flops_per_s(device, torch.bfloat16 if bf16 else torch.float32)
    if device.type == "cuda":
        free = torch.cuda.mem_get_info()[0]
        return Device(torch.cuda.get_device_name(), "cuda", given or free, peak)
    available = psutil.virtual_memory().available
    return Device(f"this machine's {device.type}", device.type, given or available, peak)


@dataclass(frozen=True)
class SettingsChange:
    """Other settings under which a workload fits."""

    what: str
    options: str
    """As they are typed."""
    peak: int
    """Bytes of one process."""


def changes_that_fit(workload: Workload, limit: int) -> Iterator[SettingsChange]:
    """Yield changes, mildest first, with which one process stays within `limit` bytes.

    Rows move from the micro-batch to accumulation, so that an optimizer step sees the same rows.
    """
    step = workload.trained.step
    can = can_checkpoint(workload.trained.config, step) and not step.activation_checkpointing
    recompute = " --activation_checkpointing true" if can else ""
    checkpointed = workload.varied(activation_checkpointing=True) if can else workload

    if can and (peak := assess(checkpointed).peak) <= limit:
        yield SettingsChange("recompute activations", recompute.strip(), peak)

    if (found := _smaller_batch(workload, limit)) is not None:
        yield SettingsChange("smaller micro-batches", *found)
    elif can and (found := _smaller_batch(checkpointed, limit)) is not None:
        options, peak = found
        yield SettingsChange(
            "smaller micro-batches, activations recomputed", options + recompute, peak
        )

    if (change := _sharded(checkpointed, limit)) is not None:
        yield change
    if not step.lora_rank and (change := _adapted(checkpointed, limit, recompute)) is not None:
        yield change


def _sharded(workload: Workload, limit: int) -> SettingsChange | None:
    """Return the fewest processes to shard over, or None where no number is enough.

    Sharding divides weights, gradients and optimizer as FSDP2 does; the layer that is gathered
    while it computes is not counted.
    """
    needs = assess(workload)
    held = sum(part.weights + part.gradients + part.optimizer for part in needs.memory.values())
    shards = 2
    while shards <= _MOST_SHARDS:
        saved = (held - held // shards) * workload.resident_factor
        peak = needs.peak - int(saved)
        if peak <= limit:
            options = f"--accelerate fsdp2 --processes {shards}"
            return SettingsChange(f"shard over {shards} processes", options, peak)
        shards *= 2
    return None


def _adapted(workload: Workload, limit: int, recompute: str) -> SettingsChange | None:
    """Return an adapter to train instead, in smaller micro-batches where it must be."""
    adapted = workload.varied(lora_rank=_LORA_RANK)
    options = f"--use_peft true --lora_r {_LORA_RANK}{recompute}"
    if (peak := assess(adapted).peak) <= limit:
        return SettingsChange("train an adapter", options, peak)

    found = _smaller_batch(adapted, limit)
    if found is None:
        return None
    smaller, peak = found
    return SettingsChange(
        "train an adapter, in smaller micro-batches", f"{options} {smaller}", peak
    )


def change_rows(workload: Workload, limit: int) -> list[list[object]]:
    """Return a row of `CHANGE_COLUMNS` for each change that fits, or one row "none"."""
    rows: list[list[object]] = [
        [change.what, change.options, round(change.peak / MIB, 1)]
        for change in changes_that_fit(workload, limit)
    ]
    return rows or [["none: take a smaller model or shorter rows", "", ""]]


CHANGE_COLUMNS = ["change", "options", "peak MiB"]


def _smaller_batch(workload: Workload, limit: int) -> tuple[str, int] | None:
    """Return the largest micro-batch by halving that fits, as options, and its peak."""
    step = workload.trained.step
    rows, accumulation = step.batch_size, step.accumulation
    while rows // workload.rows_per_example % 2 == 0:
        rows, accumulation = rows // 2, accumulation * 2
        peak = assess(workload.varied(batch_size=rows, accumulation=accumulation)).peak
        if peak <= limit:
            examples = rows // workload.rows_per_example
            size = f"--per_device_train_batch_size {examples}"
            return f"{size} --gradient_accumulation_steps {accumulation}", peak
    return None


def memory_rows(workload: Workload, needs: Needs) -> list[list[object]]:
    """Return a row of `MEMORY_COLUMNS` for each model and for all else that is held."""
    rows: list[list[object]] = []
    for part in workload.parts:
        memory = needs.memory[part.name]
        numbers = (memory.weights, memory.gradients, memory.optimizer, memory.activations)
        rows.append([part.name, *(round(number / MIB, 1) for number in numbers)])
    if workload.generation is not None:
        rows.append(["KV cache and rollout", 0.0, 0.0, 0.0, round(needs.generation / MIB, 1)])
    if needs.context:
        rows.append(["CUDA context, estimated", 0.0, 0.0, 0.0, round(needs.context / MIB, 1)])
    if needs.allocator:
        name = "allocator rounding, estimated" if needs.context else "allocator, estimated"
        name = "allocator, measured" if needs.measured else name
        rows.append([name, 0.0, 0.0, 0.0, round(needs.allocator / MIB, 1)])
    return rows


MEMORY_COLUMNS = ["model", "weights MiB", "gradients MiB", "optimizer MiB", "activations MiB"]


def checkpointing_peaks(workload: Workload, planned: Needs) -> dict[str, float]:
    """Return the peaks in MiB with activation checkpointing, if possible, and without.

    Args:
        planned: what the workload takes as it is, so that only the other peak is to be found.
    """
    step = workload.trained.step
    if not can_checkpoint(workload.trained.config, step):
        return {"peak_mib_without_checkpointing": round(planned.peak / MIB, 1)}

    recomputes = step.activation_checkpointing
    peaks = {recomputes: planned.peak}
    peaks[not recomputes] = assess(workload.varied(activation_checkpointing=not recomputes)).peak
    return {
        "peak_mib_with_checkpointing": round(peaks[True] / MIB, 1),
        "peak_mib_without_checkpointing": round(peaks[False] / MIB, 1),
    }


def disk_bytes(workload: Workload, needs: Needs) -> int | None:
    """Return the most bytes of checkpoints and model that are on the disk at one time.

    One checkpoint is being written then. None where the number of steps, and so of checkpoints, is
    not known.
    """
    if math.isinf(workload.save_every):
        return needs.checkpoint
    if workload.kept_checkpoints is not None:
        return (workload.kept_checkpoints + 2) * needs.checkpoint
    if workload.steps is None:
        return None

    # Below 1 it is a share of the steps, as upstream reads --save_steps.
    is_share = workload.save_every < 1
    every = workload.save_every * workload.steps if is_share else workload.save_every
    return (math.floor(workload.steps / every) + 2) * needs.checkpoint


def read_law(fit: str | None, family: str) -> tuple[Law, list[Law], int]:
    """Return the law of a scaling_fit run, its draws and their degrees of freedom.

    Without a run it is the published law, which has no draws. Of a run with several families, the
    one that the planned architecture belongs to is taken.

    Raises:
        CheckpointError: the run has no parametric fit of that family.
    """
    if fit is None:
        return CHINCHILLA, [], 1

    record = read_run(Path(fit))
    prefix = "" if "E" in record.metrics else f"{family}_"
    if f"{prefix}E" not in record.metrics:
        raise CheckpointError(
            f"--fit {fit}: its run.json has no parametric fit of {family!r}; "
            "name a run of scaling_fit"
        )

    law = Law(*(record.metrics[f"{prefix}{name}"] for name in PARAMETERS))
    file = Path(fit) / record.artifacts.get("bootstrap", "")
    if not file.is_file():
        return law, [], 1

    with file.open(encoding="utf-8", newline="") as lines:
        rows = [row for row in csv.DictReader(lines) if not prefix or row["family"] == family]
    draws = [Law(*(float(row[name]) for name in PARAMETERS)) for row in rows]
    return law, draws, max(1, int(record.metrics[f"{prefix}rungs"]) - len(PARAMETERS))


def recipe_metrics(
    workload: Workload, needs: Needs, device: Device, *, devices: int, utilization: float
) -> dict[str, float]:
    """Return the plan's numbers: sizes in MiB of a process, and times of the run.

    The whole run's are left out where its steps are not known.
    """
    step = workload.trained.step
    weights, trained = trained_parameters(workload.trained.config, step)
    if device.kind == "cpu" and not needs.measured:
        logger.info(
            "peak_mib is what tensors hold x %.2f, since a CPU's allocator keeps freed blocks: "
            "+-20 %%; --measure true takes real steps instead",
            workload.resident_factor,
        )

    # One process is one device: with more devices each takes a step of its own, at the same time.
    scale = devices / workload.processes
    seconds = needs.flops_per_step * scale / (device.peak_flops_per_s * devices * utilization)
    metrics = {
        "parameters": weights,
        "trained_parameters": trained,
        "tokens_per_step": workload.tokens_per_step,
        "flops_per_step": needs.flops_per_step,
        "peak_mib": round(needs.peak / MIB, 1),
        "memory_mib": round(device.memory_bytes / MIB, 1),
        "fits": int(needs.peak <= device.memory_bytes),
        "checkpoint_mib": round(needs.checkpoint / MIB, 1),
        "seconds_per_step": seconds,
        "tokens_per_s": workload.tokens_per_step * scale / seconds,
    }

    # What depends on the number of steps, which may not be known.
    disk = disk_bytes(workload, needs)
    if disk is not None:
        metrics["disk_mib"] = round(disk / MIB, 1)
    if workload.steps is not None:
        metrics |= {"steps": workload.steps, "hours": workload.steps * seconds / 3600}
    return metrics


def cost_of_run(hours: float | None, price: float, *, devices: int) -> dict[str, float]:
    """Return the money that a whole run takes, at a price for an hour of one device.

    Raises:
        ConfigError: the price is not above 0, or the number of steps is not known.
    """
    if not 0 < price < math.inf:
        raise ConfigError(f"--price_per_device_hour must be above 0, got {price:g}")
    if hours is None:
        raise ConfigError(
            f"--price_per_device_hour {price:g}: the run's steps are not known; give --train_rows, "
            "the rows of your data, or --max_steps in --recipe_options"
        )
    return {"money": hours * devices * price}


def correct_needs(
    workload: Workload, needs: Needs, measured: MeasuredStep, device: Device
) -> tuple[Needs, float]:
    """Return the needs and the utilization as real steps of the trained model were.

    The measured peak replaces the predicted one, and the measured rate counts for every model of
    the step.
    """
    trained = replace(workload, parts=workload.parts[:1], generation=None, processes=1)
    utilization = assess(trained).flops_per_step / measured.seconds / device.peak_flops_per_s
    if measured.peak_bytes is None:
        return needs, utilization

    beyond = measured.peak_bytes - needs.memory[workload.trained.name].total
    peak = needs.peak - needs.allocator + beyond
    return replace(needs, peak=peak, allocator=beyond, measured=True), utilization
