"""The verify recipe: from its YAML over a folder, and a repository that nobody may read."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoTokenizer,
    BartConfig,
    BartForConditionalGeneration,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from hfstack.disk import describe_file
from hfstack.errors import CheckpointError, ConfigError, HubError
from hfstack.publishing.check_number import _CHECK_TEXT, measure_check_number
from hfstack.publishing.files import detect_kind, make_item, published_files
from hfstack.publishing.staging import write_publication
from tests.conftest import ROOT
from tests.hub_fixtures import hub
from tests.minihub_state import Hub

__all__ = ["hub"]


@pytest.fixture
def publication(tmp_path: Path, tiny_llama: Path) -> Path:
    """A folder as publish leaves it."""
    folder = tmp_path / "published"
    LlamaForCausalLM.from_pretrained(tiny_llama).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_llama).save_pretrained(folder)
    kind = detect_kind(folder, {})
    files = published_files(folder, kind, {})
    (folder / "README.md").write_text("# A model\n")
    outputs = [describe_file(path, name) for name, path in files.items()]
    runs = [{"run_id": "1a2b", "outputs": outputs}]
    (folder / "runs.json").write_text(json.dumps(runs))

    made = {name: folder / name for name in (*files, "README.md", "runs.json")}
    items = [make_item(name, path) for name, path in made.items()]
    how = {"kind": kind, "repo": f"file://{folder}", "run_id": "1a2b", "rendering": {}}
    write_publication(items, folder, **how, check=measure_check_number(files, kind))
    return folder


def test_runs_from_its_yaml(run_recipe, publication: Path, tmp_path: Path, capsys):
    flags = ["--config", ROOT / "recipes/verify.yaml", "--repo", f"file://{publication}"]
    metrics = run_recipe("verify", *flags, "--output_dir", tmp_path / "verify")
    assert metrics["check_bits_per_byte"] == pytest.approx(metrics["published_check_bits_per_byte"])
    said = capsys.readouterr().out
    assert "files are as published, sha256 of all" in said and "published was" in said
    assert "check_bits_per_byte" not in run_recipe(
        "verify", *flags, "--measure", "false", "--output_dir", tmp_path / "hashes"
    )


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_the_number_of_an_encoder_decoder(family: str, tmp_path: Path, tiny_llama: Path) -> None:
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    size = len(tokenizer)
    ids: dict[str, Any] = {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 2}
    narrow: dict[str, Any] = {"d_model": 16, "d_ff": 32, "d_kv": 8, "num_layers": 1, "num_heads": 2}
    model: Any = T5ForConditionalGeneration(T5Config(vocab_size=size, **narrow, **ids))
    if family == "bart":
        layers: dict[str, Any] = {"encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 32}
        heads: dict[str, Any] = {
            "encoder_attention_heads": 2,
            "decoder_attention_heads": 2,
            "decoder_ffn_dim": 32,
        }
        model = BartForConditionalGeneration(
            BartConfig(vocab_size=size, d_model=16, **layers, **heads, **ids)
        )
    folder = tmp_path / family
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)

    # the decoder reads the text as well, one place to the right
    inputs = tokenizer(_CHECK_TEXT, return_tensors="pt", truncation=True, max_length=256)
    read = inputs["input_ids"]
    shifted = torch.cat([torch.tensor([[2]]), read[:, :-1]], dim=1)
    with torch.no_grad():
        expected = model.eval()(
            input_ids=read, attention_mask=inputs["attention_mask"], decoder_input_ids=shifted
        ).logits

    kind = detect_kind(folder, {})
    name, value = measure_check_number(published_files(folder, kind, {}), kind)
    assert name == "check_mean_logit"
    assert value == pytest.approx(float(expected.abs().mean()), rel=1e-5)


def test_what_cannot_be_trusted(run_recipe, publication: Path, tmp_path: Path):
    check = ["--repo", f"file://{publication}", "--output_dir", tmp_path / "verify"]
    (publication / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(CheckpointError, match=r"has pytorch_model.bin, a format that can run code"):
        run_recipe("verify", *check)
    (publication / "pytorch_model.bin").unlink()
    text = (publication / "publication.json").read_text()
    (publication / "publication.json").write_text(text.replace('"schema": 1', '"schema": 9'))
    with pytest.raises(CheckpointError, match="has schema 9, this hfstack reads 1: upgrade"):
        run_recipe("verify", *check)
    (publication / "publication.json").write_text(text.replace("config.json", "../config.json"))
    with pytest.raises(CheckpointError, match=r"lacks ../config.json"):
        run_recipe("verify", *check)
    (publication / "publication.json").unlink()
    with pytest.raises(CheckpointError, match="was not published by hfstack"):
        run_recipe("verify", *check)


def test_what_is_not_what_was_published(run_recipe, publication: Path, tmp_path: Path):
    check = ["--repo", f"file://{publication}", "--output_dir", tmp_path / "verify"]
    check += ["--measure", "false"]
    list_path, weights = publication / "publication.json", publication / "model.safetensors"
    text, values = list_path.read_text(), json.loads(list_path.read_text())

    def refusal(**changes: Any) -> str:
        list_path.write_text(json.dumps(values | changes))
        with pytest.raises(CheckpointError) as caught:
            run_recipe("verify", *check)
        list_path.write_text(text)
        return str(caught.value)

    # a list that was shortened, a file that was added, a link to a file of this machine
    card = {"README.md": values["files"]["README.md"]}
    assert "does not list runs.json" in refusal(files=card)
    few = card | {"runs.json": values["files"]["runs.json"]}
    assert "config.json, " in refusal(files=few)
    (publication / "modeling.py").write_text("print('hello')\n")
    assert "has modeling.py, which publication.json does not list" in refusal()
    (publication / "modeling.py").unlink()

    # lists that fit the folder, of what no publication has, and without what each model has
    for name, refused in (("modeling.py", "has modeling.py: code"), ("a.pkl", "can run code")):
        (publication / name).write_text("print('hello')\n")
        entry = {"bytes": 15, "sha256": make_item(name, publication / name).sha256}
        assert refused in refusal(files=values["files"] | {name: entry})
        (publication / name).unlink()
    whole = weights.read_bytes()
    weights.unlink()
    fewer = {n: e for n, e in values["files"].items() if n != "model.safetensors"}
    assert "has no safetensors weights" in refusal(files=fewer, check=None)
    weights.write_bytes(whole)

    # another repository, another run, other weights of that run with a list that fits
    assert f"file://{publication} holds a copy of bob/model" in refusal(repo="bob/model")
    assert "has no record of the run 9999" in refusal(run_id="9999")
    assert "files.x.sha256 is missing" in refusal(files={"x": {"bytes": 1}})
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
    entry = {"bytes": weights.stat().st_size, "sha256": make_item("x", weights).sha256}
    changed = values["files"] | {"model.safetensors": entry}
    assert "is not what the run 1a2b has left" in refusal(files=changed)


def test_places_that_are_not_there(
    hub: Hub, run_recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    output = ["--output_dir", tmp_path / "verify"]
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(
        HubError, match=r"alice/none at main: .*there is no token here: set HF_TOKEN"
    ):
        run_recipe("verify", "--repo", "alice/none", *output)
    with pytest.raises(ConfigError, match="names no owner"):
        run_recipe("verify", "--repo", "none", *output)
