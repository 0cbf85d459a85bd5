"""Load tokenizers and language models of a checkpoint, the Hub or a config.json.

TRL's ModelConfig is the description of a model; nothing here runs code from a repository, and only
safetensors weights are read.
"""

from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from huggingface_hub import constants
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from trl import ModelConfig, get_quantization_config

import hfstack.models.gru  # noqa: F401 - registers the recurrent architectures
from hfstack.errors import CheckpointError, ConfigError
from hfstack.logs import get_logger
from hfstack.shipped import ARCHITECTURES, find_shipped

logger = get_logger(__name__)


def load_tokenizer(
    args: ModelConfig, tokenizer_name_or_path: str | None = None
) -> PreTrainedTokenizerBase:
    """Return the tokenizer of the model, or another one by name.

    Raises:
        ConfigError: an architecture (config.json) has no tokenizer of its own and none was named.
        CheckpointError: there is no tokenizer at that place.
    """
    name = tokenizer_name_or_path or require_model_name(args)
    if name.endswith(".json"):
        raise ConfigError(
            f"--model_name_or_path {name} is an architecture without a tokenizer; name one with "
            "--tokenizer_name_or_path (the output directory of the tokenizer recipe, or a Hub id)"
        )

    revision = args.model_revision if tokenizer_name_or_path is None else "main"
    try:
        return AutoTokenizer.from_pretrained(name, revision=revision)
    except (OSError, ValueError) as error:
        raise CheckpointError(not_found("tokenizer", name, error)) from error


def load_causal_lm(args: ModelConfig, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Return a causal language model whose vocabulary is the tokenizer's.

    From a config.json the weights are newly initialised (seed them first), with the tokenizer's
    vocabulary size and special tokens. From a checkpoint or the Hub they are loaded, quantised when
    `--load_in_4bit` or `--load_in_8bit` is set.

    Raises:
        ConfigError: no model was named, or the tokenizer has more tokens than the embedding has
            rows.
        CheckpointError: there is no model at that place, or it has no safetensors weights.
    """
    return _load_language_model(
        AutoModelForCausalLM,
        args,
        tokenizer,
        "causal language model",
        get_quantization_config(args),
    )


def load_masked_lm(args: ModelConfig, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Return a masked language model; the rest is as in `load_causal_lm`."""
    return _load_language_model(AutoModelForMaskedLM, args, tokenizer, "masked language model")


def require_model_name(args: ModelConfig) -> str:
    """Return the name of the model; a ConfigError where none was given."""
    if args.model_name_or_path is None:
        raise ConfigError(
            "--model_name_or_path is required: a Hub id, a checkpoint directory, or a config.json"
        )
    return args.model_name_or_path


def _load_language_model(
    auto_class: Any,
    args: ModelConfig,
    tokenizer: PreTrainedTokenizerBase,
    what: str,
    quantization: Any = None,
) -> PreTrainedModel:
    """Load a checkpoint, or initialise an architecture; `what` names its kind."""
    name = require_model_name(args)
    if (config_file := find_architecture(name)) is not None:
        config = architecture_config(config_file, tokenizer)
        try:
            return auto_class.from_config(config, attn_implementation=args.attn_implementation)
        except ValueError as error:
            raise ConfigError(f"{config_file}: {' '.join(str(error).split())[:200]}") from error

    try:
        model = auto_class.from_pretrained(
            name,
            revision=args.model_revision,
            dtype=args.dtype,
            attn_implementation=args.attn_implementation,
            quantization_config=quantization,
            # Quantised weights cannot be moved later.
            device_map={"": PartialState().device} if quantization else None,
            use_safetensors=True,
        )
    except (OSError, ValueError) as error:
        raise CheckpointError(not_found(what, name, error)) from error
    check_vocabulary(model, tokenizer, name)
    return model


def is_masked_lm(args: ModelConfig) -> bool:
    """Return whether the checkpoint was saved as a masked language model.

    Raises:
        CheckpointError: there is no config.json at that place.
    """
    name = args.model_name_or_path or ""
    try:
        config = AutoConfig.from_pretrained(name, revision=args.model_revision)
    except (OSError, ValueError) as error:
        raise CheckpointError(not_found("model", name, error)) from error
    return any(a.endswith(("ForMaskedLM", "ForPreTraining")) for a in config.architectures or [])


def find_architecture(name: str) -> Path | None:
    """Return the config.json that `name` means, or None for a checkpoint or a Hub id.

    A shipped architecture is found by its file name from any folder, as
    `recipes/architectures/llama-5m.json`.

    Raises:
        ConfigError: a .json that exists neither here nor among the shipped ones.
    """
    if not name.endswith(".json"):
        return None
    path = find_shipped(name, ARCHITECTURES)
    if path is not None:
        return path

    known = ", ".join(sorted(path.stem for path in ARCHITECTURES.glob("*.json")))
    raise ConfigError(f"--model_name_or_path {name}: no such file; shipped architectures: {known}")


def architecture_config(config_file: Path, tokenizer: PreTrainedTokenizerBase) -> PreTrainedConfig:
    """Read a config.json and set the tokenizer's vocabulary size and special tokens."""
    try:
        config = AutoConfig.from_pretrained(config_file)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{config_file} is not a model configuration: {' '.join(str(error).split())[:200]}"
        ) from error

    config.vocab_size = vocabulary_size(tokenizer)
    config.bos_token_id = tokenizer.bos_token_id
    config.eos_token_id = tokenizer.eos_token_id
    config.pad_token_id = tokenizer.pad_token_id
    return config


def vocabulary_size(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the embedding rows that a tokenizer needs: its largest id plus one.

    Ids may have holes.
    """
    return max(tokenizer.get_vocab().values()) + 1


def check_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Refuse a tokenizer that gives ids which the model's embedding does not have."""
    rows = len(torch.as_tensor(model.get_input_embeddings().weight))
    needed = vocabulary_size(tokenizer)
    if needed > rows:
        raise ConfigError(
            f"the tokenizer has {needed} tokens but the embedding of {name} has {rows} rows; "
            "use the model's own tokenizer, or train one with --vocab_size of at most that"
        )


def check_isolation(model: PreTrainedModel) -> None:
    """Refuse to isolate documents by positions where attention does not read them.

    Raises:
        ConfigError: with flash attention transformers reads positions in batches of one sequence
            only.
    """
    implementation = str(model.config._attn_implementation)
    if "flash" in implementation:
        raise ConfigError(
            f"--isolate_documents does not hold with --attn_implementation {implementation}; "
            "use sdpa, or leave it out"
        )


def not_found(what: str, name: str, error: Exception) -> str:
    """Return one line for the many ways in which upstream fails to load something."""
    cause = " ".join(str(error).split())
    path = Path(name)
    if path.exists():
        # The place is there, but holds something else.
        files = ", ".join(sorted(p.name for p in path.iterdir())[:8]) if path.is_dir() else "a file"
        return f"{name} holds no {what} that can be loaded (it has: {files}): {cause[:200]}"
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        return f"no {what} at {name}: no such directory"
    return (
        f"no {what} {name!r} here or at {constants.ENDPOINT}: no such directory, and on the Hub it "
        "is private, missing, or out of reach (no token, no network)"
    )
