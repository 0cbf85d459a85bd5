"""What a budget buys."""

from typing import Any

import numpy as np
import pytest

from hfstack.errors import ConfigError
from hfstack.scaling.budget import CHINCHILLA, BudgetArgs, budget_flops, plan_budget
from hfstack.scaling.ladder import Costs
from hfstack.scaling.parametric import Law

LLAMA = {
    "model_type": "llama",
    "vocab_size": 1000,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}


def count(config: dict[str, Any]) -> Costs:
    width, depth = config["hidden_size"], config["num_hidden_layers"]
    inside, table = 12 * depth * width**2, config["vocab_size"] * width
    return Costs(inside + table, inside, 6.0 * (inside + table), "formula")


def plan(flops: float, **changes: Any) -> Any:
    return plan_budget(
        flops, CHINCHILLA, LLAMA, family="llama", block_size=256, count=count, **changes
    )


def test_money_and_hours_are_the_same_compute() -> None:
    rate = {"peak_flops_per_s": 1e15, "utilization": 0.4}
    money = budget_flops(BudgetArgs(money=30, price_per_device_hour=3), **rate)
    assert (
        money
        == budget_flops(BudgetArgs(device_hours=10), **rate)
        == pytest.approx(10 * 3600 * 4e14)
    )
    assert budget_flops(BudgetArgs(budget_flops=7e18), **rate) == 7e18


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        (BudgetArgs(), "got none"),
        (BudgetArgs(budget_flops=1e18, money=3), "got budget_flops, money"),
        (BudgetArgs(money=3), "needs --price_per_device_hour"),
        (BudgetArgs(device_hours=-1), "--device_hours must be above 0, got -1"),
    ],
)
def test_a_budget_is_given_once_and_whole(budget: BudgetArgs, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        budget_flops(budget, peak_flops_per_s=1e15, utilization=0.4)


def test_utilization_is_a_share() -> None:
    with pytest.raises(ConfigError, match="at most 1, got 40"):
        budget_flops(BudgetArgs(budget_flops=1e18), peak_flops_per_s=1e15, utilization=40)


def test_the_plan_spends_the_budget_near_the_optimum_of_the_law() -> None:
    made = plan(1e18)
    assert made.rung.flops == pytest.approx(1e18, rel=0.02)
    wished = CHINCHILLA.optimum(1e18)[0]
    assert made.rung.costs.parameters == pytest.approx(wished, rel=0.3)
    for other in (wished / 4, wished * 4):
        assert plan(1e18, parameters=other).loss > made.loss
    assert made.loss == pytest.approx(CHINCHILLA.loss(made.rung.costs.parameters, made.rung.tokens))
    assert made.loss_interval is None and "predicted_loss_low" not in made.metrics


def test_draws_give_an_interval_around_the_prediction() -> None:
    rng = np.random.default_rng(0)
    draws = [Law(1.8 + 0.02 * rng.normal(), 482, 2085, 0.348, 0.366) for _ in range(200)]
    metrics = plan(1e19, draws=draws, freedom=100).metrics
    assert (
        metrics["predicted_loss_low"] < metrics["predicted_loss"] < metrics["predicted_loss_high"]
    )
    assert metrics["predicted_loss_high"] - metrics["predicted_loss_low"] == pytest.approx(
        0.08, abs=0.02
    )


def test_a_budget_too_small_for_any_model_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"a budget of 1e\+07 FLOPs is too small: the llama of"):
        plan(1e7)


def test_a_table_that_dwarfs_the_model_is_said() -> None:
    wide = plan_budget(
        1e15,
        CHINCHILLA,
        LLAMA | {"vocab_size": 100_000},
        family="llama",
        block_size=64,
        count=count,
        parameters=2e5,
    )
    assert "token tables take a fixed share" in wide.notes[0]
