"""The PPO recipe end to end on a tiny model: rewards by function and by model, LoRA, resuming, and
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
    GPT2Config,
    GPT2LMHeadModel,
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
def ppo(run_recipe, tiny_llama: Path, prompts: Path, tmp_path: Path):
    """Call the recipe from its YAML with tiny settings; keyword arguments override them."""

    def call(**changes: object) -> dict[str, float]:
        settings = {
            "config": ROOT / "recipes" / "ppo.yaml",
            "model_name_or_path": tiny_llama,
            "datasets": prompts,
            "reward_model": None,
            "as_chat": "false",
            "eval_fraction": 0.2,
            "output_dir": tmp_path / "out",
            "total_episodes": 16,
            "per_device_train_batch_size": 4,
            "gradient_accumulation_steps": 1,
            "num_mini_batches": 2,
            "num_ppo_epochs": 1,
            "max_completion_length": 8,
            "learning_rate": 1e-3,
            "critic_warmup_rollouts": 0,
            "warmup_steps": 0,
            "eval_steps": 4,
            "save_steps": 2,
            "bf16": "false",
        } | changes
        path = tmp_path / "settings.yaml"
        text = Path(str(settings.pop("config"))).read_text()
        text = re.sub(r"settings_of:\n(  .*\n)+", "", text)  # names lines that go below
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
        return run_recipe("ppo", "--config", path, *flags)

    return call


def test_trains_evaluates_and_records(ppo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # a model of random weights obeys nobody, and a run without any spread of rewards is stopped
    monkeypatch.setattr("hfstack.tasks.rl.demo_reward.obeys", obeys)
    metrics = ppo()
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
    assert metrics["steps"] == 4
    record = read_run(tmp_path / "out")
    assert record.status == "finished" and record.metrics == metrics
    assert [entry["role"] for entry in record.data] == ["train"]
    history = json.loads((tmp_path / "out" / "trainer_state.json").read_text())["log_history"]
    steps = [row for row in history if "reward" in row]
    assert [row["step"] for row in steps] == [2, 4] and [row["episodes"] for row in steps] == [
        8,
        16,
    ]
    assert steps[0]["kl"] == pytest.approx(0, abs=1e-6) and steps[0]["policy/updates"] == 2
    rows = [
        json.loads(line) for line in (tmp_path / "out" / "samples.jsonl").read_text().splitlines()
    ]
    assert {row["step"] for row in rows} == {0, 4}
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")


def test_every_metric_is_on_the_page(ppo, tmp_path: Path) -> None:
    ppo(
        bf16="true",
        tis_cap=2.0,
        eval_strategy="no",
        eval_on_start="false",
        eval_fraction=0,
        save_strategy="no",
    )
    history = json.loads((tmp_path / "out" / "trainer_state.json").read_text())["log_history"]
    page = (ROOT / "docs" / "recipes" / "ppo.md").read_text()
    upstream = {"loss", "grad_norm", "learning_rate", "epoch", "step"}
    logged = {re.sub("rewards/[^/]+/", "rewards/<name>/", name) for name in history[0]} - upstream
    assert len(logged) > 20 and [name for name in sorted(logged) if f"`{name}`" not in page] == []


def test_lora_with_a_reward_model_by_path(
    ppo, tiny_llama: Path, tiny_tokenizer, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    LlamaForSequenceClassification.from_pretrained(tiny_llama, num_labels=1).save_pretrained(
        tmp_path / "reward"
    )
    tiny_tokenizer.save_pretrained(tmp_path / "reward")
    lora = {"use_peft": "true", "lora_r": 2, "lora_target_modules": ["q_proj", "v_proj"]}
    metrics = ppo(**lora, reward_model=tmp_path / "reward", total_episodes=8)
    assert "eval_rewards/reward/mean" in metrics
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()
    assert (tmp_path / "out" / "critic.safetensors").is_file()


def test_mistakes_end_in_one_line(ppo, tiny_tokenizer, tmp_path: Path) -> None:
    def refuse(error: type[Exception], message: str, **changes: Any) -> None:
        with pytest.raises(error, match=message) as caught:
            ppo(output_dir=tmp_path / re.sub(r"\W", "", message)[:40], **changes)
        assert "\n" not in str(caught.value)

    refuse(
        ConfigError, "--max_completion_length must be at least 1, got 0", max_completion_length=0
    )
    refuse(ConfigError, "--total_episodes 12 is not divisible by the 8 episodes", total_episodes=12)
    refuse(ConfigError, "--kl_target needs a KL, but --kl_coef 0", kl_target=6, kl_coef=0)
    refuse(CheckpointError, "has no weights", model_name_or_path="llama-5m.json")
    refuse(DataError, "leave less than --max_completion_length 120", max_completion_length=120)
    refuse(ConfigError, "no chat template", as_chat="true")


def test_the_kl_can_be_measured_to_an_earlier_policy(
    ppo, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Further rounds start from a trained policy, and are kept near the first."""
    monkeypatch.setattr("hfstack.tasks.rl.demo_reward.obeys", obeys)
    ppo(output_dir=tmp_path / "first")
    still = {"learning_rate": 1e-12, "critic_learning_rate": 1e-12, "total_episodes": 8}
    start = {"model_name_or_path": tmp_path / "first", **still}
    own = ppo(**start, output_dir=tmp_path / "own")
    named = ppo(**start, reference_model=tiny_llama, output_dir=tmp_path / "named")
    assert abs(own["eval_kl_k3"]) < 1e-4 < named["eval_kl_k3"]  # k1 of few answers may be negative
    assert len(read_run(tmp_path / "named").models) > len(read_run(tmp_path / "own").models)


def test_positions_that_are_absolute_train_too(ppo, tiny_tokenizer, tmp_path: Path) -> None:
    """TRL's online trainers get GPT-2 wrong by its padding, so rloo refuses it; nothing is padded
    on the left here.
    """
    gpt2 = tmp_path / "gpt2"
    ids = {"bos_token_id": None, "eos_token_id": tiny_tokenizer.eos_token_id}
    GPT2LMHeadModel(
        GPT2Config(vocab_size=300, n_embd=32, n_layer=2, n_head=2, **ids)
    ).save_pretrained(gpt2)
    tiny_tokenizer.save_pretrained(gpt2)
    assert (
        ppo(model_name_or_path=gpt2, total_episodes=8, eval_strategy="no", eval_on_start="false")[
            "steps"
        ]
        == 2
    )
