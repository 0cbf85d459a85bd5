"""Load a reward model: a transformer with one number as its output, and score sequences with it.

A reward model is an `AutoModelForSequenceClassification` with one label, made from a causal model (which reads the
reward at the last token) or an encoder (at its first).
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import PartialState
from peft import LoraConfig, PeftConfig, PeftModel
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase
from trl import ModelConfig, get_peft_config, get_quantization_config

from hfstack.errors import CheckpointError, ConfigError
from hfstack.logs import get_logger
from hfstack.models.loading import architecture_config, check_vocabulary, find_architecture

logger = get_logger(__name__)

_ADAPTER = "adapter_config.json"


def load_reward_model(
    args: ModelConfig, tokenizer: PreTrainedTokenizerBase, *, new_modules: list[str] | None = None
) -> PreTrainedModel | PeftModel:
    """Return a model that gives one reward for a sequence, from a checkpoint, an architecture or a LoRA adapter.

    Of a checkpoint that is no reward model yet, such as a language model, the transformer is kept and the head is drawn
    anew (seed it first).

    Args:
        tokenizer: its vocabulary must fit the embedding; its pad token is what the model takes as padding.
        new_modules: filled with the names of the modules that the checkpoint does not hold, the head among them.

    Raises:
        ConfigError: no model was named, the tokenizer does not fit or cannot pad, the checkpoint has several labels.
        CheckpointError: there is no model, or an adapter without its head or its base.
    """
    name = args.model_name_or_path
    if name is None:
        raise ConfigError("--model_name_or_path is required: a Hub id, a checkpoint directory, or a config.json")
    if (Path(name) / _ADAPTER).is_file():
        return _load_adapter(args, tokenizer, Path(name))
    if (config_file := find_architecture(name)) is not None:
        config = architecture_config(config_file, tokenizer)
        config.num_labels = 1
        try:
            model = AutoModelForSequenceClassification.from_config(config, attn_implementation=args.attn_implementation)
        except ValueError as error:
            raise ConfigError(f"{config_file} cannot give rewards: {' '.join(str(error).split())[:160]}") from error
        missing = [key for key, _ in model.named_parameters()]
    else:
        model, missing = _load_checkpoint(args, name)
    check_vocabulary(model, tokenizer, name)
    model.config.get_text_config().pad_token_id = padding_id(tokenizer)
    modules = sorted({key.rpartition(".")[0] for key in missing})
    if missing and config_file is None:
        logger.info("%s is no reward model yet: drawn anew %s", name, ", ".join(modules))
    if new_modules is not None:
        new_modules.extend(modules)
    return model


def reward_lora_config(args: ModelConfig, new_modules: Sequence[str]) -> LoraConfig | None:
    """Return the adapter that --use_peft asks for, or None; it trains and saves every module that is new.

    With upstream's default task the random head would stay as it is and not be saved (huggingface/trl#1379), and so
    would a pooler that the checkpoint lacks: the saved adapter would give other rewards after each loading.

    Raises ConfigError for an architecture, whose random weights an adapter does not hold.
    """
    if not args.use_peft:
        return None
    if (args.model_name_or_path or "").endswith(".json"):
        raise ConfigError(
            f"--use_peft needs trained weights, but {args.model_name_or_path} is an architecture: name a checkpoint"
        )
    saved = sorted({*(args.lora_modules_to_save or []), *new_modules})
    config = get_peft_config(replace(args, lora_task_type="SEQ_CLS", lora_modules_to_save=saved))
    assert isinstance(config, LoraConfig)
    return config


@torch.no_grad()
def score_sequences(
    model: torch.nn.Module, sequences: Sequence[Sequence[int]], *, pad_token_id: int, batch_size: int = 16
) -> list[float]:
    """Return the reward of each sequence of token ids, in order; longest first in batches, padded on the right."""
    training = model.training
    model.eval()
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


def padding_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token by which the head finds the last one of a text; the eos where the tokenizer has no other."""
    pad = tokenizer.pad_token_id
    if pad is None and tokenizer.eos_token_id is not None:
        logger.info("the tokenizer has no pad token: padding with its eos, so the output is read one token before it")
        tokenizer.pad_token = tokenizer.eos_token
        pad = tokenizer.pad_token_id
    if not isinstance(pad, int):
        raise ConfigError(
            f"the tokenizer {tokenizer.name_or_path or ''} has neither a pad nor an eos token, by which the head "
            "finds the end of a text: set tokenizer.pad_token and save it"
        )
    return pad


def _load_checkpoint(args: ModelConfig, name: str) -> tuple[PreTrainedModel, list[str]]:
    """Load a model with one label; also return the names of the parameters that the checkpoint does not hold."""
    quantization = get_quantization_config(args)
    try:
        config = AutoConfig.from_pretrained(name, revision=args.model_revision)
        labels = config.num_labels
        if any(kind.endswith("ForSequenceClassification") for kind in config.architectures or []) and labels != 1:
            raise ConfigError(f"{name} is a classifier of {labels} labels; a reward model has 1: name its base model")
        model, report = AutoModelForSequenceClassification.from_pretrained(
            name,
            num_labels=1,
            revision=args.model_revision,
            dtype=args.dtype,
            attn_implementation=args.attn_implementation,
            quantization_config=quantization,
            device_map={"": PartialState().device} if quantization else None,
            use_safetensors=True,
            output_loading_info=True,
        )
    except ConfigError:
        raise
    except (OSError, ValueError) as error:
        cause = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{name} holds no model that can give rewards: {cause}") from error
    return model, sorted(report["missing_keys"])


def _load_adapter(args: ModelConfig, tokenizer: PreTrainedTokenizerBase, folder: Path) -> PeftModel:
    """Load the base that an adapter names, and the adapter with its head on it."""
    config = PeftConfig.from_pretrained(str(folder))
    base = config.base_model_name_or_path
    if config.task_type != "SEQ_CLS" or not base:
        raise CheckpointError(
            f"{folder} is a LoRA adapter of a {config.task_type or 'model'}, not of a reward model: merge it into its "
            "base first, then name the merged model"
        )
    new_modules: list[str] = []
    model = load_reward_model(replace(args, model_name_or_path=base), tokenizer, new_modules=new_modules)
    with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
        held = " ".join(file.keys())
    if lost := [module for module in new_modules if module.rpartition(".")[2] not in held]:
        raise CheckpointError(
            f"{folder} was saved without {', '.join(lost)}, which {base} does not hold either: its rewards are lost, "
            "train it again with the reward recipe"
        )
    return PeftModel.from_pretrained(model, str(folder)).eval()
