"""What each training recipe really leaves, published to a Hub and loaded by the code in its own
card, in a new process.

The stranger's process has the Hub's address and a token, and of hfstack only what the card has it
to import."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, AutoPeftModelForSequenceClassification
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BartConfig,
    BartForConditionalGeneration,
    set_seed,
)

import hfstack.models.gru  # noqa: F401 - registers its architectures
from hfstack.runs.record import read_run
from hfstack.runs.run import Run
from tests.conftest import ROOT, SENTENCES
from tests.hub_fixtures import WRITER, hub
from tests.minihub_state import Hub
from tests.tiny_encoder import save_tiny_bert, tiny_bert_tokenizer

__all__ = ["hub"]
pytestmark = [
    pytest.mark.slow,
    # peft 0.21 asks for the old name of is_activation_checkpointing (huggingface/peft,
    # peft_model.py)
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]
IDS = [[5, 9, 17, 33, 8, 21, 40, 12]]
STRANGER = """
import json, re, sys
from pathlib import Path
import torch
from huggingface_hub import hf_hub_download
ids, found = torch.tensor(json.loads(sys.argv[1])), {}
for repo in sys.argv[3:]:
    card = Path(hf_hub_download(repo, "README.md")).read_text()
    code = re.search(r"```python\\n(.*?)```", card, re.DOTALL)[1]
    code = code.replace("max_new_tokens=100", "max_new_tokens=3")
    assert "import hfstack.models.gru" in code or "hfstack" not in sys.modules, repo
    names = {}
    exec(code, names)
    given = {"decoder_input_ids": ids} if names["model"].config.is_encoder_decoder else {}
    with torch.no_grad():
        out = names["model"](input_ids=ids, attention_mask=torch.ones_like(ids), **given)
    keys = ("logits", "start_logits", "end_logits")
    found[repo] = [out[key].tolist() for key in keys if key in out]
Path(sys.argv[2]).write_text(json.dumps(found))
"""


@dataclass
class Case:
    """A recipe with tiny settings, and the class that loads what it leaves."""

    recipe: str
    loader: Any
    model: str
    rows: str
    settings: Mapping[str, object] = field(default_factory=dict)
    loading: Mapping[str, object] = field(default_factory=dict)


SHORT = {"max_length": 64, "gradient_checkpointing": "false", "activation_checkpointing": "false"}
PLAIN = SHORT | {"as_chat": "false"}
LORA = {"use_peft": "true", "lora_r": 2, "learning_rate": 1e-2}
BLOCKS = {"block_size": 16}
GROUPS = {
    "as_chat": "false",
    "num_generations": 4,
    "max_completion_length": 6,
    "per_device_train_batch_size": 8,
}
PPO = {
    "as_chat": "false",
    "per_device_train_batch_size": 4,
    "num_mini_batches": 1,
    "num_ppo_epochs": 1,
    "max_completion_length": 6,
}
CASES = {
    "llama": Case("pretrain_clm", AutoModelForCausalLM, "llama", "texts", BLOCKS),
    "bert": Case("pretrain_mlm", AutoModelForMaskedLM, "bert", "texts", {"block_size": 32}),
    "classifier": Case("classify", AutoModelForSequenceClassification, "bert", "labelled"),
    "classifier-lora": Case(
        "classify",
        AutoPeftModelForSequenceClassification,
        "bert",
        "labelled",
        LORA,
        {"num_labels": 2},
    ),
    "tagger": Case("tag", AutoModelForTokenClassification, "bert", "tagged"),
    "answerer": Case(
        "answer",
        AutoModelForQuestionAnswering,
        "bert",
        "questions",
        {"max_length": 64, "stride": 8},
    ),
    "translator": Case(
        "seq2seq",
        AutoModelForSeq2SeqLM,
        "bart",
        "translated",
        {"max_source_length": 32, "max_target_length": 24},
    ),
    "sft": Case("sft", AutoModelForCausalLM, "llama", "asked", PLAIN),
    "sft-lora": Case("sft", AutoPeftModelForCausalLM, "llama", "asked", LORA | PLAIN),
    "reward": Case("reward", AutoModelForSequenceClassification, "llama", "pairs", SHORT),
    "reward-lora": Case(
        "reward",
        AutoPeftModelForSequenceClassification,
        "llama",
        "pairs",
        LORA | SHORT,
        {"num_labels": 1},
    ),
    "dpo": Case("dpo", AutoModelForCausalLM, "llama", "pairs", SHORT),
    "kto": Case("kto", AutoModelForCausalLM, "llama", "pairs", SHORT),
    "orpo": Case("orpo", AutoModelForCausalLM, "llama", "pairs", SHORT),
    "ppo": Case("ppo", AutoModelForCausalLM, "llama", "prompts", PPO),
    "rloo": Case("rloo", AutoModelForCausalLM, "llama", "prompts", GROUPS),
    "grpo": Case("grpo", AutoModelForCausalLM, "llama", "prompts", GROUPS),
    "gru": Case("pretrain_clm", AutoModelForCausalLM, "gru", "texts", BLOCKS),
}


@pytest.fixture
def inputs(tmp_path: Path, tiny_llama: Path) -> dict[str, Path]:
    """Models and rows, by name."""
    folder = tmp_path / "inputs"
    folder.mkdir()
    words = ["the", "kind", "fox", "saw", "the", "ball"]
    tags = ["O", "O", "B-animal", "O", "O", "B-thing"]
    rows: dict[str, list[dict[str, Any]]] = {
        "texts": [
            {"text": f"{index} {SENTENCES[index % 4]} {SENTENCES[index % 3]}"}
            for index in range(40)
        ],
        "labelled": [
            {"text": f"{('kind', 'red')[i % 2]} fox {i}", "label": ("good", "bad")[i % 2]}
            for i in range(24)
        ],
        "tagged": [
            {"tokens": [*words, str(index)], "ner_tags": [*tags, "O"]} for index in range(24)
        ],
        "questions": [
            {
                "id": f"q{i}",
                "question": "the fox was ?",
                "context": f"{i} the fox was kind .",
                "answers": {"text": ["kind"], "answer_start": [len(f"{i} the fox was ")]},
            }
            for i in range(24)
        ],
        "translated": [
            {"source": f"the fox saw {index} balls", "target": f"renard {index}"}
            for index in range(24)
        ],
        "asked": [
            {"prompt": f"Who is number {index}?", "completion": "The fox."} for index in range(24)
        ],
        "pairs": [
            {"prompt": f"Fox {i}:", "chosen": " was kind", "rejected": " ran up the hill"}
            for i in range(24)
        ],
        "prompts": [
            {"prompt": f"Tell of a fox and {index} owls.", "answer": f"#### {index}"}
            for index in range(24)
        ],
    }
    places = {"llama": tiny_llama, "bert": save_tiny_bert(folder / "bert"), "bart": folder / "bart"}
    places["gru"] = ROOT / "recipes" / "architectures" / "gru-1m.json"
    for name, lines in rows.items():
        places[name] = folder / f"{name}.jsonl"
        places[name].write_text("".join(json.dumps(line) + "\n" for line in lines))
    tokenizer = tiny_bert_tokenizer()
    end: Any = tokenizer.sep_token_id
    set_seed(0)
    config = BartConfig(
        vocab_size=len(tokenizer),
        d_model=32,
        encoder_layers=1,
        decoder_layers=1,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        max_position_embeddings=40,
        pad_token_id=0,
        eos_token_id=end,
        forced_eos_token_id=end,
        bos_token_id=2,
        decoder_start_token_id=end,
    )
    BartForConditionalGeneration(config).save_pretrained(folder / "bart")
    tokenizer.save_pretrained(folder / "bart")
    return places


def train(run_recipe, case: Case, inputs: dict[str, Path], folder: Path) -> None:
    settings = {
        "model_name_or_path": inputs[case.model],
        "datasets": inputs[case.rows],
        "eval_fraction": 0.25,
        "max_steps": 2,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-3,
        "bf16": "false",
        "dataloader_pin_memory": "false",
        "save_strategy": "no",
        "output_dir": folder,
    }
    if case.rows == "prompts":
        del settings["dataloader_pin_memory"]  # no data loader, which is said in one line
    if case.model == "gru":
        settings["tokenizer_name_or_path"] = inputs["llama"]
    flags = [f"--{name}={value}" for name, value in {**settings, **case.settings}.items()]
    run_recipe(
        case.recipe, *flags, "--report_to", "tensorboard", "trackio", "wandb", "--project", "tiny"
    )
    storage = pytest.importorskip("trackio.sqlite_storage").SQLiteStorage
    identity = read_run(folder).run_id
    assert list((folder / "tensorboard").glob("events.*")), case.recipe
    (offline,) = (folder / "wandb").glob("offline-run-*")
    assert offline.name.endswith(f"-{identity}"), case.recipe
    assert f"{folder.name}-{identity}" in storage.get_runs("tiny"), case.recipe


@pytest.fixture
def trackers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """All three of them, on this machine only."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for module in ("trackio.utils", "trackio.sqlite_storage"):
        monkeypatch.setattr(f"{module}.TRACKIO_DIR", tmp_path / "trackio")


def publish(run_recipe, folder: Path, repo: str, **options: object) -> dict[str, float]:
    settings = {"run": folder, "repo": repo, "output_dir": folder.parent / "publish"} | options
    return run_recipe("publish", *(f"--{name}={value}" for name, value in settings.items()))


def own_logits(case: Case, folder: Path) -> list[torch.Tensor]:
    """What the run's own directory gives, before it was published."""
    model = case.loader.from_pretrained(folder, **case.loading).eval()
    ids = torch.tensor(IDS)  # (1, T)
    given = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        out = model(input_ids=ids, attention_mask=torch.ones_like(ids), **given)
    return [out[key] for key in ("logits", "start_logits", "end_logits") if key in out]


def publish_base(run_recipe, folder: Path, source: Path, repo: str) -> None:
    """Publish an adapter's base as others would find it: a finished run that left this model."""
    with Run.start("recipes/pretrain_clm.py", folder) as run:
        shutil.copytree(source, folder, dirs_exist_ok=True)
        run.finish({})
    publish(run_recipe, folder, repo, measure="false")


@pytest.mark.usefixtures("trackers")
def test_every_recipe_is_tracked_and_loaded_by_its_card(
    hub: Hub, run_recipe, inputs: dict[str, Path], tmp_path: Path
):
    for name in ("llama", "bert"):
        publish_base(run_recipe, tmp_path / f"base-{name}", inputs[name], f"alice/base-{name}")
    for name, case in CASES.items():
        train(run_recipe, case, inputs, tmp_path / name)
        base = {"base_repo": f"alice/base-{case.model}"} if "use_peft" in case.settings else {}
        metrics = publish(run_recipe, tmp_path / name, f"alice/{name}", **base)
        assert metrics["verified_files"] == metrics["files"], name
        checked = run_recipe(
            "verify", "--repo", f"alice/{name}", "--output_dir", tmp_path / "verify"
        )
        assert any(key.startswith("check_") for key in checked), name
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN": WRITER,
        "HF_HUB_OFFLINE": "0",
        "HF_HOME": str(tmp_path / "hf"),
    }
    arguments = [
        json.dumps(IDS),
        str(tmp_path / "logits.json"),
        *(f"alice/{name}" for name in CASES),
    ]
    done = subprocess.run(
        [sys.executable, "-c", STRANGER, *arguments],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "logits.json").read_text())
    for name, case in CASES.items():
        expected = own_logits(case, tmp_path / name)
        given = [torch.tensor(part) for part in found[f"alice/{name}"]]
        assert len(given) == len(expected) and expected, name
        assert all(torch.equal(one, other) for one, other in zip(given, expected, strict=True)), (
            name
        )
