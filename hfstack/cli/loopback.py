"""Run a launcher whose processes meet at the loopback address of this machine.

    python -m hfstack.cli.loopback torch.distributed.run --standalone ... recipe.py

The processes of a run find each other through a TCPStore, which has no password and whose values
torch unpickles. By itself it listens on every address of the machine, so that whoever reaches the
port could run code in the run. Here it listens where only this machine reaches it.
"""

import runpy
import socket
import sys
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch.distributed.elastic.rendezvous import c10d_rendezvous_backend, static_tcp_rendezvous

LOOPBACK = "127.0.0.1"


class LoopbackStore(dist.TCPStore):
    """A TCPStore that listens on, and connects to, the loopback address alone."""

    def __init__(
        self,
        host_name: str,
        port: int,
        world_size: int | None = None,
        is_master: bool = False,
        timeout: timedelta = timedelta(minutes=5),
        **options: Any,
    ) -> None:
        """Take a port of the loopback address before torch takes one of every address.

        Args:
            host_name: where to connect to; not looked at, since every process is on this machine.
            port: 0 for any that is free.
            world_size: how many processes will connect; None where that is not fixed.
            is_master: whether this process keeps the values.
            timeout: of a request.
            options: the others of a TCPStore.
        """
        if is_master:
            with socket.socket() as listener:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.bind((LOOPBACK, port))
                listener.listen(2048)
                port = listener.getsockname()[1]
                # torch closes it
                options["master_listen_fd"] = listener.detach()
        super().__init__(LOOPBACK, port, world_size, is_master, timeout, **options)


def main() -> None:
    """Run the module that the command line names as if Python had been asked to."""
    module, *arguments = sys.argv[1:]
    for place in (dist, c10d_rendezvous_backend, static_tcp_rendezvous):
        place.TCPStore = LoopbackStore  # type: ignore[misc]
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
