"""What one process finds ends all of them: those that went on would wait for it in vain."""

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from transformers import TrainerControl, TrainerState

from hfstack.errors import HfstackError, Preempted
from hfstack.training import checkpointing
from hfstack.training.callbacks import StopWhenAsked
from tests.two_processes import spawn


@dataclass
class SomeRun:
    """What the callbacks use of a run."""

    output_dir: Path
    stop_asked: bool = False
    resumed_from: Any = None
    training_is_done: bool = False
    asks_to_push: bool = False

    def at_exit(self, wait: Any) -> None:
        """Nothing to wait for."""

    def defer_stop(self, defers: bool) -> None:
        """No signal is handled."""

    def ask_to_stop(self) -> None:
        """Stop as the others do."""
        self.stop_asked = True


def work(rank: int, folder: Path) -> list[str]:
    """Return what each of three findings of one process ends this one with."""
    torch.distributed.init_process_group("gloo")
    checkpointing._VISIBLE_S = 0.1
    run: Any = SomeRun(folder)
    args: Any = SimpleNamespace(
        world_size=2, process_index=rank, save_on_each_node=False, device="cpu", output_dir=folder
    )
    keeper = checkpointing.KeepCheckpoints(run)
    rest = (TrainerState(), TrainerControl())

    def a_checkpoint_is_damaged() -> None:
        keeper._problem = OSError("the disk is gone") if rank == 0 else None
        keeper.on_train_end(args, *rest)

    def a_part_is_elsewhere() -> None:
        own = folder / f"disk_{rank}"
        own.mkdir()
        (own / f"__{rank}_0.distcp").touch()
        checkpointing._see_every_part(own, args)

    def a_signal_comes_late() -> None:
        run.stop_asked = rank == 1
        StopWhenAsked(run).on_train_end(args, *rest)

    said: list[str] = []
    for finding in (a_checkpoint_is_damaged, a_part_is_elsewhere, a_signal_comes_late):
        try:
            finding()
        except (HfstackError, Preempted) as error:
            said.append(str(error))
        torch.distributed.barrier()
    return said


def test_what_one_process_finds_ends_all(tmp_path: Path) -> None:
    first, second = spawn(work, tmp_path)
    assert first == second and len(first) == 3
    assert "could not be verified: " in first[0] and "the disk is gone" in first[0]
    assert "__1_0.distcp of disk_0 is where the first process cannot see it" in first[1]
    assert first[2].startswith("stopped at step 0")
