"""Measure whose labels help a reward model, by leaving out one annotator each.

The reward model of this measurement is a linear head (Bradley and Terry 1952) on the frozen states
of a language model, so that it can be trained for every annotator and every fold in seconds. Pairs
are held out by prompt.
"""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, cast

import numpy
import torch
from accelerate import Accelerator
from scipy.optimize import minimize
from trl import ModelConfig

from hfstack.errors import DataError
from hfstack.feedback.agreement import majority
from hfstack.feedback.export import JudgedItem
from hfstack.intervals import gain_interval, share_interval
from hfstack.models.context import context_length
from hfstack.models.loading import load_causal_lm, load_tokenizer
from hfstack.tasks.preferences.encode import encode_answer, truncate_pair

_FOLDS = 5
# Weight decay of the head, of states scaled to unit variance.
_DECAY = 1.0


@dataclass(frozen=True)
class LabelledPair:
    """A pair with everybody's choices, ties left out.

    Args:
        prompt: which prompt it is of, for the folds.
        features: (D,) states of the second answer less those of the first.
        choices: 0 or 1, by annotator.
        best: the choice of the majority of all.
    """

    prompt: str
    features: numpy.ndarray[Any, Any]
    choices: dict[str, int]
    best: int


@dataclass(frozen=True)
class LeftOut:
    """What the others' labels are worth without those of one annotator.

    Args:
        accuracy: on held-out majority pairs, trained without them.
        gain: that less the accuracy with all, with its interval; above 0 their labels hurt.
        label_agreement: share of their own labels that a model of all labels of the others agrees
            with, with its interval; low for who is careless or of another opinion. That model has
            seen none of their labels, so no pair needs to be held out of it: it knows what the
            others say of the same pair, where they judged it, and of ones like it, where not.
        label_loss: -log of the probability that the same model gives their labels, in nats, with
            its interval; high for them. A label against the model weighs by how sure the model is.
    """

    annotator: str
    accuracy: float
    gain: tuple[float, float, float]
    label_agreement: tuple[float, float, float]
    label_loss: tuple[float, float, float]


def labelled_pairs(judged: Sequence[JudgedItem], features: Sequence[Any]) -> list[LabelledPair]:
    """Return the pairs with a majority, for `leave_one_out`.

    Args:
        judged: pairs, hidden checks left out.
        features: of each pair, as `pair_features` gives them.
    """
    pairs = []
    for one, values in zip(judged, features, strict=True):
        votes = one.in_turn()
        best = majority("pairs", [vote.verdict for vote in votes]).value
        choices = {vote.annotator: vote.verdict["choice"] for vote in votes}
        kept = {name: choice for name, choice in choices.items() if choice is not None}
        if best is not None:
            pairs.append(LabelledPair(json.dumps(one.item.prompt), values, kept, best))
    return pairs


def pair_features(model_args: ModelConfig, judged: Sequence[JudgedItem]) -> numpy.ndarray[Any, Any]:
    """Return (N, 2 H) differences of last states, second answer less first.

    Of each answer the mean over its tokens, and its last token, where a reward model reads.
    """
    tokenizer = load_tokenizer(model_args)
    loaded: Any = load_causal_lm(model_args, tokenizer)
    model = loaded.to(Accelerator().device).eval()
    longest = context_length(model.config)

    def states(prompt: Any, answer: Any) -> numpy.ndarray[Any, Any]:
        whole, begin, end = encode_answer(tokenizer, prompt, answer)
        ids = whole
        if longest is not None and len(whole) > longest:
            ids = truncate_pair(whole, begin, end, max_length=longest)
        first = min(end - (len(whole) - len(ids)), len(ids) - 1)
        inputs = torch.tensor([ids], device=model.device)  # (1, T)
        with torch.no_grad():
            hidden = model(inputs, output_hidden_states=True).hidden_states[-1][0]  # (T, H)
        answer_states = hidden[first:].float()
        return torch.cat([answer_states.mean(0), answer_states[-1]]).cpu().numpy()

    return numpy.stack(
        [
            states(one.item.prompt, one.item.answers[1])
            - states(one.item.prompt, one.item.answers[0])
            for one in judged
        ]
    )


def leave_one_out(pairs: Sequence[LabelledPair], *, seed: int) -> list[LeftOut]:
    """Return what each annotator's labels are worth.

    Raises:
        DataError: there are too few pairs or annotators.
    """
    names = sorted({name for pair in pairs for name in pair.choices})
    prompts = sorted({pair.prompt for pair in pairs})
    if len(names) < 2 or len(prompts) < 2 * _FOLDS:
        raise DataError(
            f"leave one annotator out needs two annotators and {2 * _FOLDS} prompts with a "
            f"majority, got {len(names)} and {len(prompts)}: leave out --leave_one_out"
        )

    random.Random(seed).shuffle(prompts)
    fold_of = {prompt: place % _FOLDS for place, prompt in enumerate(prompts)}
    folds = [fold_of[pair.prompt] for pair in pairs]
    groups = [pair.prompt for pair in pairs]
    everybody = _held_out_scores(pairs, folds, without=None)
    right = _are_right(pairs, everybody)

    found = []
    for name in names:
        # towards what they chose themselves
        theirs = [pair for pair in pairs if name in pair.choices]
        margins = [
            score if pair.choices[name] else -score
            for pair, score in zip(theirs, _scores(pairs, theirs, without=name), strict=True)
        ]
        own = [float(margin > 0) for margin in margins]
        losses = [float(numpy.logaddexp(0, -margin)) for margin in margins]
        without = _are_right(pairs, _held_out_scores(pairs, folds, without=name))
        gain = fmean(without) - fmean(right)
        found.append(
            LeftOut(
                name,
                fmean(without),
                (gain, *gain_interval(without, right, groups)),
                (fmean(own), *share_interval(own)),
                (fmean(losses), *gain_interval(losses, [0.0] * len(losses))),
            )
        )
    return found


def _are_right(pairs: Sequence[LabelledPair], scores: Sequence[float]) -> list[float]:
    return [
        float((score > 0) == bool(pair.best)) for pair, score in zip(pairs, scores, strict=True)
    ]


def _held_out_scores(
    pairs: Sequence[LabelledPair], folds: Sequence[int], *, without: str | None
) -> list[float]:
    """Return the score of each pair by a head that saw not its prompt."""
    scores = [0.0] * len(pairs)
    for fold in range(_FOLDS):
        train = [pair for pair, own in zip(pairs, folds, strict=True) if own != fold]
        places = [place for place, own in enumerate(folds) if own == fold]
        held_out = [pairs[place] for place in places]
        for place, score in zip(places, _scores(train, held_out, without=without), strict=True):
            scores[place] = score
    return scores


def _scores(
    train: Sequence[LabelledPair], scored: Sequence[LabelledPair], *, without: str | None
) -> list[float]:
    """Return the score of pairs by a head that learned from the labels of `train`.

    Without one person's labels, and 0 where none are left.
    """
    examples = [
        (pair.features, choice)
        for pair in train
        for name, choice in pair.choices.items()
        if name != without
    ]
    if not examples:
        return [0.0] * len(scored)

    features = numpy.stack([values for values, _ in examples])  # (E, D)
    scale = numpy.sqrt((features**2).mean(0)) + 1e-8
    signs = numpy.array([2 * choice - 1 for _, choice in examples])
    weights = fit_bradley_terry(features / scale, signs)
    return [float(pair.features / scale @ weights) for pair in scored]


def fit_bradley_terry(
    features: numpy.ndarray[Any, Any], signs: numpy.ndarray[Any, Any]
) -> numpy.ndarray[Any, Any]:
    """Return the weights of a linear reward that explain choices best.

    Args:
        features: (E, D) differences, second answer less first.
        signs: (E,) 1 where the second was chosen, else -1.
    """

    def loss(weights: Any) -> tuple[float, Any]:
        margins = signs * (features @ weights)
        value = numpy.logaddexp(0, -margins).sum() + _DECAY / 2 * weights @ weights
        slope = -signs / (1 + numpy.exp(numpy.clip(margins, -500, 500)))
        return float(value), features.T @ slope + _DECAY * weights

    start = numpy.zeros(features.shape[1])
    return cast(Any, minimize(loss, start, jac=True, method="L-BFGS-B")).x
