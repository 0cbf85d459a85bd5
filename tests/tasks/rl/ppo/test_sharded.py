"""PPO on weights that FSDP2 shards over gloo processes, whose rollouts are of unlike lengths.

As in tests/training/test_sharded_checkpoints.py, accelerate takes each process to have a GPU.
"""

import faulthandler
import json
import sys
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from datasets import Dataset
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from hfstack.errors import ConfigError
from hfstack.models.shards import merge_checkpoint
from hfstack.runs.run import Run
from hfstack.tasks.rl.ppo.config import PPOConfig
from hfstack.tasks.rl.ppo.trainer import PPOTrainer
from hfstack.training.checkpointing import protect
from hfstack.training.saving import save_trained
from tests.tiny_ppo import lora, vowels
from tests.two_processes import spawn

SHARDED, FULL = "SHARDED_STATE_DICT", "FULL_STATE_DICT"
RUNS = ("whole", "stopped")


class CrashBefore(TrainerCallback):
    """End the process's training before the rollout that begins after a step."""

    def __init__(self, step: int | None) -> None:
        self.step = step

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise RuntimeError("the machine went away")


def unlike_prompts(count: int) -> Dataset:
    """Prompts of 1 or 20 words, so that no two processes split their rows alike."""
    return Dataset.from_dict({"prompt": ["owl " * (20 if row % 3 else 1) for row in range(count)]})


def train(rank: int, folder: Path, llama: Path, kind: str, **settings: Any) -> PPOTrainer:
    """Train as the recipe does, for three rollouts of two minibatches."""
    args: dict[str, Any] = {
        "output_dir": str(folder),
        "fsdp": True,
        "fsdp_config": {"version": 2, "state_dict_type": kind},
        "max_steps": 6,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "num_ppo_epochs": 2,
        "max_completion_length": 8,
        "max_tokens_per_microbatch": 60,
        # the answers of the first process are much shorter
        "stop_token_ids": list(range(150)) if rank == 0 else [0],
        "learning_rate": 1e-2,
        "save_steps": 2,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "report_to": "none",
        "bf16": False,
        "use_cpu": True,
        "ddp_backend": "gloo",
        "disable_tqdm": True,
    }
    adapter, crash_at = settings.pop("peft_config", None), settings.pop("crash_at", None)
    config = PPOConfig(**(args | settings))
    sys.argv = ["ppo.py"]
    with Run.start("ppo.py", folder, config) as run:
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
        checkpoint = run.resume_point()
        trainer = PPOTrainer(
            model=AutoModelForCausalLM.from_pretrained(llama),
            args=config,
            processing_class=AutoTokenizer.from_pretrained(llama),
            reward_funcs=vowels,
            train_dataset=unlike_prompts(50),
            eval_dataset=unlike_prompts(7),
            peft_config=adapter,
            callbacks=[CrashBefore(crash_at), *protect(run)],
        )
        trainer.train(resume_from_checkpoint=checkpoint)
        save_trained(run, trainer, lambda saved: AutoModelForCausalLM.from_pretrained(folder))
        run.finish({}, trainer)
    return trainer


def train_and_resume(rank: int, folder: Path, llama: Path, kinds: list[str]) -> dict[str, Any]:
    """Train in one go and with a stop, for each kind of state dict."""
    # processes that wait for each other would wait forever
    faulthandler.dump_traceback_later(240, exit=True)
    for kind in kinds:
        whole = train(rank, folder / kind / "whole", llama, kind)
        parameters = list(cast(Any, whole.model).parameters())
        assert all(isinstance(weight, DTensor) for weight in parameters), "nothing is sharded"
        stopped = folder / kind / "stopped"
        with pytest.raises(RuntimeError, match="the machine went away"):
            train(rank, stopped, llama, kind, crash_at=4)
        train(rank, stopped, llama, kind, resume_from_checkpoint="last")

    train(rank, folder / "adapter", llama, FULL, peft_config=lora(), max_steps=2)
    with pytest.raises(ConfigError, match="set fsdp_state_dict_type FULL_STATE_DICT"):
        train(rank, folder / "refused", llama, SHARDED, peft_config=lora())
    faulthandler.cancel_dump_traceback_later()
    return {}


def curve(folder: Path) -> list[dict[str, float]]:
    """What was logged, but for times."""
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    rows = [row for row in history if "reward" in row or "eval_reward" in row]
    return [{name: row[name] for name in row if not name.startswith("time/")} for row in rows]


def check(folder: Path, kinds: list[str]) -> None:
    """Resumed runs are the same, and their checkpoints are plain models of the same weights."""
    for kind in kinds:
        whole, stopped = curve(folder / kind / "whole"), curve(folder / kind / "stopped")
        assert len(whole) == 6 and whole == stopped, kind
        assert whole == curve(folder / kinds[0] / "whole"), kind

    assert (folder / "adapter" / "adapter_model.safetensors").is_file()
    found = [weights(folder / kind / run / "checkpoint-6") for kind in kinds for run in RUNS]
    for name, weight in found[0].items():
        assert all(torch.equal(weight, other[name]) for other in found[1:]), name


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Read the policy and the critic of a checkpoint, which is merged first where it is sharded."""
    if not (checkpoint / "model.safetensors").is_file():
        merged = checkpoint.parent / "merged"
        merged.mkdir()
        merge_checkpoint(checkpoint, merged)
        checkpoint = merged
    policy = AutoModelForCausalLM.from_pretrained(checkpoint).state_dict()
    critic = load_file(checkpoint / "critic.safetensors")
    assert policy and critic and not policy.keys() & critic.keys()
    return policy | critic


def test_two_processes_train_evaluate_save_and_resume(tiny_llama: Path, tmp_path: Path):
    spawn(train_and_resume, tmp_path, tiny_llama, [SHARDED])
    check(tmp_path, [SHARDED])


@pytest.mark.slow
def test_both_kinds_of_checkpoints_hold_the_same_weights(tiny_llama: Path, tmp_path: Path):
    spawn(train_and_resume, tmp_path, tiny_llama, [FULL, SHARDED])
    check(tmp_path, [FULL, SHARDED])


@pytest.mark.slow
@pytest.mark.parametrize("processes", [4, 8])
def test_many_processes(processes: int, tiny_llama: Path, tmp_path: Path):
    spawn(train_and_resume, tmp_path, tiny_llama, [FULL], processes=processes)
    check(tmp_path, [FULL])
