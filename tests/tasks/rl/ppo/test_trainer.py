"""PPOTrainer: the first update changes nothing yet, gradients do not depend on how work is split,
every option does.
"""

import copy
import json
import logging
import math
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from transformers import AutoModelForCausalLM

from hfstack.errors import ConfigError, DataError
from hfstack.tasks.rewards.remote import RemoteReward
from hfstack.tasks.rl.ppo import collect
from hfstack.tasks.rl.ppo.actor_critic import ActorCritic
from hfstack.tasks.rl.ppo.ahead import copy_policy
from hfstack.tasks.rl.ppo.checkpoint import is_critic
from hfstack.tasks.rl.ppo.engines.interface import Rollout
from hfstack.tasks.rl.ppo.trainer import PPOTrainer
from hfstack.tokens.seams import encode_joined
from tests.tiny_ppo import TEMPLATE, FixedEngine, lora, prompts, trainer, vowels
from tests.tiny_tokenizers import llama2


@pytest.fixture
def make(tiny_tokenizer, tiny_llama: Path, tmp_path: Path):
    """A trainer on the tiny Llama; keyword arguments override its settings."""

    def call(model: Any = tiny_llama, **settings: Any) -> PPOTrainer:
        return trainer(tmp_path / "out", tiny_tokenizer, model, **settings)

    return call


def adapter(rank: int = 4) -> dict[str, Any]:
    return {"peft_config": lora(rank)}


def batches(made: PPOTrainer) -> list[dict[str, Any]]:
    return list(made.get_train_dataloader())


def gradients(made: PPOTrainer) -> dict[str, torch.Tensor]:
    """Of the first optimizer step, by the trainer's own training_step."""
    made.model.zero_grad()
    made.optimizer = made.create_optimizer()
    for batch in batches(made)[: made.args.gradient_accumulation_steps]:
        made.training_step(made.model, batch)
    return {name: p.grad.clone() for name, p in made.model.named_parameters() if p.grad is not None}


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"critic": "shared"},
        {"critic": "shared", "old_logprobs": "recompute"},
        {"rollout_engine": "generate"},
        {"top_p": 0.9, "top_k": 50, "temperature": 0.7},
        {"build": adapter()},
        {"build": adapter(), "critic": "shared"},
        {"build": adapter(), "critic": "separate"},
        {"build": {"train_dataset": prompts(conversational=True)}},
    ],
    ids=str,
)
def test_at_first_the_ratio_is_one_and_the_kl_zero(
    make, tiny_tokenizer, settings: dict[str, Any], monkeypatch
):
    monkeypatch.setattr(tiny_tokenizer, "chat_template", TEMPLATE)
    made = make(**settings)
    for batch in batches(made)[:2]:
        chunk = batch["experience"].select(batch["rows"])
        found = made.model(*chunk.batch, temperature=made.args.temperature)
        assert torch.allclose(found.log_probs, chunk.fields["old_log_probs"], atol=2e-5)
        assert torch.allclose(found.values, chunk.fields["values"], atol=2e-5)
    (logged,) = made.training_metrics.rollouts
    assert abs(logged["kl"]) < 1e-6 and abs(logged["kl_per_completion"]) < 1e-5


def test_a_trained_adapter_is_measured_to_its_own_start(make, tiny_llama: Path):
    torch.manual_seed(0)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(tiny_llama), lora(init_lora_weights=False)
    )
    made = make(model, critic="adapter", learning_rate=1e-2)
    begun = {name: value for name, value in weights(made.model).items() if ".ref." in name}
    assert begun and not any(
        p.requires_grad for name, p in made.model.named_parameters() if ".ref." in name
    )
    batches(made)
    assert abs(made.training_metrics.rollouts.pop()["kl_per_completion"]) < 1e-5, (
        "to the adapter, not to the bare base"
    )
    made.train()
    kl = [row["kl_per_completion"] for row in made.state.log_history if "reward" in row]
    assert abs(kl[0]) < 1e-4 and abs(kl[-1]) > 1e-2
    after = weights(made.model)
    assert all(torch.equal(after[name], value) for name, value in begun.items())


@pytest.mark.parametrize(
    "chosen",
    [
        {"critic": "shared", "value_head_init_std": 0.1},
        {"advantage": "rloo", "num_generations": 4, "importance_sampling_level": "completion"},
        {"advantage": "grpo", "num_generations": 2, "importance_sampling_level": "sequence"},
        {"advantage": "grpo", "num_generations": 2},
        {
            "advantage": "dr_grpo",
            "num_generations": 2,
            "mask_truncated_completions": True,
            "build": {"engine": FixedEngine()},
        },
        {"advantage": "reinforce"},
        {"advantage": "reinforce_pp", "num_generations": 2},
    ],
    ids=lambda chosen: chosen.get("advantage", "gae"),
)
def test_gradients_do_not_depend_on_chunks_or_accumulation(make, chosen: dict[str, Any]):
    whole = gradients(make(entropy_coef=0.01, **chosen))
    largest = max(float(gradient.abs().max()) for gradient in whole.values())
    assert largest > 1e-5
    for settings in (
        {"max_tokens_per_microbatch": 40},
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
        {
            "per_device_train_batch_size": 1,
            "gradient_accumulation_steps": 4,
            "max_tokens_per_microbatch": 10,
        },
    ):
        other = gradients(make(entropy_coef=0.01, **chosen, **settings))
        for name, gradient in whole.items():
            tolerance = min(1e-6, 1e-3 * largest)
            assert torch.allclose(other[name], gradient, atol=tolerance), (settings, name)


@pytest.mark.parametrize("reward", [0.0, 1.0, -1.0])
@pytest.mark.parametrize("advantage", ["rloo", "grpo", "dr_grpo", "reinforce", "reinforce_pp"])
def test_equal_rewards_leave_the_policy_where_it_was(make, advantage: str, reward: float):
    """Adam would make whole steps of the rounding between the sampler and the reference."""

    def constant(prompts: Any, completions: Any, **columns: Any) -> list[float]:
        return [reward] * len(completions)

    made = make(advantage=advantage, num_generations=4, build={"reward_funcs": constant})
    begun = weights(made.model)
    made.train()
    after = weights(made.model)
    assert all(torch.equal(after[name], value) for name, value in begun.items())
    logged = [row for row in made.state.log_history if "reward" in row]
    assert [row["frac_reward_zero_std"] for row in logged] == [1.0, 1.0]


@pytest.mark.parametrize("accumulation", [1, 2, 4])
def test_minibatches_hold_under_accumulation(make, accumulation: int):
    """TRL's PPO made 4 updates of a rollout instead of 16 as soon as gradients were accumulated."""
    made = make(
        per_device_train_batch_size=4 // accumulation,
        gradient_accumulation_steps=accumulation,
        num_mini_batches=4,
        num_ppo_epochs=4,
        total_episodes=16,
    )
    made.train()
    (logged,) = [row for row in made.state.log_history if "reward" in row]
    assert made.state.global_step == logged["policy/updates"] == 16 and logged["episodes"] == 16


def test_the_first_gradient_of_an_adapter_is_the_full_one_projected(make, tiny_llama: Path):
    """B is 0 at first, so the policy is the base, and dL/dB = scale dL/dW A^T exactly."""
    full, low = make(critic="shared"), make(critic="shared", build=adapter(8))
    torch.manual_seed(5)
    batch = batches(full)[0]
    for one in (full, low):
        one.model.zero_grad()
        one.training_step(one.model, batch)
    gradient = full.model.policy.model.layers[0].mlp.down_proj.weight.grad
    layer = low.model.policy.base_model.model.model.layers[0].mlp.down_proj
    expected = gradient @ layer.lora_A["default"].weight.T * layer.scaling["default"]
    assert gradient.abs().max() > 1e-4
    assert torch.allclose(layer.lora_B["default"].weight.grad, expected, atol=1e-7)


@pytest.mark.parametrize(
    "settings", [{}, {"build": adapter()}, {"build": adapter(), "critic": "shared"}], ids=str
)
def test_the_kl_is_measured_to_the_untouched_start(
    make, tiny_llama: Path, settings: dict[str, Any]
):
    made = make(learning_rate=1e-2, per_device_eval_batch_size=12, **settings)
    made.train()
    metrics = made.evaluate(prompts(12))
    bare = ActorCritic(AutoModelForCausalLM.from_pretrained(tiny_llama)).eval()
    torch.manual_seed(made.args.seed)
    rollout = made.collector.engine.generate(
        made.model.eval(), made.collector.encode(prompts(12)["prompt"][:], made.model)
    )
    total = 0.0
    for prompt, completion, logged in zip(
        made.collector.encode(prompts(12)["prompt"][:], made.model),
        rollout.completion_ids,
        rollout.log_probs,
        strict=True,
    ):
        ids = torch.cat([torch.tensor(prompt), completion])[None]
        logits = bare.base(input_ids=ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        total += (logged - logits.gather(1, completion[:, None])[:, 0]).sum().item()
    assert metrics["eval_kl_per_completion"] == pytest.approx(total / 12, abs=1e-3)
    assert metrics["eval_kl_k3"] > 1e-4, "never below 0, as the sum of a few samples may be"


def test_while_the_critic_warms_up_the_policy_stands_still(make):
    for critic in ("separate", "shared"):
        made = make(critic=critic, critic_warmup_rollouts=1, total_episodes=8, weight_decay=0.1)
        begun = weights(made.model)
        made.train()
        after = weights(made.model)
        moved = {name for name in begun if not torch.equal(begun[name], after[name])}
        assert "v_head.weight" in moved and not [
            name for name in moved if name.startswith("policy.")
        ]


def test_updates_end_when_the_policy_has_moved_far_enough(make):
    made = make(
        target_kl=1e-9,
        num_ppo_epochs=4,
        eval_strategy="steps",
        eval_steps=8,
        build={"eval_dataset": prompts(3)},
    )
    made.train()
    logged = [row for row in made.state.log_history if "reward" in row]
    # the first minibatches are of the policy that sampled; the step after is too far, and not taken
    assert all(1 <= row["policy/updates"] < 8 for row in logged)
    assert all(row["policy/updates"] + row["policy/skipped_updates"] == 8 for row in logged)
    assert made.state.global_step == 16 and made.state.epoch == 2
    assert [row["step"] for row in made.state.log_history if "eval_reward" in row] == [8, 16]


def test_a_step_from_too_far_away_is_not_taken(make):
    made = make(target_kl=1e-3, num_ppo_epochs=1, num_mini_batches=2, weight_decay=0.1)
    made.optimizer = made.create_optimizer()
    before, after = [], []
    for batch in batches(made):
        with torch.no_grad():  # the second minibatch finds another policy than the one that sampled
            for weight in made.model.policy.parameters() if before else ():
                weight.add_(torch.randn_like(weight), alpha=0.1)
        before.append(weights(made.model))
        made.training_step(made.model, batch)
        made.optimizer.step()
        after.append(weights(made.model))

    same = [
        all(torch.equal(new[name], old[name]) for name in old)
        for old, new in zip(before, after, strict=True)
    ]
    assert same == [False, True] and made.control.should_epoch_stop
    assert (made.training_metrics.updates, made.training_metrics.skipped) == (2, 1)


def test_the_policys_schedule_begins_after_the_critics_warm_up(make):
    made = make(
        critic_warmup_rollouts=1, total_episodes=24, warmup_steps=2, lr_scheduler_type="linear"
    )
    made.create_optimizer()
    scheduler = made.create_scheduler(12)
    is_policy = [
        id(group["params"][0]) in {id(weight) for weight in made.model.policy.parameters()}
        for group in made.optimizer.param_groups
    ]
    rates = {True: [], False: []}
    for _ in range(12):
        for one, group in zip(is_policy, made.optimizer.param_groups, strict=True):
            rates[one].append(group["lr"] * 1e3)
        made.optimizer.step()
        scheduler.step()

    groups = len(rates[True]) // 12
    assert rates[True][::groups] == pytest.approx(
        [0, 0, 0, 0, 0, 0.5, *(1 - step / 6 for step in range(6))]
    )
    groups = len(rates[False]) // 12
    assert rates[False][::groups] == pytest.approx([0, 0.5, *(1 - s / 10 for s in range(10))])


def test_evaluation_leaves_the_random_numbers_alone_and_repeats_itself(make):
    made = make(build={"eval_dataset": prompts(5)})
    before = torch.get_rng_state()
    first, second = made.evaluate(), made.evaluate()
    assert torch.equal(torch.get_rng_state(), before)
    assert (
        first == second
        and {"eval_reward", "eval_kl_per_completion", "eval_ended_share"} <= first.keys()
    )
    assert first["eval_completions/mean_length"] <= 8
    pairs = made.samples(3)
    assert [prompt for prompt, _ in pairs] == prompts(3)["prompt"][:]
    made.state.global_step = (
        4  # the policy has changed since: generate again, by this process alone
    )
    made.collector.reduce = None
    generate, asked = made.collector.generate, []
    made.collector.generate = lambda *given, **named: (
        asked.append(len(given[1])),
        generate(*given, **named),
    )[1]
    again = made.samples(2)
    assert asked == [2] and again == pairs[:2], "the same seed, whatever else is generated"


def test_an_evaluation_generates_as_many_answers_at_once_as_asked(make):
    asked: list[int] = []

    class CountingEngine(FixedEngine):
        def generate(self, actor_critic: Any, prompt_ids: Any) -> Rollout:
            asked.append(len(prompt_ids))
            return super().generate(actor_critic, prompt_ids)

    build = {"engine": CountingEngine(-1.0), "eval_dataset": prompts(7)}
    small = make(build=build, per_device_eval_batch_size=3).evaluate()
    assert asked == [3, 3, 1]
    assert make(build=build, per_device_eval_batch_size=7).evaluate() == small
    with pytest.raises(ConfigError, match="--metric_for_best_model bleu does not fit this task"):
        make(metric_for_best_model="bleu")


def test_the_order_of_prompts_has_a_seed_of_its_own(make):
    def order(**settings: Any) -> list[list[int]]:
        return [row.tolist() for row in batches(make(**settings))[0]["experience"].sequences.tokens]

    engine = {"build": {"engine": FixedEngine()}}
    assert order(data_seed=1, **engine) == order(data_seed=1, **engine) != order(**engine)


def test_samples_leave_the_random_numbers_alone(make):
    made = make()
    before = torch.get_rng_state()
    assert made.samples(2) == made.samples(2)
    assert torch.equal(torch.get_rng_state(), before)


def test_several_answers_to_a_held_out_prompt_are_side_by_side(make):
    asked: list[str] = []

    def first_vowels(prompts: Any, completions: Any, **columns: Any) -> list[float]:
        asked.extend(prompts)
        return [float(prompt == prompts[0]) for prompt in prompts]

    held_out = prompts(3)
    made = make(
        num_generations_eval=2, build={"eval_dataset": held_out, "reward_funcs": first_vowels}
    )
    metrics = made.evaluate()
    assert asked == [prompt for prompt in held_out["prompt"] for _ in range(2)]
    assert metrics["eval_frac_reward_zero_std"] == 1 and metrics["eval_reward_std"] > 0.4
    assert metrics["eval_reward"] == pytest.approx(1 / 3)


def test_rewards_of_all_kinds_are_added_and_logged(make):
    def half(prompts: Any, completions: Any, label: list[int]) -> list[float | None]:
        return [None if number % 2 else 0.5 for number in label]

    def tokens(
        prompts: Any, completions: Any, completion_ids: list[list[int]], **columns: Any
    ) -> list[list[float]]:
        return [[0.1] * len(ids) for ids in completion_ids]

    made = make(
        build={"reward_funcs": [vowels, half], "token_rewards": [tokens]},
        reward_weights=[1.0, 2.0],
        log_completions=3,
    )
    made.train()
    logged = [row for row in made.state.log_history if "reward" in row]
    assert logged[0]["rewards/half/mean"] == 0.5 and logged[0]["rewards/half/std"] == 0
    assert logged[0]["rewards/tokens/mean"] == pytest.approx(
        0.1 * logged[0]["completions/mean_length"], abs=1e-5
    )
    expected = logged[0]["rewards/vowels/mean"] + 1.0 * 0.5
    assert logged[0]["reward"] == pytest.approx(expected, abs=0.5) and logged[0]["reward_std"] > 0
    rows = [
        json.loads(line)
        for line in (Path(made.args.output_dir) / "completions.jsonl").read_text().splitlines()
    ]
    assert [row["step"] for row in rows] == [0, 0, 0, 4, 4, 4]
    assert rows[0].keys() == {"step", "prompt", "completion", "reward"}


def test_functions_run_in_the_main_thread_and_endpoints_beside_the_models(make):
    seen: dict[str, bool] = {}

    def sandboxed(prompts: Any, completions: Any, **_: Any) -> list[float]:
        """Stopped by a signal if it takes too long, as math_verify does with a program."""
        seen["sandboxed"] = threading.current_thread() is threading.main_thread()
        before = signal.signal(signal.SIGALRM, lambda *_: None)
        signal.alarm(60)
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        return [float(len(one)) for one in completions]

    class Endpoint(RemoteReward):
        def __call__(self, prompts: Any, completions: Any, **columns: Any) -> list[float | None]:
            seen[self.name] = threading.current_thread() is threading.main_thread()
            return [1.0 if len(one) % 2 else None for one in completions]

    made = make(
        build={"reward_funcs": [Endpoint("http://judge/a"), sandboxed, Endpoint("http://judge/b")]}
    )
    batches(made)
    assert seen == {"judge/a": False, "sandboxed": True, "judge/b": False}
    logged = made.training_metrics.rollouts[0]
    names = [name for name in logged if name.startswith("rewards/") and name.endswith("/mean")]
    assert names == [f"rewards/{one}/mean" for one in ("judge/a", "sandboxed", "judge/b")]
    assert logged["rewards/judge/a/mean"] == 1.0


def test_math_verify_is_a_reward(make):
    """It stops what takes too long by a signal, which only the main thread may set."""
    math_verify = pytest.importorskip("math_verify")

    def right(prompts: Any, completions: Any, label: Any, **columns: Any) -> list[float]:
        return [
            float(math_verify.verify(math_verify.parse(str(gold)), math_verify.parse("$2 + 1$")))
            for gold in label
        ]

    made = make(build={"reward_funcs": right, "eval_dataset": prompts(8)})
    assert made.evaluate()["eval_reward"] == pytest.approx(1 / 8), "of eight labels one is 3"


@pytest.mark.parametrize("reward", [0.0, 1.0, -1.0])
def test_rounding_between_sampler_and_reference_is_no_penalty(
    make, reward: float, monkeypatch: pytest.MonkeyPatch
):
    lines: list[str] = []
    monkeypatch.setattr(collect.logger, "warning", lambda line, *_: lines.append(line))

    def constant(prompts: Any, completions: Any, **_: Any) -> list[float]:
        return [reward] * len(completions)

    made = make(build={"reward_funcs": constant}, total_episodes=32, learning_rate=1e-2)
    before = weights(made.model)
    made.train()
    after = weights(made.model)
    assert all(torch.equal(after[name], kept) for name, kept in before.items() if "policy" in name)
    assert (reward == 0.0) or not torch.equal(after["v_head.bias"], before["v_head.bias"])

    logged = [row for row in made.state.log_history if "reward" in row]
    assert all(row["frac_reward_zero_std"] == 1 for row in logged)
    assert len([line for line in lines if "every answer so far got the same score" in line]) == 1


@pytest.mark.parametrize("critic", ["adapter", "shared, detached"])
def test_a_critic_learns_of_equal_rewards_beside_the_policy(make, critic: str):

    def one(prompts: Any, completions: Any, **_: Any) -> list[float]:
        return [1.0] * len(completions)

    kind, _, detached = critic.partition(", ")
    build = {"reward_funcs": one} | (adapter() if kind == "adapter" else {})
    made = make(critic=kind, detach_value=bool(detached), total_episodes=64, build=build)
    before = weights(made.model)
    made.train()
    after = weights(made.model)

    moved = {name for name, kept in before.items() if not torch.equal(after[name], kept)}
    assert moved and all(is_critic(name) for name in moved)


def test_the_sampler_that_differs_is_corrected_for(make):
    plain = gradients(make(critic="shared", build={"engine": FixedEngine()}))
    logged = make(critic="shared", tis_cap=2.0, build={"engine": FixedEngine(shift=-99.0)})
    capped = gradients(logged)
    assert logged.training_metrics.rollouts[0]["sampler/importance"] == pytest.approx(2.0)
    assert logged.training_metrics.rollouts[0]["sampler/gap"] > 50
    name = "policy.model.layers.0.mlp.down_proj.weight"
    value_part = gradients(
        make(critic="shared", build={"engine": FixedEngine()}, detach_value=True)
    )[name]
    both = plain[name] - value_part  # what the value loss adds, with weight 1
    assert torch.allclose(capped[name] - both, 2 * value_part, atol=1e-5), (
        "every weight is at the cap"
    )


def test_a_rollout_ahead_is_the_older_policys_and_corrected_for(make):
    settings = {
        "advantage": "rloo",
        "num_generations": 4,
        "learning_rate": 1e-2,
        "total_episodes": 32,
        "build": adapter(),
    }
    on_policy = make(**settings)
    on_policy.train()
    runs = []
    for _ in range(2):
        runs.append(make(rollouts_ahead=1, **settings))
        runs[-1].train()

    logged = [row for row in runs[0].state.log_history if "reward" in row]
    gaps = [row["sampler/gap"] for row in logged]
    assert gaps[0] < 1e-5 < 1e-3 < min(gaps[1:]), "the first is the policy's own"
    assert logged[0]["sampler/importance"] == pytest.approx(1.0, abs=1e-5)
    assert logged[1]["reward"] != on_policy.state.log_history[1]["reward"]

    # threads change nothing: the same run gives the same bits
    first, second = (weights(made.model) for made in runs)
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    with pytest.raises(ConfigError, match="--rollouts_ahead 1 copies the policy for the native en"):
        make(rollouts_ahead=1, build={"engine": FixedEngine()})


def test_a_copy_of_the_policy_shares_what_is_frozen(make):
    policy = make(critic="shared", build=adapter()).model
    copied = copy_policy(policy)
    assert copied.critic_kind == "none" and not copied.training
    for (name, mine), (other, theirs) in zip(
        policy.policy.named_parameters(), copied.policy.named_parameters(), strict=True
    ):
        assert name == other and torch.equal(mine, theirs) and not theirs.requires_grad
        assert (mine.data_ptr() == theirs.data_ptr()) == (not mine.requires_grad), name


def test_hardly_any_answer_that_ends_is_warned_of(make, monkeypatch: pytest.MonkeyPatch):
    lines: list[str] = []
    monkeypatch.setattr(collect.logger, "warning", lambda line, *_: lines.append(line))
    made = make(stop_token_ids=[299], max_completion_length=2, total_episodes=16)
    made.train()
    assert len([line for line in lines if "of the completions end by themselves" in line]) == 1


def test_a_truncated_answer_is_judged_without_an_end(make):
    """What rewards learn of which answers ended, in the order of the answers."""
    seen: list[tuple[bool, int]] = []

    def judge(prompts: Any, completions: Any, finished: Any, completion_ids: Any) -> list[float]:
        seen.extend(zip(finished, map(len, completion_ids), strict=True))
        return [0.0] * len(completions)

    made = make(build={"engine": FixedEngine(), "reward_funcs": judge})
    batches(made)
    assert {ended for ended, _ in seen} == {True, False}
    assert all(ended == (length < 6) for ended, length in seen)


def test_dropout_is_off_unless_it_is_asked_for(make, tiny_llama: Path):
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, attention_dropout=0.5)
    made = make(model, build={"peft_config": lora(lora_dropout=0.5)})
    drops = [module.p for module in made.model.modules() if isinstance(module, torch.nn.Dropout)]
    layers = made.model.base.model.layers
    assert drops and not any(drops) and layers[0].self_attn.attention_dropout == 0
    kept = make(
        AutoModelForCausalLM.from_pretrained(tiny_llama, attention_dropout=0.5),
        disable_dropout=False,
    )
    assert kept.model.base.model.layers[0].self_attn.attention_dropout == 0.5


def test_half_precision_recomputes_and_trains(make):
    made = make(bf16=True, critic="shared")
    made.train()
    logged = [row for row in made.state.log_history if "reward" in row]
    assert len(logged) == 2 and all(math.isfinite(row["loss"]) for row in logged)
    assert 0 < logged[0]["sampler/gap"] < 0.1 and "sampler/importance" not in logged[0]
    assert made.model.v_head.weight.dtype == torch.float32


def test_activation_checkpointing_trains_to_the_same_weights(make):
    found = []
    for activation_checkpointing in (False, True):
        made = make(
            build=adapter(), activation_checkpointing=activation_checkpointing, total_episodes=8
        )
        made.train()
        found.append(weights(made.model))
    assert all(torch.allclose(found[0][name], found[1][name], atol=1e-6) for name in found[0])


def test_learning_rates_of_the_critic(make):
    def rates(made: PPOTrainer) -> dict[str, float]:
        names = {id(p): name for name, p in made.model.named_parameters()}
        groups = made.create_optimizer().param_groups
        return {names[id(p)]: group["lr"] for group in groups for p in group["params"]}

    shared = rates(make(critic="shared", learning_rate=1e-4))
    assert (
        shared["v_head.weight"] == pytest.approx(1e-3)
        and shared["policy.model.embed_tokens.weight"] == 1e-4
    )
    separate = rates(make(learning_rate=1e-4))
    assert set(separate.values()) == {1e-4} and any(name.startswith("critic.") for name in separate)
    second = rates(make(build=adapter(), critic_learning_rate=5e-4, learning_rate=1e-4))
    assert {lr for name, lr in second.items() if ".critic." in name} == {5e-4}
    assert {lr for name, lr in second.items() if ".default." in name} == {1e-4}


def test_mistakes_end_in_one_line(make, tiny_tokenizer, tiny_llama: Path, tmp_path: Path):
    def refuse(
        error: type[Exception], message: str, model: Any = tiny_llama, **settings: Any
    ) -> None:
        with pytest.raises(error, match=message) as caught:
            batches(make(model, **settings))
        assert "\n" not in str(caught.value)

    def nan(prompts: Any, completions: Any) -> list[float]:
        return [math.nan] * len(completions)

    def none(prompts: Any, completions: Any) -> list[None]:
        return [None] * len(completions)

    def short(prompts: Any, completions: Any, **columns: Any) -> list[list[float]]:
        return [[1.0]] * len(completions)

    refuse(
        DataError,
        "do not fit the context of 128 tokens: set --max_prompt_length",
        max_completion_length=120,
    )
    make(max_completion_length=120, max_prompt_length=8).get_train_dataloader()
    refuse(DataError, "'nan' returned nan for sample 1", build={"reward_funcs": nan})
    refuse(DataError, "no reward applies to a completion", build={"reward_funcs": none})
    refuse(
        DataError, "token reward 'short' must return one number", build={"token_rewards": [short]}
    )
    refuse(
        DataError,
        "the rows need a column 'prompt'; found: label",
        build={"train_dataset": prompts().select_columns("label")},
    )
    refuse(DataError, "0 prompts", build={"train_dataset": prompts(0)})
    refuse(
        DataError, "cannot be streamed", build={"train_dataset": prompts().to_iterable_dataset()}
    )
    refuse(ConfigError, "--critic adapter needs a policy with an adapter", critic="adapter")
    refuse(
        ConfigError,
        "has an adapter already",
        get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_llama), lora()),
        build=adapter(),
    )
    refuse(ConfigError, "outside the vocabulary of 300", stop_token_ids=[300])
    refuse(ConfigError, "no chat template", build={"train_dataset": prompts(conversational=True)})
    judge = AutoModelForCausalLM.from_pretrained(tiny_llama)
    judge.config.architectures = ["LlamaForSequenceClassification"]
    refuse(
        ConfigError,
        "saved as a LlamaForSequenceClassification, without a language-model head",
        judge,
    )
    other = AutoModelForCausalLM.from_pretrained(tiny_llama)
    refuse(
        ConfigError, "--kl_coef 0 turns the KL off", kl_coef=0.0, build={"reference_model": other}
    )
    other.resize_token_embeddings(310, mean_resizing=False)
    refuse(
        ConfigError,
        "the reference model has 310 tokens, the policy 300",
        build={"reference_model": other},
    )
    with pytest.raises(ConfigError, match="no held-out prompts"):
        make().evaluate()
    endless = AutoModelForCausalLM.from_pretrained(tiny_llama)
    endless.generation_config.eos_token_id = endless.config.eos_token_id = None
    bare = copy.deepcopy(tiny_tokenizer)
    bare.eos_token = None
    with pytest.raises(ConfigError, match="neither the tokenizer nor the model has an eos token"):
        trainer(tmp_path / "endless", bare, endless)


def test_without_a_kl_there_is_no_reference(make):
    made = make(kl_coef=0.0)
    assert made.collector.reference is None
    made.train()
    assert not any("kl" in row for row in made.state.log_history)


def test_a_critic_starts_as_a_reward_model(
    make, tiny_llama: Path, tiny_tokenizer, tmp_path: Path, caplog
):
    from transformers import LlamaForSequenceClassification

    torch.manual_seed(3)
    reward = LlamaForSequenceClassification.from_pretrained(tiny_llama, num_labels=1)
    reward.save_pretrained(tmp_path / "reward")
    tiny_tokenizer.save_pretrained(tmp_path / "reward")
    with caplog.at_level(logging.INFO):
        made = make(critic_model=str(tmp_path / "reward"))
    assert made.model.critic_kind == "separate"
    assert torch.equal(made.model.v_head.weight, reward.score.weight)
    kept = made.model.critic.state_dict()
    assert all(torch.equal(kept[name], value) for name, value in reward.model.state_dict().items())
    from_policy = make(critic_model=str(tiny_llama))
    assert from_policy.model.v_head.weight.abs().max() == 0, "a language model brings no head"


def test_completions_are_scored_and_shown_with_the_blank_that_they_begin_with(
    tiny_llama: Path, tmp_path: Path
):
    tokenizer = llama2(dummy_prefix=True)
    tokenizer.pad_token = "<unk>"
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    model.resize_token_embeddings(len(tokenizer))
    joined, seam = encode_joined(tokenizer, "The little", " girl ran")
    made = trainer(tmp_path / "out", tokenizer, model)
    rollout = Rollout([torch.tensor([*joined[seam:], 2])], torch.tensor([True]))
    assert tokenizer.decode(joined[seam:]) == "girl ran"
    assert made.collector.decode(["The little"], [joined[:seam]], rollout) == [" girl ran"]
