"""Train a ladder of models, sizes times budgets, to fit scaling laws to.

    accelerate launch recipes/scaling_ladder.py --config recipes/scaling_ladder.yaml --seed 7
    hfstack run scaling_ladder --budgets 1e15 4e15                     # the same, shorter

reads   rows with a column of text; a tokenizer; an architecture (config.json) of each family
writes  rungs/<name>/ in --output_dir, each a run of its own with run.json and the model; a table
        of all in run.json
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

from transformers import Trainer, TrainingArguments
from trl import ModelConfig

from hfstack.config import command_line
from hfstack.data.columns import require_text
from hfstack.data.packing.blocks import PackedBlocks, pack_splits
from hfstack.data.sources import DataArgs, load_splits
from hfstack.errors import AlreadyFinished, ConfigError, refusals_of_upstream
from hfstack.models.architectures import build_causal_lm, count_costs, read_templates
from hfstack.models.fused_loss import use_fused_loss
from hfstack.models.loading import load_causal_lm, load_tokenizer
from hfstack.row_counts import RowCounts
from hfstack.runs.record import read_run
from hfstack.runs.run import Run
from hfstack.scaling.ladder import TABLE, Costs, Design, Machine, Rung, build_ladder, table_row
from hfstack.tasks.causal_lm.document_scores import derived_metrics
from hfstack.tasks.causal_lm.ladder import rung_arguments, rung_metrics, rung_throughput
from hfstack.training.callbacks import DerivedMetrics
from hfstack.training.checkpointing import protect
from hfstack.training.preflight import checked, training_problems
from hfstack.training.saving import save_trained
from hfstack.training.settings import check_settings


@dataclass
class LadderArgs:
    """Which models are trained on how much.

    The rules that fill in the rest are in hfstack/scaling/ladder.py.
    """

    architectures: list[str] = field(default_factory=lambda: ["llama-1m.json"])
    """A config.json of each family; width, depth, heads and context are replaced, everything
    else is kept."""
    tokenizer_name_or_path: str | None = None
    """Tokenizer: a folder or a Hub id."""
    block_size: int = 512
    """Tokens of one training sequence."""
    design: Design = "isoflop"
    """isoflop: every size at every compute; fixed_ratio: at a ratio of tokens to parameters;
    grid: at token counts."""
    sizes: list[float] = field(default_factory=list)
    """Parameters to aim at, embeddings included; the nearest shape is taken."""
    budgets: list[float] = field(default_factory=list)
    """FLOPs of a rung (isoflop), tokens per parameter (fixed_ratio), or tokens of a rung (grid)."""
    learning_rate_scale: float = 1.0
    """Multiplies the learning rate that the rule gives."""
    dry_run: bool = False
    """Only write the table of rungs, and train nothing."""


def main(
    data_args: DataArgs, ladder_args: LadderArgs, training_args: TrainingArguments
) -> dict[str, float]:
    """Train what is not trained yet, from the cheapest rung on; return the sums."""
    args, block_size = training_args, ladder_args.block_size

    with Run.start(
        __file__, args.output_dir, data_args, ladder_args, args, replace_own=True
    ) as run:
        # run
        check_settings(args)
        args.output_dir = str(run.output_dir)
        run.record_inputs(ladder_args.tokenizer_name_or_path)
        tokenizer = load_tokenizer(ModelConfig(), ladder_args.tokenizer_name_or_path)

        # rungs
        rungs = build_ladder(
            read_templates(ladder_args.architectures, tokenizer),
            ladder_args.sizes,
            ladder_args.budgets,
            design=ladder_args.design,
            block_size=block_size,
            count=lambda config: Costs(*count_costs(config, block_size)),
            rate_scale=ladder_args.learning_rate_scale,
            machine=Machine(args.world_size, args.per_device_train_batch_size),
        )

        tokens, flops = sum(rung.tokens for rung in rungs), sum(rung.flops for rung in rungs)
        sums = {"tokens": tokens, "flops": flops}
        print(f"{len(rungs)} rungs: {tokens:,} tokens, {flops:.3g} FLOPs", flush=True)
        run.add_table("rungs", TABLE, [table_row(rung, {}) for rung in rungs])
        if ladder_args.dry_run:
            return run.finish({"rungs": len(rungs), "rungs_trained": 0} | sums)

        # data
        column, counts = data_args.text_column, run.record.rows
        bad = run.output_dir / "quarantine.jsonl"
        splits = load_splits(data_args, quarantine_file=bad, row_counts=counts, may_stream=True)
        if "eval" not in splits:
            raise ConfigError("a ladder needs held-out text: --eval_datasets or --eval_fraction")
        require_text(splits, column, recipe="scaling_ladder")
        blocks = pack_splits(
            splits, tokenizer, text_column=column, block_size=block_size, row_counts=counts
        )

        # train: the cheapest first, each a run of its own
        for place, rung in enumerate(rungs):
            metrics = train_rung(
                rung, blocks, tokenizer, data_args, args, inputs=splits.inputs, counts=counts
            )
            print(f"{rung.name}: eval_loss {metrics['eval_loss']:.4f}", flush=True)
            run.add_artifact(f"rung {rung.name}", f"rungs/{rung.name}/run.json")
            run.record.tables["rungs"]["rows"][place] = table_row(rung, metrics)

        # finish
        return run.finish({"rungs": len(rungs), "rungs_trained": len(rungs)} | sums)


def train_rung(
    rung: Rung,
    blocks: dict[str, PackedBlocks],
    tokenizer: Any,
    data_args: DataArgs,
    training_args: TrainingArguments,
    *,
    inputs: dict[str, Any],
    counts: RowCounts,
) -> dict[str, float]:
    """Train one rung as a run of its own, or read its result when it is finished."""
    args = rung_arguments(training_args, rung)
    try:
        with Run.start(__file__, args.output_dir, data_args, rung, args) as run:
            # run
            checkpoint = run.resume_point()
            run.record_inputs(**inputs)
            run.record.rows = counts

            # model
            model = build_causal_lm(rung.config)
            use_fused_loss(model)

            # trainer
            numbers = rung_metrics(rung, len(blocks["train"]))
            throughput = rung_throughput(args, rung)
            derived = DerivedMetrics(
                partial(derived_metrics, tokens_per_byte=blocks["eval"].tokens_per_byte)
            )

            with refusals_of_upstream():
                trainer = Trainer(
                    model,
                    args,
                    PackedBlocks.collate,
                    blocks["train"],
                    blocks["eval"],
                    tokenizer,
                    callbacks=[throughput, derived, *protect(run)],
                )
            problems = training_problems(trainer, model.config.get_text_config().vocab_size)
            trained = checked(trainer, tokenizer, problems).train(resume_from_checkpoint=checkpoint)
            save_trained(run, trainer, partial(load_causal_lm, tokenizer=tokenizer))

            # evaluate
            losses = {
                "train_loss": trained.training_loss,
                "train_runtime": trained.metrics["train_runtime"],
            }
            return run.finish(numbers | losses | throughput.metrics() | trainer.evaluate(), trainer)
    except AlreadyFinished:
        return read_run(str(args.output_dir)).metrics


if __name__ == "__main__":
    command_line(main)
