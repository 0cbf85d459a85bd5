"""What an evaluation says is a mean over rows or tokens: on two processes as on one."""

import json
import re
from collections.abc import Collection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from datasets import Dataset

from hfstack.config import parse
from hfstack.errors import ConfigError
from hfstack.recipe_settings import load_recipe, settings_classes
from hfstack.training.token_average import _share_rows, _Shares
from tests.tiny_runs import ROWS, save_models, save_rows, tiny_settings
from tests.two_processes import spawn

ROOT = Path(__file__).parent.parent
TRAINED_ROWS, HELD_OUT = 8, 11  # 11 rows: two global batches of 4, and 3 rows that two cannot share
MEASURED = [name for name in ROWS if name not in ("ppo", "rloo", "grpo")]


def evaluate_each(
    rank: int, folder: Path, inputs: Path, recipes: list[str], batch: int, **changes: Any
) -> dict[str, dict[str, float]]:
    """Train a step of next to nothing by each recipe, and return what it measured."""
    found = {}
    for name in recipes:
        settings = tiny_settings(
            name,
            inputs,
            folder / name,
            learning_rate=1e-12,
            per_device_train_batch_size=batch,
            per_device_eval_batch_size=batch,
            **changes,
        )
        module = load_recipe(ROOT / "recipes" / f"{name}.py")
        flags = [f"--{key}={value}" for key, value in settings.items()]
        if rank >= 0:
            flags.append("--ddp_backend=gloo")
        found[name] = module.main(*parse(*settings_classes(module), argv=flags))
    return found


@pytest.fixture
def inputs(tmp_path: Path, tiny_llama: Path) -> Path:
    folder = tmp_path / "inputs"
    folder.mkdir()
    save_models(folder, tiny_llama)
    for name in MEASURED:
        numbers = range(40, 40 + TRAINED_ROWS)
        save_rows(folder, name, train=numbers, held_out=range(HELD_OUT))
    return folder


def check_same(found: dict[str, Any], whole: dict[str, Any], *, but: Collection[Any] = ()) -> None:
    """Every number of an evaluation is the same."""
    wrong = []
    for name, metrics in whole.items():
        measured = {key: value for key, value in metrics.items() if key.startswith("eval_")}
        assert "eval_loss" in measured or name in ("classify", "embed"), name
        for key, value in measured.items():
            if re.search("runtime|per_second", key) or (name, key) in but:
                continue
            if found[name][key] != pytest.approx(value, rel=1e-4, abs=1e-6):
                wrong.append((name, key, value, found[name][key]))
    assert not wrong


def test_batches_do_not_matter(tmp_path: Path, inputs: Path) -> None:
    recipes = ["kto", "orpo", "reward"]
    whole = evaluate_each(-1, tmp_path / "one", inputs, recipes, 4)
    small = evaluate_each(-1, tmp_path / "small", inputs, recipes, 3)
    # the KL in kto's loss is a mean over a batch, by its definition; tokens are of other steps
    kl = {("kto", "eval_loss"), ("kto", "eval_kl")}
    check_same(small, whole, but=kl | {(name, "eval_num_tokens") for name in recipes})


@pytest.mark.slow
def test_two_processes_measure_as_one(tmp_path: Path, inputs: Path) -> None:
    """Also where they have no equal shares of the last rows."""
    whole = evaluate_each(-1, tmp_path / "one", inputs, MEASURED, 4)
    for found in spawn(evaluate_each, tmp_path / "two", inputs, MEASURED, 2):
        check_same(found, whole)


def quarantine_each(rank: int, folder: Path, inputs: Path, recipes: list[str]) -> int:
    evaluate_each(rank, folder, inputs, recipes, 2, on_bad_row="quarantine")
    return rank


@pytest.mark.slow
def test_two_processes_write_bad_rows_down_once(tmp_path: Path, inputs: Path) -> None:
    bad = {
        "answer": {"id": "bad", "question": "", "context": "it was red", "answers": None},
        "reward": {"prompt": "1:", "chosen": " same", "rejected": " same"},
        "tag": {"tokens": ["fox", "ran"], "tags": ["O"]},
    }
    for name, row in bad.items():
        with (inputs / f"{name}.train.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")

    spawn(quarantine_each, tmp_path / "two", inputs, list(bad))
    for name, row in bad.items():
        files = (tmp_path / "two" / name).glob("quarantine*.jsonl")
        lines = [line for file in files for line in file.read_text().splitlines()]
        assert len(lines) == 1 and next(iter(row)) in lines[0], (name, lines)


def test_streamed_rows_are_not_shared_by_processes() -> None:
    rows = Dataset.from_list([{"a": 1}] * 3).to_iterable_dataset()
    trainer = SimpleNamespace(args=SimpleNamespace(world_size=2), accelerator=None)
    with pytest.raises(ConfigError, match="count some twice"):
        _share_rows(trainer, SimpleNamespace(dataset=rows))


@pytest.mark.parametrize("rows", [1, 7, 8, 9, 13, 16, 17])
@pytest.mark.parametrize("processes", [2, 3])
def test_processes_share_rows_in_order_and_repeat_none_within_a_batch(
    rows: int, processes: int
) -> None:
    shares = [list(_Shares(rows, 4, processes, index)) for index in range(processes)]
    seen, repeated = [], 0
    for number, batches in enumerate(zip(*shares, strict=True)):
        assert len({len(batch) for batch in batches}) == 1  # or they would wait for each other
        together = [row for batch in batches for row in batch]
        if number == len(shares[0]) - 1 and rows % processes:
            repeated = processes - rows % processes
            assert {len(batch) for batch in batches} == {1}
        seen += together
    assert seen[: len(seen) - repeated] == list(range(rows))
