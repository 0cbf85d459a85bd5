"""Train an encoder-decoder to translate or summarise.

    accelerate launch recipes/seq2seq.py --config recipes/seq2seq.yaml --learning_rate 3e-4
    hfstack run seq2seq --datasets train.jsonl --eval_datasets test.jsonl       # the same, shorter

reads   rows of a source and a target, or a list of them; a T5, BART or Marian model, or an
        architecture and a tokenizer
writes  the model or adapter, its tokenizer, task.json, predictions.jsonl of the held-out rows and
        run.json
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

from peft import get_peft_model
from transformers import EvalPrediction, Seq2SeqTrainingArguments
from trl import ModelConfig

from hfstack.config import command_line
from hfstack.data.sources import DataArgs
from hfstack.errors import refusals_of_upstream
from hfstack.models.adapters import check_adapter_settings
from hfstack.models.heads import lora_beside_head, padding_id
from hfstack.models.loading import load_tokenizer
from hfstack.publishing.checkpoint_push import push_checkpoints
from hfstack.runs.run import Run
from hfstack.tasks.seq2seq import model as encoder_decoder
from hfstack.tasks.seq2seq.data import (
    collate_pairs,
    encode_sources_and_targets,
    load_sources_and_targets,
)
from hfstack.tasks.seq2seq.metrics import (
    TEXT_SCORES,
    check_metrics,
    decode_texts,
    overlap_metrics,
    record_text_scores,
)
from hfstack.tasks.seq2seq.trainer import InOrderSeq2SeqTrainer, seq2seq_trainer_settings
from hfstack.tasks.shared.task_models import save_task
from hfstack.tasks.shared.token_tasks import token_loss_func
from hfstack.tokens.text_rows import Overlong, read_overlong
from hfstack.training.callbacks import early_stopping
from hfstack.training.checkpointing import protect
from hfstack.training.preflight import checked, training_problems
from hfstack.training.saving import save_trained
from hfstack.training.settings import check_settings


@dataclass
class Seq2SeqArgs:
    """Which columns hold what, and how much of a text is read and generated."""

    tokenizer_name_or_path: str | None = None
    """Tokenizer: a folder or a Hub id; the model's own by default."""
    source_column: str = "source"
    """Column of the text to read; a part of a mapping as translation.en."""
    target_column: str = "target"
    """Column of the text to generate, or of a list of them: each is learned, and a score takes all
    as references.
    """
    source_prefix: str = ""
    """Put in front of each source, such as "translate English to German: " or "summarize: " for
    T5's checkpoints.
    """
    max_source_length: int | None = None
    """Tokens of the longest source; by default what the model reads, at most 512."""
    max_target_length: int | None = None
    """Tokens of the longest target; by default what the model reads, at most 128."""
    overlong: Overlong = "truncate"
    """Longer texts: truncate (formerly cut), drop the row or fail; they are counted and logged."""
    early_stopping_patience: int | None = None
    """Stop after this many evaluations without a better --metric_for_best_model; needs
    --load_best_model_at_end.
    """

    def __post_init__(self) -> None:
        self.overlong = read_overlong(self.overlong)


def main(
    model_args: ModelConfig,
    data_args: DataArgs,
    seq2seq_args: Seq2SeqArgs,
    training_args: Seq2SeqTrainingArguments,
) -> dict[str, float]:
    """Train, generate held-out texts, score them and save; return the metrics."""
    args, patience = seq2seq_args, seq2seq_args.early_stopping_patience
    settings = (model_args, data_args, seq2seq_args, training_args)
    with Run.start(__file__, training_args.output_dir, *settings) as run:
        checkpoint = run.resume_point()
        check_settings(training_args, early_stopping_patience=patience)
        check_adapter_settings(model_args)
        if data_args.eval_datasets or data_args.held_out_share():
            check_metrics()

        # data
        columns = (args.source_column, args.target_column)
        quarantine, counts = run.output_dir / "quarantine.jsonl", run.record.rows
        pairs, inputs = load_sources_and_targets(
            data_args, columns, quarantine_file=quarantine, row_counts=counts
        )
        run.record_inputs(model_args.model_name_or_path, args.tokenizer_name_or_path, **inputs)

        # model, and how it generates; its longest text counts the decoder's first token
        tokenizer = load_tokenizer(model_args, args.tokenizer_name_or_path)
        model: Any = encoder_decoder.load_seq2seq(model_args, tokenizer)
        lengths = encoder_decoder.text_lengths(
            args.max_source_length, args.max_target_length, model.config, tokenizer
        )
        decoding = encoder_decoder.set_decoding(
            model,
            max_length=training_args.generation_max_length,
            num_beams=training_args.generation_num_beams,
            usual_length=lengths[1] + 1,
            source=training_args.generation_config,
        )

        # rows as the model reads them
        encode = partial(
            encode_sources_and_targets,
            tokenizer=tokenizer,
            lengths=lengths,
            ends=encoder_decoder.required_end_ids(model, tokenizer),
            prefix=args.source_prefix,
            overlong=args.overlong,
        )
        train = encode(pairs["train"], name="train")
        held: Any = encode(pairs["eval"], name="eval", held_out=True) if "eval" in pairs else None

        # trainer
        def score_generated(done: EvalPrediction) -> dict[str, float]:
            return overlap_metrics(decode_texts(done.predictions, tokenizer), held.pairs)

        pad, shift = padding_id(tokenizer), encoder_decoder.decoder_shift(model)
        scores_texts = held and training_args.predict_with_generate

        with refusals_of_upstream():
            if (lora := lora_beside_head(model_args, [], "SEQ_2_SEQ_LM", model=model)) is not None:
                model = get_peft_model(model, lora)

            trainer = InOrderSeq2SeqTrainer(
                model=model,
                args=seq2seq_trainer_settings(training_args, decoding, scores=TEXT_SCORES),
                train_dataset=train.rows,
                eval_dataset=held.rows if held else None,
                processing_class=tokenizer,
                callbacks=[
                    *early_stopping(patience),
                    *protect(run, push_checkpoints(training_args)),
                ],
                compute_loss_func=token_loss_func(training_args.label_smoothing_factor),
                data_collator=partial(collate_pairs, pad_token_id=pad, shift=shift),
                compute_metrics=score_generated if scores_texts else None,
            )
        vocabulary = model.config.get_text_config(decoder=True).vocab_size
        problems = training_problems(trainer, vocabulary)
        trained = checked(trainer, tokenizer, problems).train(resume_from_checkpoint=checkpoint)

        # what `predict` needs to use the model again
        described = {"source_column": columns[0], "source_prefix": args.source_prefix}
        described |= {"decoding": decoding, "max_source_length": lengths[0]}
        save_task(run.output_dir, described)
        save_trained(run, trainer, lambda saved: encoder_decoder.load_finished_seq2seq(saved)[0])

        # evaluate
        metrics = {"train_loss": trained.training_loss, "train_rows": len(train.rows)}
        if held:
            found, ids = trainer.generate_held_out()
            metrics |= found | record_text_scores(run, decode_texts(ids, tokenizer), held)

        return run.finish(metrics, trainer)


if __name__ == "__main__":
    command_line(main)
