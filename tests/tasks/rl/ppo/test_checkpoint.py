"""Checkpoints of PPO: resumed runs are bit-identical, what is saved is plain, stops wait for the
end of a rollout.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, TrainerCallback

from hfstack.errors import CheckpointError
from hfstack.tasks.rl.metrics import evaluate_policy
from hfstack.tasks.rl.ppo.trainer import PPOTrainer
from tests.tiny_ppo import lora, prompts, trainer

# 3 becomes 4: a whole rollout
SAVES = {"save_strategy": "steps", "save_steps": 3, "total_episodes": 24}


@pytest.fixture
def make(tiny_tokenizer, tiny_llama: Path, tmp_path: Path):
    def call(folder: str, **settings: Any) -> PPOTrainer:
        return trainer(tmp_path / folder, tiny_tokenizer, tiny_llama, **settings)

    return call


def curve(made: PPOTrainer) -> list[dict[str, float]]:
    return [
        {name: value for name, value in row.items() if not name.startswith(("time/", "train_"))}
        for row in made.state.log_history
        if "reward" in row or "eval_reward" in row
    ]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {
            "critic": "shared",
            "kl_target": 1.0,
            "kl_horizon": 100,
            "reward_normalize": True,
            "reward_clip": 2.0,
        },
        {
            "build": {"eval_dataset": prompts(3)},
            "eval_strategy": "steps",
            "eval_steps": 4,
            "eval_on_start": True,
        },
        {"build": {"peft_config": lora()}},
        {
            "build": {"peft_config": lora()},
            "critic": "shared",
            "lr_scheduler_type": "linear",
            "target_kl": 1e-9,
        },
        {"advantage": "rloo", "num_generations": 4, "reward_normalize": True},
        {"advantage": "grpo", "num_generations": 2, "importance_sampling_level": "sequence"},
        {"advantage": "dr_grpo", "num_generations": 2, "build": {"peft_config": lora()}},
        {"advantage": "reinforce", "kl_target": 1.0, "kl_horizon": 100},
        {"advantage": "reinforce_pp"},
    ],
    ids=str,
)
def test_a_resumed_run_is_bit_identical(make, tmp_path: Path, settings: dict[str, Any]):
    whole = make("whole", **SAVES, **settings)
    whole.train()
    checkpoint = tmp_path / "whole" / "checkpoint-4"
    resumed = make("resumed", **SAVES, **settings)
    torch.manual_seed(1234)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert resumed.state.global_step == whole.state.global_step == 12
    expected, found = whole.model.state_dict(), resumed.model.state_dict()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert curve(resumed) == curve(whole) and len(curve(whole)) == (
        7 if "eval_on_start" in settings else 3
    )
    assert resumed.kl_coef == whole.kl_coef and resumed.reward_history == whole.reward_history
    if "kl_target" in settings:
        assert whole.kl_coef != 0.05
    expected_count = 24 if "reward_normalize" in settings else 0
    assert whole.reward_history.scores.count == expected_count
    assert (checkpoint / "critic.safetensors").is_file() == ("advantage" not in settings)


def test_what_is_saved_is_a_plain_model(make, tmp_path: Path):
    made = make("full", total_episodes=8)
    made.train()
    made.save_model(str(tmp_path / "plain"))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "plain").state_dict()
    assert all(
        torch.equal(loaded[name], value) for name, value in made.model.policy.state_dict().items()
    )
    names = {path.name for path in (tmp_path / "plain").iterdir()}
    assert {"critic.safetensors", "ppo_state.json", "tokenizer.json", "model.safetensors"} <= names
    assert "training_args.bin" not in names, "no pickles"


def test_what_is_saved_is_a_plain_adapter(make, tmp_path: Path, tiny_llama: Path):
    made = make("low", total_episodes=8, learning_rate=1e-2, build={"peft_config": lora()})
    made.train()
    made.save_model(str(tmp_path / "plain"))
    assert sorted(path.name for path in (tmp_path / "plain").glob("adapter_*")) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    loaded = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "plain")
    ids = torch.tensor([[5, 6, 7, 8]])
    bare = AutoModelForCausalLM.from_pretrained(tiny_llama)
    with torch.no_grad():
        expected = made.model.policy(input_ids=ids).logits
        assert torch.allclose(loaded(input_ids=ids).logits, expected, atol=1e-6)
        assert not torch.allclose(bare(input_ids=ids).logits, expected, atol=1e-4)


@pytest.mark.parametrize("build", [{}, {"peft_config": lora()}], ids=["full", "adapter"])
def test_the_best_checkpoint_is_loaded_at_the_end(make, tmp_path: Path, build: dict[str, Any]):
    def fading(prompts: Any, completions: Any, trainer_state: Any, **_: Any) -> list[float]:
        """Lower at each evaluation, and different for each answer."""
        return [len(one) / 100 - trainer_state.global_step for one in completions]

    best = {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 3}
    made = make(
        "best",
        build={"eval_dataset": prompts(3), "reward_funcs": fading} | build,
        kl_target=1.0,
        **SAVES | best,
    )
    made.train()
    assert made.state.best_global_step == 4 and made.state.global_step == 12

    kept = json.loads((tmp_path / "best" / "checkpoint-4" / "ppo_state.json").read_text())
    assert made.kl_coef == kept["kl_coef"] != made.args.kl_coef
    made.save_model(str(tmp_path / "saved"))
    for name in ("critic", "adapter_model" if build else "model"):
        one, two = (
            load_file(tmp_path / folder / f"{name}.safetensors")
            for folder in ("best/checkpoint-4", "saved")
        )
        assert all(torch.equal(weight, two[key]) for key, weight in one.items()), name

    # what is reported is of the model that is kept
    evaluated = next(row for row in made.state.log_history if "eval_reward" in row)
    reported = evaluate_policy(made)
    assert reported["eval_kl"] == pytest.approx(evaluated["eval_kl"], abs=1e-6)


def test_a_stop_waits_for_the_end_of_the_rollout(make, tmp_path: Path):
    class StopInTheMiddle(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step >= 5:  # as StopWhenAsked does on SIGTERM
                control.should_save = control.should_training_stop = True

    whole = make("whole", **SAVES)
    whole.train()
    stopped = make("stopped", **SAVES, build={"callbacks": [StopInTheMiddle()]})
    stopped.train()
    assert stopped.state.global_step == 8
    assert sorted(path.name for path in (tmp_path / "stopped").glob("checkpoint-*")) == [
        "checkpoint-4",
        "checkpoint-8",
    ]
    resumed = make("stopped", **SAVES)
    resumed.train(resume_from_checkpoint=str(tmp_path / "stopped" / "checkpoint-8"))
    expected = whole.model.state_dict()
    assert all(
        torch.equal(value, expected[name]) for name, value in resumed.model.state_dict().items()
    )


def test_checkpoints_that_do_not_fit_are_refused(make, tmp_path: Path):
    make("full", **SAVES | {"total_episodes": 8}).train()
    checkpoint = tmp_path / "full" / "checkpoint-4"

    def refuse(message: str, **settings: Any) -> None:
        with pytest.raises(CheckpointError, match=message) as caught:
            make("other", **settings).train(resume_from_checkpoint=str(checkpoint))
        assert "\n" not in str(caught.value)

    refuse("which are not whole rollouts of 6: keep --num_ppo_epochs", num_ppo_epochs=3)
    refuse("is of another critic .* keep --critic", critic="shared")
    refuse(
        "is of another critic .* keep --critic and --advantage",
        advantage="rloo",
        num_generations=2,
    )
    refuse("it was saved without --use_peft", build={"peft_config": lora()})
    state = checkpoint / "ppo_state.json"
    kept = json.loads(state.read_text())
    assert kept["kl_coef"] == 0.05
    state.write_text("{")
    refuse("ppo_state.json is missing or incomplete")
    (checkpoint / "critic.safetensors").unlink()
    state.write_text(json.dumps(kept))
    refuse("has no critic.safetensors: it was saved by another --advantage, which needs no critic")
