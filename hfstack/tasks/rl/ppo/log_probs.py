"""Compute log-probabilities of tokens from hidden states, without all logits.

The output head runs over a few rows at a time. Under autograd each chunk drops its logits and
computes them again in the backward pass, so the largest tensor has `_LOGITS_AT_ONCE` elements
however large the batch and the vocabulary are, and more on an accelerator, where small products
leave it idle. A smaller batch is computed directly.

Legend: n scored tokens, m of them in a chunk, d hidden size, V vocabulary.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

_LOGITS_AT_ONCE = {"cpu": 2**24}  # 64 MiB in fp32
_LOGITS_AT_ONCE_ACCELERATOR = 2**27  # 512 MiB


def log_probs_of(logits: Tensor, targets: Tensor) -> Tensor:
    """Return log softmax(logits)[target]: (n,) from (n, V) and (n,).

    By the kernels of cross-entropy, whose backward pass takes a third less time than that of
    logits[target] - logsumexp(logits), and one (n, V) tensor less.
    """
    return -nn.functional.cross_entropy(logits, targets, reduction="none")


def entropy_of(logits: Tensor) -> Tensor:
    """Return the entropy of softmax(logits) in nats: (n,) from (n, V).

    -sum p log p = logsumexp(z) - sum p z.
    """
    normalizer = logits.logsumexp(dim=-1)  # (n,)
    probabilities = (logits - normalizer[:, None]).exp()  # (n, V)
    return normalizer - (probabilities * logits).sum(dim=-1)


def score_tokens(
    head: Callable[[Tensor], Tensor],
    hidden: Tensor,
    targets: Tensor,
    *,
    vocabulary: int,
    temperature: float = 1.0,
    with_entropy: bool = False,
    logits_at_once: int | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Return log-probabilities and, when asked, entropies of the targets, (n,) each.

    Both are in fp32.

    Args:
        head: (m, d) -> (m, V) logits; called on chunks of rows.
        hidden: (n, d), of the position before each target.
        targets: (n,), token ids.
        vocabulary: V.
        temperature: that the logits are divided by; the one that the tokens were sampled with.
        with_entropy: also return the entropy of each position's distribution.
        logits_at_once: elements of the largest tensor that is made; None: by the device.
    """

    def score_chunk(rows: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor | None]:
        logits = head(rows).float()  # (m, V)
        if temperature != 1.0:
            logits = logits / temperature
        return log_probs_of(logits, wanted), entropy_of(logits) if with_entropy else None

    if logits_at_once is None:
        logits_at_once = _LOGITS_AT_ONCE.get(hidden.device.type, _LOGITS_AT_ONCE_ACCELERATOR)
    chunk_rows = max(1, logits_at_once // vocabulary)
    if len(targets) <= chunk_rows:
        return score_chunk(hidden, targets)

    log_probs: list[Tensor] = []  # (m,) each
    entropies: list[Tensor] = []  # (m,) each
    for rows, wanted in zip(hidden.split(chunk_rows), targets.split(chunk_rows), strict=True):
        if torch.is_grad_enabled():
            scored: Any = checkpoint(score_chunk, rows, wanted, use_reentrant=False)
        else:
            scored = score_chunk(rows, wanted)

        log_probs.append(scored[0])
        if with_entropy:
            entropies.append(scored[1])

    return torch.cat(log_probs), torch.cat(entropies) if with_entropy else None
