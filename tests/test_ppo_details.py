"""The page about the details of PPO names a test for every detail, tests that exist, and the
defaults as they are.
"""

import ast
import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import trl
from transformers import TrainingArguments

from hfstack.tasks.rl.ppo.config import PPOConfig
from hfstack.tasks.rl.ppo.group_config import GRPOConfig, RLOOConfig

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "ppo_details.md").read_text(encoding="utf-8")


def details() -> list[str]:
    """The rows of the tables, without their heads."""
    return [
        line
        for line in PAGE.splitlines()
        if line.startswith("| ") and not line.startswith("| detail |")
    ]


def test_every_detail_names_a_test() -> None:
    rows = details()
    assert len(rows) > 30
    for row in rows:
        assert "::test_" in row.rsplit("|", 2)[1], row


def test_the_list_of_the_first_study_is_whole() -> None:
    """6 general details, 3 of the reward model, 11 of the policy, and the section about Adam."""
    wanted = {"adam"} | {
        f"{part}{number}"
        for part, last in (("g", 6), ("r", 3), ("p", 11))
        for number in range(1, last + 1)
    }
    named = {name for row in details() for name in row.split(" | ")[1].split(", ")}
    assert wanted <= named
    assert {
        f"n{number}" for number in (*range(1, 6), *range(7, 10), 11, 12, 14, 15, 20, 21, 23)
    } <= named


def test_every_named_test_exists() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", PAGE)
    assert len(named) >= len(details())
    for file, name in named:
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, (
            f"{file}::{name}"
        )


def test_the_defaults_are_those_of_the_page(tmp_path: Path) -> None:
    args = PPOConfig(output_dir=str(tmp_path), use_cpu=True)
    assert (
        args.adam_epsilon == 1e-8 and args.lr_scheduler_type == "linear" and args.temperature == 1.0
    )
    assert (args.gamma, args.lam, args.lam_critic) == (1.0, 0.95, None)
    assert (args.cliprange, args.cliprange_value, args.vf_coef, args.num_ppo_epochs) == (
        0.2,
        0.2,
        0.1,
        4,
    )
    assert args.whiten_advantages and args.disable_dropout and not args.whiten_rewards
    assert (args.kl_coef, args.kl_target, args.kl_estimator, args.missing_eos_penalty) == (
        0.05,
        None,
        "k1",
        None,
    )


@pytest.mark.parametrize("config", [trl.RLOOConfig, trl.GRPOConfig])
def test_every_option_of_trls_is_in_the_tables_of_names(config: type[Any]) -> None:
    recipe = config.__name__.removesuffix("Config").lower()
    pages = [ROOT / "docs" / "recipes" / f"{name}.md" for name in {"rloo", recipe}]
    rows = [
        line
        for page in pages
        for line in page.read_text(encoding="utf-8").split("| TRL 1.16 | here |")[1].splitlines()
    ]
    named = {name for row in rows if row.startswith("| ") for name in re.findall(r"`(\w+)`", row)}
    upstream = {field.name for field in dataclasses.fields(TrainingArguments)}
    assert {field.name for field in dataclasses.fields(config)} - upstream - named == set()


def test_the_defaults_of_groups_are_those_of_the_page(tmp_path: Path) -> None:
    rloo = RLOOConfig(output_dir=str(tmp_path), use_cpu=True)
    grpo = GRPOConfig(output_dir=str(tmp_path), use_cpu=True)
    for args in (rloo, grpo):
        assert (args.num_ppo_epochs, args.num_mini_batches, args.max_grad_norm) == (1, 1, 1.0)
        assert not args.uses_critic and not args.whiten_advantages
    assert (rloo.kl_in_loss, rloo.importance_sampling_level) == (False, "completion")
    assert (grpo.kl_in_loss, grpo.kl_estimator, grpo.importance_sampling_level) == (
        True,
        "k3",
        "token",
    )
    assert grpo.use_bias_correction_kl and not rloo.use_bias_correction_kl
    assert {"rloo", "grpo"} == {rloo.advantage, grpo.advantage}
