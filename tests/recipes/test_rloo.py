"""The RLOO recipe end to end on a tiny model: rewards by function, by model and by endpoint, and
what it refuses.
"""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForSequenceClassification,
)

from hfstack.errors import CheckpointError, ConfigError, DataError
from hfstack.runs.record import read_run

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    rows = [
        {"prompt": f"Tell of a fox and {number} owls.", "label": number} for number in range(24)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def obeys(prompts: list[str], completions: list[str], **columns: object) -> list[float]:
    """Reward vowels, in place of the demo's rule."""
    return [sum(letter in "aeiou" for letter in text) / (len(text) + 1) for text in completions]


@pytest.fixture
def rloo(run_recipe, tiny_llama: Path, prompts: Path, tmp_path: Path):
    """Call the recipe from its YAML with tiny settings; keyword arguments override them."""

    def call(**changes: object) -> dict[str, float]:
        settings = {
            "config": ROOT / "recipes" / "rloo.yaml",
            "model_name_or_path": tiny_llama,
            "datasets": prompts,
            "reward_model": None,
            "as_chat": "false",
            "eval_fraction": 0.2,
            "output_dir": tmp_path / "out",
            "max_steps": 2,
            "per_device_train_batch_size": 8,
            "gradient_accumulation_steps": 1,
            "max_completion_length": 8,
            "learning_rate": 1e-3,
            "warmup_steps": 0,
            "eval_steps": 2,
            "save_steps": 2,
            "bf16": "false",
            "activation_checkpointing": "false",
        } | changes
        path = tmp_path / "settings.yaml"
        text = Path(str(settings.pop("config"))).read_text()
        text = "\n".join(
            line for line in text.splitlines() if line.split(":")[0].strip(" -") not in settings
        )
        path.write_text(text)
        given = {
            key: value if isinstance(value, list) else [value]
            for key, value in settings.items()
            if value is not None
        }
        flags = [flag for key, values in given.items() for flag in (f"--{key}", *values)]
        return run_recipe("rloo", "--config", path, *flags)

    return call


def test_trains_evaluates_and_records(
    rloo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # a model of random weights obeys nobody, and a run without any spread of rewards is stopped
    monkeypatch.setattr("hfstack.tasks.rl.demo_reward.obeys", obeys)
    metrics = rloo()
    expected = {
        "start_reward",
        "eval_reward",
        "eval_rewards/obeys/mean",
        "eval_kl",
        "eval_kl_per_completion",
    }
    assert (
        expected | {"eval_ended_share", "start_ended_share", "steps", "reward", "ended_share"}
        <= metrics.keys()
    )
    assert metrics["steps"] == 2
    record = read_run(tmp_path / "out")
    assert record.status == "finished" and record.metrics == metrics
    assert [entry["role"] for entry in record.data] == ["train"]
    history = json.loads((tmp_path / "out" / "trainer_state.json").read_text())["log_history"]
    steps = [row for row in history if "reward" in row]
    assert (
        len(steps) == 2
        and {"kl", "kl_per_completion", "ended_share", "rewards/obeys/mean"} <= steps[0].keys()
    )
    assert steps[0]["kl"] == pytest.approx(0, abs=1e-6), "the first answers are the reference's own"
    assert [row["episodes"] for row in steps] == [8, 16] and "loss/value" not in steps[0]
    rows = (tmp_path / "out" / "samples.jsonl").read_text().splitlines()
    assert {json.loads(row)["step"] for row in rows} == {0, 2}
    assert not (tmp_path / "out" / "critic.safetensors").exists()


def test_the_same_seed_gives_the_same_curve(rloo, tmp_path: Path) -> None:
    curves = []
    for folder in ("one", "two"):
        rloo(
            output_dir=tmp_path / folder,
            eval_fraction=0,
            eval_strategy="no",
            eval_on_start="false",
            save_strategy="no",
        )
        history = json.loads((tmp_path / folder / "trainer_state.json").read_text())["log_history"]
        curves.append(
            [
                (row["loss"], row["reward"], row["kl"], row["entropy"])
                for row in history
                if "reward" in row
            ]
        )
    assert curves[0] == curves[1] and len(curves[0]) == 2


def test_learns_what_is_rewarded_within_its_kl(
    rloo, run_recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gold rule says nothing about a tiny model's babble, so a letter is rewarded instead."""
    recipes = tmp_path / "recipes"
    recipes.mkdir()
    source = (ROOT / "recipes" / "rloo.py").read_text()
    assert source.count("\nREWARDS = [obeys]\n") == 1
    rewarded = (
        "def vowels(completions, prompts):\n    return [one.count('e') / 4 for one in "
        "completions]\n\n\n"
    )
    (recipes / "rloo.py").write_text(
        source.replace("\nREWARDS = [obeys]\n", f"\n{rewarded}REWARDS = [vowels]\n")
    )
    # where run_recipe looks for recipes/
    monkeypatch.setitem(run_recipe.__globals__, "ROOT", tmp_path)
    metrics = rloo(
        max_steps=12,
        per_device_train_batch_size=64,
        num_generations=8,
        eval_steps=12,
        learning_rate=1e-2,
        kl_coef=0.01,
        save_strategy="no",
        eval_fraction=0.4,
        logging_steps=4,
    )
    assert metrics["eval_reward"] > metrics["start_reward"] + 0.1
    assert 0 < metrics["eval_kl_per_completion"] < 10


def test_lora_saves_an_adapter_and_measures_the_kl(rloo, tmp_path: Path) -> None:
    lora = {"use_peft": "true", "lora_r": 2, "lora_target_modules": ["q_proj", "v_proj"]}
    metrics = rloo(**lora, eval_fraction=0, eval_strategy="no", eval_on_start="false")
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()
    assert metrics["kl_per_completion"] >= 0 or metrics["kl"] == pytest.approx(0, abs=1e-3)

    # it is trained further, and the KL is measured to it, not to its base
    more = {"eval_fraction": 0, "eval_strategy": "no", "eval_on_start": "false", "max_steps": 1}
    more |= {"model_name_or_path": tmp_path / "out", "output_dir": tmp_path / "more"}
    metrics = rloo(use_peft="true", learning_rate=1e-12, **more)
    assert metrics["kl_per_completion"] == pytest.approx(0, abs=1e-4)
    assert (tmp_path / "more" / "adapter_model.safetensors").is_file()

    # merged, what is trained whole has itself as the reference, not the base of the adapter
    metrics = rloo(learning_rate=1e-12, **more | {"output_dir": tmp_path / "whole"})
    assert metrics["kl_per_completion"] == pytest.approx(0, abs=1e-4)


def test_a_reward_model_by_path_takes_the_place_of_the_functions(
    rloo, tiny_llama: Path, tiny_tokenizer, tmp_path: Path
) -> None:
    folder = tmp_path / "reward"
    config = LlamaConfig(
        vocab_size=len(tiny_tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=128,
        pad_token_id=tiny_tokenizer.pad_token_id,
    )
    config.num_labels = 1
    LlamaForSequenceClassification(config).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    metrics = rloo(reward_model=folder, max_steps=1)
    assert "eval_rewards/reward/mean" in metrics
    before = AutoModelForCausalLM.from_pretrained(tiny_llama).state_dict()
    after = AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    with pytest.raises(ConfigError, match="--reward_weights has 2 values for 1 rewards"):
        rloo(reward_model=folder, output_dir=tmp_path / "weights", reward_weights=[1.0, 2.0])


def test_mistakes_end_in_one_line(rloo, tiny_tokenizer, tmp_path: Path) -> None:
    def refuse(error: type[Exception], message: str, **changes: Any) -> None:
        with pytest.raises(error, match=message) as caught:
            rloo(output_dir=tmp_path / re.sub(r"\W", "", message), **changes)
        assert "\n" not in str(caught.value)

    questions = tmp_path / "questions.jsonl"
    questions.write_text(json.dumps({"question": "Why?"}) + "\n")
    refuse(
        DataError,
        "rloo needs the columns prompt; found: question",
        datasets=questions,
        eval_fraction=0,
    )
    refuse(ConfigError, "no chat template", as_chat="true")
    refuse(ConfigError, "only http:// and https://", reward_model="ftp://host/reward")
    refuse(CheckpointError, "has no weights", model_name_or_path="llama-5m.json")
    refuse(DataError, "leave less than --max_completion_length 120", max_completion_length=120)
    refuse(ConfigError, "rloo compares the answers to one prompt", num_generations=1)
    refuse(ConfigError, "unknown option '--beta'; did you mean '--kl_coef'", beta=0.1)
    refuse(ConfigError, "unknown option '--advantage'", advantage="gae")
    refuse(ConfigError, "unknown option '--lam'", lam=1.0)


def test_the_models_own_settings_are_not_sampled_with_and_are_saved(
    rloo, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its own settings this model would say one token for ever."""
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    own = {"suppress_tokens": [*range(5), *range(6, 300)], "min_new_tokens": 8}
    model.generation_config.update(**own)
    for source in (model, AutoTokenizer.from_pretrained(tiny_llama)):
        source.save_pretrained(tmp_path / "own")

    seen: list[list[int]] = []

    def obeys(prompts: Any, completions: Any, completion_ids: Any, **columns: Any) -> list[float]:
        seen.extend(completion_ids)
        return [float(len(text)) for text in completions]

    monkeypatch.setattr("hfstack.tasks.rl.demo_reward.obeys", obeys)
    rloo(model_name_or_path=tmp_path / "own", max_steps=1)
    assert len({token for ids in seen for token in ids}) > 50
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "out").generation_config
    assert {name: getattr(saved, name) for name in own} == own
