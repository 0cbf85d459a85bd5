"""Draw the next token from logits, with temperature and filters.

Legend: r rows, V vocabulary, B blocks of the vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

# Tokens of a block: the cumulative probabilities are found over blocks, then within one.
_BLOCK = 64


@dataclass(frozen=True)
class SamplingSettings:
    """How completions are sampled; the same values for every engine."""

    max_new_tokens: int
    stop_token_ids: tuple[int, ...]
    pad_token_id: int
    temperature: float = 1.0  # 0: the likeliest token each time
    top_k: int = 0  # 0: all tokens
    top_p: float = 1.0
    min_p: float | None = None
    batch_size: int | None = None  # completions that are generated at once; None: all

    @property
    def filters(self) -> bool:
        """Return whether some tokens are never sampled."""
        return self.top_k > 0 or self.top_p < 1.0 or bool(self.min_p)


def sample_tokens(
    logits: Tensor, settings: SamplingSettings, uniform: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return a token of each row and its log-probability, (r,) each.

    The log-probability is the one before any filter, at the temperature (greedy: at 1). The token
    is where the cumulative probabilities pass a uniform number. They are searched by blocks of the
    vocabulary, then within one block in float64: no token of probability 0 is ever sampled, the
    tail of a large vocabulary is not lost to rounding, and no table of that size is summed up in
    sequence.

    Args:
        logits: (r, V) in fp32.
        settings: temperature and filters.
        uniform: (r,) in float64, in [0, 1); None where the likeliest is taken.
    """
    if settings.temperature not in (0.0, 1.0):
        logits = logits / settings.temperature

    largest = logits.amax(dim=-1, keepdim=True)  # (r, 1)
    weights = (logits - largest).exp_()  # (r, V)

    if uniform is None:
        assert settings.temperature == 0
        total = weights.sum(dim=-1, keepdim=True)
        tokens = logits.argmax(dim=-1, keepdim=True)  # (r, 1)
    elif settings.filters:
        total = weights.sum(dim=-1, keepdim=True)
        kept = weights.masked_fill(find_filtered_tokens(logits, settings), 0.0)
        tokens, _ = _search(kept, uniform)
    else:
        tokens, total = _search(weights, uniform)

    # what is searched in NaN is found nowhere
    tokens = tokens.clamp_(max=logits.shape[1] - 1)
    log_probs = logits.gather(1, tokens) - largest - total.log()  # (r, 1)
    return tokens[:, 0], log_probs.float()[:, 0]


def _search(weights: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Return where the cumulative weights pass a share of their sum, and the sum.

    Args:
        weights: (r, V), not negative.
        uniform: (r,) in float64, in [0, 1).

    Returns:
        tokens (r, 1), and the sums (r, 1) in float64.
    """
    width = weights.shape[1]
    weights = torch.nn.functional.pad(weights, (0, -width % _BLOCK))
    blocks = weights.view(len(weights), -1, _BLOCK)  # (r, B, block)

    # the block
    cumulative = blocks.sum(dim=-1).double().cumsum(dim=-1)  # (r, B)
    total = cumulative[:, -1:]  # (r, 1)
    wanted = _below(uniform[:, None] * total, total)  # (r, 1)
    block = torch.searchsorted(cumulative, wanted, right=True)  # (r, 1)
    block.clamp_(max=cumulative.shape[1] - 1)

    # The share of the block's own weights: their sum is not rounded as the block's was.
    before = torch.nn.functional.pad(cumulative, (1, 0)).gather(1, block)  # (r, 1)
    share = (wanted - before) / (cumulative.gather(1, block) - before)  # (r, 1)
    inside = blocks.gather(1, block[:, :, None].expand(-1, -1, _BLOCK))[:, 0]  # (r, block)
    inside = inside.cumsum(dim=-1, dtype=torch.float64)
    wanted = _below(share * inside[:, -1:], inside[:, -1:])
    return block * _BLOCK + torch.searchsorted(inside, wanted, right=True), total


def _below(values: Tensor, total: Tensor) -> Tensor:
    """Return the values, each below the total, which rounding may have reached."""
    return torch.minimum(values, torch.nextafter(total, torch.zeros_like(total)))


def find_filtered_tokens(logits: Tensor, settings: SamplingSettings) -> Tensor:
    """Return which tokens are never sampled, (r, V) bool.

    They are below the top k, beyond the top p, or under min p. Each filter works on what the one
    before it left, as transformers' processors do (Holtzman et al. 2020, arXiv:1904.09751 for
    top-p; Nguyen et al. 2024, arXiv:2407.01082 for min-p). The likeliest token always stays.
    """
    filtered = torch.zeros_like(logits, dtype=torch.bool)  # (r, V)

    if settings.top_k > 0:
        weakest = logits.topk(min(settings.top_k, logits.shape[1]), dim=-1).values[:, -1:]  # (r, 1)
        filtered |= logits < weakest

    if settings.top_p < 1.0:
        ordered, order = logits.masked_fill(filtered, -torch.inf).sort(dim=-1, descending=True)
        probabilities = ordered.softmax(dim=-1)
        # The tokens before this one hold the share already.
        beyond = probabilities.cumsum(dim=-1) - probabilities >= settings.top_p
        filtered |= torch.zeros_like(filtered).scatter(1, order, beyond)

    if settings.min_p is not None and settings.min_p > 0:
        left = logits.masked_fill(filtered, -torch.inf).softmax(dim=-1)
        filtered |= left < settings.min_p * left.amax(dim=-1, keepdim=True)

    return filtered
