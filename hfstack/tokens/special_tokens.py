"""Name what ends a text, what pads it, and which label the loss ignores."""

from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

IGNORED_LABEL = -100  # torch's cross entropy leaves such positions out of the loss


def as_token_ids(value: int | list[int] | None) -> list[int]:
    """Return the ids of a setting that upstream allows to be one id, several, or none."""
    if value is None:
        return []
    return list(value) if isinstance(value, list) else [value]


def end_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the ids that end a generated text: the model's own, then the tokenizer's."""
    settings: Any = model.generation_config
    listed = as_token_ids(getattr(settings, "eos_token_id", None))
    own: Any = tokenizer.eos_token_id
    return list(dict.fromkeys([*listed, *as_token_ids(own)]))


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
