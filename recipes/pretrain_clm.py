"""Pretrain a causal language model on raw text, from scratch or from a checkpoint.

    accelerate launch recipes/pretrain_clm.py --config recipes/pretrain_clm.yaml --seed 7
    hfstack run pretrain_clm --learning_rate 1e-3                       # the same, shorter

reads   rows with a column of text; a tokenizer; an architecture (config.json) or a checkpoint
writes  the model, its tokenizer, checkpoints, samples.jsonl and run.json in --output_dir
"""

from dataclasses import dataclass, field
from functools import partial

from transformers import TrainingArguments
from trl import ModelConfig

from hfstack.config import command_line
from hfstack.data.packing.blocks import PackedBlocks, pack_splits
from hfstack.data.packing.fim import check_fim_settings, fill_in_middle
from hfstack.data.sources import DataArgs
from hfstack.errors import ConfigError, refusals_of_upstream
from hfstack.models.context import check_block_size
from hfstack.models.counting import count_parameters, flops_per_token
from hfstack.models.fused_loss import use_fused_loss
from hfstack.models.isolation import isolate_documents
from hfstack.models.loading import load_causal_lm, load_tokenizer
from hfstack.publishing.checkpoint_push import push_checkpoints
from hfstack.runs.checkpoint_files import refuse_full_disk
from hfstack.runs.run import Run
from hfstack.tasks.causal_lm.document_scores import derived_metrics
from hfstack.tasks.causal_lm.generate import sample_pairs
from hfstack.tasks.causal_lm.ladder import training_counts
from hfstack.tasks.shared.pretraining import PretrainingArgs, check_pretraining, load_text
from hfstack.tasks.shared.token_tasks import InOrderTrainer
from hfstack.training.auto_compile import AutoCompile, AutoCompileArgs
from hfstack.training.callbacks import DerivedMetrics, SampleTable, Throughput, early_stopping
from hfstack.training.checkpointing import protect
from hfstack.training.preflight import checked, training_problems
from hfstack.training.saving import save_trained
from hfstack.training.settings import blocks_per_step, total_peak_flops_per_s


@dataclass
class PretrainArgs(PretrainingArgs, AutoCompileArgs):
    """What pretraining needs beside the upstream settings."""

    block_size: int = 512
    """Tokens of one training sequence; documents are packed into blocks of this length."""
    isolate_documents: bool = False
    """Keep attention inside each document of a block; off, a token also sees the documents before
    it.
    """
    fim_rate: float = 0.0
    """Share of the documents that are rearranged to learn to fill in the middle (code)."""
    fim_spm_rate: float = 0.5
    """Share of these that begin with the suffix (SPM), the rest with the prefix (PSM)."""
    fused_loss: bool = True
    """Compute the loss without keeping all logits, where the model's head is one plain matrix
    product.
    """
    sample_prompts: list[str] = field(default_factory=lambda: ["Once upon a time", "The"])
    """Prompts whose completions are saved in samples.jsonl at each evaluation."""
    sample_tokens: int = 100
    """Length of a sample, in tokens."""
    sample_temperature: float = 0.8
    """Temperature of the samples, over all tokens; 0 takes the likeliest token each time."""

    def __post_init__(self) -> None:
        if self.sample_tokens < 1:
            raise ConfigError(f"--sample_tokens must be at least 1, got {self.sample_tokens}")
        check_fim_settings(self.fim_rate, self.fim_spm_rate)


def main(
    model_args: ModelConfig,
    data_args: DataArgs,
    pretrain_args: PretrainArgs,
    training_args: TrainingArguments,
) -> dict[str, float]:
    """Train on packed text, evaluate and save; return the metrics."""
    args = pretrain_args
    settings = (model_args, data_args, pretrain_args, training_args)
    with Run.start(__file__, training_args.output_dir, *settings) as run:
        checkpoint = run.resume_point()
        check_pretraining(model_args, training_args, args)

        # model: built from a config.json, or a checkpoint that goes on
        tokenizer = load_tokenizer(model_args, args.tokenizer_name_or_path)
        model = load_causal_lm(model_args, tokenizer, new_head=True)
        block_size = check_block_size(args.block_size, model.config)
        if args.fused_loss:
            use_fused_loss(model)
        if args.isolate_documents:
            isolate_documents(model, block_size=block_size)

        # data, packed into blocks
        splits = load_text(run, model_args, data_args, args)
        blocks = pack_splits(
            splits,
            tokenizer,
            text_column=data_args.text_column,
            block_size=block_size,
            isolate_documents=args.isolate_documents,
            row_counts=run.record.rows,
            rearrange=fill_in_middle(
                tokenizer, args.fim_rate, args.fim_spm_rate, seed=training_args.seed
            ),
        )

        # what is logged beside the loss
        throughput = Throughput(
            tokens_per_step=block_size * blocks_per_step(training_args, len(blocks["train"])),
            flops_per_token=flops_per_token(model.config, block_size).train,
            peak_flops_per_s=total_peak_flops_per_s(training_args),
        )
        sample = partial(
            sample_pairs,
            tokenizer=tokenizer,
            prompts=args.sample_prompts,
            max_new_tokens=args.sample_tokens,
            temperature=args.sample_temperature,
        )
        callbacks = [throughput, SampleTable(run.output_dir / "samples.jsonl", sample)]

        if "eval" in blocks:
            per_byte = blocks["eval"].tokens_per_byte
            callbacks.append(DerivedMetrics(partial(derived_metrics, tokens_per_byte=per_byte)))
        compiling = AutoCompile(
            tokens_per_step=throughput.tokens_per_step,
            layers=getattr(model.config, "num_hidden_layers", 1),
        )
        if args.auto_compile:
            callbacks.append(compiling)
        callbacks += early_stopping(args.early_stopping_patience)

        # trainer
        if training_args.save_strategy != "no":
            refuse_full_disk(run.output_dir, parameters=count_parameters(model.config).total)
        with refusals_of_upstream():
            trainer = InOrderTrainer(
                model=model,
                args=training_args,
                train_dataset=blocks["train"],
                eval_dataset=blocks.get("eval"),
                processing_class=tokenizer,
                data_collator=PackedBlocks.collate,
                callbacks=[*callbacks, *protect(run, push_checkpoints(training_args))],
            )

        problems = training_problems(trainer, model.config.get_text_config().vocab_size)
        trained = checked(trainer, tokenizer, problems).train(resume_from_checkpoint=checkpoint)
        save_trained(run, trainer, partial(load_causal_lm, tokenizer=tokenizer))
        run.add_artifact("samples", "samples.jsonl")

        # evaluate
        metrics = training_counts(
            model.config, training_args, blocks["train"], steps=trained.global_step
        )
        metrics |= {"train_loss": trained.training_loss} | throughput.metrics()
        metrics |= compiling.metrics()
        if "eval" in blocks:
            metrics |= trainer.evaluate()
        return run.finish(metrics, trainer)


if __name__ == "__main__":
    command_line(main)
