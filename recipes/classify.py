"""Train a classifier of texts or pairs of texts, and measure how far to trust it.

    accelerate launch recipes/classify.py --config recipes/classify.yaml --learning_rate 5e-5
    hfstack run classify --learning_rate 5e-5                       # the same, shorter

reads   rows with a text, or two, and a label; or a task of GLUE by name; an encoder, a causal
        model or an architecture
writes  the model with its head (or adapter and head), classifier.json, predictions, pictures and
        run.json
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

from peft import get_peft_model
from transformers import TrainingArguments
from trl import ModelConfig

from hfstack.config import command_line
from hfstack.data.sources import DataArgs
from hfstack.errors import refusals_of_upstream
from hfstack.models.context import context_length
from hfstack.models.heads import lora_beside_head, padding_id
from hfstack.models.loading import find_architecture, load_tokenizer
from hfstack.publishing.checkpoint_push import push_checkpoints
from hfstack.runs.run import Run
from hfstack.tasks.classification.data import LabelArgs, encode_split, load_labelled
from hfstack.tasks.classification.labels import class_weights
from hfstack.tasks.classification.loss import (
    check_encoder_settings,
    classification_loss,
    classifier_settings,
)
from hfstack.tasks.classification.metrics import trainer_metrics
from hfstack.tasks.classification.model import (
    ClassifierInfo,
    freeze_encoder,
    load_classifier,
    load_trained_classifier,
)
from hfstack.tasks.classification.predict import classify_logits
from hfstack.tasks.classification.report import record_split
from hfstack.tasks.classification.soft_labels import SoftLabelArgs, add_soft_labels, soft_label_loss
from hfstack.tasks.shared.token_tasks import InOrderTrainer
from hfstack.tokens.text_rows import choose_max_length, pad_rows
from hfstack.training.callbacks import early_stopping
from hfstack.training.checkpointing import protect
from hfstack.training.preflight import accumulation_problems, checked
from hfstack.training.saving import save_trained
from hfstack.training.settings import check_settings


@dataclass
class ClassifyArgs(SoftLabelArgs):
    """What a classifier needs beside the upstream settings."""

    tokenizer_name_or_path: str | None = None
    """Tokenizer: a folder or a Hub id; the model's own by default."""
    class_weights: bool = False
    """Weigh classes by how rare they are in the train rows, so that each counts the same."""
    freeze_encoder: bool = False
    """Train the head only, on an encoder that stays as it is."""
    attention_dropout: float | None = 0.0
    """Dropout of attention weights; 0 lets a CPU use its fused attention. `null` in YAML keeps the
    model's own.
    """
    early_stopping_patience: int | None = None
    """Stop after this many evaluations without a better metric; needs --load_best_model_at_end."""
    calibrate: bool = True
    """Fit a temperature on the held-out rows, saved with it: then probabilities are frequencies."""


def main(
    model_args: ModelConfig,
    data_args: DataArgs,
    label_args: LabelArgs,
    classify_args: ClassifyArgs,
    training_args: TrainingArguments,
) -> dict[str, float]:
    """Train, measure on held-out rows and save; return the metrics."""
    args = classify_args
    settings = (model_args, data_args, label_args, classify_args, training_args)
    with Run.start(__file__, training_args.output_dir, *settings) as run:
        checkpoint = run.resume_point()
        check_settings(training_args, early_stopping_patience=args.early_stopping_patience)
        check_encoder_settings(
            use_peft=model_args.use_peft,
            freeze_encoder=args.freeze_encoder,
            architecture=find_architecture(model_args.model_name_or_path or "") is not None,
        )

        # data
        bad_file, counts = run.output_dir / "quarantine.jsonl", run.record.rows
        labelled = load_labelled(data_args, label_args, quarantine_file=bad_file, row_counts=counts)
        labels = labelled.labels
        models = (model_args.model_name_or_path, args.tokenizer_name_or_path, args.teacher_model)
        run.record_inputs(*models, **labelled.inputs)

        # model
        new_modules: list[str] = []
        tokenizer = load_tokenizer(model_args, args.tokenizer_name_or_path)
        model: Any = load_classifier(
            model_args,
            tokenizer,
            problem_type=labels.problem_type,
            id2label=labels.id2label,
            attention_dropout=args.attention_dropout,
            new_modules=new_modules,
        )
        if args.freeze_encoder:
            freeze_encoder(model, new_modules)
        if (adapter := lora_beside_head(model_args, new_modules, model=model)) is not None:
            model = get_peft_model(model, adapter)

        # rows as the model reads them
        max_length = choose_max_length(
            label_args.max_length, context_length(model.config), tokenizer.model_max_length
        )
        encode = partial(
            encode_split,
            tokenizer=tokenizer,
            max_length=max_length,
            overlong=label_args.overlong,
            skip_empty=data_args.on_bad_row != "fail",
            row_counts=counts,
        )
        encoded = {name: encode(labelled, name) for name in labelled.splits}
        taught = add_soft_labels(args, model_args, labelled, encoded["train"])
        info = ClassifierInfo(
            labels.problem_type, list(labels.names), *labelled.columns, max_length=max_length
        )
        weights = class_weights(encoded["train"].targets, labels) if args.class_weights else None
        hard_loss = classification_loss(labels.problem_type, weights)
        pad = padding_id(tokenizer)

        # trainer
        with refusals_of_upstream():
            trainer = InOrderTrainer(
                model=model,
                args=classifier_settings(
                    training_args, labels.problem_type, labels.count, labelled.task
                ),
                train_dataset=taught.rows,
                eval_dataset=encoded["eval"].rows if "eval" in encoded else None,
                processing_class=tokenizer,
                data_collator=partial(pad_rows, pad_token_id=pad),
                compute_loss_func=soft_label_loss(hard_loss, args),
                compute_metrics=trainer_metrics(labels.problem_type),
                callbacks=[
                    *early_stopping(args.early_stopping_patience),
                    *protect(run, push_checkpoints(training_args)),
                ],
            )
        problems = accumulation_problems(trainer)
        trained = checked(trainer, tokenizer, problems).train(resume_from_checkpoint=checkpoint)

        # with what `predict` needs to use the model again
        info.save(run.output_dir)
        run.add_artifact("classifier", "classifier.json")
        save_trained(run, trainer, lambda saved: load_trained_classifier(saved)[0])

        # evaluate
        metrics = {"train_loss": trained.training_loss, "train_rows": len(taught.rows)}
        for name, split in encoded.items():
            if name == "train":
                continue
            seed = training_args.seed if args.calibrate and name == "eval" else None
            logits = classify_logits(model, split.rows.to_list(), pad_token_id=pad)
            metrics |= record_split(
                run, logits, split, info, name=name, seed=seed, benchmark=labelled.benchmark
            )

        info.save(run.output_dir)  # with the temperature
        return run.finish(metrics, trainer)


if __name__ == "__main__":
    command_line(main)
