"""Run the tasks of a datatrove pipeline: here, on Slurm, or on Ray.

A task that was ended from outside (kill -9, a lost node) is started again, a few times; one that
found a mistake of the user is not.
"""

import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from hfstack.data.cleaning.workers import leave_with_parent
from hfstack.errors import DataError, MachineError
from hfstack.logs import get_logger
from hfstack.packages import import_extra

logger = get_logger(__name__)

_EXTRA = "cluster"
_MOST_STARTS = 4
_ASK_EVERY_S = 2.0


@dataclass(frozen=True)
class TaskRunner:
    """What is run, and with what.

    Args:
        step: called by each task with (data, its rank, the number of tasks).
        tasks: how many there are.
        workers: tasks at the same time; None for the default of the place.
        folder: for logs, and for which tasks are complete.
        memory_gib: of a task.
        settings: of the cluster, by name.
        error_of: returns the mistake that a task found, or None.
    """

    step: Callable[[Any, int, int], None]
    tasks: int
    workers: int | None
    folder: Path
    memory_gib: int
    settings: dict[str, Any]
    error_of: Callable[[int], str | None]

    @property
    def logging_dir(self) -> str:
        """Return where datatrove keeps its logs, and an empty file for each complete task."""
        return str(self.folder / "datatrove")

    def executor(self) -> Any:
        """Return what runs tasks in this process, and knows which are complete."""
        local = import_extra("datatrove.executor.local", _EXTRA).LocalPipelineExecutor
        return local([self.step], tasks=self.tasks, workers=1, logging_dir=self.logging_dir)

    def incomplete(self) -> list[int]:
        """Return the ranks of the tasks that are not complete."""
        return self.executor().get_incomplete_ranks()

    def refuse_mistakes(self) -> None:
        """Raise DataError when a task has found a mistake."""
        for rank in range(self.tasks):
            if (message := self.error_of(rank)) is not None:
                raise DataError(message)

    def give_up(self, rank: int) -> MachineError:
        """Return the error of a task that never becomes complete."""
        return MachineError(
            f"task {rank} of {self.tasks} ended {_MOST_STARTS} times before it was complete; see "
            f"{self.logging_dir}/logs/task_{rank:05d}.log, and start again: what is complete stays"
        )


def run_locally(runner: TaskRunner) -> None:
    """Run the tasks as processes of this machine.

    Each is a process of its own: upstream's pool waits for ever for a task whose process was
    killed.

    Raises:
        DataError: a task found a mistake.
        MachineError: a task was ended again and again.
        MissingExtraError: datatrove is not installed.
    """
    context = multiprocessing.get_context("fork")
    workers = runner.workers or len(os.sched_getaffinity(0))
    waiting = runner.incomplete()
    starts = dict.fromkeys(waiting, 0)
    running: dict[int, BaseProcess] = {}

    try:
        while waiting or running:
            while waiting and len(running) < workers:
                rank = waiting.pop(0)
                starts[rank] += 1
                running[rank] = context.Process(target=_run_task, args=(runner, rank, os.getpid()))
                running[rank].start()

            wait([process.sentinel for process in running.values()])
            ended = [rank for rank, process in running.items() if not process.is_alive()]
            for rank in ended:
                running[rank].join()
                code = running.pop(rank).exitcode
                if code == 0:
                    logger.info("task %d of %d is complete", rank, runner.tasks)
                    continue
                runner.refuse_mistakes()
                if starts[rank] == _MOST_STARTS:
                    raise runner.give_up(rank)
                logger.warning("task %d ended with code %s: it is started again", rank, code)
                waiting.append(rank)
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.join()


def run_on_slurm(runner: TaskRunner) -> None:
    """Run the tasks as an array of jobs of Slurm, and wait until all have ended.

    Raises:
        DataError: a task found a mistake.
        MachineError: sbatch refuses, or a task was ended again and again.
        MissingExtraError: datatrove is not installed.
    """
    slurm = import_extra("datatrove.executor.slurm", _EXTRA).SlurmPipelineExecutor
    import_extra("loguru", _EXTRA).logger.disable("datatrove")  # the lines below say it
    name = runner.folder.name
    for _ in range(_MOST_STARTS):
        if not runner.incomplete():
            return

        executor = slurm(
            [runner.step],
            tasks=runner.tasks,
            workers=runner.workers or -1,
            time=runner.settings["slurm_time"],
            partition=runner.settings["slurm_partition"],
            mem_per_cpu_gb=runner.memory_gib,
            logging_dir=runner.logging_dir,
            job_name=name,
            qos="",
            # the jobs run in the environment of this process, and find datatrove's program there
            env_command=f'export PATH="{Path(sys.prefix) / "bin"}:$PATH"',
            sbatch_args=dict(one.split("=", 1) for one in runner.settings["slurm_options"]),
        )
        # its summary of statistics would wait for ever behind a job that failed
        executor.launch_merge_stats = _nothing
        try:
            executor.launch_job()
            logger.info("job %s of Slurm, %s", executor.job_id, name)
            while _slurm_knows(name):
                time.sleep(_ASK_EVERY_S)
        except (subprocess.CalledProcessError, FileNotFoundError) as error:
            raise MachineError(f"Slurm does not take the jobs: {error}") from None
        finally:
            subprocess.run(["scancel", "--name", name], check=False, capture_output=True)
        runner.refuse_mistakes()

    if left := runner.incomplete():
        raise runner.give_up(left[0])


def run_on_ray(runner: TaskRunner) -> None:
    """Run the tasks on Ray: a cluster by its address, else one of this machine alone.

    Upstream's executor runs a task in a pool within an actor, and waits for ever when that process
    is killed. Ray starts its own tasks again.

    Raises:
        DataError: a task found a mistake.
        MachineError: a task was ended again and again.
        MissingExtraError: datatrove or Ray is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent unless asked for
    ray = import_extra("ray", _EXTRA)
    address = runner.settings["ray_address"]
    alone = {} if address else {"_node_ip_address": "127.0.0.1", "include_dashboard": False}
    ray.init(address=address, log_to_driver=False, configure_logging=False, **alone)

    try:
        task = ray.remote(_run_rank).options(
            num_cpus=1, memory=runner.memory_gib * 2**30, max_retries=_MOST_STARTS - 1
        )
        known = ray.put(runner)
        waiting = runner.incomplete()
        running: dict[Any, int] = {}
        most = runner.workers or len(waiting)

        while waiting or running:
            while waiting and len(running) < most:
                rank = waiting.pop(0)
                running[task.remote(known, rank)] = rank
            (ended, *_), _ = ray.wait(list(running))
            rank = running.pop(ended)
            try:
                ray.get(ended)
            except ray.exceptions.RayError:
                runner.refuse_mistakes()
                raise runner.give_up(rank) from None
            logger.info("task %d of %d is complete", rank, runner.tasks)
    finally:
        ray.shutdown()


def _run_rank(runner: TaskRunner, rank: int) -> None:
    """Run one task in this process."""
    # What `run` of an executor calls for each task. `run` itself starts a process beside it, which
    # outlives a task that is killed.
    runner.executor()._run_for_rank(rank)


def _run_task(runner: TaskRunner, rank: int, parent: int) -> None:
    """Run one task in a process of its own, which ends with its parent."""
    leave_with_parent(parent)
    # what it says is in its log; the process that waits says what matters
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())
        os.dup2(nowhere.fileno(), sys.stderr.fileno())
    _run_rank(runner, rank)


def _slurm_knows(name: str) -> bool:
    """Return whether jobs of this name wait or run."""
    asked = ["squeue", "--noheader", "--name", name, "--format", "%i"]
    return bool(subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip())


def _nothing() -> None:
    """Do nothing."""
