"""Compute log-probabilities from hidden states, without (n, V) logits of a batch.

The output head runs over a few rows at a time. Under autograd each chunk forgets its logits and
makes them again in the backward pass, so the largest tensor has `_LOGITS_AT_ONCE` elements however
large the batch and the vocabulary are. A batch that is smaller than that takes the direct way.

Legend: n scored tokens, d hidden size, V vocabulary.
"""

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

_LOGITS_AT_ONCE = 2**24  # 64 MiB in fp32


def log_probs_of(logits: Tensor, targets: Tensor) -> Tensor:
    """Return log softmax(logits)[target] as (n,), from (n, V) and (n,).

    As logits[target] - logsumexp(logits).
    """
    return logits.gather(1, targets[:, None])[:, 0] - logits.logsumexp(dim=-1)


def entropy_of(logits: Tensor) -> Tensor:
    """Return the entropy of softmax(logits) in nats as (n,), from (n, V).

    -sum p log p = logsumexp(z) - sum p z.
    """
    normalizer = logits.logsumexp(dim=-1)
    probabilities = (logits - normalizer[:, None]).exp()
    return normalizer - (probabilities * logits).sum(dim=-1)


def score_tokens(
    head: Callable[[Tensor], Tensor],
    hidden: Tensor,
    targets: Tensor,
    *,
    vocabulary: int,
    temperature: float = 1.0,
    with_entropy: bool = False,
    logits_at_once: int = _LOGITS_AT_ONCE,
) -> tuple[Tensor, Tensor | None]:
    """Return log-probability, and entropy when asked, of each target, (n,) in fp32.

    Args:
        head: (m, d) -> (m, V) logits; called on chunks of rows.
        hidden: (n, d), of the position before each target.
        targets: (n,), token ids.
        vocabulary: V.
        temperature: what the logits are divided by; the one that the tokens were sampled with.
        with_entropy: also return the entropy of each position's distribution.
        logits_at_once: elements of the largest tensor that is made.
    """

    def score(rows: Tensor, wanted: Tensor) -> tuple[Tensor, ...]:
        logits = head(rows).float()
        if temperature != 1.0:
            logits = logits / temperature
        found = log_probs_of(logits, wanted)
        return (found, entropy_of(logits)) if with_entropy else (found,)

    chunk = max(1, logits_at_once // vocabulary)
    if len(targets) <= chunk:
        parts = [score(hidden, targets)]
    else:
        pairs = zip(hidden.split(chunk), targets.split(chunk), strict=True)
        if torch.is_grad_enabled():
            parts = [checkpoint(score, rows, wanted, use_reentrant=False) for rows, wanted in pairs]
        else:
            parts = [score(rows, wanted) for rows, wanted in pairs]

    columns: list[tuple[Tensor, ...]] = list(
        zip(*cast(list[tuple[Tensor, ...]], parts), strict=True)
    )
    joined = [torch.cat(column) if len(column) > 1 else column[0] for column in columns]  # pyright: ignore[reportGeneralTypeIssues]

    return joined[0], joined[1] if with_entropy else None
