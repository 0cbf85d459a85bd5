"""A second implementation of every estimator, written from the papers, trains to the same weights.

It takes one completion at a time, in plain loops, without padding, chunks or flat batches, and by
plain gradient descent, so that rounding stays rounding. Nothing of it is ours but the completions'
tokens.

Legend: T_i tokens of completion i, d hidden size.
"""

import copy
import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from hfstack.tasks.rl.ppo.engines.interface import Rollout
from tests.tiny_ppo import FixedEngine, prompts, trainer

RATE, EPOCHS, ROLLOUTS, LONGEST = 0.05, 2, 2, 6
# what the engine says of every token, nats by which the policy's own are a little above or below
SAMPLED = -math.log(300)


def worth(prompts: list[Any], completions: list[Any], completion_ids: list[Any], **_: Any) -> Any:
    return [sum(ids) % 11 / 5 for ids in completion_ids]


def later(steps: list[float], decay: float) -> Tensor:
    """What is still to come at each token: the sum over later ones of decay^k times it, (T_i,)."""
    places = range(len(steps))
    return torch.tensor([sum(decay ** (k - t) * steps[k] for k in places[t:]) for t in places])


def kl_of(log_probs: Tensor, reference: Tensor, kind: str) -> Tensor:
    d = log_probs - reference
    return {"k1": d, "k2": d**2 / 2, "k3": (-d).exp() - 1 + d, "abs": d.abs()}[kind]


@dataclass
class Completion:
    """One answer and what is known of it, (T_i,) each."""

    prompt: list[int]
    tokens: Tensor
    ended: bool
    sampled: Tensor  # what the engine says of them
    old: Tensor
    reference: Tensor
    values: Tensor
    rewards: Tensor
    advantages: Tensor | None = None
    returns: Tensor | None = None


DEFAULTS: dict[str, Any] = {
    "advantage": "gae",
    "num_generations": 1,
    "kl_coef": 0.05,
    "kl_in_loss": False,
    "kl_estimator": "k1",
    "kl_target": None,
    "kl_horizon": 10_000,
    "use_bias_correction_kl": True,
    "gamma": 1.0,
    "lam": 0.95,
    "lam_critic": 0.95,
    "whiten_advantages": False,
    "whiten_rewards": False,
    "missing_eos_penalty": 0.0,
    "reward_normalize": False,
    "reward_clip": math.inf,
    "tis_cap": None,
    "mask_truncated_completions": False,
    "importance_sampling_level": "token",
    "loss_aggregation": "constant",
    "cliprange": 0.2,
    "cliprange_high": 0.2,
    "dual_clip": math.inf,
    "cliprange_value": 0.2,
    "vf_coef": 0.1,
    "entropy_coef": 0.0,
}
OF_ESTIMATOR: dict[str, dict[str, Any]] = {
    "gae": {"whiten_advantages": True, "loss_aggregation": "token"},
    "rloo": {},
    "grpo": {"kl_in_loss": True, "loss_aggregation": "sequence"},
    "dr_grpo": {"kl_in_loss": True},
    "reinforce": {},
    "reinforce_pp": {"whiten_advantages": True, "loss_aggregation": "token"},
}


class Second:
    """Trains policy and critic on the same completions, rollout by rollout."""

    def __init__(self, policy: Any, reference: Any, **settings: Any) -> None:
        self.set = DEFAULTS | OF_ESTIMATOR[settings.get("advantage", "gae")] | settings
        self.policy, self.reference = policy, reference
        self.backbone = copy.deepcopy(policy.model)
        self.head = torch.nn.Linear(policy.config.hidden_size, 1)
        torch.nn.init.zeros_(self.head.weight)
        torch.nn.init.zeros_(self.head.bias)
        self.kl_coef = self.set["kl_coef"]
        self.all_scores: list[float] = []  # of all rollouts so far

    def score(self, model: Any, prompt: list[int], tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities and entropies, (T_i,) each."""
        ids = torch.cat([torch.tensor(prompt), tokens])[None]
        table = model(input_ids=ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        return table[torch.arange(len(tokens)), tokens], -(table.exp() * table).sum(-1)

    def value(self, prompt: list[int], tokens: Tensor) -> Tensor:
        """(T_i,), of the state before each token."""
        ids = torch.cat([torch.tensor(prompt), tokens])[None]
        hidden = self.backbone(input_ids=ids).last_hidden_state[0, len(prompt) - 1 : -1]
        return self.head(hidden)[:, 0]

    def collect(self, asked: list[list[int]], rollout: Rollout) -> list[Completion]:
        """Score the completions to the prompts, and give each token its reward."""
        given = self.set
        assert rollout.log_probs is not None
        ids = [tokens.tolist() for tokens in rollout.completion_ids]
        found: list[Completion] = []
        penalised: list[float] = []
        ended_of = rollout.finished.tolist()
        scores = worth([], [], ids)
        for prompt, tokens, sampled, ended, score in zip(
            asked, rollout.completion_ids, rollout.log_probs, ended_of, scores, strict=True
        ):
            with torch.no_grad():
                old, _ = self.score(self.policy, prompt, tokens)
                reference, _ = self.score(self.reference, prompt, tokens)
                values = self.value(prompt, tokens)
            kl = kl_of(old, reference, given["kl_estimator"])
            rewards = torch.zeros_like(old) if given["kl_in_loss"] else -self.kl_coef * kl
            scored = (sampled, old, reference, values, rewards)
            found.append(Completion(prompt, tokens, ended, *scored))
            penalised.append(score - given["missing_eos_penalty"] * (not ended))

        self.all_scores += penalised
        spread = statistics.pstdev(self.all_scores) if given["reward_normalize"] else 1.0
        for one, score in zip(found, penalised, strict=True):
            one.rewards[-1] += min(max(score / spread, -given["reward_clip"]), given["reward_clip"])

        if given["whiten_rewards"]:
            every = torch.cat([one.rewards for one in found])
            for one in found:
                one.rewards = (one.rewards - every.mean()) / every.std(correction=0) + every.mean()
        return found

    def advantages_of(self, found: list[Completion]) -> None:
        """Give every token its advantage, by the estimator's definition."""
        kind, gamma, size = self.set["advantage"], self.set["gamma"], self.set["num_generations"]
        totals = [float(one.rewards.sum()) for one in found]

        for index, one in enumerate(found):
            first = index - index % size
            group = totals[first : first + size]
            others = group[: index % size] + group[index % size + 1 :]
            mean = sum(group) / size

            if kind == "gae":
                after = [*one.values.tolist()[1:], 0.0]
                steps = [
                    reward + gamma * later - now
                    for reward, later, now in zip(
                        one.rewards.tolist(), after, one.values.tolist(), strict=True
                    )
                ]
                one.advantages = later(steps, gamma * self.set["lam"])
                one.returns = later(steps, gamma * self.set["lam_critic"]) + one.values
            elif kind == "rloo":
                one.advantages = torch.full_like(one.old, totals[index] - sum(others) / (size - 1))
            elif kind in ("grpo", "dr_grpo"):
                variance = sum((total - mean) ** 2 for total in group) / (size - 1)
                scale = variance**0.5 + 1e-4 if kind == "grpo" else 1.0
                one.advantages = torch.full_like(one.old, (totals[index] - mean) / scale)
            else:
                to_come = later(one.rewards.tolist(), gamma)
                batch_mean = sum(totals) / len(totals)
                grouped = mean if size > 1 else 0.0
                one.advantages = to_come - (batch_mean if kind == "reinforce" else grouped)

        if self.set["whiten_advantages"]:
            every = torch.cat([one.advantages for one in self.trained(found)])
            for one in found:
                one.advantages = (one.advantages - every.mean()) / every.std(correction=0)

    def trained(self, found: list[Completion]) -> list[Completion]:
        return [one for one in found if one.ended or not self.set["mask_truncated_completions"]]

    def loss(self, found: list[Completion]) -> Tensor:
        """The objective of all completions that are trained on, negated."""
        given, trained = self.set, self.trained(found)
        tokens = sum(len(one.tokens) for one in trained)
        divide: dict[str, Callable[[int], float]] = {
            "token": lambda length: tokens,
            "sequence": lambda length: length * len(trained),
            "constant": lambda length: LONGEST * len(trained),
        }
        total = torch.zeros(())
        for one in trained:
            assert one.advantages is not None
            new, entropies = self.score(self.policy, one.prompt, one.tokens)
            change = new - one.old
            if given["importance_sampling_level"] == "sequence":
                change = change.mean().expand_as(change)
            elif given["importance_sampling_level"] == "completion":
                change = change.sum().expand_as(change)

            ratio, low, high = change.exp(), 1 - given["cliprange"], 1 + given["cliprange_high"]
            gained = torch.min(ratio * one.advantages, ratio.clamp(low, high) * one.advantages)
            if given["dual_clip"] < math.inf:
                bound = given["dual_clip"] * one.advantages
                gained = torch.where(one.advantages < 0, torch.max(gained, bound), gained)
            if given["tis_cap"]:
                gained = gained * (one.old - one.sampled).exp().clamp(max=given["tis_cap"])
            if given["kl_in_loss"]:
                kind = given["kl_estimator"].replace("k1", "k2")
                kl = kl_of(new, one.reference, kind)
                if kind == "k3" and given["use_bias_correction_kl"]:
                    kl = kl * (new - one.old).exp()
                gained = gained - self.kl_coef * kl
            total = total - gained.sum() / divide[given["loss_aggregation"]](len(one.tokens))
            total = total - given["entropy_coef"] * entropies.sum() / tokens

            if one.returns is not None:
                values, reach = self.value(one.prompt, one.tokens), given["cliprange_value"]
                near = torch.max(torch.min(values, one.values + reach), one.values - reach)
                worse = torch.max((values - one.returns) ** 2, (near - one.returns) ** 2)
                total = total + given["vf_coef"] * (worse / 2).sum() / tokens
        return total

    def adapt(self, found: list[Completion]) -> None:
        """Move the KL coefficient towards its target (Ziegler et al. 2019, section 2.2)."""
        target, horizon = self.set["kl_target"], self.set["kl_horizon"]
        if target is not None:
            kl = statistics.mean(float((one.old - one.reference).sum()) for one in found)
            error = min(max((kl - target) / target, -0.2), 0.2)
            self.kl_coef *= 1 + error * len(found) / horizon

    def train(self, rollouts: list[tuple[list[list[int]], Rollout]]) -> None:
        modules = (self.policy, self.backbone, self.head)
        optimizer = torch.optim.SGD([p for module in modules for p in module.parameters()], lr=RATE)
        for asked, rollout in rollouts:
            found = self.collect(asked, rollout)
            self.advantages_of(found)
            for _ in range(EPOCHS):
                optimizer.zero_grad()
                self.loss(found).backward()
                optimizer.step()
            self.adapt(found)  # for the next rollout


CASES: dict[str, dict[str, Any]] = {
    "gae": {},
    "gae, all else": {
        "gamma": 0.97,
        "lam": 0.8,
        "lam_critic": 1.0,
        "whiten_rewards": True,
        "missing_eos_penalty": 1.0,
        "kl_estimator": "abs",
        "kl_target": 0.01,
        "kl_horizon": 20,
        "reward_normalize": True,
        "reward_clip": 1.0,
        "tis_cap": 1.01,
        "entropy_coef": 0.05,
        "dual_clip": 1.05,
        "cliprange": 0.01,
        "cliprange_high": 0.01,
        "vf_coef": 0.5,
        "cliprange_value": 0.01,
    },
    "gae, kl in the loss": {
        "kl_in_loss": True,
        "whiten_advantages": False,
        "kl_coef": 0.5,
        "kl_target": 1.0,
        "kl_horizon": 20,
    },
    "rloo": {"advantage": "rloo", "num_generations": 4},
    "rloo, unended": {
        "advantage": "rloo",
        "num_generations": 4,
        "missing_eos_penalty": 0.7,
        "kl_target": 1.0,
        "kl_horizon": 20,
        "reward_normalize": True,
        "tis_cap": 1.01,
    },
    "rloo, one action": {
        "advantage": "rloo",
        "num_generations": 2,
        "importance_sampling_level": "completion",
        "loss_aggregation": "sequence",
        "cliprange": 0.01,
        "cliprange_high": 0.02,
    },
    "grpo": {"advantage": "grpo", "num_generations": 4, "kl_estimator": "k3", "kl_coef": 0.5},
    "grpo, gspo, dapo": {
        "advantage": "grpo",
        "kl_estimator": "k3",
        "use_bias_correction_kl": False,
        "num_generations": 2,
        "importance_sampling_level": "sequence",
        "loss_aggregation": "token",
        "cliprange": 0.001,
        "cliprange_high": 0.002,
    },
    "grpo, unended": {
        "advantage": "grpo",
        "num_generations": 4,
        "missing_eos_penalty": 0.7,
        "kl_target": 0.01,
        "kl_horizon": 20,
        "kl_coef": 0.5,
    },
    "dr_grpo": {
        "advantage": "dr_grpo",
        "num_generations": 4,
        "mask_truncated_completions": True,
    },
    "reinforce": {"advantage": "reinforce", "gamma": 0.9},
    "reinforce, unended": {
        "advantage": "reinforce",
        "missing_eos_penalty": 0.7,
        "reward_clip": 1.0,
        "kl_target": 1.0,
        "kl_horizon": 20,
    },
    "reinforce_pp": {"advantage": "reinforce_pp"},
    "reinforce_pp, unended": {
        "advantage": "reinforce_pp",
        "missing_eos_penalty": 0.5,
        "kl_target": 1.0,
        "kl_horizon": 20,
        "tis_cap": 1.01,
    },
    "reinforce_pp, groups": {"advantage": "reinforce_pp", "num_generations": 4},
}


@pytest.fixture
def models(tiny_llama: Path) -> tuple[Any, Any]:
    """A policy, and a reference apart, so that its KL is not 0."""
    model, reference = (AutoModelForCausalLM.from_pretrained(tiny_llama) for _ in range(2))
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter *= 1.1
    return model, reference


def ours(folder: Path, tokenizer: Any, models: tuple[Any, Any], engine: Any, **settings: Any):
    """Return our trainer of the same rollouts, whose batch is split in two."""
    return trainer(
        folder,
        tokenizer,
        copy.deepcopy(models[0]),
        build={
            "engine": engine,
            "reward_funcs": worth,
            "reference_model": models[1],
            "train_dataset": prompts(8 // settings.get("num_generations", 1)),
        },
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        num_mini_batches=1,
        num_ppo_epochs=EPOCHS,
        total_episodes=8 * ROLLOUTS,
        max_completion_length=LONGEST,
        max_grad_norm=0.0,
        optim="sgd",
        learning_rate=RATE,
        **settings,
    )


def assert_same_policy(made: Any, second: Second, model: Any) -> None:
    trained = made.model.policy.state_dict()
    furthest = 0.0
    for name, weights in second.policy.state_dict().items():
        assert torch.allclose(trained[name], weights, atol=2e-6), name
        furthest = max(furthest, float((weights - model.state_dict()[name]).abs().max()))
    assert furthest > 1e-4, "it learned"


@pytest.mark.parametrize("settings", CASES.values(), ids=list(CASES))
def test_it_trains_to_the_same_weights(
    settings: dict[str, Any], models: tuple[Any, Any], tiny_tokenizer: Any, tmp_path: Path
):
    size = settings.get("num_generations", 1)
    second = Second(*copy.deepcopy(models), **settings)
    texts = [text for text in prompts(8 // size)["prompt"] for _ in range(size)]
    asked = [tiny_tokenizer(text)["input_ids"] for text in texts]
    second.train([(asked, FixedEngine(SAMPLED).generate(None, asked))] * ROLLOUTS)

    engine = FixedEngine(SAMPLED if settings.get("tis_cap") else None)
    made = ours(tmp_path, tiny_tokenizer, models, engine, **settings)
    made.train()

    assert_same_policy(made, second, models[0])
    assert made.kl_coef == pytest.approx(second.kl_coef, rel=1e-5)
    assert (made.kl_coef != second.set["kl_coef"]) == ("kl_target" in settings)
    if made.model.has_critic:
        assert torch.allclose(made.model.v_head.weight, second.head.weight, atol=2e-6)
        critic = made.model.critic.state_dict()
        for name, weights in second.backbone.state_dict().items():
            assert torch.allclose(critic[name], weights, atol=2e-6), name


def test_a_rollout_of_the_policy_before_trains_to_the_same_weights(
    models: tuple[Any, Any], tiny_tokenizer: Any, tmp_path: Path
):
    """With `rollouts_ahead` the second rollout is older than the updates of the first."""
    groups = {"advantage": "rloo", "num_generations": 4}
    made = ours(tmp_path, tiny_tokenizer, models, None, rollouts_ahead=1, **groups)
    rollouts, generate = [], made.collector.generate

    def record(*given: Any, **settings: Any) -> Any:
        rollouts.append(generate(*given, **settings))
        return rollouts[-1]

    made.collector.generate = record
    made.train()
    gaps = [row["sampler/gap"] for row in made.state.log_history if "sampler/gap" in row]
    assert len(rollouts) == ROLLOUTS and gaps[0] < 1e-5 < 1e-4 < gaps[1]

    second = Second(*copy.deepcopy(models), tis_cap=2.0, **groups)
    second.train(rollouts)
    assert_same_policy(made, second, models[0])
