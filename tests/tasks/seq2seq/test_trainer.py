"""The settings of a Trainer that generates texts while it is evaluated."""

import dataclasses
from pathlib import Path

import pytest
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments

from hfstack.errors import ConfigError
from hfstack.tasks.seq2seq.trainer import InOrderSeq2SeqTrainer, seq2seq_trainer_settings
from hfstack.tasks.shared.token_tasks import InOrderTrainer
from hfstack.training.token_average import EachRowCounts


def test_settings(tmp_path: Path) -> None:
    common = {
        "output_dir": str(tmp_path),
        "use_cpu": True,
        "report_to": "none",
        "eval_strategy": "epoch",
    }
    best = {
        "load_best_model_at_end": True,
        "metric_for_best_model": "bleu",
        "save_strategy": "epoch",
    }
    decoding = {"max_length": 30, "num_beams": 4}
    args = Seq2SeqTrainingArguments(**common, **best, predict_with_generate=True)
    found = seq2seq_trainer_settings(args, decoding, scores=["bleu"])
    assert (found.generation_max_length, found.generation_num_beams) == (30, 4)
    assert args.generation_max_length is None, "the settings of the run stay as they were given"
    with pytest.raises(
        ConfigError, match="--metric_for_best_model bleu needs --predict_with_generate true"
    ):
        seq2seq_trainer_settings(
            Seq2SeqTrainingArguments(**common, **best), decoding, scores=["bleu"]
        )
    with pytest.raises(
        ConfigError,
        match="--metric_for_best_model meteor does not fit this task: choose bleu, chrf",
    ):
        seq2seq_trainer_settings(
            dataclasses.replace(args, metric_for_best_model="meteor"),
            decoding,
            scores=["bleu", "chrf"],
        )


def test_evaluation_is_in_order() -> None:
    assert InOrderSeq2SeqTrainer._get_eval_sampler is InOrderTrainer._get_eval_sampler
    # each batch is generated as upstream does it, and then its tokens are counted
    after = InOrderSeq2SeqTrainer.__mro__[InOrderSeq2SeqTrainer.__mro__.index(EachRowCounts) + 1 :]
    steps = [cls for cls in after if "prediction_step" in vars(cls)]
    assert steps[0] is Seq2SeqTrainer
