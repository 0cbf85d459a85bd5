"""Share what pretraining on text needs: its tokenizer, its rows, its refusals."""

from dataclasses import dataclass

from transformers import TrainingArguments
from trl import ModelConfig

from hfstack.data.columns import require_text
from hfstack.data.sources import DataArgs, load_splits
from hfstack.data.splitting import Splits
from hfstack.errors import ConfigError
from hfstack.runs.run import Run
from hfstack.training.settings import check_settings


@dataclass
class PretrainingArgs:
    """What every pretraining needs beside the upstream settings."""

    tokenizer_name_or_path: str | None = None
    """Tokenizer: a folder or a Hub id; the model's own by default."""
    early_stopping_patience: int | None = None
    """Stop after this many evaluations without a better eval_loss; needs --load_best_model_at_end.
    """


def check_pretraining(
    model_args: ModelConfig, training_args: TrainingArguments, args: PretrainingArgs
) -> None:
    """Refuse settings that train nonsense, and those that tune a finished model.

    Raises:
        ConfigError: naming them.
    """
    check_settings(training_args, early_stopping_patience=args.early_stopping_patience)
    if model_args.use_peft or model_args.load_in_4bit or model_args.load_in_8bit:
        raise ConfigError(
            "--use_peft, --load_in_4bit and --load_in_8bit tune a finished model, and this recipe "
            "pretrains one: use sft or classify"
        )


def load_text(
    run: Run, model_args: ModelConfig, data_args: DataArgs, args: PretrainingArgs
) -> Splits:
    """Load the splits of text, and record in run.json what the run reads.

    Raises:
        DataError: there is no column of text, a row is bad, or a resumed run would read other data.
    """
    quarantine = run.output_dir / "quarantine.jsonl"
    splits = load_splits(
        data_args, quarantine_file=quarantine, row_counts=run.record.rows, may_stream=True
    )
    run.record_inputs(model_args.model_name_or_path, args.tokenizer_name_or_path, **splits.inputs)
    require_text(splits, data_args.text_column, recipe=run.record.recipe)
    return splits
