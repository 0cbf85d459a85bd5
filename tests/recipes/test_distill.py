"""Distilling end to end on tiny models: what is learned, cached, saved, resumed and refused."""

import copy
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, set_seed

from hfstack.errors import CheckpointError, ConfigError, DataError
from hfstack.runs.record import read_run
from hfstack.tokens.train_tokenizer import CHAT_TEMPLATE

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Model has .tie_word_embeddings=True:UserWarning"),
]
ANIMALS = ["fox", "owl", "hen", "cat"]


def save_model(folder: Path, tokenizer: Any, *, width: int, seed: int) -> Path:
    set_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=128,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.1,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer) -> Path:
    """A folder with a teacher, a narrower student, and rows."""
    folder = tmp_path_factory.mktemp("inputs")
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.add_special_tokens(
        {"additional_special_tokens": ["<|user|>", "<|assistant|>", "<|system|>", "<|end|>"]}
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    save_model(folder / "teacher", tokenizer, width=32, seed=1)
    save_model(folder / "student", tokenizer, width=16, seed=2)
    rows = [
        {"prompt": f"Who is number {n}?", "completion": f"The {ANIMALS[n % 4]}."} for n in range(40)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def distill(inputs: Path, run_recipe, tmp_path: Path):
    """Call the recipe with small settings; keyword arguments override them, None removes one."""

    def call(**changes: object) -> dict[str, float]:
        settings = {
            "model_name_or_path": inputs / "student",
            "teacher_model": inputs / "teacher",
            "datasets": inputs / "rows.jsonl",
            "eval_fraction": 0.2,
            "output_dir": tmp_path / "out",
            "max_length": 96,
            "packing": "true",
            "assistant_only_loss": "true",
            "max_steps": 2,
            "per_device_train_batch_size": 2,
            "learning_rate": 3e-3,
            "save_strategy": "no",
            "logging_steps": 1,
            "report_to": "none",
            "bf16": "false",
            "activation_checkpointing": "false",
            "answer_tokens": 4,
            "probe_rows": 0,
            "dataloader_pin_memory": "false",
        } | changes
        return run_recipe("distill", *(f"--{k}={v}" for k, v in settings.items() if v is not None))

    return call


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return AutoModelForCausalLM.from_pretrained(folder).state_dict()


def test_comes_nearer_to_its_teacher_and_records_both(distill, tmp_path: Path) -> None:
    first = distill(max_steps=1, output_dir=tmp_path / "first")
    metrics = distill(max_steps=60, learning_rate=2e-2, answer_rows=2, probe_rows=4)
    record = read_run(tmp_path / "out")
    assert record.status == "finished" and record.metrics["held_out_loss"] > 0
    # the loss is the divergence alone, and falls to a fraction
    assert metrics["eval_loss"] == pytest.approx(metrics["eval_divergence"], rel=1e-5)
    assert metrics["eval_divergence"] < first["eval_divergence"] / 2
    assert metrics["teacher_held_out_loss"] == first["teacher_held_out_loss"]
    assert metrics["eval_hard_loss"] == pytest.approx(metrics["held_out_loss"], rel=0.05)
    assert "before and after" in record.tables and record.artifacts["answers"]
    assert str(record.models).count("teacher") >= 1
    history = json.loads((tmp_path / "out" / "trainer_state.json").read_text())["log_history"]
    assert {"divergence", "hard_loss", "loss"} <= set(history[0])
    # the teacher is not saved with the student
    assert not any("teacher" in name for name in weights(tmp_path / "out"))


def test_an_untrained_copy_of_the_teacher_has_no_distance(distill, inputs: Path) -> None:
    metrics = distill(
        model_name_or_path=inputs / "teacher", learning_rate=0, divergence="reverse_kl"
    )
    assert abs(metrics["eval_divergence"]) < 1e-6
    assert metrics["held_out_loss"] == pytest.approx(metrics["teacher_held_out_loss"], rel=1e-6)


def test_cached_answers_teach_as_the_live_teacher_does(distill, inputs, tmp_path: Path) -> None:
    store = {"teacher_cache": tmp_path / "cache", "teacher_top_k": 300}  # of 304 tokens
    live = distill(output_dir=tmp_path / "live", hard_loss_weight=0.3, divergence="jsd", beta=0.4)
    cached = distill(
        output_dir=tmp_path / "a", hard_loss_weight=0.3, divergence="jsd", beta=0.4, **store
    )
    for name in ("train_loss", "eval_loss", "held_out_loss", "teacher_held_out_loss"):
        assert cached[name] == pytest.approx(live[name], rel=2e-3), name
    assert 0 <= cached["teacher_tail_mass"] < 0.05

    # a second run reads the same files, without the teacher's weights in memory
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.npy")}
    assert len(files) == 4
    again = distill(
        output_dir=tmp_path / "b", hard_loss_weight=0.3, divergence="jsd", beta=0.4, **store
    )
    assert again["eval_loss"] == cached["eval_loss"]
    assert {path: path.stat().st_mtime_ns for path in files} == files

    # of another temperature, or other tokens kept, nothing is taken
    distill(output_dir=tmp_path / "c", temperature=2, **store)
    assert len(list((tmp_path / "cache").rglob("*.npy"))) == 8

    # what is cut off is refused, and says what to do
    next(iter((tmp_path / "cache").rglob("log_probs.npy"))).write_bytes(b"")
    with pytest.raises(CheckpointError, match="is damaged .* delete that folder and run again"):
        for _ in range(2):
            distill(
                output_dir=tmp_path / "d", hard_loss_weight=0.3, divergence="jsd", beta=0.4, **store
            )
            distill(output_dir=tmp_path / "e", temperature=2, **store)


@pytest.mark.parametrize("cached", [False, True])
def test_resumes_to_the_same_weights(distill, tmp_path: Path, cached: bool) -> None:
    saving: dict[str, object] = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    if cached:
        saving |= {"teacher_cache": tmp_path / "cache", "teacher_top_k": 8}
    distill(**saving, output_dir=tmp_path / "whole")
    checkpoint = tmp_path / "whole/checkpoint-2"
    distill(**saving, output_dir=tmp_path / "resumed", resume_from_checkpoint=checkpoint)
    whole, resumed = weights(tmp_path / "whole"), weights(tmp_path / "resumed")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_accumulated_gradients_and_padded_rows_are_the_same_training(
    distill, tmp_path: Path
) -> None:
    rows = {"packing": "false", "eval_fraction": 0, "max_steps": 1}
    distill(**rows, output_dir=tmp_path / "a", per_device_train_batch_size=8)
    distill(
        **rows,
        output_dir=tmp_path / "b",
        per_device_train_batch_size=2,
        gradient_accumulation_steps=4,
    )
    first, second = weights(tmp_path / "a"), weights(tmp_path / "b")
    assert all(torch.allclose(first[name], second[name], atol=1e-5) for name in first)


def test_an_adapter_and_a_new_architecture_learn(distill, inputs: Path, tmp_path: Path) -> None:
    adapter = {"use_peft": "true", "lora_target_modules": "all-linear", "merge_adapter": "true"}
    metrics = distill(output_dir=tmp_path / "lora", **adapter)
    assert math.isfinite(metrics["held_out_loss"]) and (tmp_path / "lora/adapter").is_dir()

    config = json.loads((inputs / "student/config.json").read_text())
    (tmp_path / "half.json").write_text(json.dumps(config))
    distill(output_dir=tmp_path / "new", model_name_or_path=tmp_path / "half.json")
    assert weights(tmp_path / "new")["model.embed_tokens.weight"].shape[1] == 16


def test_a_student_begins_with_layers_of_its_teacher(distill, inputs, tmp_path: Path) -> None:
    teacher = inputs / "teacher"
    whole = distill(
        model_name_or_path=teacher, student_layers=0, learning_rate=0, output_dir=tmp_path / "whole"
    )
    assert abs(whole["eval_divergence"]) < 1e-6  # its only layer: the same model
    for changes, named in (
        ({"student_layers": 1}, "--student_layers 1 must be numbers from 0 to 0"),
        ({"use_peft": "true", "student_layers": 1}, "--student_layers 1 must be numbers"),
    ):
        with pytest.raises(ConfigError, match=named):
            distill(model_name_or_path=teacher, **changes)

    config = tmp_path / "half.json"
    shutil.copyfile(inputs / "student/config.json", config)
    with pytest.raises(ConfigError, match=r"half.json is an architecture without"):
        distill(model_name_or_path=config, student_layers=0)


def test_another_tokenizer_is_refused_with_the_way_out(distill, inputs, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(inputs / "teacher", other)
    core = json.loads((other / "tokenizer.json").read_text())
    tokens = core["model"]["vocab"]
    first, second = list(tokens)[10:12]
    tokens[first], tokens[second] = tokens[second], tokens[first]
    (other / "tokenizer.json").write_text(json.dumps(core))
    with pytest.raises(ConfigError, match="2 of 304 tokens differ.*hfstack run generate.*sft"):
        distill(teacher_model=other)


def test_settings_that_cannot_be_honoured_are_refused(distill, inputs, tmp_path: Path) -> None:
    for changes, named in (
        ({"teacher_model": None}, "--teacher_model is required"),
        ({"teacher_top_k": 8}, "--teacher_top_k 8 is what --teacher_cache keeps"),
        ({"teacher_cache": tmp_path / "c", "teacher_top_k": 304}, "--teacher_top_k must be"),
        ({"loss_type": "dft"}, "--loss_type dft does nothing here"),
        ({"label_smoothing_factor": 0.1}, "--label_smoothing_factor 0.1 does nothing here"),
        ({"packing_strategy": "bfd_split"}, "--packing_strategy bfd_split splits documents"),
    ):
        with pytest.raises(ConfigError, match=named):
            distill(**changes)
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "c"}\n')
    with pytest.raises(DataError, match=r"bad\.jsonl"):
        distill(datasets=bad, eval_fraction=0)


def test_the_teachers_answers_are_rows_of_sft(inputs: Path, run_recipe, tmp_path: Path) -> None:
    """Sequence-level distillation: the two commands of the page, from model to model."""
    run_recipe(
        *("generate", "--model_name_or_path", inputs / "teacher", "--temperature", 0.7),
        *("--prompts_file", inputs / "rows.jsonl", "--max_new_tokens", 8),
        *("--output_dir", tmp_path / "answers"),
    )
    answers = tmp_path / "answers/completions.jsonl"
    rows = [json.loads(line) for line in answers.read_text().splitlines()]
    assert [row["prompt"] for row in rows[:2]] == ["Who is number 0?", "Who is number 1?"]
    run_recipe(
        *("sft", "--model_name_or_path", inputs / "student", "--datasets", answers),
        *("--output_dir", tmp_path / "student", "--max_steps", 1, "--max_length", 96),
        *("--activation_checkpointing", "false", "--bf16", "false", "--report_to", "none"),
        *("--assistant_only_loss", "true", "--save_strategy", "no", "--on_bad_row", "skip"),
        *("--dataloader_pin_memory", "false", "--probe_rows", 0),
    )
    record = read_run(tmp_path / "student")
    assert record.status == "finished" and any("answers" in parent for parent in record.parents)
