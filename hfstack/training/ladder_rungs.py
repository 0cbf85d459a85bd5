"""What a rung of a scaling ladder changes in the settings of training, and the numbers that a fit reads."""

import copy
from pathlib import Path

import torch
from transformers import TrainingArguments

from hfstack.checkpoints import newest_checkpoint
from hfstack.errors import ConfigError
from hfstack.models.counting import peak_flops_per_s
from hfstack.scaling.ladder import Rung, tokens_read
from hfstack.training.callbacks import Throughput


def rung_arguments(args: TrainingArguments, rung: Rung) -> TrainingArguments:
    """Return the settings of one rung: its own folder under `rungs/`, its steps, batch and learning rate.

    A rung that has a checkpoint goes on from it.
    """
    own = copy.copy(args)
    own.output_dir = str(Path(str(args.output_dir)) / "rungs" / rung.name)
    own.max_steps, own.learning_rate = rung.steps, rung.learning_rate
    own.per_device_train_batch_size, own.gradient_accumulation_steps = rung.micro_batch, rung.accumulation
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
    """Return N, D and C of a rung that reads data of so many blocks, by the names that `scaling_fit` reads.

    Raises:
        ConfigError: the data has fewer blocks than one batch takes.
    """
    if blocks < rung.micro_batch * rung.processes:
        raise ConfigError(
            f"{rung.name} takes {rung.micro_batch * rung.processes} blocks of {rung.block_size} tokens at once and the "
            f"training data has {blocks}: use more text, or a smaller --per_device_train_batch_size"
        )
    tokens = tokens_read(rung, blocks)
    return {
        "parameters": rung.costs.parameters,
        "parameters_non_embedding": rung.costs.non_embedding,
        "tokens": tokens,
        "unique_tokens": blocks * rung.block_size,
        "flops": rung.costs.train_flops_per_token * tokens,
        "flops_6nd": 6.0 * rung.costs.parameters * tokens,
        "flops_kaplan": 6.0 * rung.costs.non_embedding * tokens,
    }
