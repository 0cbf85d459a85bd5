"""Gloo processes on this machine, two unless more are asked for."""

import os
import socket
from pathlib import Path
from typing import Any

import torch


def spawn(work: Any, folder: Path, *given: Any, processes: int = 2) -> list[Any]:
    """Run `work(rank, folder, *given)` in gloo processes and return what each saved."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = (processes, port, work, folder, given)
    torch.multiprocessing.spawn(enter, args=shared, nprocs=processes)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(processes)]


def enter(
    rank: int, processes: int, port: int, work: Any, folder: Path, given: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",  # or accelerate gives each process a thread of every core
    }
    torch.save(work(rank, folder, *given), folder / f"{rank}.pt")
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
