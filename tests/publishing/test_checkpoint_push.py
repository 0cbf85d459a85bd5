"""--push_to_hub while training: checkpoints on a branch, main untouched, no pickle; a Hub in
trouble stops nothing.
"""

import json
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM, TrainingArguments

from hfstack.errors import CheckpointError, ConfigError
from hfstack.publishing.checkpoint_push import CheckpointPush, push_checkpoints
from hfstack.publishing.hub import HubRepo, prepare_repo
from tests.conftest import ROOT, SENTENCES
from tests.hub_fixtures import READER, WRITER, hub
from tests.minihub_state import Hub
from tests.tiny_shards import SHARD, write_shards

__all__ = ["hub"]


@pytest.fixture
def train(run_recipe, tiny_llama: Path, tmp_path: Path):
    """Pretrain for four steps with a checkpoint after the second and the fourth."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        "".join(json.dumps({"text": f"{i} {SENTENCES[i % 4]}"}) + "\n" for i in range(40))
    )

    def call(**changes: object) -> dict[str, float]:
        settings = {
            "model_name_or_path": tiny_llama,
            "datasets": rows,
            "eval_fraction": 0,
            "block_size": 16,
            "max_steps": 4,
            "save_steps": 2,
            "save_strategy": "steps",
            "output_dir": tmp_path / "stories",
            "report_to": "none",
            "bf16": "false",
            "sample_tokens": 2,
            "dataloader_pin_memory": "false",
            "push_to_hub": "true",
        } | changes
        return run_recipe(
            "pretrain_clm", *(f"--{name}={value}" for name, value in settings.items())
        )

    return call


def test_checkpoints_go_to_a_branch(hub: Hub, train, tmp_path: Path):
    train(report_to="none")
    repo = hub.repo("alice/stories")
    assert repo.private and repo.head().files == {}
    titles, sha = [], repo.refs["checkpoints"]
    while sha:
        titles.append(repo.commits[sha].title)
        sha = repo.commits[sha].parent
    assert titles == ["Checkpoint checkpoint-4", "Checkpoint checkpoint-2", "initial commit"]
    files = repo.head("checkpoints").files
    assert {"config.json", "model.safetensors", "tokenizer.json", "trainer_state.json"} <= set(
        files
    )
    assert not [path for path in files if path.endswith((".bin", ".pt", ".pth"))]
    state = json.loads(hub.content("alice/stories", "trainer_state.json", revision="checkpoints"))
    assert state["global_step"] == 4
    pushed = hub.content("alice/stories", "model.safetensors", revision="checkpoints")
    assert pushed == (tmp_path / "stories" / "model.safetensors").read_bytes()
    fetched = LlamaForCausalLM.from_pretrained(
        "alice/stories", revision="checkpoints", cache_dir=tmp_path / "cache"
    )
    assert fetched.num_parameters() > 1000


def test_a_hub_in_trouble_does_not_end_the_training(hub: Hub, train, tmp_path: Path):
    hub.fail("POST .*/commit/", 403)
    assert train(hub_model_id="stories/tiny", hub_private_repo="false")["train_loss"] > 0
    repo = hub.repo("stories/tiny")
    assert not repo.private and [c.title for c in repo.commits.values()][1:] == [
        "Checkpoint checkpoint-4"
    ]


@pytest.mark.filterwarnings(
    "ignore:torch.distributed is disabled"
)  # torch 2.13, also with no_dist=True
def test_shards_are_merged_first(
    hub: Hub, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """As under FSDP, with the launcher's variables of one of many processes around."""
    folder = tmp_path / "run" / "checkpoint-6"
    folder.parent.mkdir()
    expected = write_shards(folder, tiny_llama).state_dict()
    for name, value in {
        "RANK": "0",
        "WORLD_SIZE": "8",
        "ACCELERATE_USE_FSDP": "true",
        "MASTER_ADDR": "gone",
    }.items():
        monkeypatch.setenv(name, value)
    target = HubRepo("alice/stories", endpoint=hub.url, token=WRITER, branch="checkpoints")
    prepare_repo(target)
    CheckpointPush(target)(folder)
    files = hub.repo("alice/stories").head("checkpoints").files
    assert {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "trainer_state.json",
    } <= files.keys()
    assert not [path for path in files if "distcp" in path or "fsdp" in path]
    fetched = LlamaForCausalLM.from_pretrained(
        "alice/stories", revision="checkpoints", cache_dir=tmp_path / "cache"
    )
    assert all(torch.equal(weight, expected[name]) for name, weight in fetched.state_dict().items())
    assert [path.name for path in folder.parent.iterdir()] == ["checkpoint-6"], (
        "nothing is left beside it"
    )
    (folder / SHARD).unlink()
    with pytest.raises(
        CheckpointError, match=r"its shards could not be merged: .*__0_1.distcp is missing"
    ):
        CheckpointPush(target)(folder)


def test_what_cannot_work_is_refused_before_training(
    hub: Hub, train, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    with pytest.raises(ConfigError, match="--hub_revision main: checkpoints go to a branch"):
        train(hub_revision="main")
    monkeypatch.setenv("HF_TOKEN", READER)
    with pytest.raises(ConfigError, match="the token of alice may only read"):
        train(output_dir=tmp_path / "b")
    monkeypatch.setenv("HF_TOKEN", "wrong")
    with pytest.raises(ConfigError, match="does not know this token"):
        train(output_dir=tmp_path / "c")
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(ConfigError, match="no token to push with"):
        train(output_dir=tmp_path / "d")
    assert not hub.repos and not (tmp_path / "d" / "checkpoint-2").exists()


def test_nothing_is_pushed_unasked(hub: Hub, tmp_path: Path):
    assert push_checkpoints(TrainingArguments(output_dir=str(tmp_path), use_cpu=True)) == []
    assert not hub.log


TRAIN = (
    "pretrain_clm pretrain_mlm classify tag answer sft dpo kto orpo reward rloo grpo ppo".split()
)


@pytest.mark.parametrize("recipe", TRAIN)
def test_every_recipe_that_trains_pushes_this_way(recipe: str):
    """A Trainer that sees --push_to_hub makes a public repository before a callback could stop
    it."""
    text = (ROOT / "recipes" / f"{recipe}.py").read_text(encoding="utf-8")
    shared = {"dpo": "preferences/alignment", "rloo": "rl/online"}
    shared |= {"kto": shared["dpo"], "orpo": shared["dpo"], "grpo": shared["rloo"]}
    if recipe not in shared:
        assert "protect(run, push_checkpoints(training_args))" in text
        return

    # these recipes hand it to the package of their task, which protects
    task = (ROOT / "hfstack" / "tasks" / f"{shared[recipe]}.py").read_text(encoding="utf-8")
    assert "push_checkpoints(training_args)" in text and "*protect(run, push)" in task
