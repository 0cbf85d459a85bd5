"""The ladder recipe on tiny models: what each rung writes, that finished rungs are not done again,
and refusals.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hfstack.errors import CheckpointError, ConfigError, DataError, Preempted
from hfstack.runs.record import read_run
from tests.conftest import ROOT, SENTENCES


@pytest.fixture
def ladder(run_recipe, tiny_tokenizer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Call the recipe with small settings; keyword arguments override them."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "hf"))
    tiny_tokenizer.save_pretrained(tmp_path / "tokenizer")
    rows = [{"text": f"{i} {SENTENCES[i % 4]}"} for i in range(80)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def call(**changes: object) -> dict[str, float]:
        settings = {
            "architectures": ["llama-1m.json"],
            "tokenizer_name_or_path": tmp_path / "tokenizer",
            "datasets": tmp_path / "rows.jsonl",
            "eval_fraction": 0.2,
            "output_dir": tmp_path / "out",
            "block_size": 16,
            "sizes": [1e4, 3e4],
            "budgets": [1.5e9],
            "per_device_train_batch_size": 16,
            "eval_strategy": "no",
            "save_strategy": "no",
            "logging_steps": 5,
            "report_to": "none",
            "bf16": "false",
            "dataloader_pin_memory": "false",
        } | changes
        flags = []
        for name, value in settings.items():
            flags += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
        return run_recipe("scaling_ladder", *flags)

    return call


def rungs(folder: Path) -> dict[str, Path]:
    return {path.parent.name: path.parent for path in sorted((folder / "rungs").glob("*/run.json"))}


def test_every_rung_is_a_run_of_its_own_and_is_not_done_again(ladder, tmp_path: Path) -> None:
    architectures = ["llama-1m.json", "gru-1m.json"]
    ladder(architectures=architectures, sizes=[1e4])
    written = {
        folder: (folder / "model.safetensors").stat().st_mtime_ns
        for folder in rungs(tmp_path / "out").values()
    }
    assert len(written) == 2

    metrics = ladder(architectures=architectures, sizes=[1e4, 3e4])
    for folder, when in written.items():
        assert (folder / "model.safetensors").stat().st_mtime_ns == when

    found = rungs(tmp_path / "out")
    assert len(found) == metrics["rungs"] == 4
    record = read_run(tmp_path / "out")
    for name, folder in found.items():
        rung = read_run(folder)
        assert rung.status == "finished" and rung.settings["Rung"]["name"] == name
        assert rung.rows == record.rows and rung.rows.splits["train"].read == 80
        values = rung.metrics
        assert values["flops"] == pytest.approx(1.5e9, rel=0.1)
        assert (
            values["flops_6nd"]
            == 6 * values["parameters"] * values["tokens"]
            > values["flops_kaplan"]
        )
        assert (
            values["eval_loss"] > 0 and values["bits_per_byte"] > 0 and values["unique_tokens"] > 0
        )
        assert (folder / "model.safetensors").is_file() and record.artifacts[
            f"rung {name}"
        ] == f"rungs/{name}/run.json"
        config = json.loads((folder / "config.json").read_text())
        assert config["vocab_size"] == 300
    table = record.tables["rungs"]
    losses = [row[table["columns"].index("eval_loss")] for row in table["rows"]]
    assert sorted(losses) == sorted(
        read_run(folder).metrics["eval_loss"] for folder in found.values()
    )


def test_a_ladder_that_was_stopped_goes_on(
    ladder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = ladder(output_dir=tmp_path / "whole", save_strategy="steps", save_steps=10)
    from hfstack.training.callbacks import StopWhenAsked

    steps = iter(range(10_000))
    begin = StopWhenAsked.on_step_end

    def ask(self, *arguments, **kwargs) -> None:
        if (
            next(steps)
            == read_run(next(iter(rungs(tmp_path / "whole").values()))).settings["Rung"]["steps"]
            + 12
        ):
            self.run.ask_to_stop()
        begin(self, *arguments, **kwargs)

    monkeypatch.setattr(StopWhenAsked, "on_step_end", ask)
    with pytest.raises(Preempted):
        ladder(save_strategy="steps", save_steps=10)
    states = {name: read_run(folder).status for name, folder in rungs(tmp_path / "out").items()}
    assert (
        sorted(states.values()) == ["finished", "preempted"]
        and read_run(tmp_path / "out").status == "preempted"
    )
    monkeypatch.setattr(StopWhenAsked, "on_step_end", begin)
    assert ladder(save_strategy="steps", save_steps=10) == whole
    for name, folder in rungs(tmp_path / "out").items():
        assert (
            read_run(folder).metrics["eval_loss"]
            == read_run(tmp_path / "whole/rungs" / name).metrics["eval_loss"]
        )
    assert any(read_run(folder).restarts for folder in rungs(tmp_path / "out").values())


def test_a_dry_run_trains_nothing(ladder, tmp_path: Path) -> None:
    metrics = ladder(dry_run="true")
    assert metrics["rungs"] == 2 and metrics["rungs_trained"] == 0 and not rungs(tmp_path / "out")
    table = read_run(tmp_path / "out").tables["rungs"]
    assert [row[table["columns"].index("eval_loss")] for row in table["rows"]] == [None, None]


def test_other_settings_are_refused(ladder, tmp_path: Path) -> None:
    ladder(sizes=[1e4])
    with pytest.raises(CheckpointError, match=r"weight_decay 0\.0 -> 0\.1"):
        ladder(sizes=[1e4], weight_decay=0.1)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"budgets": [1e5]},
            ConfigError,
            r"--budgets 100000 is too small for the llama of [\d,]+ parameters",
        ),
        ({"eval_fraction": 0}, ConfigError, "a ladder needs held-out text: --eval_datasets"),
        ({"text_column": "body"}, DataError, "body"),
        ({"architectures": ["none-1m.json"]}, ConfigError, "no such file; shipped architectures"),
        ({"block_size": 1024, "budgets": [1e11]}, DataError, "less than one block|fewer|block"),
    ],
)
def test_what_is_refused(changes, error, message: str, ladder) -> None:
    with pytest.raises(error, match=message):
        ladder(**changes)


@pytest.mark.slow
def test_two_processes(tmp_path: Path, tiny_tokenizer) -> None:
    """Every rung is divided between the processes, and both agree that a finished ladder has
    nothing to do.
    """
    tiny_tokenizer.save_pretrained(tmp_path / "tokenizer")
    rows = [{"text": f"{i} {SENTENCES[i % 4]}"} for i in range(80)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [
        sys.executable,
        "-m",
        "hfstack.cli",
        "run",
        "scaling_ladder",
        "--processes",
        "2",
        "--tokenizer_name_or_path",
        str(tmp_path / "tokenizer"),
        "--datasets",
        str(tmp_path / "rows.jsonl"),
        "--eval_fraction",
        "0.2",
        "--sizes",
        "1e4",
        "3e4",
        "--budgets",
        "3e9",
        "--block_size",
        "16",
        "--bf16",
        "false",
        "--use_cpu",
        "true",
        "--output_dir",
        str(tmp_path / "out"),
    ]
    environment = os.environ | {
        "HF_HOME": str(tmp_path / "hf"),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }
    for _ in range(2):
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=600, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]
        found = rungs(tmp_path / "out")
        assert len(found) == 2
        for folder in found.values():
            record = read_run(folder)
            assert record.status == "finished" and record.world_size == 2
            rung, metrics = record.settings["Rung"], record.metrics
            assert rung["processes"] == 2
            assert (
                metrics["tokens"]
                == rung["steps"] * 2 * rung["micro_batch"] * rung["accumulation"] * 16
            )
    assert len(read_run(tmp_path / "out").tables["rungs"]["rows"]) == 2
