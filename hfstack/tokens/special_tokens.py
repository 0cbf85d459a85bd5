"""Name what ends a text, what pads it, and which label the loss ignores."""

from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hfstack.errors import ConfigError

IGNORED_LABEL = -100  # torch's cross entropy leaves such positions out of the loss


def as_token_ids(value: int | list[int] | None) -> list[int]:
    """Return the ids of a setting that upstream allows to be one id, several, or none."""
    if value is None:
        return []
    return list(value) if isinstance(value, list) else [value]


def end_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the ids that end a generated text: the model's own, then the tokenizer's."""
    settings: Any = getattr(model, "generation_config", None)
    listed = as_token_ids(getattr(settings, "eos_token_id", None))
    own: Any = tokenizer.eos_token_id
    return list(dict.fromkeys([*listed, *as_token_ids(own)]))


def require_eos_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the id that ends a plain text; a ConfigError where there is none."""
    eos: Any = tokenizer.eos_token_id
    if eos is None:
        raise ConfigError(
            f"the tokenizer {tokenizer.name_or_path or ''} has no eos token, so that no plain text "
            "ends: name one as eos_token in its tokenizer_config.json (sft takes --eos_token)"
        )
    return eos


def padding_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the id that fills up a batch for generation.

    Masked, so that any id will do without a pad token.
    """
    candidates: list[Any] = [
        tokenizer.pad_token_id,
        tokenizer.eos_token_id,
        tokenizer.unk_token_id,
        0,
    ]
    return next(token_id for token_id in candidates if token_id is not None)
