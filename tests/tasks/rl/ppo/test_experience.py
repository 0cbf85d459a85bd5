"""What PPO learns from: scores, penalties and advantages of a rollout worked out by hand, and the
loss's options.
"""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from hfstack.tasks.rewards.prepare import Scores
from hfstack.tasks.rl.ppo.actor_critic import TokenScores
from hfstack.tasks.rl.ppo.batching import Sequences
from hfstack.tasks.rl.ppo.collect import choose_prompt_rows
from hfstack.tasks.rl.ppo.config import PPOConfig
from hfstack.tasks.rl.ppo.engines.interface import Rollout
from hfstack.tasks.rl.ppo.experience import (
    Experience,
    RewardHistory,
    RolloutScores,
    WeightedMeans,
    shape_experience,
)
from hfstack.tasks.rl.ppo.loss import ppo_loss, update_metric_names

LENGTHS = (2, 3)  # the second is truncated


def shaped(folder: Path, *, row_weights: torch.Tensor | None = None, **settings: Any):
    """Two completions with scores 1 and 3, log-ratios 0.1 a token and values 0."""
    cap, totals = settings.get("tis_cap"), settings.pop("scores", [1.0, 3.0])
    defaults: dict[str, Any] = {
        "whiten_advantages": False,
        "gamma": 1.0,
        "lam": 1.0,
        "kl_coef": 0.5,
    }
    args = PPOConfig(output_dir=str(folder), use_cpu=True, **(defaults | settings))
    completions = [torch.arange(2, 2 + length) for length in LENGTHS]
    valid = torch.arange(3) < torch.tensor(LENGTHS)[:, None]
    old = torch.where(valid, -1.0, 0.0)
    rollout = Rollout(completions, torch.tensor([True, False]))
    scored = RolloutScores(
        Scores(totals, {"one": [1.0, None], "two": [None, 3.0]}),
        None,
        old,
        torch.zeros(2, 3) if args.uses_critic else None,
        reference_log_probs=old - 0.1 * valid,
        sampler_log_probs=old - 5 * valid if cap else None,
    )
    history = RewardHistory()
    sequences = Sequences.join([[1], [1, 1]], completions, 0)
    experience, metrics = shape_experience(
        args,
        sequences,
        rollout,
        scored,
        kl_coef=0.5,
        history=history,
        index=0,
        tis_cap=cap,
        row_weights=row_weights,
    )
    return experience, metrics, history.scores


def test_returns_are_the_score_minus_the_kl_still_to_come(tmp_path: Path):
    experience, metrics, _ = shaped(tmp_path)
    expected = torch.tensor([[0.9, 0.95, 0.0], [2.85, 2.9, 2.95]])
    assert torch.allclose(experience.fields["returns"], expected)
    assert torch.allclose(experience.fields["advantages"], expected)
    assert metrics["reward"] == 2 and metrics["reward_std"] == 1 and metrics["ended_share"] == 0.5
    assert metrics["kl"] == pytest.approx(0.1) and metrics["kl_per_completion"] == pytest.approx(
        0.25
    )
    assert metrics["objective"] == pytest.approx((1 - 0.1 + 3 - 0.15) / 2)
    assert (
        metrics["rewards/one/mean"] == 1
        and metrics["rewards/two/mean"] == 3
        and metrics["entropy"] == 1
    )
    assert metrics["completions/mean_length"] == 2.5 and experience.token_counts.tolist() == [2, 3]


@pytest.mark.parametrize(
    ("settings", "first", "second"),
    [
        ({"missing_eos_penalty": 2.0}, 1.0, 1.0),
        ({"reward_clip": 1.5}, 1.0, 1.5),
        ({"reward_normalize": True}, 1.0, 3.0),  # of (1, 3) the standard deviation is 1
        ({"missing_eos_penalty": 1.0, "reward_normalize": True, "reward_clip": 3.5}, 2.0, 3.5),
    ],
    ids=str,
)
def test_scores_are_penalised_then_normalised_then_clipped(
    tmp_path: Path, settings: dict[str, Any], first: float, second: float
):
    experience, metrics, moments = shaped(tmp_path, kl_in_loss=True, **settings)
    returns = experience.fields["returns"]
    assert returns[0, 0] == pytest.approx(first) and returns[1, 0] == pytest.approx(second)
    assert metrics["reward"] == 2, "the reward is logged as it came"
    assert moments.count == (2 if "reward_normalize" in settings else 0)
    assert "reference_log_probs" in experience.fields


def test_an_evaluation_changes_no_moments_and_leaves_out_what_fills_up(tmp_path: Path):
    _, metrics, moments = shaped(
        tmp_path, reward_normalize=True, row_weights=torch.tensor([1.0, 0.0])
    )
    assert moments.count == 0 and metrics["reward"] == 1 and metrics["completions/mean_length"] == 2
    assert "rewards/two/mean" not in metrics


def test_truncated_completions_can_be_left_out(tmp_path: Path):
    experience, _, _ = shaped(tmp_path, mask_truncated_completions=True)
    assert experience.fields["weight"].tolist() == [
        [1, 1, 0],
        [0, 0, 0],
    ] and experience.token_counts.tolist() == [2, 0]


def test_whitening_lambdas_and_estimators(tmp_path: Path):
    whitened, _, _ = shaped(tmp_path, whiten_advantages=True)
    inside = whitened.fields["advantages"][whitened.sequences.valid]
    assert inside.mean() == pytest.approx(0, abs=1e-6) and inside.std(
        correction=0
    ) == pytest.approx(1, abs=1e-5)
    rewards, _, _ = shaped(tmp_path, whiten_rewards=True)
    assert not torch.allclose(rewards.fields["returns"], shaped(tmp_path)[0].fields["returns"])
    apart, _, _ = shaped(tmp_path, lam=0.0, lam_critic=1.0)
    assert torch.allclose(apart.fields["advantages"][0, :2], torch.tensor([-0.05, 0.95]))
    assert torch.allclose(apart.fields["returns"][0, :2], torch.tensor([0.9, 0.95]))
    squared, _, _ = shaped(tmp_path, kl_estimator="k2")
    assert squared.fields["returns"][0, 0] == pytest.approx(1 - 2 * 0.5 * 0.005)


def test_tokens_of_a_tool_are_not_trained_on_and_have_no_score(tmp_path: Path):
    generated = [torch.tensor([True, True]), torch.tensor([True, False, False])]
    args = PPOConfig(
        output_dir=str(tmp_path), use_cpu=True, whiten_advantages=False, kl_coef=0.5, lam=1.0
    )
    completions = [torch.arange(2, 2 + length) for length in LENGTHS]
    scored = RolloutScores(
        Scores([1.0, 3.0], {}), None, torch.zeros(2, 3), torch.zeros(2, 3), None, None
    )
    rollout = Rollout(completions, torch.tensor([True, True]), generated_mask=generated)
    sequences = Sequences.join([[1], [1]], completions, 0)
    experience, _ = shape_experience(
        args, sequences, rollout, scored, kl_coef=0.5, history=RewardHistory(), index=0
    )
    assert experience.fields["weight"].tolist() == [[1, 1, 0], [1, 0, 0]]
    assert experience.fields["returns"].tolist() == [[1, 1, 0], [3, 0, 0]]


def test_importance_weights_are_a_field(tmp_path: Path):
    experience, metrics, _ = shaped(tmp_path, tis_cap=2.0)
    assert metrics["sampler/importance"] == 2 and metrics["sampler/gap"] == pytest.approx(5)
    chunk = experience.select([1])
    assert chunk.fields["importance"].tolist() == [2, 2, 2] and chunk.batch.targets.tolist() == [
        2,
        3,
        4,
    ]


@pytest.mark.parametrize(
    ("aggregation", "weights", "denominators"),
    [
        ("token", [[1, 1, 0], [1, 1, 1]], [2, 3]),
        ("sequence", [[0.5, 0.5, 0], [1 / 3, 1 / 3, 1 / 3]], [1, 1]),
        ("constant", [[0.25, 0.25, 0], [0.25, 0.25, 0.25]], [1, 1]),
    ],
)
def test_what_the_loss_is_a_mean_over(
    tmp_path: Path, aggregation: str, weights: list[list[float]], denominators: list[int]
):
    settings = {"loss_aggregation": aggregation, "max_completion_length": 4}
    experience, _, _ = shaped(tmp_path, **settings)
    fields = experience.fields
    found = fields.get("loss_weight", fields["weight"])
    assert found.tolist() == [pytest.approx(row) for row in weights]
    assert experience.loss_counts.tolist() == denominators
    assert experience.token_counts.tolist() == [2, 3], "of the metrics, whatever the loss is over"
    masked, _, _ = shaped(tmp_path, mask_truncated_completions=True, **settings)
    assert masked.loss_counts.tolist() == [denominators[0], 0]


def test_while_scores_are_equal_no_kl_is_in_the_loss(tmp_path: Path):
    """In bf16 two passes over the same weights differ by more than a KL may be rounded by."""
    settings = {"advantage": "grpo", "num_generations": 2, "lam": 0.95, "scores": [1.0, 1.0]}
    experience, _, _ = shaped(tmp_path, **settings)
    assert not experience.fields["loss_weight"].any()
    assert experience.fields["weight"].sum() == 5, "the metrics are of all tokens"
    bonus, _, _ = shaped(tmp_path, entropy_coef=0.1, **settings)
    assert bonus.fields["loss_weight"].sum() == pytest.approx(2), "the KL holds an entropy bonus"
    other, _, _ = shaped(tmp_path, **settings | {"scores": [1.0, 3.0]})
    assert other.fields["loss_weight"].sum() == pytest.approx(2)


def test_without_a_critic_nothing_is_valued(tmp_path: Path):
    settings = {"advantage": "rloo", "num_generations": 2, "lam": 0.95}
    experience, metrics, _ = shaped(tmp_path, **settings)
    # 1 - 0.1 = 0.9 and 3 - 0.15 = 2.85: each minus the other
    first, second = experience.fields["advantages"]
    assert first.tolist() == pytest.approx([-1.95, -1.95, 0])
    assert second.tolist() == pytest.approx([1.95, 1.95, 1.95])
    assert not {"values", "returns"} & experience.fields.keys()
    assert not [name for name in metrics if name.startswith("value/")]
    assert metrics["frac_reward_zero_std"] == 0
    assert metrics["kl_k3"] == pytest.approx(math.expm1(-0.1) + 0.1, abs=1e-7)
    _, evaluated, _ = shaped(tmp_path, row_weights=torch.ones(2), **settings)
    assert evaluated["frac_reward_zero_std"] == 0, "of the whole evaluation, which has no groups"


def loss_of(folder: Path, **settings: Any) -> tuple[torch.Tensor, dict[str, float]]:
    old = settings.pop("old", [-1.0, -1.0])
    args = PPOConfig(output_dir=str(folder), use_cpu=True, vf_coef=0.1, **settings)
    fields = {
        "old_log_probs": torch.tensor(old),
        "values": torch.zeros(2),
        "returns": torch.tensor([1.0, 0.0]),
        "advantages": torch.tensor([1.0, -2.0]),
        "weight": torch.tensor([1.0, 1.0]),
        "row": torch.tensor([0, 0]),
        "reference_log_probs": torch.tensor([-3.0, -1.0]),
    }
    outputs = TokenScores(
        torch.tensor([-1.0, -1.0]), torch.tensor([0.5, 0.0]), torch.tensor([2.0, 4.0])
    )
    critic_only = bool(settings.get("critic_warmup_rollouts"))
    loss, sums = ppo_loss(args, outputs, fields, tokens=4.0, kl_coef=0.5, critic_only=critic_only)
    return loss, dict(zip(update_metric_names(has_critic=True), sums.tolist(), strict=True))


def test_the_loss_is_divided_by_the_tokens_of_the_minibatch(tmp_path: Path):
    loss, logged = loss_of(tmp_path, cliprange_value=None)
    assert logged["loss/policy"] == pytest.approx((-1 + 2) / 4) and logged[
        "loss/value"
    ] == pytest.approx(0.125 / 4)
    assert loss == pytest.approx(0.25 + 0.1 * 0.125 / 4) and logged[
        "policy/ratio"
    ] == pytest.approx(0.5)
    clipped, logged = loss_of(tmp_path)  # the value is held at 0.2: (0.2 - 1)^2 / 2
    assert logged["loss/value"] == pytest.approx(0.32 / 4) and logged[
        "value/clip_share"
    ] == pytest.approx(0.25)
    warming, _ = loss_of(tmp_path, critic_warmup_rollouts=1)
    assert warming == pytest.approx(0.1 * 0.08)
    assert clipped == pytest.approx(0.25 + 0.1 * 0.08)


def test_kl_and_entropy_in_the_loss(tmp_path: Path):
    plain = loss_of(tmp_path)[0]
    assert loss_of(tmp_path, kl_in_loss=True)[0] - plain == pytest.approx(0.5 * 0.5 * 2.0**2 / 4)
    assert loss_of(tmp_path, kl_in_loss=True, kl_estimator="abs")[0] - plain == pytest.approx(
        0.5 * 2.0 / 4
    )
    assert loss_of(tmp_path, entropy_coef=0.3)[0] - plain == pytest.approx(-0.3 * 6 / 4)
    # k3 of d = 2 is exp(-2) - 1 + 2, and the first token is half as likely as when it was sampled
    moved = {"kl_in_loss": True, "kl_estimator": "k3", "old": [-1.0 + math.log(2), -1.0]}
    k3 = 0.5 * (math.exp(-2) + 1) / 4
    without = loss_of(tmp_path, use_bias_correction_kl=False, **moved)[0]
    assert without - loss_of(tmp_path, old=moved["old"])[0] == pytest.approx(k3)
    assert loss_of(tmp_path, **moved)[0] - without == pytest.approx(-k3 / 2)


def test_means_over_processes_are_weighted():
    means = WeightedMeans()
    means.add("a", torch.tensor([1.0, 2.0]))
    means.add("a", torch.tensor([9.0]), torch.tensor([0.0]))
    means.add("b", torch.tensor([4.0, 8.0]), torch.tensor([3.0, 1.0]))
    assert means.compute() == {"a": 1.5, "b": 5.0} and WeightedMeans().compute() == {}
    assert means.compute(lambda table: table + torch.tensor([[7.0, 2.0], [0.0, 0.0]])) == {
        "a": 2.5,
        "b": 5.0,
    }


def test_prompts_come_in_passes_of_all_of_them():
    rows = [choose_prompt_rows(first, 4, 6, seed=3) for first in range(0, 24, 4)]
    flat = [row for part in rows for row in part]
    assert all(sorted(flat[start : start + 6]) == list(range(6)) for start in range(0, 24, 6))
    assert flat[:6] != flat[6:12] and choose_prompt_rows(4, 4, 6, seed=3) == rows[1]
    assert len(choose_prompt_rows(0, 20, 6, seed=3)) == 20, "a rollout may be larger than the data"


def test_the_table_of_fields_is_cut_by_rows(tmp_path: Path):
    experience, _, _ = shaped(tmp_path)
    assert isinstance(experience, Experience)
    chunk = experience.select([1, 0])
    assert chunk.fields["returns"].tolist() == pytest.approx([2.85, 2.9, 2.95, 0.9, 0.95])
