"""Checkpoints in shards: the real Trainer under FSDP2, on gloo, and its checkpoints torn, resumed,
made one model.

accelerate shards on GPUs only and trains unsharded on a CPU without a word. `fully_shard` itself
works on gloo, so here accelerate is told that the two processes have a GPU each; everything else is
what `--accelerate fsdp2` runs."""

import faulthandler
import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from torch.distributed.tensor import DTensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaForCausalLM,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    default_data_collator,
)

from hfstack import config
from hfstack.errors import CheckpointError
from hfstack.models.shards import merge_checkpoint, read_shards
from hfstack.publishing.files import detect_kind, published_files
from hfstack.runs.checkpoint_files import find_damage
from hfstack.runs.manifest import MANIFEST
from hfstack.runs.record import read_run
from hfstack.runs.run import Run
from hfstack.training.checkpointing import protect
from hfstack.training.saving import save_trained
from tests.cli.test_accelerate_configs import _FSDP
from tests.conftest import ROOT, SENTENCES
from tests.two_processes import spawn

SHARDED, FULL = "SHARDED_STATE_DICT", "FULL_STATE_DICT"
SHARD_OF_RANK_1 = "pytorch_model_fsdp_0/__1_0.distcp"


class CrashAt(TrainerCallback):
    """End the process's training in the middle of a run."""

    def __init__(self, step: int | None) -> None:
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise RuntimeError("the machine went away")


def train(
    folder: Path,
    llama: Path,
    *,
    state_dict: str | None = None,
    steps: int = 6,
    crash_at: int | None = None,
) -> Trainer:
    """Train as a recipe does, sharded over the processes if a kind of state dict is named."""
    args = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=2 if state_dict else 4,
        save_steps=2,
        logging_steps=1,
        learning_rate=1e-2,
        lr_scheduler_type="constant",
        report_to="none",
        bf16=False,
        use_cpu=True,
        disable_tqdm=True,
        ddp_backend="gloo" if state_dict else None,
        dataloader_pin_memory=False,
        resume_from_checkpoint="last",
        fsdp=state_dict is not None,
        fsdp_config={"version": 2, "state_dict_type": state_dict} if state_dict else None,
    )
    sys.argv = ["pretrain.py"]
    with Run.start("pretrain.py", folder, args) as run:
        if state_dict:
            PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
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


def shard(rank: int, folder: Path, llama: Path) -> dict[str, Any]:
    """A run, one that crashes after step 4 and goes on without one of its shards, and one that
    gathers at each save.
    """
    trainer = train(folder / "whole", llama, state_dict=SHARDED)
    parameters = list(trainer.model.parameters())
    held = sum(weight.to_local().numel() for weight in parameters if isinstance(weight, DTensor))

    with pytest.raises(RuntimeError, match="the machine went away"):
        train(folder / "torn", llama, state_dict=SHARDED, crash_at=5)
    torch.distributed.barrier()
    if rank == 0:
        (folder / "torn" / "checkpoint-4" / SHARD_OF_RANK_1).unlink()
    torch.distributed.barrier()
    train(folder / "torn", llama, state_dict=SHARDED)

    train(folder / "full", llama, state_dict=FULL, steps=2)
    return {"held": held, "all": sum(weight.numel() for weight in parameters)}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Path:
    folder = tmp_path_factory.mktemp("sharded")
    for found in spawn(shard, folder, tiny_llama):
        assert found["held"] < 0.6 * found["all"], "each process holds about half of the weights"
    return folder


def curve(folder: Path) -> list[tuple[int, float, float]]:
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [
        (entry["step"], entry["loss"], entry["grad_norm"]) for entry in history if "loss" in entry
    ]


def test_fsdp2_trains_as_one_process(runs: Path, tiny_llama: Path, tmp_path: Path):
    alone = train(tmp_path / "alone", tiny_llama)
    expected = curve(tmp_path / "alone")
    for name in ("whole", "torn"):
        found = curve(runs / name)
        assert [step for step, _, _ in found] == [1, 2, 3, 4, 5, 6], f"{name}: each step once"
        for one, two in zip(expected, found, strict=True):
            assert two == pytest.approx(one, rel=1e-4), name
    (tmp_path / "merged").mkdir()
    merge_checkpoint(runs / "whole" / "checkpoint-6", tmp_path / "merged")
    ids = torch.arange(2, 22)[None]  # (1, tokens)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(merged(ids).logits, alone.model(ids).logits, rtol=1e-4, atol=1e-4)


def test_each_process_has_its_shard_in_the_manifest(runs: Path):
    newest = runs / "whole" / "checkpoint-6"
    manifest = json.loads((newest / MANIFEST).read_text())
    assert manifest["world_size"] == 2
    shards = {
        f"{kind}_0/__{rank}_0.distcp"
        for kind in ("pytorch_model_fsdp", "optimizer")
        for rank in (0, 1)
    }
    assert shards | {"config.json", "tokenizer.json", "rng_state_1.pth"} <= set(manifest["files"])
    assert "training_args.bin" not in manifest["files"]
    assert find_damage(newest) is None


def test_a_lost_shard_costs_two_steps_and_no_more(runs: Path):
    """The checkpoint of step 4 lost a shard of rank 1: the run went on from step 2, to the same
    end.
    """
    record = read_run(runs / "torn")
    assert record.status == "finished" and [restart["step"] for restart in record.restarts] == [2]
    assert find_damage(runs / "torn" / "broken-4") == f"{SHARD_OF_RANK_1} is missing"
    one, two = (
        read_shards(runs / "whole" / "checkpoint-6"),
        read_shards(runs / "torn" / "checkpoint-6"),
    )
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_the_shipped_kind_ends_with_a_plain_model(runs: Path, tmp_path: Path):
    """`fsdp2.yaml` gathers at each save: the run's directory holds the model that the shards would
    make.
    """
    merge_checkpoint(runs / "whole" / "checkpoint-2", tmp_path)
    expected = AutoModelForCausalLM.from_pretrained(tmp_path).state_dict()
    found = AutoModelForCausalLM.from_pretrained(runs / "full").state_dict()
    assert json.loads((runs / "full" / "config.json").read_text())["architectures"] == [
        "LlamaForCausalLM"
    ]
    assert all(torch.equal(weight, found[name]) for name, weight in expected.items())


def launch_recipe(rank: int, folder: Path, llama: Path) -> dict[str, Any]:
    """Call a recipe as `--accelerate fsdp2` starts it: its environment, and no --fsdp among the
    flags.
    """
    os.environ |= _FSDP | {"HFSTACK_PROCESSES": "2", "HF_HOME": str(folder / "hf")}
    start = Run.start.__func__  # pyright: ignore

    def start_sharded(cls: type[Run], *given: Any, **options: Any) -> Run:
        run = start(cls, *given, **options)
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
        return run

    Run.start = classmethod(start_sharded)  # pyright: ignore
    path = ROOT / "recipes" / "pretrain_clm.py"
    spec = importlib.util.spec_from_file_location("recipe", path)
    assert spec and spec.loader
    recipe = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = recipe
    spec.loader.exec_module(recipe)
    sys.argv = [
        str(path),
        "--model_name_or_path",
        str(llama),
        "--tokenizer_name_or_path",
        str(llama),
        "--datasets",
        str(folder / "rows.jsonl"),
        "--eval_fraction",
        "0.2",
        "--block_size",
        "16",
        "--max_steps",
        "4",
        "--per_device_train_batch_size",
        "2",
        "--eval_strategy",
        "steps",
        "--eval_steps",
        "2",
        "--save_steps",
        "2",
        "--logging_steps",
        "1",
        "--bf16",
        "false",
        "--use_cpu",
        "true",
        "--ddp_backend",
        "gloo",
        "--report_to",
        "none",
        "--sample_tokens",
        "2",
        "--output_dir",
        str(folder / "out"),
    ]
    # processes that wait for each other would wait forever
    faulthandler.dump_traceback_later(300, exit=True)
    config.command_line(recipe.main)
    faulthandler.cancel_dump_traceback_later()
    return {"done": True}


@pytest.mark.slow
def test_a_recipe_evaluates_and_ends_under_the_shipped_file(tmp_path: Path, tiny_llama: Path):
    """`args.fsdp` is None then, so that whoever asks it alone lets one process sample while the
    other waits.
    """
    rows = ({"text": f"{i} {SENTENCES[i % 4]}"} for i in range(60))
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    spawn(launch_recipe, tmp_path, tiny_llama)
    record = read_run(tmp_path / "out")
    assert record.status == "finished" and record.world_size == 2
    assert (tmp_path / "out" / "samples.jsonl").read_text() == "", (
        "no process has a whole model to sample from"
    )
    history = json.loads((tmp_path / "out" / "trainer_state.json").read_text())["log_history"]
    assert [entry["step"] for entry in history if "eval_loss" in entry] == [2, 4, 4]
    assert find_damage(tmp_path / "out" / "checkpoint-4", needs_manifest=True) is None
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").num_parameters() > 0


def test_shards_are_not_published(runs: Path):
    checkpoint = runs / "whole" / "checkpoint-6"
    with pytest.raises(CheckpointError):
        published_files(checkpoint, detect_kind(checkpoint, {}), {})
