"""Score documents with a causal LM: strided windows, bits per byte, intervals.

Apart from `metrics`, which makes `evaluate.Metric` classes of these scores, because few runs need
`evaluate` and it takes half a second to import.

Legend: B windows of a batch, T window length, n scored positions of a batch, V vocabulary.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hfstack.errors import DataError
from hfstack.intervals import bootstrap_intervals
from hfstack.progress import follow
from hfstack.tokens.fast_encoding import document_start_id


@dataclass(frozen=True)
class DocumentScore:
    """How well a model predicts one document."""

    nll: float  # summed negative log-likelihood of its tokens, nats
    tokens: int  # tokens scored
    utf8_bytes: int  # length of the text
    correct: int  # tokens that were the model's first choice


@dataclass(frozen=True)
class _Window:
    """A window of one document, of which the last `scored` tokens count."""

    document: int
    token_ids: list[int]
    scored: int


def score_documents(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    max_length: int,
    stride: int,
    batch_size: int = 8,
    across_documents: bool = False,
) -> list[DocumentScore]:
    """Score each text by windows of `max_length` tokens that advance by `stride`.

    Every token is scored exactly once, with at least `max_length - stride` tokens of context where
    the document has them. A document starts after the token that separates documents in pretraining
    (bos, else eos), so that its first token is scored too; the end of a document is not. Context
    never reaches into the document before, unless `across_documents` joins all texts, in order,
    into one.

    Args:
        model: a causal language model, in eval mode.
        tokenizer: the model's tokenizer.
        texts: documents.
        max_length: window length in tokens, at most the model's context.
        stride: tokens by which the window advances, in [1, max_length - 1]; smaller is slower and
            gives more context.
        batch_size: windows per forward pass.

    Raises:
        DataError: no document has a token, or there is no token to start a document with.
    """
    start = document_start_id(tokenizer)
    if start is None:
        raise DataError(
            "the tokenizer has neither a bos nor an eos token, so no document can be started"
        )

    # verbose=False: a document longer than the context is no mistake here, it is read in windows
    encoded: list[list[int]] = [
        tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] for text in texts
    ]
    sizes = [len(text.encode()) for text in texts]

    if across_documents:
        encoded = [_join_documents(encoded, separator=start)]
        sizes = [sum(sizes)]

    if not any(encoded):
        raise DataError("none of the documents to evaluate on has a token")

    windows = [
        window
        for document, ids in enumerate(encoded)
        for window in split_into_windows(document, [start, *ids], max_length, stride)
    ]
    windows.sort(key=lambda window: len(window.token_ids))  # like lengths together: little padding

    nll = np.zeros(len(encoded))
    correct = np.zeros(len(encoded), dtype=int)
    batches = range(0, len(windows), batch_size)
    for first in follow(batches, "scoring batches", total=len(batches)):
        batch = windows[first : first + batch_size]
        losses, hits = _score_windows(model, batch, pad_id=start)
        for window, loss, hit in zip(batch, losses, hits, strict=True):
            nll[window.document] += loss
            correct[window.document] += hit

    return [
        DocumentScore(float(nll[index]), len(ids), sizes[index], int(correct[index]))
        for index, ids in enumerate(encoded)
        if ids
    ]


def _join_documents(documents: Sequence[Sequence[int]], *, separator: int) -> list[int]:
    """Return all documents as one, with the separator between them."""
    joined: list[int] = []
    for ids in documents:
        joined += [*ids, separator]
    return joined[:-1]


def split_into_windows(
    document: int, token_ids: list[int], max_length: int, stride: int
) -> Iterator[_Window]:
    """Split a document into windows such that each token but the first is scored once."""
    scored_to = 1  # token 0 only gives context
    end = min(max_length, len(token_ids))
    while scored_to < len(token_ids):
        yield _Window(document, token_ids[max(0, end - max_length) : end], end - scored_to)
        scored_to, end = end, min(end + stride, len(token_ids))


@torch.no_grad()
def _score_windows(
    model: PreTrainedModel, windows: list[_Window], *, pad_id: int
) -> tuple[list[float], list[int]]:
    """Return per window the summed loss in nats and the number of correct tokens.

    A token is correct when it was the model's first choice.
    """
    longest = max(len(window.token_ids) for window in windows)
    tokens = torch.full((len(windows), longest), pad_id)  # (B, T)
    scored = torch.zeros((len(windows), longest), dtype=torch.bool)  # (B, T)

    # padded on the right, without a mask: a causal model never looks there
    for row, window in enumerate(windows):
        length = len(window.token_ids)
        tokens[row, :length] = torch.tensor(window.token_ids)
        scored[row, length - window.scored : length] = True

    tokens, scored = tokens.to(model.device), scored.to(model.device)
    logits = model(input_ids=tokens, use_cache=False).logits[:, :-1]  # (B, T - 1, V)
    targets, mask = tokens[:, 1:], scored[:, 1:]  # (B, T - 1)

    rows = logits[mask].float()  # (n, V): only the scored positions
    losses = torch.nn.functional.cross_entropy(rows, targets[mask], reduction="none")  # (n,)
    hits = rows.argmax(-1) == targets[mask]  # (n,)

    # Each scored position is added to its window.
    window_of = mask.nonzero()[:, 0]  # (n,)
    sums = torch.zeros(len(windows), dtype=torch.float64, device=losses.device)
    sums.index_add_(0, window_of, losses.double())
    counts = torch.zeros(len(windows), dtype=torch.long, device=losses.device)
    counts.index_add_(0, window_of, hits.long())
    return sums.tolist(), counts.tolist()


def bootstrap_interval(
    scores: Sequence[DocumentScore], *, draws: int = 1000, seed: int = 0
) -> dict[str, float]:
    """Return the 95 % interval of loss and bits per byte, resampling whole documents.

    Documents, not tokens, are the unit that was sampled.
    """
    nll = np.array([score.nll for score in scores])
    tokens = np.array([score.tokens for score in scores])
    sizes = np.array([score.utf8_bytes for score in scores])

    def measure(picks: np.ndarray) -> dict[str, float]:
        total = nll[picks].sum()
        return {
            "eval_loss": total / tokens[picks].sum(),
            "bits_per_byte": total / math.log(2) / sizes[picks].sum(),
        }

    intervals = bootstrap_intervals(measure, len(scores), draws=draws, seed=seed)
    return {
        f"{name}_{end}": value
        for name, interval in intervals.items()
        for end, value in zip(("low", "high"), interval, strict=True)
    }


def perplexity(loss: float) -> float:
    """Return exp(loss), or infinity where that overflows."""
    return math.exp(loss) if loss < 700 else math.inf


def derived_metrics(loss: float, *, tokens_per_byte: float) -> dict[str, float]:
    """Return perplexity and bits per byte of a mean loss in nats per token.

    Args:
        loss: nats per token.
        tokens_per_byte: tokens over UTF-8 bytes of the text that the loss was measured on.
    """
    return {"perplexity": perplexity(loss), "bits_per_byte": loss / math.log(2) * tokens_per_byte}
