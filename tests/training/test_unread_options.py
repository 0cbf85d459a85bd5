"""Options that a Trainer does not read are refused, in one line, for each kind of trainer."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trl
from transformers import TrainingArguments
from trl.experimental.orpo import ORPOConfig

from hfstack.errors import ConfigError
from hfstack.training.unread_options import refuse_unread_of


def made(folder: Path, name: str, config: Any = TrainingArguments, **settings: Any) -> Any:
    """Return what looks like a trainer of a class of this name, without metrics."""
    args = config(output_dir=str(folder), use_cpu=True, bf16=False, report_to="none")
    for setting, value in settings.items():
        setattr(args, setting, value)
    return type(name, (SimpleNamespace,), {})(args=args, compute_metrics=None)


@pytest.mark.parametrize(
    ("name", "config", "settings"),
    [
        ("Trainer", TrainingArguments, {"do_train": True}),
        ("Trainer", TrainingArguments, {"do_eval": True}),
        ("Trainer", TrainingArguments, {"hub_strategy": "end"}),
        ("Trainer", TrainingArguments, {"eval_accumulation_steps": 2}),
        ("DPOTrainer", trl.DPOConfig, {"label_smoothing_factor": 0.1}),
        ("KTOTrainer", trl.KTOConfig, {"include_num_input_tokens_seen": "all"}),
        ("RewardTrainer", trl.RewardConfig, {"average_tokens_across_devices": False}),
        ("SpanTrainer", TrainingArguments, {"label_smoothing_factor": 0.1}),
        # rows are encoded, and the tokenizer is recorded, before TRL would change it
        ("RewardTrainer", trl.RewardConfig, {"chat_template_path": "other.jinja"}),
        ("RewardTrainer", trl.RewardConfig, {"eos_token": "<|other|>"}),
        ("DPOTrainer", trl.DPOConfig, {"pad_token": "<|other|>"}),
        ("KTOTrainer", trl.KTOConfig, {"model_init_kwargs": {"dtype": "bfloat16"}}),
        ("SFTTrainer", trl.SFTConfig, {"dataset_text_field": "body"}),
        ("ORPOTrainer", ORPOConfig, {"generate_during_eval": True}),
    ],
)
def test_refused(name: str, config: Any, settings: dict[str, Any], tmp_path: Path):
    refuse_unread_of(made(tmp_path, name, config))
    with pytest.raises(ConfigError, match=f"^--{next(iter(settings))} .*; leave it out$"):
        refuse_unread_of(made(tmp_path, name, config, **settings))


def test_what_is_read_is_accepted(tmp_path: Path):
    settings = {"label_smoothing_factor": 0.1, "eval_accumulation_steps": 2, "data_seed": 1}
    trainer = made(tmp_path, "Trainer", **settings)
    with pytest.raises(ConfigError, match="--eval_accumulation_steps 2 does nothing here"):
        refuse_unread_of(trainer)

    trainer.compute_metrics = len
    refuse_unread_of(trainer)
