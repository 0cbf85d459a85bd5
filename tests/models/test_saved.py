"""What was saved, loaded again, gives what was trained; anything else is found."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    BartConfig,
    BartForConditionalGeneration,
    BartForSequenceClassification,
    BertConfig,
    BertForQuestionAnswering,
    set_seed,
)
from trl import ModelConfig

from hfstack.errors import CheckpointError
from hfstack.models.adapters import name_magnitudes
from hfstack.models.gru import GRUConfig, GRUForCausalLM
from hfstack.models.loading import merge_into_base
from hfstack.models.saved import compare_with_saved, read_logits

# peft warns of what is right here (https://github.com/huggingface/peft/issues/2777)
pytestmark = [
    pytest.mark.filterwarnings("ignore:Model has .tie_word_embeddings=True:UserWarning"),
    pytest.mark.filterwarnings("ignore:Setting .save_embedding_layers. to .True.:UserWarning"),
]
SIZES: dict[str, Any] = {"vocab_size": 60, "max_position_embeddings": 32}
BART: dict[str, Any] = SIZES | {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1}
BART |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
BART |= {"encoder_ffn_dim": 16, "decoder_ffn_dim": 16}


def read_causal(saved: ModelConfig) -> Any:
    return AutoModelForCausalLM.from_pretrained(str(saved.model_name_or_path), dtype=saved.dtype)


def build(name: str) -> Any:
    """A tiny untrained model of one kind, in evaluation mode."""
    set_seed(0)
    if name == "gru":
        return GRUForCausalLM(GRUConfig(vocab_size=60, hidden_size=16, num_hidden_layers=1)).eval()
    if name == "answers":
        sizes: dict[str, Any] = SIZES | {
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
        }
        return BertForQuestionAnswering(BertConfig(**sizes, intermediate_size=16)).eval()
    kind = BartForConditionalGeneration if name == "seq2seq" else BartForSequenceClassification
    return kind(BartConfig(**BART)).eval()


def adapted(folder: Path, **settings: Any) -> PeftModel:
    """The model of a folder with an adapter whose every weight has been moved."""
    set_seed(0)
    base = AutoModelForCausalLM.from_pretrained(folder)
    model: Any = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", r=2, **settings))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval()


@pytest.mark.parametrize("name", ["gru", "answers", "seq2seq", "classes"])
def test_every_kind_is_compared(name: str, tmp_path: Path) -> None:
    model = build(name)
    model.save_pretrained(tmp_path)
    read = lambda saved: type(model).from_pretrained(tmp_path, dtype=saved.dtype)  # noqa: E731

    found = compare_with_saved(read_logits(model), model, tmp_path, read)
    assert found["largest_difference"] == 0 and found["allowed"] == pytest.approx(1e-4, rel=20)

    # one tensor of the file becomes another
    weights = load_file(tmp_path / "model.safetensors")
    head = next(name for name in weights if weights[name].dim() == 2 and "encoder" not in name)
    weights[head] = weights[head] + 0.1 * torch.randn_like(weights[head])
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=f"{tmp_path} is not what was trained: .* by up to"):
        compare_with_saved(read_logits(model), model, tmp_path, read)


@pytest.mark.parametrize(
    ("dtype", "saved_as"), [("float32", "bfloat16"), ("float32", "float16")], ids=str
)
def test_weights_that_were_saved_in_fewer_bits_are_found(
    tiny_llama: Path, tmp_path: Path, dtype: str, saved_as: str
) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=dtype)
    model.model.norm.weight.data += 0.1 * torch.randn(32)
    trained = read_logits(model)
    copy.deepcopy(model).to(getattr(torch, saved_as)).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="is not what was trained"):
        compare_with_saved(trained, model, tmp_path, read_causal)


def test_weights_of_16_bits_come_back_bit_by_bit(tiny_llama: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype="bfloat16")
    model.save_pretrained(tmp_path)
    found = compare_with_saved(read_logits(model), model, tmp_path, read_causal)
    assert found["largest_difference"] == 0


def test_autocast_is_set_aside(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # one for all, in which another test has chosen fp32
    monkeypatch.setattr(AcceleratorState, "_shared_state", {})
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    before = read_logits(model)
    Accelerator(cpu=True, mixed_precision="bf16").prepare_model(model)
    autocast = model(torch.arange(8)[None]).logits
    assert torch.equal(read_logits(model)[0], before[0])
    assert torch.equal(model(torch.arange(8)[None]).logits, autocast)


def test_no_room_for_a_second_copy_is_a_reason(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    memory = type("Memory", (), {"available": 1000})
    monkeypatch.setattr("psutil.virtual_memory", lambda: memory)
    found = compare_with_saved(read_logits(model), model, tmp_path, read_causal)
    assert found == {"skipped": "a second copy needs 0.0 GiB, and the cpu has 0.0 GiB free"}


@pytest.mark.parametrize(
    "targets", [["embed_tokens"], ["lm_head"], ["embed_tokens", "lm_head"], "all-linear"], ids=str
)
@pytest.mark.parametrize("use_dora", [False, True], ids=["lora", "dora"])
def test_a_merge_keeps_what_an_adapter_makes_of_tied_embeddings(
    targets: Any, use_dora: bool, tiny_llama: Path, tmp_path: Path
) -> None:
    model = adapted(tiny_llama, target_modules=targets, use_dora=use_dora)
    trained = read_logits(model)
    merged = merge_into_base(model)
    merged.save_pretrained(tmp_path)
    found = compare_with_saved(trained, merged, tmp_path, read_causal, merged=True)
    assert found["largest_difference"] < 1e-5

    # untouched embeddings stay one
    tied = AutoModelForCausalLM.from_pretrained(tmp_path).config.tie_word_embeddings
    assert tied == (targets == "all-linear")


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "embed_tokens"]], ids=str)
def test_dora_is_read_by_peft_and_by_transformers(
    targets: Any, tiny_llama: Path, tmp_path: Path
) -> None:
    model = adapted(tiny_llama, target_modules=targets, use_dora=True)
    trained = read_logits(model)
    model.save_pretrained(str(tmp_path))
    # as PEFT names them, transformers leaves the magnitudes out
    with pytest.raises(CheckpointError, match="is not what was trained"):
        compare_with_saved(trained, model, tmp_path, read_causal)

    for _ in range(2):  # a second time changes nothing
        name_magnitudes(tmp_path)
        assert (
            compare_with_saved(trained, model, tmp_path, read_causal)["largest_difference"] < 1e-5
        )
    base = AutoModelForCausalLM.from_pretrained(tiny_llama)
    again = PeftModel.from_pretrained(base, str(tmp_path))
    assert torch.equal(read_logits(again)[0], trained[0])
