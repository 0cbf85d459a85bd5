"""Attribute a classifier's logit to tokens by integrated gradients (captum).

Sundararajan et al. 2017, arXiv:1703.01365.

The path goes in a straight line from the embeddings of a text in which every token is a neutral one
to those of the text itself; special tokens stay. The attributions of all tokens add up to the
difference of the two logits, but for the error of the sum that stands for the integral: the
convergence delta, which is returned and made small. Legend: S points of the path, T tokens, H width
of the embedding.
"""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from hfstack.errors import DataError, MissingExtraError
from hfstack.tasks.classification.calibration import probabilities
from hfstack.tasks.classification.model import ClassifierInfo
from hfstack.tokens.text_rows import read_texts

_POINTS_AT_ONCE = 16


@dataclass(frozen=True)
class Explanation:
    """The attributions of one text to one logit."""

    texts: tuple[str, ...]
    """The text, or the pair."""
    tokens: tuple[tuple[int, int, int, float], ...]
    """(which text, first character, last character + 1, attribution) of each token that is not
    special
    """
    label: str
    probability: float | None
    logit: float
    baseline_logit: float
    """of the text with neutral tokens"""
    attributed: float
    """sum of the attributions"""
    steps: int
    probabilities: tuple[tuple[str, float], ...] = ()
    """of every label, the likeliest first; none for a regression"""

    @property
    def delta(self) -> float:
        """Return what the attributions' sum misses of the logit difference; 0 is perfect."""
        return self.attributed - (self.logit - self.baseline_logit)

    @property
    def relative_delta(self) -> float:
        """Return the delta over the logit difference, which is taken as 1e-3 at least."""
        return abs(self.delta) / max(abs(self.logit - self.baseline_logit), 1e-3)


def explain_text(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    info: ClassifierInfo,
    texts: tuple[str, ...],
    *,
    label: str | None = None,
    steps: int = 32,
    tolerance: float = 0.01,
    most_steps: int = 512,
    max_length: int | None = None,
) -> Explanation:
    """Attribute a logit of one text, or pair, to its tokens.

    Args:
        label: which label's logit; by default the one that the model says. A regression has one
            only.
        steps: points of the path; doubled until the delta is at most `tolerance` of the logit
            difference, up to `most_steps`.
        max_length: tokens after which the text is truncated.

    Raises:
        DataError: the text is empty, or there is no such label.
        MissingExtraError: captum is not installed.
    """
    read_texts({"text": texts}, ("text", None))
    if not any(text.strip() for text in texts):
        raise DataError("nothing to explain: the text is empty")
    inputs, where, special = _encode_text(tokenizer, texts, max_length)
    device = next(model.parameters()).device
    inputs = {name: tensor.to(device) for name, tensor in inputs.items()}
    forward = _forward(model, inputs)

    with torch.no_grad():
        embed = model.get_input_embeddings()
        ids = inputs["input_ids"]  # (1, T)
        neutral = torch.where(special.to(device), ids, neutral_id(tokenizer))
        whole, empty = embed(ids).detach(), embed(neutral).detach()  # (1, T, H)
        logits = forward(whole)  # (1, C)

    target = _target_id(label, info, logits)
    label_name = info.names[target] if info.names else "value"
    each_label = _probabilities(logits, info)
    found = integrate_gradients(
        lambda embedded: forward(embedded)[:, target],
        whole,
        empty,
        steps=steps,
        tolerance=tolerance,
        most_steps=most_steps,
    )
    explained = found.explain(
        texts,
        [(i, place) for i, place in enumerate(where) if not special[0, i]],
        label=label_name,
        probability=dict(each_label).get(label_name),
    )
    return replace(explained, probabilities=each_label)


@dataclass(frozen=True)
class Integrated:
    """The attributions of all tokens of a text to one number."""

    each: torch.Tensor
    """(T,), in double precision"""
    value: float
    baseline: float
    steps: int

    def explain(
        self,
        texts: tuple[str, ...],
        places: Sequence[tuple[int, tuple[int, int, int]]],
        *,
        label: str,
        probability: float | None = None,
    ) -> Explanation:
        """Return the explanation of the tokens that are shown.

        Args:
            places: of each such token its index, and where it stands in the texts.
        """
        return Explanation(
            texts=texts,
            tokens=tuple((*place, float(self.each[index])) for index, place in places),
            label=label,
            probability=probability,
            logit=self.value,
            baseline_logit=self.baseline,
            attributed=float(self.each.sum()),
            steps=self.steps,
        )


def integrate_gradients(
    score: Callable[[torch.Tensor], torch.Tensor],
    whole: torch.Tensor,
    empty: torch.Tensor,
    *,
    steps: int,
    tolerance: float,
    most_steps: int = 512,
) -> Integrated:
    """Return the attributions of a number along the path between two embeddings.

    Args:
        score: from embeddings (S, T, H) to the number of each, (S,).
        whole: of the text, (1, T, H).
        empty: of the neutral text, (1, T, H).
        steps: points of the path; doubled until what the attributions miss of the difference is at
            most `tolerance` of it, up to `most_steps`.

    Raises:
        MissingExtraError: captum is not installed.
    """
    with torch.no_grad():
        value, baseline = float(score(whole)[0]), float(score(empty)[0])
    method = _captum().IntegratedGradients(score)
    while True:
        scores = method.attribute(
            whole, baselines=empty, n_steps=steps, internal_batch_size=_POINTS_AT_ONCE
        )
        each = scores[0].sum(-1).double().cpu()  # (T,)
        missed = abs(float(each.sum()) - (value - baseline))
        if missed <= tolerance * max(abs(value - baseline), 1e-3) or steps * 2 > most_steps:
            return Integrated(each, value, baseline, steps)
        steps *= 2


def _forward(model: Any, inputs: dict[str, torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return a function from embeddings (S, T, H) to logits (S, C) in fp32.

    With the mask and segments of the text.
    """
    rest = {name: tensor for name, tensor in inputs.items() if name != "input_ids"}

    def forward(embedded: torch.Tensor) -> torch.Tensor:
        more = {name: tensor.expand(len(embedded), -1) for name, tensor in rest.items()}
        return model(inputs_embeds=embedded, **more).logits.float()

    return forward


def _encode_text(
    tokenizer: PreTrainedTokenizerBase, texts: tuple[str, ...], max_length: int | None
) -> tuple[dict[str, torch.Tensor], list[tuple[int, int, int]], torch.Tensor]:
    """Return inputs (1, T), each token's place in the text, and special tokens (1, T)."""
    parts = list(texts)
    text, pair = parts[0], parts[1] if len(parts) > 1 else None
    joined = pair is not None and tokenizer.sep_token_id is None
    if joined:
        text, pair = f"{text}\n{pair}", None  # as data.text_rows joins a pair

    cut: dict[str, Any] = (
        {} if max_length is None else {"truncation": True, "max_length": max_length}
    )
    encoded: Any = tokenizer(
        text,
        pair,
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
        verbose=False,
        **cut,
    )

    segments = encoded.sequence_ids(0)
    where: list[tuple[int, int, int]] = []

    for (first, last), segment in zip(encoded["offset_mapping"], segments, strict=True):
        index = segment or 0
        if joined and first > len(parts[0]):
            index, first, last = 1, first - len(parts[0]) - 1, last - len(parts[0]) - 1
        where.append((index, first, min(last, len(parts[index]))))

    special = torch.tensor([encoded["special_tokens_mask"]]).bool()
    names = ("input_ids", "attention_mask", "token_type_ids")
    return (
        {name: torch.tensor([encoded[name]]) for name in names if name in encoded},
        where,
        special,
    )


def neutral_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the neutral token: the mask, else padding, unknown or end."""
    for token in (
        tokenizer.mask_token_id,
        tokenizer.pad_token_id,
        tokenizer.unk_token_id,
        tokenizer.eos_token_id,
    ):
        if isinstance(token, int):
            return token

    raise DataError(
        "the tokenizer has no mask, pad, unknown or end token to stand for an absent word"
    )


def _target_id(label: str | None, info: ClassifierInfo, logits: torch.Tensor) -> int:
    if label is None or not info.names:
        return int(logits[0].argmax())
    if label not in info.names:
        raise DataError(f"--label {label!r}: the model knows {', '.join(info.names[:10])}")
    return info.names.index(label)


def _probabilities(logits: torch.Tensor, info: ClassifierInfo) -> tuple[tuple[str, float], ...]:
    """Return every label with its probability, the likeliest first."""
    if not info.names:
        return ()
    found = probabilities(logits.cpu().numpy(), info.problem_type, info.temperature)[0]  # (C,)
    pairs = zip(info.names, map(float, found), strict=True)
    return tuple(sorted(pairs, key=lambda pair: -pair[1]))


def _captum() -> Any:
    try:
        return importlib.import_module("captum.attr")
    except ImportError:
        raise MissingExtraError("captum", "explain") from None
