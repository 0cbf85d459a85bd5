"""Score pairs of sentences, and answers behind a question, by log-probability.

A masked model has no probability of a sentence: what is compared is the pseudo-log-likelihood of
the tokens that both sentences share, each masked in its own sentence (Nangia et al. 2020,
arXiv:2010.00133, section 3). Where a word has several tokens, those of the word behind the masked
one are masked too, else the rest of the word gives it away (Kauf and Ivanova 2023,
arXiv:2305.10588, PLL-word-l2r). A causal model's number is the log-probability of the whole
sentence, which is another quantity: shorter sentences gain by it.

Legend: B rows, T tokens of the longest, V vocabulary, n scored tokens of a batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any, Literal

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hfstack.errors import ConfigError, DataError
from hfstack.models.context import context_length
from hfstack.tasks.causal_lm.document_scores import score_documents
from hfstack.tasks.masked_lm.model import logits_where
from hfstack.tokens.fast_encoding import document_start_id
from hfstack.tokens.seams import encode_joined
from hfstack.tokens.special_tokens import IGNORED_LABEL

PseudoLikelihood = Literal["within_word", "original"]


@dataclass(frozen=True)
class _Query:
    """One row that a model reads, and its tokens that count for an item."""

    item: int
    token_ids: list[int]
    labels: list[int]


def score_sentence_pairs(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[tuple[str, str]],
    *,
    masked: bool,
    pseudo_likelihood: PseudoLikelihood = "within_word",
    batch_size: int = 32,
) -> list[tuple[float, float]]:
    """Return the log-probabilities of both sentences of each pair, in nats.

    Args:
        model: a masked or a causal language model, in eval mode.
        pairs: sentences that differ in some words.
        masked: the model is a masked one: pseudo-log-likelihood of the shared tokens.
        pseudo_likelihood: `within_word` masks the rest of a word too, `original` one token alone.
        batch_size: rows of one forward pass.

    Raises:
        DataError: a sentence is longer than the model reads, or a pair shares no token.
        ConfigError: the tokenizer has no mask token, or does not say which tokens are one word.
    """
    texts = [text for pair in pairs for text in pair]
    if not masked:
        return _in_twos(_score_sentences(model, tokenizer, texts, batch_size))

    _check_masking(tokenizer)
    queries: list[_Query] = []
    for index, pair in enumerate(pairs):
        encoded = [tokenizer(text, return_special_tokens_mask=True, verbose=False) for text in pair]
        ids = [list(one["input_ids"]) for one in encoded]
        _check_sentence_lengths(model, ids, f"pair {index + 1}")

        # The tokens that both have, in order; what begins and ends every sentence is no part of it.
        blocks = SequenceMatcher(None, *ids, autojunk=False).get_matching_blocks()
        for side, (row, one) in enumerate(zip(ids, encoded, strict=True)):
            starts = [(block.a, block.b)[side] for block in blocks]
            added = one["special_tokens_mask"]
            shared = [
                start + step
                for start, block in zip(starts, blocks, strict=True)
                for step in range(block.size)
                if not added[start + step]
            ]
            if not shared:
                raise DataError(f"pair {index + 1} shares no token, so nothing can be compared")

            words = one.word_ids() if pseudo_likelihood == "within_word" else None
            queries += _mask_each(2 * index + side, row, shared, words, tokenizer)

    return _in_twos(_add_up(model, tokenizer, queries, len(texts), batch_size, masked=True))


def score_choices(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[str],
    answers: Sequence[Sequence[str]],
    *,
    masked: bool,
    batch_size: int = 32,
) -> list[list[float]]:
    """Return the log-probability of each answer behind its question, in nats.

    Of a masked model it is the pseudo-log-likelihood (within words) of the answer's tokens.

    Args:
        questions: texts; a blank is written between each and its answer.
        answers: the choices for each question.

    Raises:
        DataError: a question with its answer is longer than the model reads.
    """
    start = document_start_id(tokenizer)
    if masked:
        _check_masking(tokenizer)
    elif start is None:
        raise DataError("the tokenizer has neither a bos nor an eos token to start a text with")

    queries: list[_Query] = []
    items = [
        (question, answer)
        for question, choices in zip(questions, answers, strict=True)
        for answer in choices
    ]

    for item, (question, answer) in enumerate(items):
        if masked:
            encoded = tokenizer(f"{question} {answer}", return_offsets_mapping=True, verbose=False)
            row: list[int] = list(encoded["input_ids"])
            places: Any = encoded["offset_mapping"]
            chosen = [at for at, (_, end) in enumerate(places) if end > len(question)]
            queries += _mask_each(item, row, chosen, encoded.word_ids(), tokenizer)
        else:
            row, seam = encode_joined(tokenizer, question, f" {answer}")
            if row[:1] != [start]:
                row, seam = [int(start or 0), *row], seam + 1
            queries.append(_Query(item, row, [IGNORED_LABEL] * seam + row[seam:]))
        _check_sentence_lengths(model, [row], f"the question {question[:60]!r} with its answer")

    totals = _add_up(model, tokenizer, queries, len(items), batch_size, masked=masked)
    ends = np.cumsum([len(choices) for choices in answers]).tolist()
    return [totals[end - len(one) : end] for end, one in zip(ends, answers, strict=True)]


def _score_sentences(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: list[str], batch_size: int
) -> list[float]:
    """Return the log-probability of each whole sentence under a causal model."""
    longest = context_length(model.config) or 1024
    scores = score_documents(
        model,
        tokenizer,
        texts,
        max_length=longest,
        stride=max(1, longest // 2),
        batch_size=batch_size,
    )
    if len(scores) != len(texts):
        raise DataError("a sentence of the pairs has no token")
    return [-score.nll for score in scores]


def _mask_each(
    item: int,
    row: list[int],
    positions: Sequence[int],
    words: Sequence[int | None] | None,
    tokenizer: PreTrainedTokenizerBase,
) -> list[_Query]:
    """Return a query for each position, masked alone or with the rest of its word."""
    mask: Any = tokenizer.mask_token_id
    queries = []
    for position in positions:
        ids, labels = list(row), [IGNORED_LABEL] * len(row)
        labels[position] = row[position]
        ids[position] = mask

        later = position + 1
        while words is not None and later < len(row) and words[later] == words[position]:
            ids[later] = mask
            later += 1
        queries.append(_Query(item, ids, labels))
    return queries


@torch.no_grad()
def _add_up(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    queries: Sequence[_Query],
    items: int,
    batch_size: int,
    *,
    masked: bool,
) -> list[float]:
    """Return for each item the summed log-probability of its queries' labels."""
    pad: Any = tokenizer.pad_token_id if masked else document_start_id(tokenizer)
    totals = torch.zeros(items, dtype=torch.float64)
    # like lengths together: little padding
    ordered = sorted(queries, key=lambda query: len(query.token_ids))

    for first in range(0, len(ordered), batch_size):
        batch = ordered[first : first + batch_size]
        longest = len(batch[-1].token_ids)
        ids = torch.full((len(batch), longest), int(pad or 0))  # (B, T)
        labels = torch.full((len(batch), longest), IGNORED_LABEL)  # (B, T)
        mask = torch.zeros((len(batch), longest), dtype=torch.long)  # (B, T)

        for row, query in enumerate(batch):
            length = len(query.token_ids)
            ids[row, :length] = torch.tensor(query.token_ids)
            labels[row, :length] = torch.tensor(query.labels)
            mask[row, :length] = 1

        ids, mask = ids.to(model.device), mask.to(model.device)
        if masked:
            scored = labels != IGNORED_LABEL
            places = scored.to(model.device)
            rows = logits_where(model, places, input_ids=ids, attention_mask=mask)  # (n, V)
        else:
            # A causal model never looks at the padding on its right, and some read no mask.
            labels = labels[:, 1:]  # (B, T - 1)
            scored = labels != IGNORED_LABEL
            logits = model(input_ids=ids, use_cache=False).logits[:, :-1]  # (B, T - 1, V)
            rows = logits[scored.to(model.device)]  # (n, V)

        targets = labels[scored].to(model.device)  # (n,)
        loss = torch.nn.functional.cross_entropy(rows.float(), targets, reduction="none")  # (n,)
        owner = torch.tensor([query.item for query in batch])[scored.nonzero()[:, 0]]  # (n,)
        totals.index_add_(0, owner, -loss.double().cpu())
    return totals.tolist()


def _check_masking(tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer with which single tokens of a word cannot be masked."""
    if tokenizer.mask_token_id is None:
        raise ConfigError(
            f"{tokenizer.name_or_path}: the tokenizer has no mask token, which a masked model needs"
        )
    if not tokenizer.is_fast:
        raise ConfigError(
            f"{tokenizer.name_or_path}: the tokenizer is written in Python, and does not say which "
            "tokens are one word: use a model with a fast tokenizer (tokenizer.json)"
        )


def _check_sentence_lengths(
    model: PreTrainedModel, rows: Sequence[Sequence[int]], place: str
) -> None:
    """Refuse what is longer than the model reads: a truncated text is another one."""
    longest, context = max(map(len, rows)), context_length(model.config)
    if context is not None and longest > context:
        raise DataError(
            f"{place} has {longest} tokens, and the model reads {context}: leave it out, or use a "
            "model with a longer context"
        )


def _in_twos(values: Sequence[float]) -> list[tuple[float, float]]:
    return list(zip(values[::2], values[1::2], strict=True))
