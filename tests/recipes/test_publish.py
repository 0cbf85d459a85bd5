"""Publishing what every recipe makes, and loading it back from the Hub; the card; what is refused;
no secret leaves.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from datasets import load_dataset
from huggingface_hub import ModelCard, snapshot_download
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaForCausalLM,
    set_seed,
)

from hfstack.errors import CheckpointError, ConfigError, HubError
from hfstack.models.gru import GRUConfig, GRUForCausalLM
from hfstack.runs.run import Run
from tests.hub_fixtures import OTHER, READER, hub
from tests.minihub_state import Hub
from tests.tiny_encoder import save_tiny_bert

__all__ = ["hub"]

IDS = torch.arange(2, 12)[None]  # (1, T)


def finish(folder: Path, recipe: str, save: Callable[[Path], object], **metrics: float) -> Path:
    """A finished run of a recipe that left what `save` writes."""
    with Run.start(f"recipes/{recipe}.py", folder) as run:
        save(folder)
        run.finish(metrics)
    return folder


@pytest.fixture
def sft(tmp_path: Path, tiny_llama: Path) -> Path:
    """A finished run of sft with curves and samples: what a model is most often published from."""
    folder = tmp_path / "story" / "sft"
    with Run.start("recipes/sft.py", folder) as run:
        LlamaForCausalLM.from_pretrained(tiny_llama).save_pretrained(folder)
        AutoTokenizer.from_pretrained(tiny_llama).save_pretrained(folder)
        history = [{"step": step, "loss": 6.0 / step} for step in range(1, 6)]
        (folder / "trainer_state.json").write_text(json.dumps({"log_history": history}))
        row = {
            "step": 5,
            "prompt": "Tell of a fox",
            "completion": "The fox | <b>ran</b> ```home```",
        }
        (folder / "samples.jsonl").write_text(json.dumps(row) + "\n")
        run.add_artifact("trainer_state", "trainer_state.json")
        run.add_artifact("samples", "samples.jsonl")
        run.finish({"eval_loss": 1.25, "parameters": 12345})
    return folder


@pytest.fixture
def publish(run_recipe, tmp_path: Path) -> Callable[..., dict[str, float]]:
    """Publish a run; keyword arguments are options."""

    def call(folder: Path, repo: str = "alice/model", **changes: object) -> dict[str, float]:
        settings = {"run": folder, "repo": repo, "output_dir": tmp_path / "publish"} | changes
        return run_recipe("publish", *(f"--{name}={value}" for name, value in settings.items()))

    return call


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


def save_llama(tiny_llama: Path, folder: Path, adapter: bool = False) -> None:
    model = LlamaForCausalLM.from_pretrained(tiny_llama)
    if adapter:
        set_seed(1)
        model = get_peft_model(
            model, LoraConfig(task_type="CAUSAL_LM", r=2, init_lora_weights=False)
        )
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_llama).save_pretrained(folder)


def save_bert(folder: Path, head: str, **settings: object) -> None:
    save_tiny_bert(folder)
    set_seed(2)
    getattr(transformers, head).from_pretrained(folder, **settings).save_pretrained(folder)


def save_gru(tiny_llama: Path, folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    set_seed(3)
    GRUForCausalLM(
        GRUConfig(vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1)
    ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.mark.parametrize(
    ("recipe", "loader", "words"),
    [
        ("ppo", "AutoModelForCausalLM", r"reinforcement learning \(PPO\)"),
        ("pretrain_mlm", "AutoModelForMaskedLM", "masked language model"),
        ("classify", "AutoModelForSequenceClassification", "text classifier"),
        ("reward", "AutoModelForSequenceClassification", "reward model"),
        ("pretrain_clm gru", "AutoModelForCausalLM", "import hfstack.models.gru"),
    ],
)
def test_each_kind_comes_back_with_identical_logits(
    recipe: str,
    loader: str,
    words: str,
    hub: Hub,
    publish,
    run_recipe,
    tiny_llama: Path,
    tmp_path: Path,
):
    save: dict[str, Callable[[Path], object]] = {
        "pretrain_mlm": save_tiny_bert,
        "classify": lambda folder: save_bert(folder, "BertForSequenceClassification", num_labels=3),
        "reward": lambda folder: save_bert(folder, "BertForSequenceClassification", num_labels=1),
        "pretrain_clm gru": lambda folder: save_gru(tiny_llama, folder),
    }
    folder = finish(
        tmp_path / "run", recipe.split()[0], save.get(recipe, lambda f: save_llama(tiny_llama, f))
    )
    repo = "alice/model"
    metrics = publish(folder, repo=repo)
    assert metrics["verified_files"] == metrics["files"] == len(hub.repo(repo).head().files)
    fetched = getattr(transformers, loader).from_pretrained(repo, cache_dir=tmp_path / "cache")
    assert torch.equal(
        logits(fetched), logits(getattr(transformers, loader).from_pretrained(folder))
    )
    assert len(AutoTokenizer.from_pretrained(repo, cache_dir=tmp_path / "cache")) > 100
    card = hub.content(repo, "README.md").decode()
    assert re.search(words, card), card[:1500]
    checked = run_recipe("verify", "--repo", repo, "--output_dir", tmp_path / "verify")
    assert checked["files"] == metrics["files"] - 1
    name = next(name for name in metrics if name.startswith("check_"))
    assert checked[name] == pytest.approx(metrics[name], rel=1e-6)


def test_an_adapter_names_a_base_that_others_have(
    hub: Hub, publish, tiny_llama: Path, tmp_path: Path
):
    base = finish(tmp_path / "base", "pretrain_clm", lambda folder: save_llama(tiny_llama, folder))
    adapter = finish(
        tmp_path / "adapter", "sft", lambda folder: save_llama(base, folder, adapter=True)
    )
    with pytest.raises(
        ConfigError, match="a folder that only this machine has: publish that first"
    ):
        publish(adapter)
    publish(base, repo="alice/base")
    publish(adapter, base_repo="alice/base")
    config = json.loads(hub.content("alice/model", "adapter_config.json"))
    assert config["base_model_name_or_path"] == "alice/base"
    card = hub.content("alice/model", "README.md").decode()
    assert (
        "base_model: alice/base" in card
        and "AutoPeftModelForCausalLM" in card
        and "library_name: peft" in card
    )
    folder = snapshot_download("alice/model", local_dir=tmp_path / "fetched")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(
        "alice/base", cache_dir=tmp_path / "cache"
    )
    expected = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(base), adapter)
    assert torch.equal(logits(PeftModel.from_pretrained(loaded, folder)), logits(expected))

    publish(adapter, repo="alice/merged", merge_adapter="true")
    whole = transformers.AutoModelForCausalLM.from_pretrained(
        "alice/merged", cache_dir=tmp_path / "cache"
    )
    assert torch.allclose(logits(whole), logits(expected), atol=1e-5)
    with pytest.raises(ConfigError, match=r"--merge_adapter: .* has no adapter_config.json"):
        publish(base, repo="alice/other", merge_adapter="true")


def test_an_adapter_of_a_reward_model_comes_back(hub: Hub, publish, tmp_path: Path):
    base = finish(tmp_path / "base", "pretrain_mlm", save_tiny_bert)

    def save(folder: Path) -> None:
        set_seed(4)
        model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
        config = LoraConfig(
            task_type="SEQ_CLS",
            r=2,
            modules_to_save=["classifier", "bert.pooler.dense"],
            init_lora_weights=False,
        )
        get_peft_model(model, config).save_pretrained(folder)
        AutoTokenizer.from_pretrained(base).save_pretrained(folder)

    adapter = finish(tmp_path / "adapter", "reward", save)
    publish(adapter, base_repo="alice/bert")
    assert "num_labels=1" in hub.content("alice/model", "README.md").decode()
    folder = snapshot_download("alice/model", local_dir=tmp_path / "fetched")
    scores = []
    for place in (folder, adapter):
        model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
        scores.append(logits(PeftModel.from_pretrained(model, place)))
    assert torch.equal(*scores)


def test_preferences_and_tokenizers(
    hub: Hub, publish, run_recipe, tiny_tokenizer, tmp_path: Path, monkeypatch
):
    flags = ["--demo_prompts", 6, "--eval_fraction", 0.3, "--output_dir", tmp_path / "pairs"]
    made = run_recipe("preferences", *flags)
    metrics = publish(tmp_path / "pairs", repo="alice/pairs")
    assert metrics["check_rows"] == made["train_pairs"] + made["eval_pairs"] + made["answers"]
    card = hub.content("alice/pairs", "README.md", kind="dataset").decode()
    assert (
        "path: train.jsonl" in card and "`chosen`" in card and 'load_dataset("alice/pairs")' in card
    )
    source = (tmp_path / "pairs" / "train.jsonl").read_bytes()
    assert hub.content("alice/pairs", "train.jsonl", kind="dataset") == source
    assert run_recipe("verify", "--repo", "alice/pairs", "--output_dir", tmp_path / "verify")[
        "check_rows"
    ]

    monkeypatch.setattr("datasets.config.HF_ENDPOINT", hub.url)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)
    rows = load_dataset("alice/pairs", cache_dir=str(tmp_path / "rows"))
    assert [len(rows[name]) for name in ("train", "eval")] == [
        made["train_pairs"],
        made["eval_pairs"],
    ]
    assert rows["train"][0] == json.loads(source.splitlines()[0])
    judged = load_dataset("alice/pairs", "judged", cache_dir=str(tmp_path / "rows"))
    assert len(judged["judged"]) == made["answers"]
    publish(tmp_path / "pairs", repo=f"file://{tmp_path / 'shelf'}")
    shelved = load_dataset(str(tmp_path / "shelf"), cache_dir=str(tmp_path / "rows"))
    assert shelved["train"].to_list() == rows["train"].to_list()

    tokenizer = finish(
        tmp_path / "tokenizer", "tokenizer", tiny_tokenizer.save_pretrained, vocab_size=300
    )
    assert publish(tokenizer, repo="alice/tokenizer")["check_tokens"] > 10
    fetched = AutoTokenizer.from_pretrained("alice/tokenizer", cache_dir=tmp_path / "cache")
    assert fetched("the fox").input_ids == tiny_tokenizer("the fox").input_ids


def test_a_dry_run_sends_nothing_and_needs_no_token(
    hub: Hub, publish, sft: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    monkeypatch.delenv("HF_TOKEN")
    metrics = publish(sft, repo="", dry_run="true")
    assert not hub.log and metrics["files"] == 9
    assert "model.safetensors" in capsys.readouterr().out
    text = (tmp_path / "publish" / "README.md").read_text()
    card = ModelCard(text)
    assert card.data.eval_results and card.data.eval_results[0].metric_value == 1.25
    assert "curves.svg" in text and (tmp_path / "publish" / "curves.svg").read_text().startswith(
        "<svg"
    )
    assert "The licence was not stated" in text and "Bias was not measured" in text
    assert "12,345 parameters" in text and "````text" in text
    assert "hfstack run verify --repo your_name/sft" in text


def test_a_folder_is_published_whole_and_again(publish, run_recipe, sft: Path, tmp_path: Path):
    target = tmp_path / "shelf" / "stories"
    target.parent.mkdir()
    metrics = publish(sft, repo=f"file://{target}", license="apache-2.0", language="en")
    assert metrics["verified_files"] == len(list(target.iterdir()))
    assert torch.equal(
        logits(LlamaForCausalLM.from_pretrained(target)),
        logits(LlamaForCausalLM.from_pretrained(sft)),
    )
    publish(sft, repo=f"file://{target}", license="mit")
    assert "license: mit" in (target / "README.md").read_text()
    # as a push leaves it that is killed between its two renames
    target.rename(target.with_name(".stories.old"))
    (target.with_name(".stories.partial")).mkdir()
    publish(sft, repo=f"file://{target}", license="mit")
    assert sorted(path.name for path in target.parent.iterdir()) == ["stories"]
    check = ["--repo", f"file://{target}", "--output_dir", tmp_path / "verify"]
    assert run_recipe("verify", *check)["check_bits_per_byte"] > 1
    (target / "config.json").write_text((target / "config.json").read_text() + " ")
    with pytest.raises(
        CheckpointError,
        match=r"config.json has sha256 \w+, published was \w+: it was changed since",
    ):
        run_recipe("verify", *check)
    (target / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="was changed since|lacks model.safetensors"):
        run_recipe("verify", *check)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="was not published from here"):
        publish(sft, repo=f"file://{tmp_path / 'mine'}")
    with pytest.raises(ConfigError, match="write a folder as file:///absolute/path"):
        publish(sft, repo="file://mine")


def test_a_number_that_differs_is_refused(publish, run_recipe, sft: Path, tmp_path: Path):
    target = tmp_path / "out"
    publish(sft, repo=f"file://{target}")
    publication = json.loads((target / "publication.json").read_text())
    publication["check"]["value"] += 0.5
    (target / "publication.json").write_text(json.dumps(publication))
    with pytest.raises(CheckpointError, match=r"check_bits_per_byte is [\d.]+ here, published was"):
        run_recipe("verify", "--repo", f"file://{target}", "--output_dir", tmp_path / "verify")


def test_a_planted_token_is_found_nowhere(
    hub: Hub, publish, tiny_llama: Path, tmp_path: Path, monkeypatch
):
    """In settings, environment, command line, logs of metrics and what the author says of the
    model.
    """
    secret, key = "hf_plantedPLANTEDplanted0123456789", "wandb-0123456789abcdef"
    monkeypatch.setenv("WANDB_API_KEY", key)
    folder = tmp_path / "sft"
    monkeypatch.setattr("sys.argv", ["recipes/sft.py", "--note", secret, "--hub_token", secret])
    with Run.start("recipes/sft.py", folder) as run:
        save_llama(tiny_llama, folder)
        run.record.settings["Own"] = {
            "note": f"use {secret} and {key}",
            "model_name_or_path": secret,
        }
        (folder / "samples.jsonl").write_text(
            json.dumps({"prompt": f"say {key}", "completion": key}) + "\n"
        )
        run.add_artifact("samples", "samples.jsonl")
        run.finish({"eval_loss": 1.0})
    publish(folder, intended_use=f"with {secret} or {key}")
    assert len(hub.blobs) > 5
    for blob in hub.blobs.values():
        assert secret.encode() not in blob and key.encode() not in blob
    for written in (tmp_path / "publish").glob("*.*"):
        if written.name != "run.json":
            assert key not in written.read_text()
        assert secret not in written.read_text()


def test_a_secret_inside_a_file_stops_the_push(
    hub: Hub, publish, tiny_llama: Path, tmp_path: Path, monkeypatch
):
    def save(folder: Path, note: str) -> None:
        save_llama(tiny_llama, folder)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"note": note}))

    shaped = finish(
        tmp_path / "a", "sft", lambda folder: save(folder, "hf_ABCDEFGHIJKLMNOPQRSTUVWXYZ0123")
    )
    with pytest.raises(
        ConfigError, match=r"config.json holds a Hugging Face token: nothing was pushed"
    ):
        publish(shaped)
    monkeypatch.setenv("MY_PASSWORD", "correct-horse-battery")
    valued = finish(tmp_path / "b", "sft", lambda folder: save(folder, "correct-horse-battery"))
    with pytest.raises(ConfigError, match="config.json holds the value of MY_PASSWORD"):
        publish(valued)
    assert not hub.repos


def test_bad_input_is_one_line(
    hub: Hub, publish, run_recipe, sft: Path, tmp_path: Path, monkeypatch
):
    for token, error, words in (
        ("", ConfigError, "no token to push with: set HF_TOKEN"),
        ("wrong", ConfigError, "does not know this token"),
        (READER, ConfigError, "may only read"),
        (OTHER, ConfigError, "the token belongs to bob"),
    ):
        monkeypatch.setenv("HF_TOKEN", token)
        with pytest.raises(error, match=words) as caught:
            publish(sft)
        assert "\n" not in str(caught.value)
    assert not hub.repos
    monkeypatch.setenv("HF_TOKEN", OTHER)
    hub.make("alice/private", private=True)
    with pytest.raises(
        HubError, match="alice/private at main: private, missing, or not for this token"
    ):
        run_recipe("verify", "--repo", "alice/private", "--output_dir", tmp_path / "verify")
    for argument, words in {
        "license=My Licence": "--license My Licence: give its id",
        "language=English": "--language English: give an ISO 639",
        "data_licenses=mit": "--data_licenses mit: write path=licence",
    }.items():
        name, value = argument.split("=")
        with pytest.raises(ConfigError, match=words):
            publish(sft, **{name: value})
    with pytest.raises(ConfigError, match="--run and --repo are required"):
        run_recipe("publish", "--run", sft)
    with pytest.raises(ConfigError, match="--repo is required"):
        run_recipe("verify")


def test_a_name_that_holds_something_else(
    hub: Hub, publish, sft: Path, tmp_path: Path, monkeypatch
):
    hub.make("alice/model", kind="dataset")
    with pytest.raises(
        ConfigError, match="that name is taken by a dataset of yours, and this is a model"
    ):
        publish(sft)
    publish(sft, repo="alice/lm")
    bert = finish(
        tmp_path / "classify", "classify", lambda f: save_bert(f, "BertForSequenceClassification")
    )
    with pytest.raises(ConfigError, match="alice/lm holds a causal, this is a classifier"):
        publish(bert, repo="alice/lm")
    repo = hub.make("alice/old", private=True)
    hub.put(repo, "main", "theirs", {"pytorch_model.bin": hub.store(b"pickle")})
    with pytest.raises(
        ConfigError,
        match="alice/old already has pytorch_model.bin, which was not published from here",
    ):
        publish(sft, repo="alice/old")


def test_runs_that_are_not_ready(publish, sft: Path, tmp_path: Path, tiny_llama: Path):
    with (
        pytest.raises(RuntimeError, match="boom"),
        Run.start("recipes/sft.py", tmp_path / "failed"),
    ):
        raise RuntimeError("boom")
    with pytest.raises(CheckpointError, match="is failed, not finished"):
        publish(tmp_path / "failed")
    with pytest.raises(CheckpointError, match="is this the output directory of a run"):
        publish(tmp_path / "nowhere")
    empty = finish(tmp_path / "empty", "evaluate_lm", lambda folder: None)
    with pytest.raises(CheckpointError, match="holds no model, adapter, tokenizer or dataset"):
        publish(empty)
    pickled = finish(tmp_path / "pickled", "sft", lambda folder: save_llama(tiny_llama, folder))
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="has pytorch_model.bin, a format that can run code"):
        publish(pickled)
    with (sft / "model.safetensors").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(
        CheckpointError, match=r"model.safetensors was changed after the run had finished"
    ):
        publish(sft)


def test_publishing_again_replaces_what_was_there(hub: Hub, publish, sft: Path, tmp_path: Path):
    publish(sft)
    hub.repo("alice/model").head().files["notes.txt"] = hub.store(b"my own")
    first = set(hub.repo("alice/model").head().files)
    (sft / "samples.jsonl").unlink()
    run = json.loads((sft / "run.json").read_text())
    run["artifacts"] = {}
    (sft / "run.json").write_text(json.dumps(run))
    publish(sft)
    now = set(hub.repo("alice/model").head().files)
    assert first - now == {"curves.svg"} and "notes.txt" in now
