"""The shipped config.json files: they load, have the size their name tells, and the documented
table is current.
"""

import dataclasses
import json
import runpy
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    set_seed,
)

import hfstack.models.gru  # noqa: F401 - registers the GRU and LSTM models
from hfstack.models.counting import count_parameters

ROOT = Path(__file__).parent.parent.parent
FILES = sorted((ROOT / "recipes" / "architectures").glob("*.json"))


def test_the_ladder_is_complete() -> None:
    sizes = ("1m", "5m", "15m", "125m")
    expected = {f"{family}-{size}" for family in ("gpt2", "llama") for size in sizes}
    expected |= {"bert-1m", "bert-5m", "bert-15m", "bert-110m"}
    expected |= {"gru-1m", "gru-5m", "lstm-1m", "lstm-5m", "t5-5m", "bart-5m"}
    assert {path.stem for path in FILES} == expected


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_size_matches_the_name(path: Path) -> None:
    config = AutoConfig.from_pretrained(path)
    million = int(path.stem.split("-")[1].removesuffix("m"))
    assert config.vocab_size == {125: 50257, 110: 30522}.get(million, 4096)
    if config.is_encoder_decoder:
        total = sum(parameter.numel() for parameter in _build(config).parameters())
    else:
        total = count_parameters(config).total
    assert abs(total / (million * 1e6) - 1) < 0.08


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_key_is_a_field_of_its_config_class(path: Path) -> None:
    written = json.loads(path.read_text())
    config = AutoConfig.from_pretrained(path)
    known = {field.name for field in dataclasses.fields(config)} | {"model_type"}
    assert set(written) - known == set()
    assert (config.eos_token_id, config.pad_token_id) == (None, None)
    assert getattr(config, "bos_token_id", None) is None  # T5 has no such field
    assert written["architectures"] == [type(_build(config)).__name__]


def _build(config) -> torch.nn.Module:
    family = AutoModelForMaskedLM if config.model_type == "bert" else AutoModelForCausalLM
    if config.is_encoder_decoder:
        family = AutoModelForSeq2SeqLM
    with torch.device("meta"):
        return family.from_config(config)


@pytest.mark.parametrize("size", ["1m", "5m", "15m", "125m"])
def test_families_of_one_size_differ_in_architecture_alone(size: str) -> None:
    gpt2, llama = (
        AutoConfig.from_pretrained(FILES[0].parent / f"{family}-{size}.json")
        for family in ("gpt2", "llama")
    )
    for name in (
        "num_hidden_layers",
        "hidden_size",
        "num_attention_heads",
        "max_position_embeddings",
        "vocab_size",
    ):
        assert getattr(gpt2, name) == getattr(llama, name)
    assert llama.head_dim * llama.num_attention_heads == llama.hidden_size
    assert 0 <= llama.intermediate_size - llama.hidden_size * 8 / 3 < 32


@pytest.mark.parametrize("name", ["gpt2-1m", "llama-1m", "gru-1m", "lstm-1m"])
def test_a_model_of_another_vocabulary_begins_near_the_uniform_distribution_and_learns(
    name: str,
) -> None:
    set_seed(0)
    config = AutoConfig.from_pretrained(ROOT / "recipes" / "architectures" / f"{name}.json")
    config.vocab_size = 300
    model = AutoModelForCausalLM.from_config(config)
    input_ids = torch.randint(0, 300, (2, 64))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(4):
        loss = model(input_ids, labels=input_ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert abs(losses[0] - torch.log(torch.tensor(300.0)).item()) < 0.3
    assert losses[-1] < losses[0] - 0.3


def test_the_documented_table_is_what_its_command_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    page = (ROOT / "docs" / "architectures.md").read_text()
    script = tmp_path / "table.py"
    script.write_text(page.split("```python\n")[1].split("```")[0])
    monkeypatch.chdir(ROOT)
    runpy.run_path(str(script))
    table = page.split("<!-- table: begin -->\n")[1].split("<!-- table: end -->")[0]
    assert capsys.readouterr().out == table
