"""What people judged trains reward, dpo, kto and sft as it is exported, as texts and as turns."""

from pathlib import Path
from typing import Any

import pytest

from tests.feedback.feedback_project import judge_items
from tests.one_training_step import OLD_CHECKPOINTING
from tests.tiny_chat import save_tiny_chat

pytestmark = OLD_CHECKPOINTING

TINY = (
    "--per_device_train_batch_size=4 --gradient_accumulation_steps=1 --max_steps=1 --bf16=false "
    "--activation_checkpointing=false --save_strategy=no --eval_strategy=no --eval_fraction=0.25 "
    "--max_length=128 --learning_rate=1e-3 --report_to=none --dataloader_pin_memory=false"
).split()


@pytest.mark.parametrize("as_turns", [False, True], ids=["texts", "turns"])
@pytest.mark.parametrize(
    ("kind", "file", "recipes"),
    [
        ("pairs", "pairs", ["reward", "dpo", "kto"]),
        ("ranking", "rankings", ["reward", "dpo"]),
        ("thumbs", "thumbs", ["kto"]),
        ("correction", "corrections", ["sft"]),
    ],
)
def test_an_export_trains_unchanged(
    run_recipe: Any,
    tiny_llama: Path,
    tmp_path: Path,
    kind: str,
    file: str,
    recipes: list[str],
    as_turns: bool,
) -> None:
    model = save_tiny_chat(tiny_llama, tmp_path / "model")
    judge_items(tmp_path / "judged", kind, as_turns=as_turns)
    run_recipe("feedback", "--stores", tmp_path / "judged", "--output_dir", tmp_path / "feedback")
    rows = tmp_path / "feedback" / f"{file}.jsonl"
    assert len(rows.read_text().splitlines()) == 12

    for recipe in recipes:
        own = {"sft": ["--assistant_only_loss=false", "--answer_rows=0"], "reward": []}
        flags = [*TINY, *own.get(recipe, ["--sample_tokens=4"])]
        metrics = run_recipe(
            *(recipe, f"--model_name_or_path={model}", f"--datasets={rows}", *flags),
            f"--output_dir={tmp_path / recipe}",
        )
        assert metrics["train_loss"] > 0, recipe
