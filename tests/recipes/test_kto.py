"""The KTO recipe end to end on a tiny model, from thumbs and from pairs."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from hfstack.errors import ConfigError, DataError
from hfstack.runs.record import read_run
from tests.one_training_step import OLD_CHECKPOINTING

pytestmark = OLD_CHECKPOINTING


@pytest.fixture
def kto(run_recipe, tiny_llama: Path, tmp_path: Path):
    """Call the recipe with small settings on a file of rows."""

    def call(rows: list[dict], **changes: object) -> dict[str, float]:
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        settings = {
            "model_name_or_path": tiny_llama,
            "datasets": tmp_path / "rows.jsonl",
            "eval_fraction": 0.25,
            "output_dir": tmp_path / "out",
            "max_steps": 2,
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-2,
            "report_to": "none",
            "bf16": "false",
            "activation_checkpointing": "false",
            "max_length": 64,
            "gradient_checkpointing": "false",
            "dataloader_pin_memory": "false",
            "save_strategy": "no",
            "sample_tokens": 4,
            "logging_steps": 1,
        } | changes
        return run_recipe("kto", *(f"--{k}={v}" for k, v in settings.items() if v is not None))

    return call


def test_learns_from_thumbs(kto):
    answers = {True: " was kind", False: " ran up the hill"}
    rows = [
        {"prompt": f"Fox {i}:", "completion": answers[i % 2 == 0], "label": i % 2 == 0}
        for i in range(40)
    ]
    metrics = kto(rows, max_steps=12)
    assert (
        metrics["eval_rewards/margins"] > 0.5
        and metrics["train_rows"] < 40
        and 0.3 < metrics["good_share"] < 0.7
    )


def test_pairs_become_two_rows_each(kto, tmp_path: Path):
    rows = [{"prompt": f"Fox {i}:", "chosen": " was kind", "rejected": " ran"} for i in range(12)]
    metrics = kto(rows, eval_fraction=0)
    assert metrics["train_rows"] == 24 and metrics["good_share"] == 0.5
    counts = read_run(tmp_path / "out").rows
    assert asdict(counts.splits["train"]) == {
        "read": 12,
        "left_out": {},
        "used": 24,
        "made": "24 answers",
    }
    assert counts.columns_used == ["prompt", "chosen", "rejected"]


def test_one_kind_of_thumb_teaches_nothing(kto):
    rows = [{"prompt": f"Fox {i}:", "completion": " was kind", "label": True} for i in range(12)]
    with pytest.raises(DataError, match="all train labels are the same"):
        kto(rows)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train_sampling_strategy": "random"}, "'sequential'.* Got `train_sampling_strategy="),
        ({"per_device_train_batch_size": 1}, "batch size must be > 1"),
        ({"router_aux_loss_coef": 0.1}, "is not a Mixture-of-Experts"),
    ],
)
def test_what_trl_refuses_is_one_line(kto, settings: dict[str, object], message: str):
    rows = [
        {"prompt": f"Fox {i}:", "completion": " was kind"[:i], "label": i % 2 == 0}
        for i in range(2, 10)
    ]
    with pytest.raises(ConfigError, match=f"^refused by the Trainer: .*{message}"):
        kto(rows, **settings)
