"""Measure a causal language model on text: perplexity, bits per byte, accuracy.

    accelerate launch recipes/evaluate_lm.py --config recipes/evaluate_lm.yaml --stride 64
    hfstack run evaluate_lm --model_name_or_path runs/pretrain_clm      # the same, shorter

reads   a model and its tokenizer; rows with a column of text
writes  documents.jsonl (a score for each document) and run.json in --output_dir
"""

import json
import time
from dataclasses import asdict, dataclass
from typing import Any

from accelerate import Accelerator
from trl import ModelConfig

from hfstack.config import command_line
from hfstack.data.sources import OnBadRow, Source, SourceLog, describe_sources, iterate_rows
from hfstack.errors import ConfigError, DataError
from hfstack.evidence.training_text import TrainingTextArgs, check_training_text
from hfstack.logs import get_logger
from hfstack.models.context import context_length
from hfstack.models.loading import load_causal_lm, load_tokenizer
from hfstack.models.probes import require_causal
from hfstack.runs.run import Run, RunArgs
from hfstack.tasks.causal_lm.document_scores import bootstrap_interval, score_documents
from hfstack.tasks.causal_lm.metrics import compute_metrics

logger = get_logger(__name__)


@dataclass
class EvaluateArgs:
    """What to measure, and how."""

    eval_datasets: list[Source]
    """Datasets to measure on: Hub ids, local files, globs or folders."""
    text_column: str = "text"
    """Column that holds the text of a document."""
    max_length: int | None = None
    """Window in tokens that the model reads at once; its context by default, 1024 where nothing
    bounds it.
    """
    stride: int | None = None
    """Tokens by which the window advances; half the window by default. Smaller is slower and gives
    more context.
    """
    across_documents: bool = False
    """Join all documents into one, so that context reaches into the document before."""
    batch_size: int = 8
    """Windows per forward pass."""
    max_rows: int | None = None
    """Measure on at most this many rows of each dataset; all by default."""
    on_bad_row: OnBadRow = "fail"
    """What to do with a malformed row of a local file: fail, skip it, or quarantine it into a file.
    """

    def __post_init__(self) -> None:
        for name in ("max_length", "stride", "batch_size", "max_rows"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ConfigError(f"--{name} must be at least 1, got {value}")


def main(
    model_args: ModelConfig,
    evaluate_args: EvaluateArgs,
    text_args: TrainingTextArgs,
    run_args: RunArgs,
) -> dict[str, float]:
    """Score every document and return the metrics."""
    args, settings = evaluate_args, (model_args, evaluate_args, text_args, run_args)
    with Run.start(__file__, run_args.output_dir, *settings) as run:
        # model
        run.record_inputs(model_args.model_name_or_path)
        tokenizer = load_tokenizer(model_args)
        model: Any = load_causal_lm(model_args, tokenizer)
        model.to(Accelerator().device).eval()
        require_causal(model, "its loss would be that of copying, and not of predicting")

        longest = context_length(model.config)
        max_length = args.max_length or longest or 1024
        stride = args.stride or max(1, max_length // 2)
        if longest is not None and max_length > longest:
            raise ConfigError(
                f"--max_length {max_length} is longer than the model's context of {longest} tokens"
            )
        if not 1 <= stride < max_length:
            raise ConfigError(
                f"--stride {stride} must be at least 1 and less than --max_length {max_length}"
            )

        # data
        read: SourceLog = {}
        rows = iterate_rows(
            args.eval_datasets,
            columns={args.text_column},
            log=read,
            on_bad_row=args.on_bad_row,
            quarantine_file=run.output_dir / "quarantine.jsonl",
            max_rows=args.max_rows,
        )
        try:
            texts = [row[args.text_column] for row in rows]
        except KeyError:
            raise DataError(
                f"evaluate_lm needs the column {args.text_column!r}; set --text_column"
            ) from None

        run.record_inputs(eval=describe_sources(args.eval_datasets, read))
        check_training_text(
            run,
            texts,
            text_args.training_text,
            model=model_args.model_name_or_path,
            tokenizer=tokenizer,
        )

        # evaluate
        began = time.perf_counter()
        scores = score_documents(
            model,
            tokenizer,
            texts,
            max_length=max_length,
            stride=stride,
            batch_size=args.batch_size,
            across_documents=args.across_documents,
        )
        seconds = time.perf_counter() - began

        tokens = sum(score.tokens for score in scores)
        metrics = compute_metrics(scores) | {"documents": len(scores), "tokens": tokens}
        metrics["tokens_per_s"] = round(tokens / seconds, 1)
        if len(scores) > 1:
            metrics |= bootstrap_interval(scores, seed=run_args.seed)

        # finish
        with (run.output_dir / "documents.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(asdict(score)) + "\n" for score in scores)
        run.add_artifact("documents", "documents.jsonl")

        logger.info("perplexity %.2f over %d documents", metrics["perplexity"], len(scores))
        return run.finish(metrics)


if __name__ == "__main__":
    command_line(main)
