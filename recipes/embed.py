"""Train a model for search and similarity, and measure it beside BM25.

    accelerate launch recipes/embed.py --config recipes/embed.yaml --learning_rate 5e-5
    hfstack run embed --datasets faq.jsonl --query_column question --passage_column answer   # same

reads   rows of a query and its passage, with negatives (triplets) or a score where they have them;
        an encoder, a causal model, or a model of sentence-transformers
writes  a folder that plain sentence-transformers loads, task.json, rankings.jsonl of the held-out
        rows and run.json in --output_dir
"""

from dataclasses import dataclass

from transformers import TrainingArguments
from trl import ModelConfig

from hfstack.config import command_line
from hfstack.data.sources import DataArgs
from hfstack.errors import refusals_of_upstream
from hfstack.models.adapters import check_adapter_flags
from hfstack.publishing.checkpoint_push import push_checkpoints
from hfstack.runs.run import Run
from hfstack.tasks.retrieval.evaluation import make_evaluation
from hfstack.tasks.retrieval.model import Pooling, RetrieverKind, add_adapter, load_base
from hfstack.tasks.retrieval.ranking import Tokens
from hfstack.tasks.retrieval.rows import RowsArgs, as_columns, load_text_pairs
from hfstack.tasks.retrieval.saved import refuse_shards, save_embedder
from hfstack.tasks.retrieval.trainer import (
    LossArgs,
    batch_problems,
    make_trainer,
    mine_negatives,
)
from hfstack.tasks.shared.task_models import save_task
from hfstack.training.callbacks import early_stopping
from hfstack.training.checkpointing import protect
from hfstack.training.preflight import checked
from hfstack.training.settings import check_best_metric, check_settings


@dataclass
class EmbedArgs(RowsArgs, LossArgs):
    """What is trained and from which rows, beside the upstream settings."""

    kind: RetrieverKind = "bi_encoder"
    """bi_encoder (a vector of each text, for search in large collections) or cross_encoder (reads
    a query with a passage, and puts the best of a search in order).
    """
    pooling: Pooling = "auto"
    """How the tokens of a text become one vector: mean, cls or lasttoken; auto is the model's own,
    else mean, and of a causal model lasttoken.
    """
    max_length: int | None = None
    """Tokens of a text that are read, of a cross_encoder tokens of a pair; by default what the
    model is set to, at most 512.
    """
    query_prompt: str | None = None
    """Put in front of each query, in training and in use, such as "query: "."""
    passage_prompt: str | None = None
    """Put in front of each passage."""
    early_stopping_patience: int | None = None
    """Stop after this many evaluations without a better metric; needs --load_best_model_at_end."""
    bm25_tokens: Tokens = "auto"
    """What the baseline BM25 compares: words, characters (and their pairs, for scripts without
    spaces) or auto, by the script.
    """


def main(
    model_args: ModelConfig,
    data_args: DataArgs,
    embed_args: EmbedArgs,
    training_args: TrainingArguments,
) -> dict[str, float]:
    """Train, measure on held-out rows beside BM25, and save; return the metrics."""
    args, settings = embed_args, (model_args, data_args, embed_args, training_args)
    with Run.start(__file__, training_args.output_dir, *settings) as run:
        checkpoint = run.resume_point()
        check_settings(training_args, early_stopping_patience=args.early_stopping_patience)
        check_adapter_flags(model_args)
        refuse_shards(training_args)

        # data: a passage is trained on or held out, never both
        bad_file, counts = run.output_dir / "quarantine.jsonl", run.record.rows
        pairs, inputs = load_text_pairs(
            data_args, args, quarantine_file=bad_file, row_counts=counts
        )
        run.record_inputs(model_args.model_name_or_path, **inputs)
        rows = {name: as_columns(split) for name, split in pairs.items()}

        # model
        prompts = {"query": args.query_prompt, "document": args.passage_prompt}
        model = load_base(
            model_args,
            args.kind,
            pooling=args.pooling,
            max_length=args.max_length,
            prompts={name: text for name, text in prompts.items() if text is not None},
        ).to(training_args.device)

        # the model before training: what it finds, and what it takes for an answer that is none
        batch_size = training_args.per_device_eval_batch_size
        evaluation = make_evaluation(
            args.kind, pairs, tokens=args.bm25_tokens, batch_size=batch_size
        )
        if evaluation is not None:
            check_best_metric(training_args, [evaluation.headline])
        before = evaluation and evaluation.measure(model)
        if args.hard_negatives:
            rows["train"] = mine_negatives(
                model,
                rows["train"],
                args.hard_negatives,
                margin=args.negative_margin,
                batch_size=batch_size,
            )

        # trainer
        add_adapter(model_args, model, args.kind)
        with refusals_of_upstream():
            trainer = make_trainer(
                model,
                args.kind,
                training_args,
                rows=rows,
                mini_batch_size=args.mini_batch_size,
                matryoshka_dims=args.matryoshka_dims,
                measure=evaluation and evaluation.brief,
                callbacks=[
                    *early_stopping(args.early_stopping_patience),
                    *protect(run, push_checkpoints(training_args)),
                ],
            )
        problems, tokenizer = batch_problems(trainer), model.tokenizer
        trained = checked(trainer, tokenizer, problems).train(resume_from_checkpoint=checkpoint)

        # what `predict` and `search` need to use the model again
        columns = {"query": args.query_column, "passage": args.passage_column}
        save_task(run.output_dir, {"kind": args.kind, "columns": columns})
        save_embedder(run, trainer, pairs["train"])

        # evaluate
        metrics = {"train_loss": trained.training_loss, "train_rows": len(rows["train"])}
        if evaluation is not None and before is not None:
            after = evaluation.measure(model)
            metrics |= evaluation.report(after, before)
            evaluation.write(run.output_dir / "rankings.jsonl", after)
            run.add_artifact("rankings", "rankings.jsonl")
            if args.matryoshka_dims:
                table = evaluation.by_dimensions(model, args.matryoshka_dims)
                run.add_table("by dimensions", *table)

        return run.finish(metrics, trainer)


if __name__ == "__main__":
    command_line(main)
