"""Find how many tokens a model reads at once, from its configuration."""

import math
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedConfig

from hfstack.errors import ConfigError

CONTEXT_FIELDS = ("max_position_embeddings", "n_positions", "max_seq_len")
"""Names of the context in a config.json, the usual one first; upstream maps most others to it."""

# Of encoder-decoders with two tables; Whisper's encoder reads sound, not tokens.
_ENCODER_FIELDS = ("max_encoder_position_embeddings", *CONTEXT_FIELDS)
_DECODER_FIELDS = ("max_decoder_position_embeddings", "max_target_positions", *CONTEXT_FIELDS)

# These number positions from the padding id + 1 on, in a table of `max_position_embeddings` rows
# (create_position_ids_from_input_ids in their modeling files; tests/models/test_context.py looks
# for more of them in each new version of transformers).
POSITIONS_BEHIND_PADDING = frozenset(
    {
        "altclip_text_model",
        "bridgetower_text_model",
        "camembert",
        "clap_text_model",
        "data2vec-text",
        "esm",
        "ibert",
        "layoutlmv3",
        "lilt",
        "longformer",
        "luke",
        "markuplm",
        "mpnet",
        "prophetnet",
        "roberta",
        "roberta-prelayernorm",
        "xlm-roberta",
        "xlm-roberta-xl",
        "xmod",
    }
)


def context_length(config: PreTrainedConfig, *, decoder: bool = False) -> int | None:
    """Return the most tokens that a model reads at once, or None without a bound.

    Recurrent models, ALiBi without a table (BLOOM, Falcon) and relative positions (T5, XLNet) bound
    nothing. Rotary positions run on behind the number that the config states, but the model was
    not trained there, so that number counts.

    Args:
        decoder: of an encoder-decoder, the context of its decoder, else that of its encoder.

    Raises:
        ConfigError: positions start behind a padding id that leaves none.
    """
    config = _text_config(config, decoder=decoder)
    longest = _stated_positions(config, decoder=decoder)
    if longest is None:
        return None

    offset = _first_position(config)
    if offset >= longest:
        raise ConfigError(
            f"{config.model_type} numbers positions from its padding id on: with pad_token_id "
            f"{config.pad_token_id} none of its {longest} positions is left; use a tokenizer whose "
            "padding id is small, or more max_position_embeddings"
        )
    return longest - offset


def check_block_size(block_size: int, config: PreTrainedConfig) -> int:
    """Return the block size when the model can read that many tokens at once.

    Raises:
        ConfigError: it is longer than the model's context.
    """
    longest = context_length(config)
    if longest is not None and block_size > longest:
        raise ConfigError(
            f"--block_size {block_size} is longer than the model's context of {longest} tokens; "
            f"use --block_size {longest} or a model with a longer context"
        )
    return block_size


def check_answers_fit(
    config: PreTrainedConfig, prompt_lengths: Sequence[int], max_new_tokens: int
) -> None:
    """Refuse prompts whose answers would reach beyond the model's context.

    Models with a table of positions fail there, and others were not trained there.

    Args:
        prompt_lengths: tokens of each prompt, its start token included.
        max_new_tokens: of the longest answer.

    Raises:
        ConfigError: names the longest prompt by its number, and what would fit.
    """
    context = context_length(config)
    if context is None or not prompt_lengths:
        return

    longest = max(prompt_lengths)
    if longest + max_new_tokens <= context:
        return

    advice = f"lower it to {context - longest} or shorten the prompt"
    if longest >= context:
        advice = "shorten the prompt"
    raise ConfigError(
        f"prompt {prompt_lengths.index(longest) + 1} has {longest} tokens, and with "
        f"--max_new_tokens {max_new_tokens} its answer reaches beyond the model's context of "
        f"{context} tokens: {advice}"
    )


def _text_config(config: PreTrainedConfig, *, decoder: bool) -> PreTrainedConfig:
    """Return the part of a composite configuration that holds the asked text model."""
    sides = ("decoder", "encoder") if decoder else ("encoder", "decoder")
    for name in (*sides, "text_config", "text_encoder"):
        part = getattr(config, name, None)
        if isinstance(part, PreTrainedConfig):
            return _text_config(part, decoder=decoder)
    return config


def _stated_positions(config: Any, *, decoder: bool) -> int | None:
    """Return the positions that a configuration states, or None without a bound."""
    if getattr(config, "alibi", False):  # Falcon's other kind of position
        return None
    if getattr(config, "axial_pos_embds", False):  # Reformer: a table for each axis
        return math.prod(config.axial_pos_shape)

    for field in _DECODER_FIELDS if decoder else _ENCODER_FIELDS:
        # Old files state more than the class knows: T5's `n_positions` bounds nothing.
        known = hasattr(type(config), field) or field in config.attribute_map
        value = getattr(config, field, None) if known else None
        if value is not None:
            return int(value) if value > 0 else None  # XLNet says -1

    # Whisper as a language model has a decoder only.
    return getattr(config, "max_target_positions", None)


def _first_position(config: Any) -> int:
    """Return the number of the first token's position in the table."""
    if config.model_type not in POSITIONS_BEHIND_PADDING:
        return 0
    if config.model_type == "esm" and config.position_embedding_type != "absolute":
        return 0  # ESM-2 is rotary
    if config.model_type == "mpnet":
        return 2  # whatever its padding id is

    ahead = config.model_type == "prophetnet"  # its decoder embeds the position that it predicts
    return int(config.pad_token_id or 0) + 1 + ahead
