"""Losses that a refactoring must not change: fp32 on a CPU, recorded once, compared at each change.

After a change that is meant to alter them:
`python -m pytest tests/recipes/test_golden.py --record-golden`.
"""

import json
from pathlib import Path

import pytest

from tests.conftest import ROOT, SENTENCES

GOLDEN = ROOT / "tests" / "golden" / "pretrain_clm.json"


@pytest.mark.parametrize("name", ["llama-1m", "gpt2-1m", "gru-1m", "lstm-1m"])
def test_pretraining_losses(
    name: str, run_recipe, tmp_path: Path, tiny_tokenizer, monkeypatch: pytest.MonkeyPatch, request
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "hf"))
    tiny_tokenizer.save_pretrained(tmp_path / "tokenizer")
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        "".join(json.dumps({"text": f"{i} {SENTENCES[i % 4]}"}) + "\n" for i in range(60))
    )
    run_recipe(
        "pretrain_clm",
        "--model_name_or_path",
        f"recipes/architectures/{name}.json",
        "--tokenizer_name_or_path",
        tmp_path / "tokenizer",
        "--datasets",
        rows,
        "--eval_fraction",
        0.2,
        "--output_dir",
        tmp_path / "out",
        "--block_size",
        32,
        "--max_steps",
        5,
        "--per_device_train_batch_size",
        4,
        "--learning_rate",
        3e-3,
        "--warmup_steps",
        0,
        "--logging_steps",
        1,
        "--bf16",
        "false",
        "--report_to",
        "none",
        "--save_strategy",
        "no",
        "--dataloader_pin_memory",
        "false",
        "--sample_tokens",
        1,
    )
    history = json.loads((tmp_path / "out" / "trainer_state.json").read_text())["log_history"]
    found = [
        entry.get("loss", entry.get("eval_loss"))
        for entry in history
        if {"loss", "eval_loss"} & entry.keys()
    ]
    golden = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    if request.config.getoption("--record-golden"):
        GOLDEN.parent.mkdir(exist_ok=True)
        GOLDEN.write_text(json.dumps(golden | {name: found}, indent=1, sort_keys=True) + "\n")
        return
    assert found == pytest.approx(golden[name], rel=2e-4)
