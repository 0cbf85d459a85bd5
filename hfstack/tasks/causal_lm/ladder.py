"""Set up one rung of a scaling ladder, and return the numbers that a fit reads."""

import copy
from pathlib import Path

import torch
from transformers import PreTrainedConfig, TrainingArguments

from hfstack.data.packing.blocks import PackedBlocks
from hfstack.errors import ConfigError
from hfstack.models.counting import count_parameters, flops_per_token, peak_flops_per_s
from hfstack.runs.checkpoint_files import newest_checkpoint
from hfstack.scaling.ladder import Costs, Rung, blocks_read
from hfstack.training.callbacks import Throughput


def rung_arguments(args: TrainingArguments, rung: Rung) -> TrainingArguments:
    """Return a rung's settings: its folder in `rungs/`, steps, batch, learning rate.

    A rung that has a checkpoint resumes from it.
    """
    own = copy.copy(args)
    own.output_dir = str(Path(str(args.output_dir)) / "rungs" / rung.name)
    own.max_steps = rung.steps
    own.learning_rate = rung.learning_rate
    own.per_device_train_batch_size = rung.micro_batch
    own.gradient_accumulation_steps = rung.accumulation
    own.dataloader_drop_last = True  # every batch is whole, so tokens can be counted
    own.resume_from_checkpoint = "last" if newest_checkpoint(own.output_dir) else None
    return own


def rung_throughput(args: TrainingArguments, rung: Rung) -> Throughput:
    """Return the callback that logs tokens/s and model-FLOPs utilisation of one rung."""
    number_type = torch.bfloat16 if args.bf16 else torch.float32
    return Throughput(
        tokens_per_step=rung.sequences_per_step * rung.block_size,
        flops_per_token=rung.costs.train_flops_per_token,
        peak_flops_per_s=rung.processes * peak_flops_per_s(args.device, number_type),
    )


def rung_metrics(rung: Rung, blocks: int) -> dict[str, float]:
    """Return N, D and C of a rung, by the names that `scaling_fit` reads.

    Raises:
        ConfigError: the data has fewer blocks than one batch takes.
    """
    batch = rung.micro_batch * rung.processes
    if blocks < batch:
        raise ConfigError(
            f"{rung.name} takes {batch} blocks of {rung.block_size} tokens at once and the "
            f"training data has {blocks}: use more text, or a smaller --per_device_train_batch_size"
        )

    read = blocks_read(
        blocks, batch=batch, accumulation=rung.accumulation, steps=rung.steps, drop_last=True
    )
    return _name_counts(
        rung.costs, tokens=read * rung.block_size, unique_tokens=blocks * rung.block_size
    )


def training_counts(
    config: PreTrainedConfig, args: TrainingArguments, blocks: PackedBlocks, *, steps: int
) -> dict[str, float]:
    """Return N, D and C of training on packed blocks, by the names of `scaling_fit`.

    Args:
        config: of the causal language model.
        args: of the training; they give the batch.
        blocks: the training data.
        steps: optimizer steps from the beginning, those before a resumption included.
    """
    parameters, flops = count_parameters(config), flops_per_token(config, blocks.block_size)
    costs = Costs(parameters.total, parameters.non_embedding, flops.train, flops.method)

    read = blocks_read(
        len(blocks),
        batch=args.train_batch_size * args.world_size,
        accumulation=args.gradient_accumulation_steps,
        steps=steps,
        drop_last=args.dataloader_drop_last,
    )

    return _name_counts(
        costs, tokens=read * blocks.block_size, unique_tokens=len(blocks) * blocks.block_size
    )


def _name_counts(costs: Costs, *, tokens: int, unique_tokens: int) -> dict[str, float]:
    """Return parameters, tokens and FLOPs by the names of run.json."""
    return {
        "parameters": costs.parameters,
        "parameters_non_embedding": costs.non_embedding,
        "tokens": tokens,
        "unique_tokens": unique_tokens,
        "flops": costs.train_flops_per_token * tokens,
        "flops_6nd": 6.0 * costs.parameters * tokens,
        "flops_kaplan": 6.0 * costs.non_embedding * tokens,
    }
