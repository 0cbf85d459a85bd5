"""Metrics of held-out pairs: each pair counts once, whatever the batches."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from hfstack.intervals import share_interval
from hfstack.tasks.preferences.pair_counting import EachPairCounts
from tests.one_training_step import OLD_CHECKPOINTING, ONE_STEP

pytestmark = OLD_CHECKPOINTING

WORDS = "fox owl ball river hill sun home kind brave red".split()


def write_pairs(path: Path, first: int, last: int) -> Path:
    """Write pairs whose sides have no rule, so that some are ordered right and some are not."""
    rows = []
    for i in range(first, last):
        sides = f" {WORDS[i % 10]} {i * 7 % 13}", f" {WORDS[i * 3 % 10]} {i * 5 % 11} again"
        chosen, rejected = sides if i * 37 // 8 % 2 else sides[::-1]
        rows.append({"prompt": f"Say {i}:", "chosen": chosen, "rejected": rejected})

    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("recipe", ["dpo", "orpo"])
def test_a_short_last_batch_counts_its_pairs(
    run_recipe, recipe: str, tiny_llama: Path, tmp_path: Path
):
    train = write_pairs(tmp_path / "train.jsonl", 0, 16)
    held_out = write_pairs(tmp_path / "eval.jsonl", 100, 109)
    found = {}

    for batch in (1, 8):  # nine pairs: 1 + 1 + ..., where each is a batch, and 8 + 1
        settings = ONE_STEP | {
            "model_name_or_path": tiny_llama,
            "datasets": train,
            "eval_datasets": held_out,
            "output_dir": tmp_path / str(batch),
            "per_device_train_batch_size": 4,
            "per_device_eval_batch_size": batch,
            "learning_rate": 1e-3,
        }
        found[batch] = run_recipe(recipe, *(f"--{key}={value}" for key, value in settings.items()))

    alone, together = found[1], found[8]
    assert 0 < alone["eval_accuracy"] < 1  # else every way to average gives the same
    right = alone["eval_accuracy"] * 9
    assert right == pytest.approx(round(right), abs=1e-4)

    for name in ("accuracy", "rewards/chosen", "rewards/margins", "logps/rejected"):
        value = alone[f"eval_{name}"]
        assert together[f"eval_{name}"] == pytest.approx(value, rel=1e-4, abs=1e-6), name
    assert together["eval_loss"] == pytest.approx(alone["eval_loss"], rel=1e-5)

    shares = [1.0] * round(right) + [0.0] * (9 - round(right))
    interval = together["eval_accuracy_low"], together["eval_accuracy_high"]
    assert interval == pytest.approx(share_interval(shares), abs=1e-4)


class EchoTrainer:
    """Stands for TRL's trainer on two processes, whose last batch repeats a pair to fill up."""

    def __init__(self, rows: list[list[float]], *, remainder: int) -> None:
        self._metrics: dict[str, dict[str, list[float]]] = {"eval": {"margin": []}}
        self.args = SimpleNamespace(device="cpu", world_size=2, process_index=0)
        self.rows, self.logged = rows, {}
        state = SimpleNamespace(end_of_dataloader=False, remainder=remainder)
        self.accelerator = TwoProcesses(state)

    def prediction_step(self, model, inputs):
        batch = self.rows[len(self._metrics["eval"]["margin"])]
        margins = self.accelerator.gather(torch.tensor(batch))
        self._metrics["eval"]["margin"].append(margins.mean().item())
        return None, None, None

    def log(self, logs, start_time=None):
        self.logged = {name: sum(v) / len(v) for name, v in self._metrics["eval"].items()}


class TwoProcesses:
    """Gathers and adds what both processes have; of the last batch the second has none."""

    def __init__(self, gradient_state: SimpleNamespace) -> None:
        self.gradient_state = gradient_state

    def gather(self, values):
        return values

    def reduce(self, values, how):
        assert how == "sum"
        return values if self.gradient_state.end_of_dataloader else values * 2


def test_pairs_that_fill_the_last_batch_of_processes_count_once():
    class Counted(EachPairCounts, EchoTrainer):
        means_are_local = True

    trainer = Counted(rows=[[1.0, 1.0, 1.0, 0.0], [0.0, 1.0]], remainder=1)
    trainer.prediction_step(None, {"input_ids": torch.zeros(4, 3)})  # two pairs on each process
    trainer.accelerator.gradient_state.end_of_dataloader = True
    trainer.prediction_step(None, {"chosen_input_ids": torch.zeros(1, 3)})
    trainer.log({})
    assert trainer.logged == {"margin": pytest.approx(3 / 5)}
