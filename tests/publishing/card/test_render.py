"""The card: the chain behind a model, what was measured of it, honest about what is missing, valid
for the Hub.
"""

import json
import re
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import numpy
import pytest
import torch
import yaml
from huggingface_hub import DatasetCard, ModelCard
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    FalconMambaConfig,
    LlamaForCausalLM,
)

from hfstack.errors import CheckpointError, ConfigError
from hfstack.models.sequence_head import register_classifier
from hfstack.publishing.card.author import AuthorFacts
from hfstack.publishing.card.energy import accelerator_watts, estimate_kwh
from hfstack.publishing.card.facts import as_hfstack
from hfstack.publishing.card.metadata import check_card
from hfstack.publishing.card.render import pick_samples, render_card, render_loading
from hfstack.publishing.files import PublishedKind, detect_kind, published_files
from hfstack.publishing.lineage import Chain, follow_chain, shorten_paths
from hfstack.reporting.card_picture import chain_picture
from hfstack.reporting.runs import load_runs
from hfstack.runs.run import Run
from hfstack.tasks.classification.model import ClassifierInfo
from hfstack.tasks.classification.predict import answers_of_row

MADE = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)


@pytest.fixture
def story(tmp_path: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """corpus -> clean -> pretrain -> sft, reward; both -> ppo, measured by win_rate and a bias
    run."""
    folder = tmp_path / "story"

    def run(
        name: str,
        recipe: str,
        parents: list[str],
        metrics: dict[str, float],
        model: bool = False,
        **settings,
    ):
        flags = [
            f"--output_dir={folder / name}",
            *(f"--{key}={value}" for key, value in settings.items()),
        ]
        monkeypatch.setattr(
            "sys.argv",
            [f"/somewhere/recipes/{recipe}.py", "--config", f"recipes/{recipe}.yaml", *flags],
        )
        with Run.start(f"recipes/{recipe}.py", folder / name) as made:
            made.record.settings["ModelConfig"] = settings
            made.record.settings["Other"] = settings
            made.record_inputs(*(folder / parent for parent in parents))
            if model:
                LlamaForCausalLM.from_pretrained(tiny_llama).save_pretrained(folder / name)
                AutoTokenizer.from_pretrained(tiny_llama).save_pretrained(folder / name)
                history = [
                    {"step": s, "loss": 5 / s, "eval_loss": 6 / s, "reward": s / 9}
                    for s in range(1, 40)
                ]
                (folder / name / "trainer_state.json").write_text(
                    json.dumps({"log_history": history})
                )
                made.add_artifact("trainer_state", "trainer_state.json")
            if recipe == "clean":
                (folder / name / "train.jsonl").write_text('{"text": "a"}\n')
            if recipe == "win_rate":
                row = {
                    "prompt": [{"role": "user", "content": "Tell | a story"}],
                    "answer": "Once ```upon``` a time",
                }
                (folder / name / "answers.jsonl").write_text(json.dumps(row) + "\n")
                made.add_artifact("answers", "answers.jsonl")
            if recipe == "pretrain_clm":
                file = {
                    "path": str(folder / "clean" / "train.jsonl"),
                    "bytes": 14,
                    "blake2b": "ab" * 16,
                }
                made.record_inputs(
                    train=[{"path": file["path"], "files": [file], "rows": 1}],
                    eval=[
                        {"path": "user/held-out", "rows": 7, "split": "test", "revision": "c" * 40}
                    ],
                )
            made.finish(metrics)
        return folder / name

    run("corpus", "demo_corpus", [], {"documents": 400})
    cleaned = {
        "documents_in": 400,
        "documents_out": 370,
        "dropped_too_short": 30,
        "masked_email": 2,
    }
    run("clean", "clean", ["corpus"], cleaned)
    drawn = {"model_name_or_path": "/somewhere/recipes/architectures/llama-1m.json"}
    run(
        "pretrain", "pretrain_clm", ["clean"], {"eval_loss": 2.5, "parameters": 1234}, True, **drawn
    )
    run(
        "sft", "sft", ["pretrain"], {"eval_loss": 2.0}, True, model_name_or_path=folder / "pretrain"
    )
    run(
        "reward",
        "reward",
        ["sft"],
        {"eval_accuracy": 0.75},
        True,
        model_name_or_path=folder / "sft",
    )
    rewards = {"start_reward": 0.25, "reward": 1.5, "eval_reward": 1.4, "eval_loss": 0.1}
    run(
        "ppo",
        "ppo",
        ["sft", "reward"],
        rewards,
        True,
        model_name_or_path=folder / "sft",
        kl_coef=0.07,
        reward_model=folder / "reward",
    )
    rates = {"win_rate": 0.6, "win_rate_low": 0.5, "win_rate_high": 0.7}
    run("win_rate", "win_rate", ["ppo", "sft"], rates, reference_model=folder / "sft")
    run(
        "bias",
        "bias",
        ["ppo"],
        {"bias_gender_gap": 0.02, "bias_gender_gap_low": -0.01, "bias_gender_gap_high": 0.05},
    )
    run("other", "win_rate", ["sft"], {"win_rate": 0.1})
    return folder


def card_of(folder: Path, author: AuthorFacts | None = None, **changes) -> str:
    chain = follow_chain(folder)
    kind = detect_kind(folder, chain.last.record.artifacts)
    settings = {"repo": "alice/stories", "made": MADE} | changes
    return render_card(chain, kind, author or AuthorFacts(), **settings)


def test_the_chain_and_what_measured_it(story: Path):
    chain = follow_chain(story / "ppo")
    assert [link.label for link in chain.links] == [
        "corpus",
        "clean",
        "pretrain",
        "sft",
        "reward",
        "ppo",
    ]
    assert {link.label for link in chain.evaluations} == {"win_rate", "bias"}, (
        "not those of other models"
    )
    assert follow_chain(story / "ppo", [str(story / "win_rate")]).evaluations[0].label == "win_rate"
    with pytest.raises(CheckpointError, match="that did not read"):
        follow_chain(story / "ppo", [str(story / "other")])
    (story / "reward" / "run.json").unlink()
    chain = follow_chain(story / "ppo")
    assert chain.missing == ["../reward"] and len(chain.links) == 5


@pytest.mark.parametrize("recipe", ["explain", "predict"])
def test_what_a_model_was_applied_to_stays_private(
    story: Path, monkeypatch: pytest.MonkeyPatch, recipe: str
):
    secret = ["--texts", "Frau Meier ist krank", "--datasets", "anna/patients_2026.csv"]
    monkeypatch.setattr("sys.argv", [f"recipes/{recipe}.py", *secret])
    with Run.start(f"recipes/{recipe}.py", story / recipe) as made:
        made.record_inputs(story / "ppo")
        made.finish({"texts": 1, "rows": 20})
    card = card_of(story / "ppo")
    assert "win_rate" in card
    assert "Meier" not in card and "patients" not in card
    assert not re.search(rf"\b{recipe}\b", card)


def test_the_card_describes_the_whole_chain(story: Path):
    words = AuthorFacts(
        "apache-2.0", ["en"], limits=["Only foxes."], data_licences={"clean/train.jsonl": "cc0-1.0"}
    )
    text = card_of(story / "ppo", words, picture="curves.svg")
    for part in (
        "A language model of 1,234 parameters, trained against rewards by reinforcement learning "
        "(PPO).",
        "none, its weights were newly initialised",
        "| Win rate (`win_rate`) | 60.0 % | 50.0 to 70.0 | win_rate |",
        "against `story/sft`, judged by the rule in its recipe",
        "rewarded by `story/reward`.",
        "Bias gender gap (`bias_gender_gap`): 0.02000 (-0.01000 to 0.05000), by bias",
        "Cleaning (clean) read 400 documents and kept 370; dropped: too short 30; personal data "
        "masked: email 2",
        "| `story/clean/train.jsonl` | pretrain (train) | 1 | 14 B | `abababababab` | cc0-1.0 |",
        "| `user/held-out` | pretrain (eval) |",
        "revision `cccccccccc`",
        "| ppo | ppo | sft, reward | Held-out reward 1.400 (before training 0.2500) |",
        "| `kl_coef` | 0.07 |",
        "| Reward (`reward`) | 1.500 | – | ppo, in training |",
        "hfstack run ppo",
        "--model_name_or_path=story/sft",
        "recipes/architectures/llama-1m.json",
        "![Curves of the training runs](curves.svg)",
        "Tell | a story",
        "````text\nOnce ```upon``` a time",
        "- Only foxes.",
        "`apache-2.0`, as its author states.",
        "hfstack run verify --repo alice/stories",
        "An estimate: nothing was metered.",
        "2 Jan 2026, 03:04 UTC",
    ):
        assert part in text, part
    assert str(story.parent) not in text and "/somewhere" not in text, "no path of this machine"
    assert "eval_loss" not in text.split("## Results")[1].split("###")[0], (
        "a loss of PPO says nothing of the model"
    )


def test_the_metadata_is_what_the_hub_reads(story: Path):
    text = card_of(story / "ppo", AuthorFacts("apache-2.0", ["en"]))
    assert check_card(text) == len(ModelCard(text).data.eval_results or []) >= 2
    metadata = yaml.safe_load(text.split("---")[1])
    assert (
        metadata["datasets"] == ["user/held-out"] and metadata["pipeline_tag"] == "text-generation"
    )
    assert metadata["tags"] == ["hfstack", "ppo", "rlhf"] and "base_model" not in metadata
    (result,) = [
        m
        for r in metadata["model-index"][0]["results"]
        for m in r["metrics"]
        if m["type"] == "win_rate"
    ]
    assert result["value"] == 0.6 and result["args"] == {"interval_95": [0.5, 0.7]}
    with pytest.raises(ConfigError, match="the card's metadata is not valid"):
        check_card(text.replace("- user/held-out", "- user/held/out"))
    with pytest.raises(ConfigError, match="the card's metadata is not valid"):
        check_card(text.replace("value: 0.6", "valeu: 0.6", 1))


def test_the_model_index_keeps_data_and_training_apart(
    story: Path, monkeypatch: pytest.MonkeyPatch
):
    """The Hub wants a type and a name of each dataset, and puts results of one type, config and
    split together.
    """
    for name, role in (("ppo", "train"), ("win_rate", "prompts")):
        record = json.loads((story / name / "run.json").read_text())
        record["data"] = [
            {
                "role": role,
                "path": "prompts.jsonl",
                "files": [{"path": "prompts.jsonl", "bytes": 1, "blake2b": "c" * 32}],
            }
        ]
        (story / name / "run.json").write_text(json.dumps(record))
    (index,) = yaml.safe_load(card_of(story / "ppo").split("---")[1])["model-index"]
    assert isinstance(index["name"], str)
    found = {}
    for result in index["results"]:
        assert isinstance(result["task"]["type"], str) and isinstance(
            result["dataset"]["type"], str
        )
        types = [metric["type"] for metric in result["metrics"]]
        assert len(set(types)) == len(types), "a metric is there once under each dataset"
        assert all(isinstance(metric["value"], int | float) for metric in result["metrics"])
        found |= {
            (result["dataset"]["name"], metric["type"]): metric["value"]
            for metric in result["metrics"]
        }
    assert found["prompts.jsonl", "win_rate"] == 0.6
    assert found["prompts.jsonl (held-out part)", "reward"] == 1.4, (
        "and not 1.5, which training saw"
    )


def test_what_is_missing_is_said(story: Path, tmp_path: Path):
    text = card_of(story / "pretrain")
    for part in (
        "The licence was not stated",
        "The language was not stated",
        "Bias was not measured.",
        "No samples were recorded.",
        "No metric has an interval.",
        "Whether it treats groups of people",
        "It was not tested for safety.",
        "stand in its training text was not checked.",
    ):
        assert part in text, part

    # and no more where a run has looked
    record = json.loads((story / "pretrain" / "run.json").read_text())
    counts = {"eval_rows": 20, "eval_rows_checked": 18, "overlapping": 3, "whole": 1}
    record["rows"]["contamination"] = counts | {"train_texts": 90, "train_texts_checked": 40}
    (story / "pretrain" / "run.json").write_text(json.dumps(record))
    text = card_of(story / "pretrain")
    assert (
        "- pretrain: 3 of 18 evaluation rows share a run of 13 words with 40 of 90 training texts, "
        "1 stand there whole; 2 rows were not compared"
    ) in text
    assert "was not checked" not in text
    with Run.start("recipes/sft.py", tmp_path / "bare") as run:
        (tmp_path / "bare" / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
        run.record.versions, run.record.commit = {}, None
        run.finish({})
    text = card_of(tmp_path / "bare")
    assert "No metric was recorded." in text and "No data file was recorded." in text
    assert (
        "| Base model | not recorded |" in text and "No run of this chain cleaned its data." in text
    )


def test_a_dataset_has_its_own_card(tmp_path: Path):
    with Run.start("recipes/preferences.py", tmp_path / "pairs") as run:
        for name in ("train", "judged"):
            (tmp_path / "pairs" / f"{name}.jsonl").write_text('{"prompt": "a", "chosen": "b"}\n')
            run.add_artifact(name, f"{name}.jsonl")
        run.finish({"train_pairs": 1})
    text = card_of(tmp_path / "pairs", splits=["train", "judged"])
    assert check_card(text, dataset=True) == 0
    configs = yaml.safe_load(text.split("---")[1])["configs"]
    assert [config["config_name"] for config in configs] == ["default", "judged"]
    assert (
        DatasetCard(text).data.pretty_name == "stories" and "- `train`: `prompt`, `chosen`" in text
    )


def test_a_demo_corpus_is_a_dataset_of_several_parts(tmp_path: Path):
    folder = tmp_path / "corpus"
    with Run.start("recipes/demo_corpus.py", folder) as run:
        for name, rows in {
            "raw": '{"text": "a"}\n',
            "instructions": '{"prompt": "b"}\n',
            "sentiment": "",
        }.items():
            (folder / f"{name}.jsonl").write_text(rows)
        run.finish({"documents": 1})
    files = published_files(folder, detect_kind(folder, {}), {})
    assert list(files) == ["raw.jsonl", "instructions.jsonl"], (
        "an empty file has no columns to load"
    )
    text = card_of(folder, splits=["raw", "instructions"])
    assert [one["config_name"] for one in yaml.safe_load(text.split("---")[1])["configs"]] == [
        "raw",
        "instructions",
    ]
    assert (
        'load_dataset("alice/stories", "raw")' in text
        and "| corpus | demo_corpus | – | 1 document |" in text
    )


def test_how_each_kind_is_loaded():
    gru = PublishedKind("causal", auto_class="AutoModelForCausalLM", recurrent=True)
    text = render_loading(gru, "a/b", chat=False, base="")
    assert (
        text.index("import hfstack.models.gru") < text.index("from transformers")
        and "pip install hfstack" in text
    )
    adapter = PublishedKind(
        "classifier", auto_class="AutoModelForSequenceClassification", adapter=True, labels=3
    )
    text = render_loading(adapter, "a/b", chat=False, base="user/base")
    assert (
        'AutoPeftModelForSequenceClassification.from_pretrained("a/b", num_labels=3)' in text
        and "`user/base`" in text
    )
    assert "apply_chat_template" in render_loading(
        PublishedKind("reward", auto_class="A"), "a/b", chat=True, base=""
    )
    assert "mask_token" in render_loading(
        PublishedKind("masked", auto_class="A"), "a/b", chat=False, base=""
    )


def test_the_code_of_a_head_that_transformers_lacks_runs_without_hfstack(
    tmp_path: Path, tiny_tokenizer, monkeypatch: pytest.MonkeyPatch, capsys
):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "state_size": 4, "num_labels": 1}
    config = FalconMambaConfig(vocab_size=len(tiny_tokenizer), **sizes)
    register_classifier(config)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    model.save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)

    kind = detect_kind(tmp_path, {})
    assert kind.own_head and kind.name == "reward"
    text = render_loading(kind, str(tmp_path), chat=False, base="")
    assert "hfstack" not in text and "transformers has no classifier of this family" in text
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda repo, name: Path(repo) / name)
    exec(text.split("```python\n")[1].split("```")[0], {})  # noqa: S102 - it is our own
    printed = float(re.search(r"tensor\(\[(.*?)\]", capsys.readouterr().out)[1])
    inputs = tiny_tokenizer("Some text", return_tensors="pt")
    expected = model(inputs["input_ids"], inputs["attention_mask"]).logits.item()
    assert printed == pytest.approx(expected, abs=1e-3)

    # an adapter on such a base needs our head
    adapter = replace(kind, adapter=True, labels=1)
    text = render_loading(adapter, "a/b", chat=False, base="runs/base")
    assert 'register_classifier(AutoConfig.from_pretrained("runs/base"))' in text
    assert text.index("register_classifier(") < text.index(
        "AutoPeftModelForSequenceClassification.from"
    )


def test_commands_are_as_people_type_them():
    command = "recipes/sft.py --config recipes/sft.yaml --output_dir 'my runs/sft'"
    assert as_hfstack(command, 1) == "hfstack run sft --output_dir 'my runs/sft'"
    assert as_hfstack(command, 4) == "hfstack run sft --processes 4 --output_dir 'my runs/sft'"
    assert as_hfstack("my_recipes.py --x 1", 1) == "my_recipes.py --x 1"
    assert as_hfstack("recipes/sft.py --config my.yaml", 1) == "hfstack run sft --config my.yaml"


def test_paths_are_shortened(story: Path, monkeypatch: pytest.MonkeyPatch):
    chain = follow_chain(story / "ppo")
    monkeypatch.setattr(Path, "home", lambda: Path("/people/ann"))
    assert (
        shorten_paths(f"--a {story}/sft,{story} --b {story}2", chain)
        == f"--a story/sft,story --b {story}2"
    )
    assert shorten_paths("/people/ann/data.jsonl", chain) == "~/data.jsonl"
    assert shorten_paths("/opt/lib/hfstack/_shipped/recipes/sft.py", chain) == "recipes/sft.py"


def test_energy_is_time_times_power():
    hardware = {
        "cores": 2,
        "memory_gib": 0,
        "accelerators": ["NVIDIA A100-SXM4-80GB"],
        "device": "cuda",
    }
    assert estimate_kwh(hardware, 3600) == pytest.approx((2 * 12 + 400) / 1000)
    assert estimate_kwh(hardware | {"device": "cpu"}, 3600) == pytest.approx(0.024)
    assert estimate_kwh({"cores": 1, "memory_gib": 100}, 3600) == pytest.approx(
        (12 + 0.3725 * 107.3741824) / 1000
    )
    assert accelerator_watts("NVIDIA H100 PCIe") == 350 and accelerator_watts("unheard of") == 200


def test_samples_are_the_newest_of_each_prompt(tmp_path: Path):
    with Run.start("recipes/sft.py", tmp_path / "sft") as run:
        rows = [{"step": s, "prompt": p, "completion": f"{p}{s}"} for s in (1, 2) for p in "abcdef"]
        (tmp_path / "sft" / "samples.jsonl").write_text(
            "".join(json.dumps(row) + "\n" for row in rows)
        )
        run.add_artifact("samples", "samples.jsonl")
    chain = follow_chain(tmp_path / "sft")
    assert [(one.prompt, one.completion) for one in pick_samples(chain)] == [
        ("a", "a2"),
        ("b", "b2"),
        ("c", "c2"),
        ("d", "d2"),
    ]
    chain.last.record.artifacts["samples"] = "../outside.jsonl"
    (tmp_path / "outside.jsonl").write_text('{"prompt": "x", "completion": "y"}\n')
    assert pick_samples(Chain([chain.last])) == []


def test_the_picture_stands_alone(story: Path):
    import xml.etree.ElementTree as ElementTree

    reports = load_runs([str(story / name) for name in ("pretrain", "sft", "reward", "ppo")])
    svg = chain_picture(reports)
    assert svg is not None
    root = ElementTree.fromstring(svg)
    texts = [element.text for element in root.iter() if element.tag.endswith("text")]
    assert "pretrain_clm: Reward" in texts and "ppo: Reward" in texts and "ppo: Loss" not in texts
    assert "href" not in svg and "<script" not in svg and "<style" not in svg
    assert chain_picture(load_runs([str(story / "clean")])) is None


def test_shards_have_to_be_whole(tmp_path: Path, tiny_llama: Path):
    model = LlamaForCausalLM.from_pretrained(tiny_llama)
    model.save_pretrained(tmp_path, max_shard_size="30KB")
    AutoTokenizer.from_pretrained(tiny_llama).save_pretrained(tmp_path)
    kind = detect_kind(tmp_path, {})
    shards = [name for name in published_files(tmp_path, kind, {}) if name.endswith(".safetensors")]
    assert len(shards) > 1
    (tmp_path / shards[-1]).unlink()
    with pytest.raises(
        CheckpointError,
        match="which model.safetensors.index.json lists: the weights are incomplete",
    ):
        published_files(tmp_path, kind, {})
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors.index.json").unlink()
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match="has no tokenizer"):
        published_files(tmp_path, kind, {})


@pytest.mark.parametrize(
    ("problem_type", "logits"),
    [
        ("single_label_classification", [[0.5, 2.0, -1.0]]),
        ("multi_label_classification", [[0.5, 2.0, -1.0]]),
        ("regression", [[0.7]]),
    ],
)
def test_a_classifiers_code_says_what_predict_says(tmp_path, capsys, problem_type, logits):
    names = [] if problem_type == "regression" else ["a", "b", "c"]
    info = ClassifierInfo(problem_type, names, temperature=1.7)
    info.save(tmp_path)
    (tmp_path / "config.json").write_text(
        json.dumps({"architectures": ["BertForSequenceClassification"]})
    )
    kind = detect_kind(tmp_path, {})
    code = render_loading(kind, "a/b", chat=False, base="").split("```python\n")[1].split("```")[0]

    # a model that has these logits for any text
    config = SimpleNamespace(id2label=dict(enumerate(names)))

    def model(**_: object) -> SimpleNamespace:
        return SimpleNamespace(logits=torch.tensor(logits))

    model.config = config
    usage = code[code.index(".eval()\n") + len(".eval()\n") :]
    exec(usage, {"model": model, "tokenizer": lambda *_, **__: {}})  # noqa: S102
    said = capsys.readouterr().out

    (row,) = answers_of_row(numpy.array(logits), info)
    if problem_type == "regression":
        assert float(said) == pytest.approx(row["value"])
    elif problem_type == "single_label_classification":
        label, chance = said.split()
        assert (label, float(chance)) == (row["label"], pytest.approx(row["probability"], abs=1e-5))
    else:
        assert said.startswith(str(row["labels"]))
        chances = json.loads(said[said.index("]") + 1 :])
        assert chances == pytest.approx(list(row["probabilities"].values()), abs=1e-5)
