"""Load a reward model, a transformer with one number as output, and score with it.

A reward model is an `AutoModelForSequenceClassification` with one label, made from a causal model
(which reads the reward at the last token) or an encoder (at its first).
"""

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel
from transformers import (
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from trl import ModelConfig

from hfstack.errors import ConfigError
from hfstack.models.adapters import give_pad_token
from hfstack.models.contents import identify_model
from hfstack.models.heads import (
    load_adapter_model,
    load_with_config,
    padding_id,
    read_config,
    refuse_unreadable_rows,
)
from hfstack.models.loading import check_vocabulary, find_architecture, require_model_name


def load_reward_model(
    args: ModelConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    new_modules: list[str] | None = None,
    training: bool = False,
) -> PreTrainedModel | PeftModel:
    """Load a model of one reward from a checkpoint, an architecture or a LoRA adapter.

    Of a checkpoint that is no reward model yet, such as a language model, the transformer is kept
    and the head is newly initialised (seed it first).

    Args:
        tokenizer: its vocabulary must fit the embedding; its pad token is what the model takes as
            padding.
        new_modules: filled with the names of the modules that the checkpoint does not hold, the
            head among them.
        training: an adapter of a reward model is trained further with --use_peft, and else merged;
            a new head gets a pad token that is no end, where the vocabulary has one to spare.

    Raises:
        ConfigError: no model was named, the tokenizer does not fit or cannot pad, the checkpoint
            has several labels.
        CheckpointError: there is no model, or an adapter without its head or its base.
    """
    name = require_model_name(args)
    if find_architecture(name) is None:
        found = identify_model(name, args.model_revision)
        if found.adapter and found.kind != "causal language model":
            adapted = _load_reward_adapter(
                args, tokenizer, Path(name), trainable=training and args.use_peft
            )
            if not training or args.use_peft:
                return adapted
            merged: Any = adapted.merge_and_unload()
            return merged.requires_grad_(True)  # peft froze the base
    config, config_file = read_config(args, tokenizer, purpose="give rewards")

    classifies = any(
        kind.endswith("ForSequenceClassification") for kind in config.architectures or []
    )
    if classifies and config.num_labels != 1:
        raise ConfigError(
            f"{name} is a classifier of {config.num_labels} labels; a reward model has 1: name its "
            "base model"
        )

    config.num_labels = 1
    model, modules = load_with_config(
        AutoModelForSequenceClassification, args, config, config_file, purpose="give rewards"
    )
    check_vocabulary(model, tokenizer, name)
    refuse_unreadable_rows(model, purpose="give rewards", use_cache=False)

    # a head finds the end of a text by what pads: where that is the end itself, it never reads it
    if training and modules and tokenizer.pad_token_id in (None, tokenizer.eos_token_id):
        with contextlib.suppress(ConfigError):  # no token can be spared: `padding_id` says so
            give_pad_token(tokenizer, model, may_grow=False)
    model.config.get_text_config().pad_token_id = padding_id(tokenizer)
    if new_modules is not None:
        new_modules.extend(modules)
    return model


@torch.no_grad()
def score_sequences(
    model: torch.nn.Module,
    sequences: Sequence[Sequence[int]],
    *,
    pad_token_id: int,
    batch_size: int = 16,
) -> list[float]:
    """Return the reward of each sequence of token ids, in order."""
    training = model.training
    model.eval()

    # longest first, so that a batch has little padding and the largest one comes first
    device = next(model.parameters()).device
    order = sorted(range(len(sequences)), key=lambda index: -len(sequences[index]))
    rewards = [0.0] * len(sequences)

    for first in range(0, len(order), batch_size):
        batch = order[first : first + batch_size]
        width = max(len(sequences[index]) for index in batch)
        tokens = torch.full((len(batch), width), pad_token_id)  # (B, T)
        mask = torch.zeros_like(tokens)

        for row, index in enumerate(batch):
            tokens[row, : len(sequences[index])] = torch.tensor(sequences[index])
            mask[row, : len(sequences[index])] = 1

        logits = model(input_ids=tokens.to(device), attention_mask=mask.to(device)).logits  # (B, 1)
        for index, reward in zip(batch, logits[:, 0].float().tolist(), strict=True):
            rewards[index] = reward

    model.train(training)
    return rewards


def _load_reward_adapter(
    args: ModelConfig, tokenizer: PreTrainedTokenizerBase, folder: Path, *, trainable: bool
) -> PeftModel:
    """Load the base that an adapter names, and the adapter with its head on it."""

    def load_base(name: str) -> tuple[PreTrainedModel, list[str]]:
        new_modules: list[str] = []
        model = load_reward_model(
            replace(args, model_name_or_path=name), tokenizer, new_modules=new_modules
        )
        return cast(PreTrainedModel, model), new_modules

    return load_adapter_model(folder, "SEQ_CLS", "reward model", load_base, trainable=trainable)
