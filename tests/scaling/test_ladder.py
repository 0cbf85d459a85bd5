"""The rungs: shapes whose counts are torch's, batches and rates by rule, and budgets that are
refused.
"""

import json
import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

import hfstack.models.gru  # noqa: F401 - registers the recurrent architectures
from hfstack.errors import ConfigError
from hfstack.models.counting import count_parameters, flops_per_token, measure_forward_flops
from hfstack.scaling.ladder import (
    Costs,
    Machine,
    blocks_read,
    build_ladder,
    config_of_size,
    head_width,
    learning_rate,
    plan_rung,
    scale_config,
    tokens_per_step,
)
from tests.conftest import ROOT

BLOCK = 64


def template(name: str, vocabulary: int = 512) -> dict[str, Any]:
    values = json.loads((ROOT / "recipes" / "architectures" / f"{name}.json").read_text())
    return {**values, "vocab_size": vocabulary}


def to_config(values: dict[str, Any]) -> PreTrainedConfig:
    return AutoConfig.for_model(**values)


def count(values: dict[str, Any]) -> Costs:
    config = to_config(values)
    parameters, flops = count_parameters(config), flops_per_token(config, BLOCK)
    return Costs(parameters.total, parameters.non_embedding, flops.train, flops.method)


def by_formula(values: dict[str, Any]) -> Costs:
    """A stand-in for the count: 12 layers' worth of squares, so that tests of the rules need no
    torch.
    """
    width, depth = values["hidden_size"], values["num_hidden_layers"]
    body = 12 * depth * width**2
    return Costs(body + 512 * width, body, 6.0 * (body + 512 * width), "formula")


@pytest.mark.parametrize("name", ["llama-1m", "gpt2-1m", "gru-1m", "lstm-1m"])
@pytest.mark.parametrize("width", [64, 96])
def test_counts_are_those_of_the_model_that_the_config_makes(name: str, width: int) -> None:
    config = scale_config(template(name), width, block_size=BLOCK)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(to_config(config))
    costs = count(config)
    assert costs.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert costs.train_flops_per_token == pytest.approx(
        3 * measure_forward_flops(to_config(config), BLOCK) / BLOCK
    )
    assert costs.non_embedding < costs.parameters


def test_shapes_follow_the_rules() -> None:
    for width, depth, heads in (
        (16, 2, 1),
        (64, 2, 2),
        (128, 2, 4),
        (256, 4, 4),
        (768, 12, 12),
        (1024, 16, 16),
    ):
        config = scale_config(template("llama-1m"), width, block_size=256)
        assert (config["num_hidden_layers"], config["num_attention_heads"]) == (depth, heads)
        assert config["head_dim"] * heads == width and head_width(width) == config["head_dim"]
        assert config["intermediate_size"] % 32 == 0 and config["intermediate_size"] >= 2.75 * width
        assert config["max_position_embeddings"] == 256
        assert config["initializer_range"] == pytest.approx((2 / (5 * width)) ** 0.5, rel=1e-3)
    # the shipped 125M shape comes out of the 1M template
    assert scale_config(template("llama-1m"), 768, block_size=1024)["num_hidden_layers"] == 12
    recurrent = scale_config(template("gru-1m"), 320, block_size=256)
    assert (recurrent["num_hidden_layers"], recurrent["embedding_size"]) == (2, 320)
    assert "max_position_embeddings" not in recurrent
    assert scale_config(template("gpt2-1m"), 96, block_size=48)["n_positions"] == 48


def test_key_value_heads_keep_their_share() -> None:
    grouped = {**template("llama-1m"), "num_attention_heads": 8, "num_key_value_heads": 2}
    config = scale_config(grouped, 512, block_size=BLOCK)
    assert (config["num_attention_heads"], config["num_key_value_heads"]) == (8, 2)
    # of 6: 4 does not divide it
    assert scale_config(grouped, 192, block_size=BLOCK)["num_key_value_heads"] == 2


@pytest.mark.parametrize("size", [2e4, 1e5, 7e5, 5e6, 1e9])
def test_the_nearest_size_is_found(size: float) -> None:
    config, costs = config_of_size(template("llama-1m"), size, block_size=BLOCK, count=by_formula)
    gap = abs(math.log(costs.parameters / size))
    for other in (config["hidden_size"] - 64, config["hidden_size"] + 64):
        if other >= 16 and other % head_width(other) == 0:
            nearby = by_formula(scale_config(template("llama-1m"), other, block_size=BLOCK))
            assert gap <= abs(math.log(nearby.parameters / size)) + 1e-9


def test_isoflop_rungs_cost_the_same_and_a_fixed_ratio_is_fixed() -> None:
    shapes = {"llama": template("llama-1m"), "gru": template("gru-1m")}
    rungs = build_ladder(
        shapes,
        [5e4, 2e5],
        [1e11, 1e12],
        design="isoflop",
        block_size=BLOCK,
        count=count,
        machine=Machine(1, 8),
    )

    assert len(rungs) == 8 and len({rung.name for rung in rungs}) == 8
    for rung in rungs:
        nearest = min((1e11, 1e12), key=lambda budget: abs(math.log(rung.flops / budget)))
        assert rung.flops == pytest.approx(nearest, rel=0.03)
        assert rung.flops_kaplan < rung.flops_6nd
    assert [rung.flops for rung in rungs] == sorted(rung.flops for rung in rungs)

    fixed = build_ladder(
        {"llama": template("llama-1m")},
        [5e4, 2e5],
        [20],
        design="fixed_ratio",
        block_size=BLOCK,
        count=count,
    )
    assert all(rung.tokens == pytest.approx(20 * rung.costs.parameters, rel=0.02) for rung in fixed)

    grid = build_ladder(
        {"gru": template("gru-1m")}, [5e4], [1e6], design="grid", block_size=BLOCK, count=count
    )
    assert grid[0].tokens == pytest.approx(1e6, rel=0.02)


def test_learning_rate_and_batch_by_hand() -> None:
    """DeepSeek LLM at 1e17 FLOPs: 0.3118 * 10^-2.125 = 2.338e-3, 0.2920 * 10^5.5607 = 106,200
    tokens.
    """
    assert learning_rate(1e17) == pytest.approx(2.338e-3, rel=1e-3)
    assert tokens_per_step(1e17) == pytest.approx(106_190, rel=1e-3)
    costs = Costs(1_000_000, 900_000, 1e7, "formula")
    rung = plan_rung({}, costs, 1e10, family="llama", block_size=256, machine=Machine(4, 32))
    assert rung.learning_rate == pytest.approx(2.338e-3, rel=1e-3)
    assert rung.micro_batch <= 32 and rung.accumulation == 4
    assert rung.sequences_per_step * 256 == pytest.approx(106_190, rel=0.02)
    assert rung.tokens == pytest.approx(1e10, rel=0.001)
    # 1e10 FLOPs: 0.2920 * 10^3.271 = 545 tokens are two sequences; the rule's rate of 0.0175 is
    # bounded
    small = plan_rung({}, costs, 1e3, family="llama", block_size=256, rate_scale=0.5)
    assert small.learning_rate == 0.005 and small.sequences_per_step == 2


def test_blocks_that_are_read() -> None:
    """10 blocks in batches of 4 make 2 whole ones a pass; with accumulation a pass ends early."""
    assert blocks_read(10, batch=4, accumulation=1, steps=5, drop_last=True) == 5 * 4
    # a step of 3, one of 1
    assert blocks_read(16, batch=4, accumulation=3, steps=2, drop_last=True) == (3 + 1) * 4
    # steps of 4, 4 and 2
    assert blocks_read(10, batch=4, accumulation=1, steps=5, drop_last=False) == 10 + 2 * 4
    # steps of 8 and 2
    assert blocks_read(10, batch=4, accumulation=2, steps=3, drop_last=False) == 10 + 8


def test_an_architecture_without_a_formula_is_measured_and_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    neox = {
        "model_type": "gpt_neox",
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 256,
        "vocab_size": 512,
        "max_position_embeddings": 64,
    }
    with caplog.at_level(logging.INFO, logger="hfstack"):
        rungs = build_ladder(
            {"neox": neox}, [1e5], [1e11], design="isoflop", block_size=BLOCK, count=count
        )
    assert rungs[0].costs.method == "measured" and rungs[0].flops == pytest.approx(1e11, rel=0.05)
    assert "no FLOP formula for model_type 'gpt_neox'" in caplog.text


@pytest.mark.parametrize(
    ("sizes", "budgets", "message"),
    [
        (
            [5e4],
            [1e7],
            r"--budgets 1e\+07 is too small for the llama of .* parameters: "
            r".* tokens are .* steps of 1 x 64",
        ),
        ([], [1e12], "--sizes is empty"),
        ([5e4], [0.0], "--budgets must be positive numbers, got 0"),
        (
            [5e4, 5.1e4],
            [1e12],
            r"--sizes 50000 and 51000 give the same llama of .* parameters: spread them",
        ),
    ],
)
def test_what_is_refused(sizes: list[float], budgets: list[float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_ladder(
            {"llama": template("llama-1m")},
            sizes,
            budgets,
            design="isoflop",
            block_size=BLOCK,
            count=by_formula,
        )


def test_the_budget_that_is_suggested_is_enough() -> None:
    with pytest.raises(ConfigError) as refusal:
        build_ladder(
            {"x": template("llama-1m")},
            [5e4],
            [1e7],
            design="isoflop",
            block_size=BLOCK,
            count=by_formula,
        )

    budget = float(str(refusal.value).split("raise it to ")[1].split(",")[0])
    rungs = build_ladder(
        {"x": template("llama-1m")},
        [5e4],
        [budget * 1.05],
        design="isoflop",
        block_size=BLOCK,
        count=by_formula,
    )
    assert rungs[0].steps >= 20


def test_a_config_without_a_width_is_refused() -> None:
    with pytest.raises(
        ConfigError, match="a config of model_type 'odd' has no width under a known name"
    ):
        scale_config({"model_type": "odd", "num_hidden_layers": 2}, 64, block_size=8)


def test_the_templates_are_left_alone() -> None:
    before = template("llama-1m")
    scale_config(before, 256, block_size=Path(__file__).stat().st_size)
    assert before == template("llama-1m")
