"""Finetune an encoder to tag words: names of people and places, parts of speech.

    accelerate launch recipes/tag.py --config recipes/tag.yaml --learning_rate 3e-5
    hfstack run tag --datasets train.jsonl --eval_datasets test.jsonl           # the same, shorter

reads   rows with a list of words and a list of as many tags (names or numbers); an encoder
writes  the model, its tokenizer, task.json, predictions.jsonl of the held-out rows and run.json
        in --output_dir
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

from transformers import TrainingArguments
from trl import ModelConfig

from hfstack.config import command_line
from hfstack.data.sources import DataArgs
from hfstack.errors import refusals_of_upstream
from hfstack.models.heads import padding_id
from hfstack.models.loading import load_tokenizer
from hfstack.publishing.checkpoint_push import push_checkpoints
from hfstack.runs.run import Run
from hfstack.tasks.shared.task_models import check_length, load_finished, load_with_head, save_task
from hfstack.tasks.shared.token_tasks import InOrderTrainer, token_loss_func
from hfstack.tasks.token_classification.data import (
    BadTags,
    LabelPieces,
    as_tag_dataset,
    collate_sentences,
    encode_sentences,
    load_sentences,
)
from hfstack.tasks.token_classification.metrics import (
    beside_baseline,
    likeliest_tags,
    metric_names,
    tag_metrics,
    type_table,
    word_tags,
    write_tagged,
)
from hfstack.training.callbacks import early_stopping
from hfstack.training.checkpointing import protect
from hfstack.training.preflight import checked, training_problems
from hfstack.training.saving import save_trained
from hfstack.training.settings import check_best_metric, check_settings


@dataclass
class TagArgs:
    """What tagging needs beside the upstream settings."""

    tokens_column: str = "tokens"
    """Column of the words."""
    tags_column: str | None = None
    """Column of the tags; by default the first of tags, ner_tags, pos_tags, labels."""
    tag_names: list[str] = field(default_factory=list)
    """Names of the tags in order, where they are numbers that the data does not name, or where
    train rows lack some.
    """
    label_pieces: LabelPieces = "first"
    """Tokens of a word that are learned: first, or all (after a B- the rest is I-). The first
    decides in any case.
    """
    bad_tags: BadTags = "fail"
    """Entities that begin with I- instead of B-, or that have no begin or end in IOBES, BILOU or
    BMES: fail, repair (make them whole) or keep.
    """
    max_length: int | None = None
    """Tokens of a window; longer sentences are split between words. By default what the model
    reads, at most 512.
    """
    attention_dropout: float | None = 0.0
    """Dropout of attention weights while training; on a CPU any other than 0 is slow."""
    early_stopping_patience: int | None = None
    """Stop after this many evaluations without a better metric; needs --load_best_model_at_end."""


def main(
    model_args: ModelConfig,
    data_args: DataArgs,
    tag_args: TagArgs,
    training_args: TrainingArguments,
) -> dict[str, float]:
    """Train, measure on held-out rows and save; return the metrics."""
    args, settings = tag_args, (model_args, data_args, tag_args, training_args)
    with Run.start(__file__, training_args.output_dir, *settings) as run:
        checkpoint = run.resume_point()
        check_settings(training_args, early_stopping_patience=args.early_stopping_patience)

        # data: equal sentences stay on one side of the split
        sentences, names, inputs = load_sentences(
            data_args,
            tokens_column=args.tokens_column,
            tags_column=args.tags_column,
            tag_names=args.tag_names,
            bad_tags=args.bad_tags,
            quarantine_file=run.output_dir / "quarantine.jsonl",
            row_counts=run.record.rows,
        )
        run.record_inputs(model_args.model_name_or_path, **inputs)
        check_best_metric(training_args, metric_names(names))

        # model
        tokenizer = load_tokenizer(model_args)
        model = load_with_head(
            model_args,
            tokenizer,
            "TokenClassification",
            tags=names,
            attention_dropout=args.attention_dropout,
        )

        # windows of tokens, and the tags that their predictions give the words
        length = check_length(args.max_length, model.config, tokenizer)
        encode = partial(
            encode_sentences,
            tokenizer=tokenizer,
            max_length=length,
            label_pieces=args.label_pieces,
            tag_ids={tag: index for index, tag in enumerate(names)},
        )
        windows = {name: encode(rows, name=name) for name, rows in sentences.items()}
        held_out = sentences.get("eval", [])
        gold = [sentence.tags for sentence in held_out]
        tagged: Any = partial(
            word_tags, windows=windows.get("eval", []), sentences=held_out, names=names
        )

        # trainer
        with refusals_of_upstream():
            trainer = InOrderTrainer(
                model=model,
                args=training_args,
                train_dataset=as_tag_dataset(windows["train"]),
                eval_dataset=as_tag_dataset(windows["eval"]) if gold else None,
                processing_class=tokenizer,
                data_collator=partial(collate_sentences, pad_token_id=padding_id(tokenizer)),
                callbacks=[
                    *early_stopping(args.early_stopping_patience),
                    *protect(run, push_checkpoints(training_args)),
                ],
                compute_metrics=lambda done: tag_metrics(gold, tagged(done.predictions), names),
                compute_loss_func=token_loss_func(training_args.label_smoothing_factor),
                preprocess_logits_for_metrics=likeliest_tags,
            )
        problems = training_problems(trainer, len(names))
        trained = checked(trainer, tokenizer, problems).train(resume_from_checkpoint=checkpoint)

        # what `predict` needs to use the model again
        task = {"tokens_column": args.tokens_column, "max_length": length, "tags": names}
        save_task(run.output_dir, task)
        save_trained(run, trainer, lambda saved: load_finished(saved, "TokenClassification")[0])

        # evaluate
        metrics = {"train_loss": trained.training_loss, "train_sentences": len(sentences["train"])}
        if gold:
            output = trainer.predict(trainer.eval_dataset, metric_key_prefix="eval")  # pyright: ignore
            found = tagged(output.predictions)
            metrics |= output.metrics or {}
            metrics |= beside_baseline(sentences["train"], held_out, found, names)
            run.add_table("scores by type", *type_table(gold, found, names))
            write_tagged(run.output_dir / "predictions.jsonl", held_out, found)
            run.add_artifact("predictions", "predictions.jsonl")

        return run.finish(metrics, trainer)


if __name__ == "__main__":
    command_line(main)
