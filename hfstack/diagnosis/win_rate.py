"""Measure how often one model's answers beat another's, and whether by length.

A judge is `(prompts, first, second)` and returns, for each prompt, the share in [0, 1] by which the
first answer wins: 1, 0, or 0.5 for a tie. Each pair is judged twice with the places swapped, so
that a judge that prefers a place adds nothing to the result.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy
from accelerate import Accelerator
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed
from trl import ModelConfig

from hfstack.errors import DataError
from hfstack.intervals import at_least_wilson, bootstrap_intervals, share_interval
from hfstack.models.context import check_answers_fit
from hfstack.models.loading import load_causal_lm, load_tokenizer
from hfstack.runs.rendering import check_rendering
from hfstack.tasks.causal_lm.generate import Completion, generate_from_ids
from hfstack.tasks.causal_lm.sampling import SamplingArgs
from hfstack.tasks.rl.prompts import tokenize_prompt
from hfstack.tasks.sft.answers import answer_loss
from hfstack.tokens.chat import end_of_turn_id, stop_at_end_of_turn
from hfstack.tokens.seams import encode_behind, opening_for
from hfstack.tokens.special_tokens import IGNORED_LABEL, end_token_ids

PairJudge = Callable[[list[Any], list[str], list[str]], Sequence[float]]

# Fewer pairs than these may all be ties by chance.
_FEW_PAIRS = 8
# of the prior on the slope: weak, but finite when length alone decides every pair
_SLOPE_SPREAD = 10.0
_WORD = re.compile(
    r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+"
)


@dataclass(frozen=True)
class Judged:
    """The judge's answers, averaged over both orders."""

    shares: list[float]
    """For each prompt, the share by which ours won."""
    first_place_share: float
    """Mean share of the answer that was shown first: 0.5 for a judge without a preference."""
    flips: float
    """Share of the prompts where the winner changed with the order."""

    def counts(self) -> dict[str, float]:
        """Return prompts won, tied and lost over both orders, and the effect of order."""
        return {
            "wins": sum(share > 0.5 for share in self.shares),
            "ties": sum(share == 0.5 for share in self.shares),
            "losses": sum(share < 0.5 for share in self.shares),
            "first_place_share": self.first_place_share,
            "flips": self.flips,
        }


@dataclass(frozen=True)
class Estimate:
    """A share with its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{100 * self.value:.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}]"

    def named(self, name: str) -> dict[str, float]:
        """Return the three numbers as `<name>`, `<name>_low` and `<name>_high`."""
        return {name: self.value, f"{name}_low": self.low, f"{name}_high": self.high}


def judge_both_orders(
    judge: PairJudge, prompts: list[Any], ours: list[str], theirs: list[str]
) -> Judged:
    """Ask the judge about each pair with either answer first, and average.

    Raises:
        DataError: the judge returns a list of the wrong length, or something outside [0, 1] (the
            pair is named).
    """
    if not prompts:
        raise DataError("no prompts to judge on")
    as_first = _ask_judge(judge, prompts, ours, theirs)
    as_second = _ask_judge(judge, prompts, theirs, ours)
    shares = [(first + 1 - second) / 2 for first, second in zip(as_first, as_second, strict=True)]
    flips = sum(
        (first - 0.5) * (0.5 - second) < 0
        for first, second in zip(as_first, as_second, strict=True)
    )

    # A rule made for other prompts scores everything alike, which reads as 50 % won.
    differ = sum(one != other for one, other in zip(ours, theirs, strict=True))
    if differ >= _FEW_PAIRS and {*as_first, *as_second} == {0.5}:
        raise DataError(
            f"the judge finds all {len(prompts)} pairs of answers equal, though {differ} of them "
            "differ: it does not fit these prompts; give --reward_model, or put a judge of your "
            "own in the recipe (hfstack copy win_rate)"
        )

    first_place = sum(as_first + as_second) / (2 * len(shares))
    return Judged(shares, first_place, flips / len(shares))


def judge_by_score(
    score: Callable[[list[Any], list[str]], Sequence[float]], *, margin: float = 0.0
) -> PairJudge:
    """Return a judge that compares scores; within `margin` it is a tie."""

    def judge(prompts: list[Any], first: list[str], second: list[str]) -> list[float]:
        pairs = zip(score(prompts, first), score(prompts, second), strict=True)
        return [0.5 if abs(one - two) <= margin else float(one > two) for one, two in pairs]

    return judge


def win_rate(shares: Sequence[float]) -> Estimate:
    """Return the mean share, ties counted as half a win, with Wilson's 95 % interval.

    Recommended for small samples and shares near 0 or 1 by Brown, Cai and DasGupta (2001),
    "Interval estimation for a binomial proportion". A share in [0, 1] varies at most as much as a
    coin of the same mean, so with ties the interval is wider than it need be, never narrower.
    """
    return Estimate(fmean(shares), *share_interval(shares))


def length_controlled_win_rate(
    shares: Sequence[float], ours: Sequence[int], theirs: Sequence[int], *, seed: int = 0
) -> Estimate:
    """Return the win rate at equal length, by logistic regression.

    As in AlpacaEval 2 (Dubois et al. 2024, "Length-Controlled AlpacaEval", arXiv:2404.04475), the
    logit of the share is theta + phi tanh(d / std(d)), with d our length minus theirs, and the
    result is sigmoid(theta). Their term for the difficulty of each instruction needs many models
    and is left out. The interval is the percentile bootstrap over prompts (Efron 1979), at
    least Wilson's where they are few or the rate is near 0 or 1.

    Args:
        shares: for each prompt, the share by which ours won.
        ours: lengths of our answers, in characters.
        theirs: lengths of the others'.
    """
    won = numpy.asarray(shares, dtype=float)
    difference = numpy.asarray(ours, dtype=float) - numpy.asarray(theirs, dtype=float)

    def rate_of(picks: numpy.ndarray[Any, Any]) -> dict[str, float]:
        return {"rate": _rate_at_equal_length(won[picks], difference[picks])}

    rate = _rate_at_equal_length(won, difference)
    drawn = bootstrap_intervals(rate_of, len(won), seed=seed)["rate"]
    return Estimate(rate, *at_least_wilson(drawn, rate, len(won)))


def load_and_answer(
    model_args: ModelConfig,
    prompts: list[Any],
    *,
    sampling: SamplingArgs,
    max_new_tokens: int,
    batch_size: int,
    seed: int,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, list[list[int]], list[Completion]]:
    """Load a model and let it answer.

    Return it, its tokenizer, the ids of the prompts, and the answers.
    """
    tokenizer = load_tokenizer(model_args)
    check_rendering(model_args.model_name_or_path, tokenizer, chat=isinstance(prompts[0], list))
    loaded: Any = load_causal_lm(model_args, tokenizer)
    model = loaded.to(Accelerator().device).eval()
    stop_at_end_of_turn(model, tokenizer)

    set_seed(seed)
    ids = [tokenize_prompt(prompt, tokenizer) for prompt in prompts]
    check_answers_fit(model.config, list(map(len, ids)), max_new_tokens)
    answers = generate_from_ids(
        model,
        tokenizer,
        ids,
        max_new_tokens=max_new_tokens,
        **sampling.sampling(),
        batch_size=batch_size,
        opening=opening_for(prompts, tokenizer),
    )
    return model, tokenizer, ids, answers


def answer_statistics(answers: Sequence[Completion], *, prefix: str = "") -> dict[str, float]:
    """Return mean lengths, share that ended, distinct-1 and distinct-2, keys prefixed."""
    count, texts = len(answers), [one.completion for one in answers]
    numbers = {
        "answer_characters": sum(map(len, texts)) / count,
        "answer_tokens": sum(one.tokens for one in answers) / count,
        "ended_share": sum(one.finished for one in answers) / count,
        "distinct_1": distinct(texts, 1),
        "distinct_2": distinct(texts, 2),
    }

    return {prefix + name: value for name, value in numbers.items()}


def perplexity_of_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Completion],
    *,
    batch_size: int = 8,
    opening: str = "",
) -> float:
    """Return the perplexity of answers after their prompts, over all their tokens.

    Answers are tokenised again by `tokenizer`, as they stand behind their prompts, and those that
    ended by themselves have their end scored as well.

    Args:
        prompts: token ids of each prompt by this tokenizer.
        opening: from `answer_opening` of this tokenizer where the prompts are conversations.
    """
    end: Any = end_of_turn_id(tokenizer)
    if end not in end_token_ids(model, tokenizer):
        end = tokenizer.eos_token_id
    rows = []

    for prompt, one in zip(prompts, answers, strict=True):
        text = opening + one.completion if one.completion else ""
        answer = encode_behind(tokenizer, prompt, text)
        scored = [*answer, end] if one.finished and end is not None else answer
        if scored:
            rows.append(
                {"input_ids": [*prompt, *scored], "labels": [IGNORED_LABEL] * len(prompt) + scored}
            )

    if not rows:
        raise DataError("no answer has a token: there is nothing to measure the perplexity of")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token  # padding is not scored, so any token will do
    return answer_loss(model, tokenizer, rows, batch_size=batch_size)["held_out_perplexity"]


def distinct(texts: Sequence[str], n: int) -> float:
    """Return different word n-grams over all of them (Li et al. 2016); 0 without any.

    Words are runs of letters and digits in lower case, and each Chinese, Japanese or Korean
    character is one. The number falls with the amount of text, so compare only equal numbers of
    prompts.
    """
    words = [_WORD.findall(text.lower()) for text in texts]
    grams = [tuple(each[index : index + n]) for each in words for index in range(len(each) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0


def _ask_judge(
    judge: PairJudge, prompts: list[Any], first: list[str], second: list[str]
) -> list[float]:
    """Return the judge's shares for one order, checked."""
    shares = list(judge(prompts, first, second))
    if len(shares) != len(prompts):
        raise DataError(f"the judge returned {len(shares)} shares for {len(prompts)} pairs")

    for index, share in enumerate(shares):
        if not isinstance(share, int | float) or not 0 <= share <= 1:
            raise DataError(
                f"the judge returned {share!r} for pair {index + 1} (prompt "
                f"{str(prompts[index])[:60]!r}); a share lies between 0 and 1, with 0.5 for a tie"
            )

    return [float(share) for share in shares]


def _rate_at_equal_length(won: numpy.ndarray, difference: numpy.ndarray) -> float:
    """Fit share ~ sigmoid(theta + phi tanh(d / std)) by Newton; return sigmoid(theta)."""
    spread, mean = difference.std(), float(won.mean())
    # nothing to control for, or no answer of the other kind to learn the slope from
    if spread == 0 or mean in (0.0, 1.0):
        return mean

    # (prompts, 2)
    design = numpy.stack([numpy.ones_like(won), numpy.tanh(difference / spread)], axis=1)
    penalty = numpy.diag([0.0, 1 / _SLOPE_SPREAD**2])
    weights = numpy.array([math.log(mean / (1 - mean)), 0.0])

    for _ in range(100):
        expected = 1 / (1 + numpy.exp(-numpy.clip(design @ weights, -30, 30)))
        gradient = design.T @ (won - expected) - penalty @ weights
        curvature = (design * (expected * (1 - expected))[:, None]).T @ design + penalty
        step = numpy.linalg.solve(curvature + 1e-9 * numpy.eye(2), gradient)
        weights = weights + numpy.clip(step, -2.0, 2.0)
        if numpy.abs(step).max() < 1e-8:
            break

    return float(1 / (1 + math.exp(-float(numpy.clip(weights[0], -30, 30)))))
