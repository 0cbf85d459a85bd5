"""DeepSpeed's ZeRO on a CPU under torchrun: the losses of one process, and its checkpoints torn,
resumed, merged.

Slow: DeepSpeed compiles its communication first. It needs `pip install 'hfstack[deepspeed]'`, ninja
and a C++ compiler."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaForCausalLM,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    default_data_collator,
)

from hfstack.models.shards import kind_of_shards, merge_checkpoint
from hfstack.runs.checkpoint_files import find_damage
from hfstack.runs.manifest import MANIFEST
from hfstack.runs.record import read_run
from hfstack.runs.run import Run
from hfstack.training.checkpointing import protect
from hfstack.training.saving import save_trained

ROOT = Path(__file__).parent.parent.parent
SHARD_OF_RANK_1 = "zero_pp_rank_1_mp_rank_00_optim_states.pt"


class CrashAt(TrainerCallback):
    """End the process's training in the middle of a run."""

    def __init__(self, step: int | None) -> None:
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise RuntimeError("the machine went away")


def train(
    folder: Path, llama: Path, *, stage: int | None = None, crash_at: int | None = None
) -> Trainer:
    """Train as a recipe does, sharded by DeepSpeed if a stage is named."""
    settings: dict[str, Any] = {"use_cpu": True, "per_device_train_batch_size": 4}
    if stage:
        # Without a GPU the Trainer lets each process train alone, unless they have met before.
        AcceleratorState._reset_state(reset_partial_state=True)
        os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
        PartialState(backend="gloo")
        settings = {
            "accelerator_config": {"use_configured_state": True},
            "per_device_train_batch_size": 2,
        }
        settings["deepspeed"] = {
            "train_micro_batch_size_per_gpu": "auto",
            "gradient_accumulation_steps": "auto",
            "gradient_clipping": "auto",
            "zero_optimization": {"stage": stage},
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
        }
    args = TrainingArguments(
        output_dir=str(folder),
        max_steps=6,
        save_steps=2,
        logging_steps=1,
        learning_rate=1e-2,
        bf16=False,
        lr_scheduler_type="constant",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        resume_from_checkpoint="last",
        **settings,
    )
    with Run.start("pretrain.py", folder, args) as run:
        checkpoint = run.resume_point()
        # (rows, tokens)
        ids = torch.randint(2, 300, (24, 12), generator=torch.Generator().manual_seed(3))
        trainer = Trainer(
            model=LlamaForCausalLM.from_pretrained(llama),
            args=args,
            data_collator=default_data_collator,
            train_dataset=[{"input_ids": row, "labels": row} for row in ids],  # pyright: ignore
            processing_class=AutoTokenizer.from_pretrained(llama),
            callbacks=[CrashAt(crash_at), *protect(run)],
        )
        trained = trainer.train(resume_from_checkpoint=checkpoint)
        save_trained(run, trainer, lambda saved: LlamaForCausalLM.from_pretrained(folder))
        run.finish({"train_loss": trained.training_loss}, trainer)
    return trainer


def worker(folder: Path, llama: Path, stage: int) -> None:
    """One of two processes: a run, and one that crashes after step 4 and goes on without one of its
    shards.
    """
    train(folder / "whole", llama, stage=stage)
    with pytest.raises(RuntimeError, match="the machine went away"):
        train(folder / "torn", llama, stage=stage, crash_at=5)
    torch.distributed.barrier()
    if os.environ["RANK"] == "0":
        (folder / "torn" / "checkpoint-4" / "global_step4" / SHARD_OF_RANK_1).unlink()
    torch.distributed.barrier()
    train(folder / "torn", llama, stage=stage)


def curve(folder: Path) -> list[tuple[int, float]]:
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [(entry["step"], entry["loss"]) for entry in history if "loss" in entry]


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_zero_on_two_processes(stage: int, tiny_llama: Path, tmp_path: Path):
    pytest.importorskip("deepspeed")
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        __file__,
    ]
    environment = os.environ | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(
        [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    done = subprocess.run(
        [*command, str(tmp_path), str(tiny_llama), str(stage)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]

    alone = train(tmp_path / "alone", tiny_llama)
    for name in ("whole", "torn"):
        for one, two in zip(curve(tmp_path / "alone"), curve(tmp_path / name), strict=True):
            assert two == pytest.approx(one, rel=1e-4), name
    record = read_run(tmp_path / "torn")
    assert record.status == "finished" and [restart["step"] for restart in record.restarts] == [2]
    assert (
        find_damage(tmp_path / "torn" / "broken-4") == f"global_step4/{SHARD_OF_RANK_1} is missing"
    )

    newest = tmp_path / "whole" / "checkpoint-6"
    files = json.loads((newest / MANIFEST).read_text())["files"]
    assert {
        f"global_step6/zero_pp_rank_{rank}_mp_rank_00_optim_states.pt" for rank in (0, 1)
    } <= set(files)
    assert kind_of_shards(newest) == "deepspeed"
    (tmp_path / "merged").mkdir()
    merge_checkpoint(newest, tmp_path / "merged")
    ids = torch.arange(2, 22)[None]  # (1, tokens)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(merged(ids).logits, alone.model(ids).logits, rtol=1e-4, atol=1e-4)


if __name__ == "__main__":
    worker(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
