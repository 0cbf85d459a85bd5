"""What an evaluation says is a mean over rows or tokens: on two processes as on one."""

import json
import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pytest

from hfstack.config import parse
from hfstack.recipe_settings import load_recipe, settings_classes
from hfstack.training.token_average import _Shares
from tests.tiny_chat import save_tiny_chat
from tests.tiny_encoder import save_tiny_bert
from tests.two_processes import spawn

ROOT = Path(__file__).parent.parent
TRAINED_ROWS, HELD_OUT = 8, 11  # 11 rows: two global batches of 4, and 3 rows that two cannot share


def words(number: int, count: int) -> str:
    """Text of as many words as asked for, another for each number."""
    names = ["fox", "owl", "river", "ball", "hill", "sun", "forest", "girl"]
    chosen = [names[(number * 5 + place * 3) % 8] for place in range(count - 1)]
    return " ".join([f"w{number}", *chosen])


ROWS: dict[str, Callable[[int], dict[str, Any]]] = {
    "pretrain_clm": lambda n: {"text": words(n, 15)},
    "pretrain_mlm": lambda n: {"text": words(n, 15)},
    "sft": lambda n: {"prompt": f"{words(n, 2)}:", "completion": f" {words(n, 1 + n % 11)}"},
    "dpo": lambda n: {
        "prompt": f"{n}:",
        "chosen": f" {words(n, 2)}",
        "rejected": f" {words(n + 1, 1 + n % 7)}",
    },
    "classify": lambda n: {"text": words(n, 1 + n % 11), "label": "ab"[n % 2]},
    "tag": lambda n: {
        "tokens": words(n, 1 + n % 11).split(),
        "tags": (["O", "B-X"] * 20)[: 1 + n % 11],
    },
}
ROWS["kto"] = lambda n: {
    "prompt": f"{n}:",
    "completion": f" {words(n, 1 + n % 11)}",
    "label": n % 2 == 0,
}
ROWS["orpo"] = ROWS["reward"] = ROWS["dpo"]
OWN: dict[str, dict[str, Any]] = {
    "pretrain_clm": {"block_size": 16, "sample_tokens": 2},
    "pretrain_mlm": {"block_size": 16},
    "sft": {"answer_rows": 0, "answer_tokens": 4},
    "classify": {"calibrate": "false"},
}
ALIGNED = {"max_length": 96, "activation_checkpointing": "false", "probe_rows": 0}
for name in ("sft", "dpo", "kto", "orpo"):
    OWN[name] = OWN.get(name, {}) | ALIGNED
for name in ("dpo", "kto", "orpo"):
    OWN[name] |= {"sample_tokens": 2}
OWN["reward"] = {"max_length": 96, "activation_checkpointing": "false"}
ENCODERS = ("pretrain_mlm", "classify", "tag")


def evaluate_each(
    rank: int, folder: Path, inputs: Path, recipes: list[str], batch: int
) -> dict[str, dict[str, float]]:
    """Train a step of next to nothing by each recipe, and return what it measured."""
    found = {}
    for name in recipes:
        settings = {
            "model_name_or_path": inputs / ("bert" if name in ENCODERS else "llama"),
            "datasets": inputs / f"{name}.train.jsonl",
            "eval_datasets": inputs / f"{name}.eval.jsonl",
            "output_dir": folder / name,
            "max_steps": 1,
            "learning_rate": 1e-12,
            "per_device_train_batch_size": batch,
            "per_device_eval_batch_size": batch,
            "bf16": "false",
            "save_strategy": "no",
            "eval_strategy": "no",
            "report_to": "none",
            "dataloader_pin_memory": "false",
        } | OWN.get(name, {})
        module = load_recipe(ROOT / "recipes" / f"{name}.py")
        flags = [f"--{key}={value}" for key, value in settings.items()]
        if rank >= 0:
            flags.append("--ddp_backend=gloo")
        found[name] = module.main(*parse(*settings_classes(module), argv=flags))
    return found


@pytest.fixture
def inputs(tmp_path: Path, tiny_llama: Path) -> Path:
    folder = tmp_path / "inputs"
    save_tiny_bert(folder / "bert")
    save_tiny_chat(tiny_llama, folder / "llama")
    for name, make in ROWS.items():
        for part, numbers in (("train", range(40, 40 + TRAINED_ROWS)), ("eval", range(HELD_OUT))):
            rows = "".join(json.dumps(make(number)) + "\n" for number in numbers)
            (folder / f"{name}.{part}.jsonl").write_text(rows)
    return folder


def check_same(found: dict[str, Any], whole: dict[str, Any], *, but: Collection[Any] = ()) -> None:
    """Every number of an evaluation is the same."""
    wrong = []
    for name, metrics in whole.items():
        measured = {key: value for key, value in metrics.items() if key.startswith("eval_")}
        assert "eval_loss" in measured or name == "classify", name
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
    recipes = list(ROWS)
    whole = evaluate_each(-1, tmp_path / "one", inputs, recipes, 4)
    for found in spawn(evaluate_each, tmp_path / "two", inputs, recipes, 2):
        check_same(found, whole)


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
