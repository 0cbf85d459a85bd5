"""Predict every row of a file with a finished model.

    accelerate launch recipes/predict.py --config recipes/predict.yaml --datasets new.jsonl
    hfstack run predict --model_name_or_path runs/classify --datasets new.jsonl  # the same, shorter

reads   a model that classify has trained, or one like it; rows with its columns, labels are not
        needed
writes  predictions.jsonl in --output_dir, and predictions.csv for a .csv, a line for each row, in
        order
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from trl import ModelConfig

from hfstack.config import command_line
from hfstack.data.sources import OnBadRow, Source, as_sources, describe_sources, iterate_rows
from hfstack.errors import ConfigError
from hfstack.models.contents import ModelKind
from hfstack.runs.inputs import digests
from hfstack.runs.run import Run, RunArgs
from hfstack.tasks.classification.predict import load_classify_predictor
from hfstack.tasks.masked_lm.fill_mask import load_fill_predictor
from hfstack.tasks.question_answering.metrics import load_answer_predictor
from hfstack.tasks.retrieval.predict import load_embed_predictor, load_rerank_predictor
from hfstack.tasks.seq2seq.metrics import load_seq2seq_predictor
from hfstack.tasks.shared.predict import (
    Predictor,
    count_predictions,
    task_of,
    write_csv,
    write_predictions,
)
from hfstack.tasks.token_classification.metrics import load_tag_predictor

# What a model was trained for -> what loads it. Each returns a function from rows to as many
# answers.
TASKS: dict[ModelKind, Callable[..., Predictor]] = {
    "sequence classifier": load_classify_predictor,
    "reward model": load_classify_predictor,
    "token classifier": load_tag_predictor,
    "question answering model": load_answer_predictor,
    "encoder-decoder": load_seq2seq_predictor,
    "masked language model": load_fill_predictor,
    "embedding model": load_embed_predictor,
    "reranker": load_rerank_predictor,
}


@dataclass
class PredictArgs:
    """What to predict, and how."""

    datasets: list[Source]
    """Rows to predict: local files, globs, folders or Hub ids."""
    text_column: str | None = None
    """Column of the text (for answer the question, for seq2seq the source); by default the one it
    was trained on.
    """
    text_pair_column: str | None = None
    """Column of the second text (of the context, for answer); by default the one that the model was
    trained on.
    """
    batch_size: int = 32
    """Rows of a forward pass."""
    max_length: int | None = None
    """Longest text in tokens, the rest is truncated; by default what the model was trained with."""
    max_rows: int | None = None
    """Predict at most this many rows of each dataset; all by default."""
    on_bad_row: OnBadRow = "fail"
    """What to do with a malformed row of a local file: fail, skip it, or quarantine it into a file;
    a row that is skipped has a line without a prediction.
    """

    def __post_init__(self) -> None:
        for name in ("batch_size", "max_length", "max_rows"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ConfigError(f"--{name} must be at least 1, got {value}")


@dataclass
class PredictionsArgs:
    """What is written of each row."""

    keep_columns: list[str] = field(default_factory=list)
    """Columns of the rows to repeat in the predictions, such as an id."""
    format: Literal["auto", "jsonl", "csv"] = "auto"
    """Of the predictions: JSON lines, or a table; auto is a table where the rows are of tables."""


def main(
    model_args: ModelConfig,
    predict_args: PredictArgs,
    predictions_args: PredictionsArgs,
    run_args: RunArgs,
) -> dict[str, float]:
    """Predict and write; return how many rows."""
    settings = (model_args, predict_args, predictions_args, run_args)
    with Run.start(__file__, run_args.output_dir, *settings) as run:
        # model
        run.record_inputs(model_args.model_name_or_path)
        load = TASKS[task_of(model_args, TASKS)]
        predict = load(
            model_args,
            columns=(predict_args.text_column, predict_args.text_pair_column),
            batch_size=predict_args.batch_size,
            max_length=predict_args.max_length,
        )

        # data
        sources = as_sources(predict_args.datasets)
        run.record_inputs(predict=describe_sources(sources))

        rows = iterate_rows(
            sources,
            columns=predictions_args.keep_columns,
            numbers=(),
            keep_places=True,
            on_bad_row=predict_args.on_bad_row,
            quarantine_file=run.output_dir / "quarantine.jsonl",
            max_rows=predict_args.max_rows,
        )

        # predict
        path = run.output_dir / "predictions.jsonl"
        count = write_predictions(
            rows,
            predict,
            path,
            identity=f"{run.record.config_hash} {digests(run.record.models)} {run.record.data}",
            keep=predictions_args.keep_columns,
            window_rows=32 * predict_args.batch_size,
        )

        # what was predicted, and what was not
        labels, problems = count_predictions(path)
        files = [file for source in sources for file in source.find_files()]
        is_table = bool(files) and all(file.is_table for file in files)
        if {"auto": is_table, "csv": True, "jsonl": False}[predictions_args.format]:
            path = write_csv(path)

        run.add_artifact("predictions", path.name)
        shown = "".join(f", {number} {label}" for label, number in labels.most_common(10))
        print(f"{count} rows: {path}{shown}")
        for problem, number in problems.most_common(10):
            print(f"{number} rows without a prediction: {problem}")

        metrics = {"rows": count}
        if problems:
            metrics["rows_without_prediction"] = problems.total()
        return run.finish(metrics)


if __name__ == "__main__":
    command_line(main)
