"""Masked pretraining end to end on tiny models: it learns, resumes exactly, and names mistakes."""

import itertools
import json
import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer

from hfstack.errors import ConfigError, DataError, Preempted
from hfstack.runs.record import read_run
from tests.conftest import SENTENCES
from tests.tiny_encoder import save_tiny_bert, tiny_bert_tokenizer

TINY = {
    "vocab_size": 9,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "initializer_range": 0.1,
    "max_position_embeddings": 66,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    for kind in ("bert", "roberta"):
        (folder / f"{kind}.json").write_text(json.dumps({"model_type": kind, **TINY}))
    tiny_bert_tokenizer().save_pretrained(folder / "wordpiece")
    tiny_tokenizer.save_pretrained(folder / "bpe")
    rows = [{"text": " ".join(three)} for three in itertools.product(SENTENCES, repeat=3)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def pretrain(inputs: Path, run_recipe, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Call the recipe with small settings; keyword arguments override them."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "hf"))

    def call(**changes: object) -> dict[str, float]:
        settings = {
            "model_name_or_path": inputs / "bert.json",
            "tokenizer_name_or_path": inputs / "wordpiece",
            "datasets": inputs / "rows.jsonl",
            "eval_fraction": 0.2,
            "output_dir": tmp_path / "out",
            "block_size": 32,
            "max_steps": 4,
            "per_device_train_batch_size": 8,
            "learning_rate": 1e-2,
            "eval_strategy": "steps",
            "eval_steps": 2,
            "save_steps": 2,
            "logging_steps": 1,
            "report_to": "none",
            "bf16": "false",
            "logging_nan_inf_filter": "false",
            "dataloader_pin_memory": "false",
            "pseudo_perplexity_texts": 2,
        } | changes
        return run_recipe(
            "pretrain_mlm", *(f"--{k}={v}" for k, v in settings.items() if v is not None)
        )

    return call


def test_learns_evaluates_and_fills(pretrain, run_recipe, tmp_path: Path, capsys) -> None:
    metrics = pretrain(
        max_steps=120,
        eval_steps=60,
        save_steps=120,
        logging_steps=40,
        learning_rate=3e-3,
        per_device_train_batch_size=16,
        fill_prompts="The [MASK] was kind.",
    )
    record = read_run(tmp_path / "out")
    assert record.status == "finished" and record.metrics == metrics
    assert metrics["eval_loss"] < math.log(133) - 1 and metrics["eval_masked_accuracy"] > 0.05
    assert metrics["eval_masked_perplexity"] == pytest.approx(
        math.exp(metrics["eval_loss"]), rel=0.02
    )
    assert (
        1 < metrics["baseline_masked_perplexity"] < 133
        and 0.05 < metrics["baseline_masked_accuracy"] < 0.5
    )
    assert (
        1 < metrics["pseudo_perplexity"] < 133
        and metrics["tokens_per_s"] > 0
        and 0 < metrics["mfu"] < 1
    )
    model = AutoModelForMaskedLM.from_pretrained(tmp_path / "out")
    assert metrics["parameters"] == sum(p.numel() for p in model.parameters())
    assert AutoTokenizer.from_pretrained(tmp_path / "out").mask_token == "[MASK]"
    samples = [
        json.loads(line)
        for line in (tmp_path / "out" / record.artifacts["samples"]).read_text().splitlines()
    ]
    assert {row["step"] for row in samples} == {60, 120} and samples[0]["completion"].startswith(
        "mask 1: "
    )

    capsys.readouterr()
    prompt = "The [MASK] was kind, so [MASK] gave"
    run_recipe(
        "generate",
        "--model_name_or_path",
        tmp_path / "out",
        "--prompts",
        prompt,
        "--output_dir",
        tmp_path / "g",
    )
    assert f"{prompt}  mask 1 at token 2: " in capsys.readouterr().out
    fillings = [
        json.loads(line) for line in (tmp_path / "g" / "fillings.jsonl").read_text().splitlines()
    ]
    assert [row["position"] for row in fillings] == [2, 7]  # [CLS] the [MASK] was kind , so [MASK]


def test_the_same_masks_at_every_evaluation(pretrain, tmp_path: Path) -> None:
    pretrain(learning_rate=0.0, max_steps=4, num_train_epochs=2)
    state = json.loads((tmp_path / "out" / "trainer_state.json").read_text())
    losses = {entry["eval_loss"] for entry in state["log_history"] if "eval_loss" in entry}
    trained = {entry["loss"] for entry in state["log_history"] if "loss" in entry}
    assert len(losses) == 1 and len(trained) == 4


def test_a_resumed_run_equals_an_uninterrupted_one(
    pretrain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hfstack.training.callbacks import StopOnDivergence

    # an epoch has 9 steps
    steps = {"max_steps": 12, "save_steps": 7, "eval_steps": 12, "mask_unit": "word"}
    whole = pretrain(output_dir=tmp_path / "whole", **steps)

    def interrupt(self, args, state, control, **kwargs):
        if state.global_step == 8:
            raise KeyboardInterrupt

    monkeypatch.setattr(StopOnDivergence, "on_step_end", interrupt)
    with pytest.raises(Preempted):
        pretrain(**steps)
    monkeypatch.undo()
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "hf"))
    resumed = pretrain(resume_from_checkpoint="last", **steps)
    assert resumed["eval_loss"] == whole["eval_loss"]
    one, other = (
        AutoModelForMaskedLM.from_pretrained(tmp_path / name).state_dict()
        for name in ("out", "whole")
    )
    torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_roberta_on_a_byte_level_tokenizer_with_whole_words(
    pretrain, inputs: Path, tmp_path: Path
) -> None:
    metrics = pretrain(
        model_name_or_path=inputs / "roberta.json",
        tokenizer_name_or_path=inputs / "bpe",
        mask_unit="word",
        block_size=64,
        isolate_documents="true",
    )
    assert math.isfinite(metrics["eval_loss"])
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert (
        tokenizer.mask_token == "<mask>"
        and tokenizer("a")["input_ids"][0] == tokenizer.cls_token_id
    )
    assert AutoModelForMaskedLM.from_pretrained(tmp_path / "out").config.vocab_size == 302


def test_continues_a_checkpoint_in_accumulated_steps(pretrain, tmp_path: Path) -> None:
    folder = save_tiny_bert(tmp_path / "bert")
    settings = {
        "model_name_or_path": folder,
        "tokenizer_name_or_path": None,
        "learning_rate": 1e-3,
        "max_steps": 2,
    }
    whole = pretrain(output_dir=tmp_path / "a", **settings)
    parts = pretrain(
        output_dir=tmp_path / "b",
        per_device_train_batch_size=2,
        gradient_accumulation_steps=4,
        **settings,
    )
    assert parts["eval_loss"] == pytest.approx(whole["eval_loss"], rel=2e-3)  # dropout differs


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"block_size": 67},
            ConfigError,
            "--block_size 67 is longer than the model's context of 66 tokens",
        ),
        (
            {"mask_probability": 1.0},
            ConfigError,
            "--mask_probability must be above 0 and below 1, got 1.0",
        ),
        ({"mask_unit": "words"}, ConfigError, "mask_unit"),
        ({"use_peft": "true"}, ConfigError, "this recipe pretrains one"),
        (
            {"metric_for_best_model": "f1"},
            ConfigError,
            "f1 does not fit this task: choose masked_accuracy or loss",
        ),
        ({"text_column": "body"}, DataError, "body"),
        ({"model_name_or_path": "recipes/architectures/llama-1m.json"}, ConfigError, "LlamaConfig"),
        ({"fill_prompts": "no mask"}, DataError, r"prompt 'no mask' has no \[MASK\]"),
    ],
)
def test_mistakes_are_one_line(
    pretrain, changes: dict, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        pretrain(**changes)
    assert "\n" not in str(caught.value)
