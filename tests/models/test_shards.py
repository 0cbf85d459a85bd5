"""Shards become the model that they were; what is lost, forged or not described is one line."""

import json
import pickle
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch.distributed import checkpoint as distributed_checkpoint
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from hfstack.errors import CheckpointError, MissingExtraError
from hfstack.models.shards import describe_model, kind_of_shards, merge_checkpoint, read_shards
from tests.tiny_shards import SHARD, write_shards

# torch 2.13 warns that one process saves alone, also where no_dist=True asks for that
pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
IDS = torch.arange(2, 22)[None]  # (1, tokens)


@pytest.fixture
def checkpoint(tmp_path: Path, tiny_llama: Path) -> Path:
    write_shards(tmp_path / "checkpoint-6", tiny_llama)
    (tmp_path / "merged").mkdir()
    return tmp_path / "checkpoint-6"


def test_the_merged_model_gives_the_same_logits(checkpoint: Path, tiny_llama: Path, tmp_path: Path):
    expected = LlamaForCausalLM.from_pretrained(tiny_llama)
    assert kind_of_shards(checkpoint) == "fsdp"
    parameters, found = merge_checkpoint(checkpoint, tmp_path / "merged")
    assert parameters == expected.num_parameters() and found["largest_difference"] == 0
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert torch.equal(merged(IDS).logits, expected(IDS).logits)
    assert merged.lm_head.weight is merged.model.embed_tokens.weight, "tied, as it was"
    assert {path.name for path in (tmp_path / "merged").iterdir()} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
    }


def test_another_model_may_describe_the_weights(checkpoint: Path, tiny_llama: Path, tmp_path: Path):
    (checkpoint / "config.json").unlink()
    with pytest.raises(
        CheckpointError, match="name the model that was trained: --model_name_or_path MODEL"
    ):
        merge_checkpoint(checkpoint, tmp_path / "merged")
    merge_checkpoint(checkpoint, tmp_path / "merged", described_by=tiny_llama)
    assert (tmp_path / "merged" / "model.safetensors").is_file()


def test_an_adapter_stays_an_adapter(tiny_llama: Path, tmp_path: Path):
    base = LlamaForCausalLM.from_pretrained(tiny_llama)
    model = get_peft_model(
        base, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    )
    from peft import get_peft_model_state_dict

    folder = tmp_path / "checkpoint-6" / "pytorch_model_fsdp_0"
    writer = distributed_checkpoint.FileSystemWriter(folder)
    state = {"model": get_peft_model_state_dict(model)}
    distributed_checkpoint.save(state, storage_writer=writer, no_dist=True)
    describe_model(model, tmp_path / "checkpoint-6")
    (tmp_path / "merged").mkdir()
    merge_checkpoint(tmp_path / "checkpoint-6", tmp_path / "merged")
    again = PeftModel.from_pretrained(
        LlamaForCausalLM.from_pretrained(tiny_llama), tmp_path / "merged"
    )
    assert torch.equal(again(input_ids=IDS).logits, model.eval()(input_ids=IDS).logits)


class Code:
    """Runs when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("code of a checkpoint",))


def forge(path: Path) -> None:
    (path / "pytorch_model_fsdp_0" / ".metadata").write_bytes(pickle.dumps(Code()))


def cut_off(path: Path) -> None:
    index = path / "pytorch_model_fsdp_0" / ".metadata"
    index.write_bytes(index.read_bytes()[:500])


def deeper(path: Path) -> None:
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))


def wider(path: Path) -> None:
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"intermediate_size": 128}))


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (
            lambda path: (path / SHARD).unlink(),
            r"__0_1\.distcp is missing: without every process's part there is no",
        ),
        (
            lambda path: (path / "pytorch_model_fsdp_0/.metadata").unlink(),
            "the process that saves it last did not finish",
        ),
        (forge, r"not the index of a sharded checkpoint: it names builtins\.print"),
        (cut_off, "not the index of a sharded checkpoint"),
        (
            deeper,
            r"not the weights of LlamaForCausalLM, which .* describes: missing model\.layers\.2",
        ),
        (wider, "the shards do not fit .*checkpoint-6"),
        (
            lambda path: shutil.rmtree(path / "pytorch_model_fsdp_0"),
            "holds no shards of FSDP or DeepSpeed; name a",
        ),
    ],
)
def test_what_cannot_be_merged_is_one_line(
    checkpoint: Path, tmp_path: Path, capsys, fault: Any, message: str
):
    fault(checkpoint)
    with pytest.raises(CheckpointError, match=message) as caught:
        merge_checkpoint(checkpoint, tmp_path / "merged")
    assert "\n" not in str(caught.value)
    assert "code of a checkpoint" not in capsys.readouterr().out


def test_a_plain_model_needs_no_merging(tiny_llama: Path):
    with pytest.raises(
        CheckpointError, match="its weights are plain safetensors, so use it as it is"
    ):
        read_shards(tiny_llama)


def test_deepspeeds_shards_need_deepspeed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "latest").write_text("global_step6")
    assert kind_of_shards(tmp_path) == "deepspeed"
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'hfstack\[deepspeed\]'"):
        read_shards(tmp_path)


def test_a_lost_shard_of_deepspeed_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """DeepSpeed's converter counts the shards against the number that each of them names."""

    def convert(folder: str) -> None:
        raise ValueError(
            f"Expected 2 of '*_optim_states.pt' under '{folder}' but found 1 files.\nPossibly"
        )

    (tmp_path / "latest").write_text("global_step6")
    converter: Any = ModuleType("zero_to_fp32")
    converter.get_fp32_state_dict_from_zero_checkpoint = convert
    for name in ("deepspeed", "deepspeed.utils"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "deepspeed.utils.zero_to_fp32", converter)
    with pytest.raises(CheckpointError, match=r"Expected 2 of .* but found 1 files\. Possibly"):
        read_shards(tmp_path)
