"""Load the server of annotate with simulated annotators, and kill it again and again.

    python benchmarks/feedback_load.py --annotators 50 --judgements 20000 --kills 30 --pause_s 0.5

Prints one line of JSON: judgements that were acknowledged and are not in the store (lost), that are
there twice (doubled), the time of a judgement from request to answer, its write included, and the
server's processor time for each request, its starts left out. The annotators are threads of one
process, and share its machine with the server.
"""

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

from hfstack.feedback.access import token_of
from hfstack.feedback.desk import Desk
from hfstack.feedback.kinds import Item
from hfstack.feedback.server import bind, serving
from hfstack.feedback.simulate import Client, Habits, judge_all
from hfstack.feedback.store import Store, open_store


def make_store(path: Path, annotators: list[str], items: int, overlap: int) -> None:
    """Write a project of pairs."""
    queue = {"overlap": overlap, "gold_share": 0.0, "repeat_share": 0.0, "seed": 0}
    project = {"kind": "pairs", "annotators": annotators, "queue": queue, "scales": []}
    store = Store(path)
    pairs = [Item(f"Say {n}.", [f"good {n}", f"bad {n}"]) for n in range(items)]
    store.create(project | {"title": "Load", "guidelines": ""}, pairs)
    store.close()


def serve(path: Path, port: int) -> None:
    """Serve a store until the process is killed."""
    with serving(Desk(Store(path)), bind("127.0.0.1", port)):
        print("ready", time.process_time(), flush=True)
        while True:
            time.sleep(60)


class Server:
    """A server in a process of its own, which listens when this returns.

    Args:
        path: of the store.
    """

    def __init__(self, path: Path, port: int) -> None:
        command = [sys.executable, __file__, "--serve", str(path), "--port", str(port)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        said, _, start_s = self._process.stdout.readline().partition(" ")
        assert said == "ready"
        self._start_s = float(start_s)

    def kill(self) -> float:
        """Kill the server, and return the seconds of processor time that it served with."""
        os.kill(self._process.pid, signal.SIGKILL)
        _, status, used = os.wait4(self._process.pid, 0)
        self._process.returncode = os.waitstatus_to_exitcode(status)
        assert self._process.stdout is not None
        self._process.stdout.close()
        return used.ru_utime + used.ru_stime - self._start_s


def load(
    path: Path, annotators: list[str], port: int, *, kills: int, pause_s: float
) -> dict[str, float]:
    """Let all annotators judge at once while the server is killed; return what was found."""
    store = open_store(path)
    key, wanted = store.project()["key"], len(store.items())
    overlap = store.project()["queue"]["overlap"]
    store.close()
    server, serving_s = Server(path, port), 0.0
    clients = [Client(("127.0.0.1", port), token_of(key, name)) for name in annotators]
    sent: list[int] = []
    began = time.monotonic()

    def work(client: Client, name: str) -> None:
        rule = {"good": 1.0, "bad": 0.0}
        with client:
            made = judge_all(
                client,
                lambda _, text: rule[text.split()[0]],
                Habits(0.1),
                seed=name,
                pause_s=pause_s,
            )
            sent.append(made)

    threads = [
        threading.Thread(target=work, args=pair) for pair in zip(clients, annotators, strict=True)
    ]
    for thread in threads:
        thread.start()

    # killed at random moments; a start takes seconds, in which everybody tries again
    chance = random.Random(0)
    killed = 0
    while killed < kills and any(thread.is_alive() for thread in threads):
        time.sleep(0.5 + 2 * chance.random())
        serving_s += server.kill()
        killed += 1
        server = Server(path, port)
    for thread in threads:
        thread.join()
    wall_s = time.monotonic() - began
    serving_s += server.kill()

    store = open_store(path)
    rows = list(store.judgements())
    items = {(step.annotator, step.number): step.item for step in store.steps()}
    store.close()
    by_step = Counter((row.annotator, row.step) for row in rows)
    by_item = Counter((row.annotator, items[row.annotator, row.step]) for row in rows)
    seconds = sorted(one for client in clients for one in client.seconds)

    return {
        "annotators": len(annotators),
        "wanted": wanted * overlap,
        "acknowledged": sum(sent),
        "stored": len(rows),
        "lost": sum(sent) - len(by_step),
        "doubled": sum(n - 1 for n in by_step.values()) + sum(n - 1 for n in by_item.values()),
        # what the annotators felt, and what it cost the server
        "kills": killed,
        "retries": sum(client.retries for client in clients),
        "median_ms": round(1000 * statistics.median(seconds), 1),
        "p95_ms": round(1000 * seconds[int(0.95 * len(seconds))], 1),
        "requests": len(seconds),
        "server_cpu_ms": round(1000 * serving_s / len(seconds), 2),
        "wall_s": round(wall_s, 1),
        "load": round(os.getloadavg()[0], 1),
    }


def main() -> None:
    """Read the command line, and serve or load."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--annotators", type=int, default=50)
    parser.add_argument("--judgements", type=int, default=20_000)
    parser.add_argument("--overlap", type=int, default=2)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--pause_s", type=float, default=0.5, help="mean, between two judgements")
    parser.add_argument("--port", type=int, default=8799)
    parser.add_argument("--serve", type=Path)
    args = parser.parse_args()
    if args.serve:
        serve(args.serve, args.port)

    names = [f"annotator {number}" for number in range(args.annotators)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "feedback.sqlite"
        make_store(path, names, args.judgements // args.overlap, args.overlap)
        print(json.dumps(load(path, names, args.port, kills=args.kills, pause_s=args.pause_s)))


if __name__ == "__main__":
    main()
