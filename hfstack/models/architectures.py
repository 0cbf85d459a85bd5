"""Read architectures as plain dictionaries, count their costs and build models."""

import json
from typing import Any

from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

import hfstack.models.gru  # noqa: F401 - registers the recurrent architectures
from hfstack.errors import ConfigError
from hfstack.models.counting import count_parameters, flops_per_token
from hfstack.models.loading import architecture_config, find_architecture
from hfstack.shipped import without_size

_FROM_TOKENIZER = ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")


def read_templates(
    names: list[str], tokenizer: PreTrainedTokenizerBase
) -> dict[str, dict[str, Any]]:
    """Return each config.json, with the tokenizer's vocabulary, by its family.

    A family is the file's name without a size. Only what the file says is kept, without upstream's
    defaults, so that a newer upstream gives the same dictionary.

    Raises:
        ConfigError: a name is no config.json, or two are of one family.
    """
    found: dict[str, dict[str, Any]] = {}
    for name in names:
        path = find_architecture(name)
        if path is None:
            raise ConfigError(f"--architectures {name}: give a config.json, such as llama-1m.json")

        family = without_size(path.stem)
        if family in found:
            raise ConfigError(
                f"--architectures names {family} twice: every family once, its sizes come from "
                "--sizes"
            )

        config = architecture_config(path, tokenizer)
        values = json.loads(path.read_text(encoding="utf-8"))
        found[family] = values | {key: getattr(config, key) for key in _FROM_TOKENIZER}
    return found


def to_config(values: dict[str, Any]) -> PreTrainedConfig:
    """Return the config of a dictionary with a `model_type`.

    Raises:
        ConfigError: upstream refuses a value.
    """
    try:
        return AutoConfig.for_model(**values)
    except (ValueError, TypeError) as error:
        raise ConfigError(
            f"no model_type {values.get('model_type')!r} with these values: "
            f"{' '.join(str(error).split())[:200]}"
        ) from error


def build_causal_lm(values: dict[str, Any]) -> PreTrainedModel:
    """Build the causal language model of a dictionary, newly initialised (seed first)."""
    return AutoModelForCausalLM.from_config(to_config(values), trust_remote_code=False)


def count_costs(values: dict[str, Any], block_size: int) -> tuple[int, int, float, str]:
    """Return parameters and training FLOPs per token of a dictionary's model.

    These are all parameters, those outside embeddings, the FLOPs in a block, and how FLOPs were
    counted.
    """
    config = to_config(values)
    parameters, flops = count_parameters(config), flops_per_token(config, block_size)
    return parameters.total, parameters.non_embedding, flops.train, flops.method
