"""Two gloo processes on this machine, for tests of what only several processes do."""

import os
import socket
from pathlib import Path
from typing import Any

import torch


def spawn(work: Any, folder: Path, *given: Any) -> list[Any]:
    """Run `work(rank, folder, *given)` in two gloo processes and return what each saved."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(enter, args=(work, port, folder, given), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def enter(rank: int, work: Any, port: int, folder: Path, given: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "HF_HUB_OFFLINE": "1",
    }
    torch.save(work(rank, folder, *given), folder / f"{rank}.pt")
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
