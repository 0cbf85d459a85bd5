"""Finetune an encoder to answer questions by a span of a text, or not at all.

    accelerate launch recipes/answer.py --config recipes/answer.yaml --learning_rate 3e-5
    hfstack run answer --datasets train.jsonl --eval_datasets test.jsonl        # the same, shorter

reads   rows of question, context and answers (text, answer_start) as SQuAD and CMRC have them; an
        encoder
writes  the model, its tokenizer, task.json, predictions.jsonl of the held-out rows and run.json
        in --output_dir
"""

from dataclasses import dataclass, replace
from functools import partial

from transformers import TrainingArguments
from trl import ModelConfig

from hfstack.config import command_line
from hfstack.data.places import BadRows
from hfstack.data.sources import DataArgs, load_splits
from hfstack.errors import refusals_of_upstream
from hfstack.models.heads import padding_id
from hfstack.models.loading import load_tokenizer
from hfstack.publishing.checkpoint_push import push_checkpoints
from hfstack.runs.run import Run
from hfstack.tasks.question_answering.data import (
    BadAnswers,
    WindowArgs,
    as_span_dataset,
    collate_questions,
    encode_questions,
    read_questions,
)
from hfstack.tasks.question_answering.loss import SpanTrainer
from hfstack.tasks.question_answering.metrics import (
    Rules,
    answer_metric,
    answer_metrics,
    beside_baselines,
    best_texts,
    find_answers,
    write_answers,
)
from hfstack.tasks.shared.task_models import check_length, load_finished, load_with_head, save_task
from hfstack.training.callbacks import early_stopping
from hfstack.training.checkpointing import protect
from hfstack.training.preflight import accumulation_problems, checked
from hfstack.training.saving import save_trained
from hfstack.training.settings import check_best_metric, check_settings


@dataclass
class AnswerArgs:
    """Which columns hold what, and how answers are checked, chosen and scored."""

    question_column: str = "question"
    """Column of the question."""
    context_column: str = "context"
    """Column of the text."""
    answers_column: str = "answers"
    """Column of the answers: {"text": [...], "answer_start": [...]}, empty where the text has none.
    """
    bad_answers: BadAnswers = "fail"
    """Answers that are not in their text where the row says: fail, skip the row, or repair (take
    the nearest place). """
    rules: Rules = "auto"
    """Exact match and F1 as the script of squad or cmrc computes them; auto looks whether the texts
    are Chinese.
    """
    no_answer_threshold: float = 0.0
    """How much better than the best stretch "no answer" must score; used where train rows have no
    answer.
    """
    attention_dropout: float | None = 0.0
    """Dropout of attention weights while training; on a CPU any other than 0 is slow."""
    early_stopping_patience: int | None = None
    """Stop after this many evaluations without a better metric; needs --load_best_model_at_end."""


def main(
    model_args: ModelConfig,
    data_args: DataArgs,
    args: AnswerArgs,
    window_args: WindowArgs,
    training_args: TrainingArguments,
) -> dict[str, float]:
    """Train, measure on held-out texts and save; return the metrics."""
    settings = (model_args, data_args, args, window_args, training_args)
    with Run.start(__file__, training_args.output_dir, *settings) as run:
        checkpoint = run.resume_point()
        check_settings(training_args, early_stopping_patience=args.early_stopping_patience)
        check_best_metric(training_args, ["exact_match", "answer_f1"])

        # data: a text stays on one side of the split, with all its questions
        by_context = replace(data_args, text_column=args.context_column)
        columns = (args.question_column, args.context_column, args.answers_column)
        quarantine, counts = run.output_dir / "quarantine.jsonl", run.record.rows
        splits = load_splits(
            by_context, {"id", *columns}, quarantine_file=quarantine, row_counts=counts
        )
        run.record_inputs(model_args.model_name_or_path, **splits.inputs)
        read = partial(
            read_questions,
            columns=columns,
            bad_answers=args.bad_answers,
            sources=[*data_args.datasets, *data_args.eval_datasets],
            bad_rows=BadRows(data_args.on_bad_row, quarantine, counts),
        )
        questions = {name: read(rows, name=name) for name, rows in splits.items()}

        # model
        tokenizer = load_tokenizer(model_args)
        model = load_with_head(
            model_args, tokenizer, "QuestionAnswering", attention_dropout=args.attention_dropout
        )
        length = check_length(window_args.max_length, model.config, tokenizer, usual=384)
        encode = partial(
            encode_questions, tokenizer=tokenizer, max_length=length, stride=window_args.stride
        )
        windows = {name: encode(rows, name=name) for name, rows in questions.items()}

        # how an answer is chosen from the logits of its windows, and scored
        held_out = questions.get("eval", [])
        metric = answer_metric(args.rules, held_out)
        choice = {
            "max_answer_tokens": window_args.max_answer_tokens,
            "n_best": window_args.n_best,
            "no_answer": any(not question.answers for question in questions["train"]),
            "threshold": args.no_answer_threshold,
        }
        answered = partial(
            find_answers, windows=windows.get("eval", []), questions=held_out, **choice
        )

        # trainer
        with refusals_of_upstream():
            trainer = SpanTrainer(
                model=model,
                args=training_args,
                train_dataset=as_span_dataset(windows["train"]),
                eval_dataset=as_span_dataset(windows["eval"]) if held_out else None,
                processing_class=tokenizer,
                data_collator=partial(collate_questions, pad_token_id=padding_id(tokenizer)),
                callbacks=[
                    *early_stopping(args.early_stopping_patience),
                    *protect(run, push_checkpoints(training_args)),
                ],
                compute_metrics=lambda done: answer_metrics(
                    metric, held_out, best_texts(answered(done.predictions))
                ),
            )
        problems = accumulation_problems(trainer)
        trained = checked(trainer, tokenizer, problems).train(resume_from_checkpoint=checkpoint)

        # what `predict` needs to use the model again
        columns = {"question_column": args.question_column, "context_column": args.context_column}
        window = {"max_length": length, "stride": window_args.stride}
        save_task(run.output_dir, columns | window | choice)
        save_trained(run, trainer, lambda saved: load_finished(saved, "QuestionAnswering")[0])

        # evaluate
        metrics = {"train_loss": trained.training_loss, "train_questions": len(questions["train"])}
        if held_out:
            output = trainer.predict(trainer.eval_dataset, metric_key_prefix="eval")  # pyright: ignore
            found = answered(output.predictions)
            metrics |= output.metrics or {}
            metrics |= beside_baselines(metric, held_out, best_texts(found))
            write_answers(run.output_dir / "predictions.jsonl", held_out, found)
            run.add_artifact("predictions", "predictions.jsonl")

        return run.finish(metrics, trainer)


if __name__ == "__main__":
    command_line(main)
