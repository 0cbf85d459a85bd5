"""Measure on a model itself what recipes rely on, instead of knowing families.

Each probe reads a few random tokens, without gradients and in evaluation mode unless it says
otherwise, and returns figures: how far the property is from holding, as a share of the largest
logit. Most take well under a second on a small model. What a recipe makes of a figure, and the line
that it refuses with, is its own.

Legend: B rows, T tokens, V vocabulary.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedModel

from hfstack.errors import ConfigError
from hfstack.models.evaluation_mode import evaluation_mode

# In fp32 rounding is below 1e-5 of the largest logit. In 16 bits a token at another place of a row
# rounds differently.
TOLERANCE = 1e-3
HALF_TOLERANCE = 0.05

# What rounding may change where the same tokens are read, as a share of the allowed difference.
SAME_INPUT = 0.1

_FIRST_TOKENS, _SECOND_TOKENS = 9, 14
_LAST_TOKENS = 12
_PADDING_TOKENS = 5

# What of a first document's effect may be left: a barely initialised model has small effects.
_EFFECT_LEFT = 0.05


class ProbeResult(NamedTuple):
    """What a probe measured, and what is allowed."""

    value: float
    allowed: float

    @property
    def holds(self) -> bool:
        """Return whether the property holds; NaN is no small number."""
        return self.value <= self.allowed


def documents_apart(model: PreTrainedModel, *, tokens: int = _SECOND_TOKENS) -> ProbeResult:
    """Measure how much a packed document's logits depend on the one before it.

    The same document is read behind two others, which may change nothing, and alone, which may
    change what rounding does.

    Args:
        tokens: of the second document.
    """
    second = random_ids(model, 1, tokens, seed=1)  # (1, T)
    firsts = random_ids(model, 2, _FIRST_TOKENS, seed=2)  # (2, T')
    joined = torch.cat([firsts, second.expand(2, -1)], dim=1)  # (2, T' + T)
    positions = torch.cat([torch.arange(_FIRST_TOKENS), torch.arange(tokens)])  # (T' + T,)
    packed = {"input_ids": joined, "position_ids": positions.to(joined.device).repeat(2, 1)}

    with evaluation_mode(model):
        alone = logits_of(model, input_ids=second)  # (1, T, V)
        plain = logits_of(model, input_ids=joined)[:, -tokens:]  # (2, T, V)
        apart = logits_of(model, **packed)[:, -tokens:]  # (2, T, V)

    # what the first document does where nothing keeps it away, and what of that is left
    effect = relative_difference(plain[0], plain[1])
    leak = relative_difference(apart[0], apart[1])
    allowed = min(TOLERANCE, _EFFECT_LEFT * effect)
    if leak > allowed:
        return ProbeResult(leak, allowed)
    return ProbeResult(relative_difference(alone[0], apart[0]), tolerance(model))


def padding_changes(model: PreTrainedModel) -> ProbeResult:
    """Measure how much a row's logits depend on padding to its right.

    Args:
        model: with a head on tokens or on whole texts, and an attention mask.
    """
    row = random_ids(model, 1, _SECOND_TOKENS, seed=1)  # (1, T)
    mask = torch.ones_like(row)
    padding_id = getattr(model.config.get_text_config(), "pad_token_id", None) or 0
    padded = pad(row, (0, _PADDING_TOKENS), value=padding_id)  # (1, T + P)
    shorter = pad(mask, (0, _PADDING_TOKENS))  # (1, T + P)

    with evaluation_mode(model), torch.no_grad():
        alone = model(input_ids=row, attention_mask=mask)
        beside = model(input_ids=padded, attention_mask=shorter)
    name = "logits" if "logits" in alone else "start_logits"
    one, other = alone[name].float(), beside[name].float()  # (1, C), (1, T) or (1, T, C)
    if one.shape != other.shape:
        other = other[:, :_SECOND_TOKENS]
    return ProbeResult(relative_difference(one, other), tolerance(model))


def require_causal(model: PreTrainedModel, consequence: str) -> None:
    """Refuse a model in which the last token changes the logits of those before it.

    Args:
        consequence: what would be wrong, after "so ".

    Raises:
        ConfigError: it does.
    """
    one = random_ids(model, 1, _LAST_TOKENS)  # (1, T)
    other = one.clone()
    other[0, -1] = one[0, 0] if one[0, 0] != one[0, -1] else one[0, 1]
    with evaluation_mode(model):
        before, after = logits_of(model, input_ids=one), logits_of(model, input_ids=other)

    change = relative_difference(before[:, :-1], after[:, :-1])
    if not change <= SAME_INPUT * tolerance(model):
        raise ConfigError(
            f"{type(model).__name__} reads what follows a position (the last token changes the "
            f"logits before it by {change:.2g} of the largest), so {consequence}: name a causal "
            "language model"
        )


def random_ids(model: PreTrainedModel, rows: int, tokens: int, *, seed: int = 0) -> Tensor:
    """Return random token ids (rows, tokens), none of them special."""
    config: Any = model.config.get_text_config()
    vocabulary = min(embedding_rows(model), config.vocab_size)
    special: set[int | None] = set()
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        found = getattr(config, name, None)
        special |= set(found) if isinstance(found, list) else {found}

    allowed = torch.tensor([token for token in range(vocabulary) if token not in special])
    generator = torch.Generator().manual_seed(seed)
    picked = torch.randint(0, len(allowed), (rows, tokens), generator=generator)
    return allowed[picked].to(model.device)


def logits_of(model: PreTrainedModel, **inputs: Any) -> Tensor:
    """Return a model's logits (B, T, V) in fp32, without gradients or a cache."""
    with torch.no_grad():
        return model(**inputs, use_cache=False).logits.float()


def relative_difference(one: Tensor, other: Tensor) -> float:
    """Return the largest difference of logits, as a share of the largest one."""
    largest = one.abs().max().clamp_min(1e-9)
    return float((one - other).abs().max() / largest)


def tolerance(model: PreTrainedModel) -> float:
    """Return the share of the largest logit that rounding may change."""
    return TOLERANCE if model.dtype == torch.float32 else HALF_TOLERANCE


def embedding_rows(model: PreTrainedModel) -> int:
    """Return the rows of the input embedding; 0 where it is in shards already."""
    return int(torch.as_tensor(model.get_input_embeddings().weight).shape[0])
