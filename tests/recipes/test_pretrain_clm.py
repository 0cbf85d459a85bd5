"""Pretraining end to end on tiny models: what it saves and refuses, and that it resumes exactly."""

import json
import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hfstack.errors import AlreadyFinished, CheckpointError, ConfigError, DataError, DivergedError
from hfstack.runs.record import read_run
from tests.conftest import SENTENCES

TINY = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 9,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    (folder / "small.json").write_text(json.dumps(TINY))
    tiny_tokenizer.save_pretrained(folder / "tokenizer")
    rows = [{"text": f"{i} {SENTENCES[i % 4]}"} for i in range(80)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def pretrain(inputs: Path, run_recipe, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Call the recipe with small settings; keyword arguments override them."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "hf"))

    def call(**changes: object) -> dict[str, float]:
        settings = {
            "model_name_or_path": inputs / "small.json",
            "tokenizer_name_or_path": inputs / "tokenizer",
            "datasets": inputs / "rows.jsonl",
            "eval_fraction": 0.2,
            "output_dir": tmp_path / "out",
            "block_size": 32,
            "max_steps": 4,
            "per_device_train_batch_size": 2,
            "learning_rate": 1e-2,
            "eval_strategy": "steps",
            "eval_steps": 2,
            "save_steps": 2,
            "logging_steps": 1,
            "report_to": "none",
            "bf16": "false",
            "sample_tokens": 4,
            "logging_nan_inf_filter": "false",
            "dataloader_pin_memory": "false",
        } | changes
        return run_recipe(
            "pretrain_clm", *(f"--{k}={v}" for k, v in settings.items() if v is not None)
        )

    return call


def count(folder: Path) -> int:
    return sum(p.numel() for p in AutoModelForCausalLM.from_pretrained(folder).parameters())


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return AutoModelForCausalLM.from_pretrained(folder).state_dict()


def test_trains_evaluates_and_saves(pretrain, inputs: Path, tmp_path: Path) -> None:
    metrics = pretrain(max_steps=12, eval_steps=6, save_steps=6)
    record = read_run(tmp_path / "out")
    assert record.status == "finished" and record.metrics == metrics
    # it has learned something: a uniform guess is ln 300
    assert metrics["eval_loss"] < math.log(300) - 0.5
    assert metrics["perplexity"] == pytest.approx(math.exp(metrics["eval_loss"]))
    assert (
        0 < metrics["bits_per_byte"] < 8 and metrics["tokens_per_s"] > 0 and 0 < metrics["mfu"] < 1
    )
    assert metrics["parameters"] == sum(
        p.numel() for p in AutoModelForCausalLM.from_pretrained(tmp_path / "out").parameters()
    )
    # the table is the head too
    assert metrics["parameters"] - metrics["parameters_non_embedding"] == 300 * 16
    # of 62 blocks, 24 are read
    assert (metrics["tokens"], metrics["unique_tokens"]) == (12 * 2 * 32, 62 * 32)
    assert (
        metrics["flops_6nd"]
        == 6 * metrics["parameters"] * metrics["tokens"]
        > metrics["flops_kaplan"]
    )
    assert len(AutoTokenizer.from_pretrained(tmp_path / "out")) == 300
    assert not list((tmp_path / "out").glob("training_args.bin"))
    state = json.loads((tmp_path / "out" / record.artifacts["trainer_state"]).read_text())
    evaluated = [entry for entry in state["log_history"] if "eval_loss" in entry]
    assert all(entry["bits_per_byte"] > 0 for entry in evaluated)
    samples = [
        json.loads(line)
        for line in (tmp_path / "out" / record.artifacts["samples"]).read_text().splitlines()
    ]
    assert {row["step"] for row in samples} == {6, 12}
    assert record.data[0]["files"][0]["path"].endswith("rows.jsonl")


def test_finished_is_finished_and_others_are_refused(pretrain, tmp_path: Path) -> None:
    pretrain(max_steps=2)
    with pytest.raises(AlreadyFinished):
        pretrain(max_steps=2)
    with pytest.raises(
        CheckpointError, match=r"learning_rate 0\.01 -> 0\.02; choose another --output_dir"
    ):
        pretrain(max_steps=2, learning_rate=2e-2)


def test_a_resumed_run_equals_an_uninterrupted_one(
    pretrain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = pretrain(output_dir=tmp_path / "whole")
    from hfstack.training.callbacks import StopOnDivergence

    def interrupt(self, args, state, control, **kwargs):
        if state.global_step == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(StopOnDivergence, "on_step_end", interrupt)
    from hfstack.errors import Preempted

    with pytest.raises(Preempted):
        pretrain()
    assert read_run(tmp_path / "out").status == "preempted"
    monkeypatch.undo()
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "hf"))
    with pytest.raises(
        CheckpointError, match="already holds checkpoint-2; continue it with --resume"
    ):
        pretrain()
    resumed = pretrain(resume_from_checkpoint="last")
    assert resumed["eval_loss"] == whole["eval_loss"]
    torch.testing.assert_close(
        weights(tmp_path / "out"), weights(tmp_path / "whole"), rtol=0, atol=0
    )
    assert [restart["step"] for restart in read_run(tmp_path / "out").restarts] == [2]


def test_continues_from_a_checkpoint(pretrain, tiny_llama: Path, tmp_path: Path) -> None:
    metrics = pretrain(model_name_or_path=tiny_llama, tokenizer_name_or_path=None, max_steps=2)
    assert metrics["parameters"] == sum(
        p.numel() for p in AutoModelForCausalLM.from_pretrained(tiny_llama).parameters()
    )


@pytest.mark.parametrize("name", ["gru-1m", "lstm-1m", "gpt2-1m"])
def test_other_architectures_train_too(name: str, pretrain, tmp_path: Path) -> None:
    metrics = pretrain(model_name_or_path=f"recipes/architectures/{name}.json", max_steps=2)
    assert math.isfinite(metrics["eval_loss"])
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").config.vocab_size == 300


def test_isolated_documents_and_the_stock_loss(pretrain, tmp_path: Path) -> None:
    fused = pretrain(isolate_documents="true", output_dir=tmp_path / "fused")
    stock = pretrain(isolate_documents="true", fused_loss="false", output_dir=tmp_path / "stock")
    joined = pretrain(output_dir=tmp_path / "joined")
    assert fused["eval_loss"] == pytest.approx(stock["eval_loss"], rel=1e-5)
    assert fused["eval_loss"] != joined["eval_loss"]


def test_documents_are_rearranged_for_training_alone(pretrain, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--fim_rate needs tokens that mark prefix"):
        pretrain(fim_rate=0.5, output_dir=tmp_path / "none")
    with pytest.raises(ConfigError, match="--fim_spm_rate"):
        pretrain(fim_spm_rate=1.0, output_dir=tmp_path / "unread")


def test_streams_the_same_documents(pretrain, inputs: Path, tmp_path: Path) -> None:
    files = {"datasets": inputs / "rows.jsonl", "eval_datasets": inputs / "held.jsonl"}
    files["eval_datasets"].write_text(json.dumps({"text": " ".join(SENTENCES)}) + "\n")
    whole = pretrain(**files, eval_fraction=None, output_dir=tmp_path / "whole")
    streamed = pretrain(**files, eval_fraction=None, streaming="true")
    for name in ("unique_tokens", "parameters"):
        assert streamed[name] == whole[name]
    record = read_run(tmp_path / "out")
    # rows are shuffled, so that any of the sentences may come first
    assert record.rows.columns_used == ["text"]
    assert any(sentence in str(record.example) for sentence in SENTENCES)


@pytest.mark.parametrize("value", [5, {"0": "a"}, ["a"]], ids=str)
def test_texts_that_are_none_are_refused(value: object, pretrain, tmp_path: Path) -> None:
    rows = tmp_path / "none.jsonl"
    rows.write_text(json.dumps({"text": value}) + "\n")
    for flags in ({}, {"streaming": "true"}):
        with pytest.raises(DataError, match="needs text in the column 'text', which holds"):
            pretrain(datasets=rows, eval_fraction=0, output_dir=tmp_path / str(len(flags)), **flags)


def test_early_stopping(pretrain, tmp_path: Path) -> None:
    pretrain(
        learning_rate=0.0, max_steps=40, early_stopping_patience=2, load_best_model_at_end="true"
    )
    state = json.loads((tmp_path / "out" / "trainer_state.json").read_text())
    assert state["global_step"] == 6  # best at step 2, two evaluations without a better one


def test_a_diverging_run_stops_with_its_reason(pretrain, tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match="is nan at step"):
        pretrain(learning_rate=1e30, max_grad_norm=0, max_steps=20)
    record = read_run(tmp_path / "out")
    assert record.status == "failed" and record.error and "nan" in record.error


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"block_size": 65},
            ConfigError,
            "--block_size 65 is longer than the model's context of 64 tokens",
        ),
        ({"datasets": "nowhere.jsonl"}, DataError, "nowhere.jsonl"),
        ({"text_column": "body"}, DataError, "body"),
        ({"eval_fraction": 0.001}, DataError, "eval"),
        ({"tokenizer_name_or_path": None}, ConfigError, "name one with --tokenizer_name_or_path"),
        ({"learning_rat": 1}, ConfigError, "did you mean '--learning_rate'"),
    ],
)
def test_mistakes_are_one_line_and_leave_a_failed_record(
    pretrain, changes: dict, error: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error) as caught:
        pretrain(**changes)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    if (tmp_path / "out" / "run.json").exists():
        assert read_run(tmp_path / "out").status == "failed"


def test_every_wrong_disk_is_refused_before_training(pretrain, tmp_path: Path, monkeypatch) -> None:
    import collections

    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(
        "hfstack.runs.checkpoint_files.shutil.disk_usage", lambda path: usage(10**6, 10**6, 1000)
    )
    with pytest.raises(CheckpointError, match=r"two checkpoints need .* but .* has .* free"):
        pretrain()


def test_sigterm_saves_a_checkpoint_first(
    pretrain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os
    import signal

    from hfstack.errors import Preempted
    from hfstack.training.callbacks import StopOnDivergence

    def interrupt(self, args, state, control, **kwargs):
        if state.global_step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(StopOnDivergence, "on_step_begin", interrupt)
    with pytest.raises(
        Preempted, match="stopped at step 4; continue with --resume_from_checkpoint last"
    ):
        pretrain(max_steps=6, save_steps=100)
    assert (tmp_path / "out" / "checkpoint-4" / "trainer_state.json").is_file()
    record = read_run(tmp_path / "out")
    assert (
        record.status == "preempted"
        and record.artifacts["trainer_state"] == "checkpoint-4/trainer_state.json"
    )


def test_a_resume_on_other_data_is_refused(
    pretrain, inputs: Path, tmp_path: Path, monkeypatch
) -> None:
    from hfstack.training.callbacks import StopOnDivergence

    rows = tmp_path / "rows.jsonl"
    rows.write_bytes((inputs / "rows.jsonl").read_bytes())

    def interrupt(self, args, state, control, **kwargs):
        if state.global_step == 3:
            raise RuntimeError("the machine went away")

    monkeypatch.setattr(StopOnDivergence, "on_step_end", interrupt)
    with pytest.raises(RuntimeError):
        pretrain(datasets=rows)
    monkeypatch.undo()
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "hf"))
    rows.write_text(rows.read_text().replace("owl", "cow"))
    with pytest.raises(CheckpointError, match=r"rows\.jsonl is not what this run began with"):
        pretrain(datasets=rows, resume_from_checkpoint="last")


def test_a_folder_of_somebody_elses_files_is_not_taken(pretrain, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "model.safetensors").write_bytes(b"precious")
    with pytest.raises(CheckpointError, match=r"holds model\.safetensors but no run\.json"):
        pretrain()
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == b"precious"


def test_a_nan_at_the_end_is_no_finished_run(pretrain, tmp_path: Path) -> None:
    with pytest.raises(DivergedError):
        pretrain(
            learning_rate=1e30,
            max_grad_norm=0,
            max_steps=9,
            logging_steps=1000,
            eval_strategy="no",
            eval_fraction=0,
            warmup_steps=0,
        )
    assert read_run(tmp_path / "out").status == "failed"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_peft": "true"}, "tune a finished model, and this recipe pretrains one: use sft"),
        ({"sample_tokens": 0}, "--sample_tokens must be at least 1"),
        ({"seed": -1}, r"--seed must be in \[0, 4294967296\), got -1"),
        ({"report_to": "nonsense"}, "refused by the Trainer: .*nonsense"),
        ({"early_stopping_patience": 2}, "needs --load_best_model_at_end"),
    ],
)
def test_settings_that_make_no_sense_together(pretrain, changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        pretrain(**changes)
