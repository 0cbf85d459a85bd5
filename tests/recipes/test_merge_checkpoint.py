"""The merge_checkpoint recipe: from its YAML over a run's checkpoints, and what it refuses."""

from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from hfstack.errors import CheckpointError, ConfigError
from hfstack.runs.manifest import MANIFEST, write_manifest
from tests.conftest import ROOT
from tests.tiny_shards import SHARD, write_shards

# torch 2.13 says that one process writes alone also when it is told so (no_dist=True)
pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


@pytest.fixture
def checkpoint(tmp_path: Path, tiny_llama: Path) -> Path:
    write_shards(tmp_path / "run" / "checkpoint-6", tiny_llama)
    write_manifest(tmp_path / "run" / "checkpoint-6", step=6, world_size=2)
    return tmp_path / "run" / "checkpoint-6"


def test_runs_from_its_yaml(run_recipe, checkpoint: Path, tmp_path: Path, capsys):
    flags = ["--config", ROOT / "recipes/merge_checkpoint.yaml", "--output_dir", tmp_path / "out"]
    metrics = run_recipe("merge_checkpoint", *flags, "--checkpoint", checkpoint.parent)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert metrics["parameters"] == model.num_parameters()
    assert AutoTokenizer.from_pretrained(tmp_path / "out")("a ball")["input_ids"]
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert "model.safetensors" in files and not [
        name for name in files if name.endswith((".bin", ".pt", ".distcp"))
    ]
    assert (
        f"{metrics['parameters']:,} parameters are in {tmp_path / 'out'}" in capsys.readouterr().out
    )


def test_a_model_by_name_brings_config_and_tokenizer(
    run_recipe, checkpoint: Path, tiny_llama: Path, tmp_path: Path
):
    for path in [*checkpoint.glob("tokenizer*"), checkpoint / "config.json", checkpoint / MANIFEST]:
        path.unlink()
    given = [
        "--checkpoint",
        checkpoint,
        "--model_name_or_path",
        tiny_llama,
        "--output_dir",
        tmp_path / "out",
    ]
    run_recipe("merge_checkpoint", *given)
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= {
        p.name for p in (tmp_path / "out").iterdir()
    }


def test_mistakes_are_one_line(run_recipe, checkpoint: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match="--checkpoint is required"):
        run_recipe("merge_checkpoint", "--output_dir", tmp_path / "out")
    with pytest.raises(CheckpointError, match="holds no complete checkpoint-<step>"):
        run_recipe("merge_checkpoint", "--checkpoint", tmp_path, "--output_dir", tmp_path / "out")
    # a link out of the checkpoint would become a file of the model that is published
    name = "chat_template.jinja"
    (tmp_path / "private.txt").write_text("a private text")
    (checkpoint / name).unlink(missing_ok=True)
    (checkpoint / name).symlink_to(tmp_path / "private.txt")
    write_manifest(checkpoint, step=6, world_size=2)
    with pytest.raises(CheckpointError, match=f"{name} is a link to .*private.txt, outside of"):
        run_recipe("merge_checkpoint", "--checkpoint", checkpoint, "--output_dir", tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"run.json", "run.log"}
    (checkpoint / SHARD).unlink()
    with pytest.raises(
        CheckpointError, match=f"is no complete checkpoint: {SHARD} is missing; name another"
    ):
        run_recipe("merge_checkpoint", "--checkpoint", checkpoint, "--output_dir", tmp_path / "out")
