"""Pretrain a masked language model (BERT, RoBERTa) on raw text.

    accelerate launch recipes/pretrain_mlm.py --config recipes/pretrain_mlm.yaml --seed 7
    hfstack run pretrain_mlm --mask_unit word  # the same, whole words masked

reads   rows with a column of text; a tokenizer; an architecture (config.json) or a checkpoint
writes  the model, its tokenizer, checkpoints, samples.jsonl and run.json in --output_dir
"""

from dataclasses import dataclass, field
from functools import partial
from itertools import islice

from transformers import TrainingArguments
from trl import ModelConfig

from hfstack.config import command_line
from hfstack.data.sources import DataArgs
from hfstack.errors import refusals_of_upstream
from hfstack.models.loading import load_masked_lm, load_tokenizer
from hfstack.publishing.checkpoint_push import push_checkpoints
from hfstack.runs.checkpoint_files import refuse_full_disk
from hfstack.runs.run import Run
from hfstack.tasks.masked_lm.fill_mask import fill_pairs
from hfstack.tasks.masked_lm.masking import (
    MaskedBlocks,
    MaskUnit,
    SetMaskingEpoch,
    add_mask_tokens,
    pack_masked_splits,
)
from hfstack.tasks.masked_lm.metrics import baseline_metrics, masked_metrics, pseudo_metrics
from hfstack.tasks.masked_lm.model import (
    check_masked_model,
    score_only_masked,
    training_flops_per_token,
)
from hfstack.tasks.shared.pretraining import PretrainingArgs, check_pretraining, load_text
from hfstack.tasks.shared.token_tasks import InOrderTrainer
from hfstack.training.callbacks import SampleTable, Throughput, early_stopping
from hfstack.training.checkpointing import protect
from hfstack.training.preflight import checked, training_problems
from hfstack.training.saving import save_trained
from hfstack.training.settings import (
    blocks_per_step,
    check_best_metric,
    total_peak_flops_per_s,
)


@dataclass
class MaskingArgs(PretrainingArgs):
    """What masked pretraining needs beside the upstream settings."""

    block_size: int = 128
    """Tokens of one training sequence, its first and last one included; documents are packed into
    such blocks.
    """
    mask_probability: float = 0.15
    """Share of the text's tokens to predict, in (0, 1): 80 % become the mask, 10 % a random token,
    10 % stay.
    """
    mask_unit: MaskUnit = "token"
    """Masked together: token, word (by the vocabulary), or given (words that white space separates
    in the text).
    """
    isolate_documents: bool = False
    """Keep attention inside each document of a block; off, a token also sees the others of its
    block.
    """
    # what is looked at while it trains
    pseudo_perplexity_texts: int = 32
    """Held-out texts whose tokens are masked one by one at the end, up to block_size tokens each; 0
    for none.
    """
    fill_prompts: list[str] = field(default_factory=list)
    """Texts with a [MASK] whose candidates are saved in samples.jsonl at each evaluation."""


def main(
    model_args: ModelConfig,
    data_args: DataArgs,
    masking_args: MaskingArgs,
    training_args: TrainingArguments,
) -> dict[str, float]:
    """Train on masked text, evaluate and save; return the metrics."""
    args = masking_args
    settings = (model_args, data_args, masking_args, training_args)
    with Run.start(__file__, training_args.output_dir, *settings) as run:
        checkpoint = run.resume_point()
        check_pretraining(model_args, training_args, args)
        check_best_metric(training_args, ["masked_accuracy"])

        # model
        tokenizer = add_mask_tokens(load_tokenizer(model_args, args.tokenizer_name_or_path))
        model = load_masked_lm(model_args, tokenizer, new_head=True)
        check_masked_model(
            model, block_size=args.block_size, isolate_documents=args.isolate_documents
        )

        # data, packed into blocks whose tokens are masked when they are read
        splits = load_text(run, model_args, data_args, args)
        blocks = pack_masked_splits(
            splits,
            tokenizer,
            text_column=data_args.text_column,
            block_size=args.block_size,
            unit=args.mask_unit,
            probability=args.mask_probability,
            isolate_documents=args.isolate_documents,
            seed=training_args.seed,
            row_counts=run.record.rows,
        )

        # what is logged beside the loss; the head runs at the masked tokens alone where it can
        share = args.mask_probability if score_only_masked(model) else 1.0
        throughput = Throughput(
            tokens_per_step=args.block_size * blocks_per_step(training_args, len(blocks["train"])),
            flops_per_token=training_flops_per_token(model, args.block_size, scored_share=share),
            peak_flops_per_s=total_peak_flops_per_s(training_args),
        )
        callbacks = [throughput, SetMaskingEpoch(blocks["train"])]
        if args.fill_prompts:
            sample = partial(fill_pairs, tokenizer=tokenizer, prompts=args.fill_prompts)
            callbacks.append(SampleTable(run.output_dir / "samples.jsonl", sample))
            run.add_artifact("samples", "samples.jsonl")
        callbacks += early_stopping(args.early_stopping_patience)

        # trainer: its blocks are masked in another way in each epoch
        if training_args.save_strategy != "no":
            refuse_full_disk(run.output_dir, parameters=model.num_parameters())
        with refusals_of_upstream():
            trainer = InOrderTrainer(
                model=model,
                args=training_args,
                train_dataset=blocks["train"],
                eval_dataset=blocks.get("eval"),
                processing_class=tokenizer,
                data_collator=MaskedBlocks.collate,
                compute_metrics=masked_metrics,
                callbacks=[*callbacks, *protect(run, push_checkpoints(training_args))],
            )

        problems = training_problems(trainer, model.config.get_text_config().vocab_size)
        trained = checked(trainer, tokenizer, reads_ahead=True, found=problems).train(
            resume_from_checkpoint=checkpoint
        )
        save_trained(run, trainer, partial(load_masked_lm, tokenizer=tokenizer))

        # evaluate: masked tokens of fixed blocks, and of whole texts one by one
        metrics = {"train_loss": trained.training_loss, "parameters": model.num_parameters()}
        metrics |= throughput.metrics()
        if "eval" in blocks:
            metrics |= trainer.evaluate() | baseline_metrics(blocks["train"], blocks["eval"])
            rows = islice(splits["eval"], args.pseudo_perplexity_texts)
            texts = [row[data_args.text_column] for row in rows]
            metrics |= pseudo_metrics(model.eval(), tokenizer, texts, max_length=args.block_size)
        return run.finish(metrics, trainer)


if __name__ == "__main__":
    command_line(main)
