"""Win rates against hand-worked numbers, and length control against a judge that only likes
length."""

import math
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from transformers import AutoModelForCausalLM

from hfstack.diagnosis.win_rate import (
    answer_statistics,
    distinct,
    judge_both_orders,
    judge_by_score,
    length_controlled_win_rate,
    perplexity_of_answers,
    win_rate,
)
from hfstack.errors import DataError
from hfstack.tasks.causal_lm.generate import Completion
from tests.tiny_tokenizers import llama2


def test_wilson_by_hand() -> None:
    """8 wins, 1 tie and 1 loss of 10: mean 0.85; (0.85 + 0.19207) / 1.38415 = 0.75286, and
    1.96 sqrt(0.01275 + 0.0096036) / 1.38415 = 0.21171 on either side."""
    estimate = win_rate([1.0] * 8 + [0.5, 0.0])
    assert estimate.value == pytest.approx(0.85)
    assert (estimate.low, estimate.high) == pytest.approx((0.54115, 0.96457), abs=1e-5)
    assert estimate.named("win_rate").keys() == {"win_rate", "win_rate_low", "win_rate_high"}
    assert str(estimate) == "85.0 % [54.1, 96.5]"


def test_wilson_is_the_interval_of_scipy_and_holds_at_the_edges() -> None:
    from scipy.stats import binomtest

    for wins, count in ((7, 20), (20, 20), (0, 5)):
        expected = binomtest(wins, count).proportion_ci(method="wilson")
        estimate = win_rate([1.0] * wins + [0.0] * (count - wins))
        assert (estimate.low, estimate.high) == pytest.approx(
            (expected.low, expected.high), abs=1e-6
        )


def test_a_judge_that_likes_the_first_place_decides_nothing() -> None:
    judged = judge_both_orders(
        lambda prompts, first, second: [1.0] * len(prompts), ["p"] * 4, ["a"] * 4, ["b"] * 4
    )
    assert judged.shares == [0.5] * 4
    assert judged.counts() == {
        "wins": 0,
        "ties": 4,
        "losses": 0,
        "first_place_share": 1.0,
        "flips": 1.0,
    }


def test_scores_judge_with_ties() -> None:
    judge = judge_by_score(
        lambda prompts, answers: [float(len(answer)) for answer in answers], margin=1
    )
    judged = judge_both_orders(judge, ["p"] * 3, ["aaaa", "aa", "a"], ["b", "b", "bbb"])
    assert judged.shares == [1.0, 0.5, 0.0]
    assert judged.counts() == {
        "wins": 1,
        "ties": 1,
        "losses": 1,
        "first_place_share": 0.5,
        "flips": 0.0,
    }


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ([1.0], "returned 1 shares for 2 pairs"),
        ([0.5, 1.5], r"1.5 for pair 2 \(prompt 'q'\)"),
        ([float("nan"), 1.0], "nan for pair 1"),
    ],
)
def test_shares_that_are_none_are_refused(shares: list[float], message: str) -> None:
    with pytest.raises(DataError, match=message):
        judge_both_orders(lambda *texts: shares, ["p", "q"], ["a", "b"], ["c", "d"])
    with pytest.raises(DataError, match="no prompts"):
        judge_both_orders(lambda *texts: [], [], [], [])


def biased_judge(
    slope: float, advantage: float, seed: int
) -> tuple[list[float], list[int], list[int]]:
    """2000 pairs whose winner is sampled with logit `advantage + slope x tanh(d / std)`; ours are
    mostly longer.
    """
    generator = numpy.random.default_rng(seed)
    ours, theirs = generator.integers(150, 400, 2000), generator.integers(100, 300, 2000)
    difference = ours - theirs
    chance = 1 / (1 + numpy.exp(-(advantage + slope * numpy.tanh(difference / difference.std()))))
    return [float(won) for won in generator.random(2000) < chance], ours.tolist(), theirs.tolist()


def test_length_control_removes_a_liking_for_length() -> None:
    shares, ours, theirs = biased_judge(slope=3.0, advantage=0.0, seed=1)
    raw, controlled = win_rate(shares), length_controlled_win_rate(shares, ours, theirs)
    assert raw.low > 0.7, "the plain win rate mistakes length for quality"
    assert controlled.low < 0.5 < controlled.high
    assert controlled.high - controlled.low < 0.15


def test_length_control_keeps_a_real_advantage() -> None:
    shares, ours, theirs = biased_judge(slope=3.0, advantage=math.log(3), seed=2)
    controlled = length_controlled_win_rate(shares, ours, theirs)
    assert controlled.low < 0.75 < controlled.high
    assert controlled.low > 0.6


def test_length_control_is_the_fit_of_another_library() -> None:
    from sklearn.linear_model import LogisticRegression

    shares, ours, theirs = biased_judge(slope=1.0, advantage=0.4, seed=3)
    difference = numpy.subtract(ours, theirs)
    design = numpy.tanh(difference / difference.std())[:, None]
    # C = 1 / penalty, not on theta
    fitted = LogisticRegression(C=100, tol=1e-10, max_iter=1000).fit(design, shares)
    expected = 1 / (1 + math.exp(-fitted.intercept_[0]))
    assert length_controlled_win_rate(shares, ours, theirs).value == pytest.approx(
        expected, abs=1e-5
    )


def test_length_control_where_there_is_nothing_to_fit() -> None:
    assert length_controlled_win_rate([1, 0, 1, 1], [5] * 4, [5] * 4).value == 0.75
    assert length_controlled_win_rate([1, 1, 1], [5, 9, 7], [1, 2, 3]).value == 1.0
    decided = length_controlled_win_rate([1, 1, 1, 0, 0, 0], [9, 8, 9, 1, 2, 1], [5] * 6)
    assert decided.value == pytest.approx(0.5, abs=0.15), (
        "length alone decides every pair, and the fit stays finite"
    )
    assert 0 <= decided.low <= decided.high <= 1


def test_distinct_by_hand() -> None:
    assert distinct(["The fox saw the fox.", "the owl"], 1) == 4 / 7
    assert distinct(["The fox saw the fox.", "the owl"], 2) == 4 / 5
    assert distinct(["狐狸狐"], 1) == pytest.approx(2 / 3)
    assert distinct(["", "a"], 2) == 0.0


def test_answers_are_described() -> None:
    answers = [Completion("p", "a b", 3, True), Completion("p", "b b b", 5, False)]
    assert answer_statistics(answers, prefix="x_") == {
        "x_answer_characters": 4.0,
        "x_answer_tokens": 4.0,
        "x_ended_share": 0.5,
        "x_distinct_1": 2 / 5,
        "x_distinct_2": 2 / 3,
    }


def test_perplexity_counts_the_answers_tokens_and_their_end(
    tiny_llama: Path, tiny_tokenizer
) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(tiny_llama)
    prompts = [tiny_tokenizer(text)["input_ids"] for text in ("The fox", "An owl was")]
    answers = [Completion("", " ran home.", 4, True), Completion("", " kind", 1, False)]
    total, count = 0.0, 0
    for prompt, one in zip(prompts, answers, strict=True):
        scored = tiny_tokenizer(one.completion)["input_ids"] + (
            [tiny_tokenizer.eos_token_id] if one.finished else []
        )
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + scored])).logits[0].log_softmax(-1)
        total -= sum(
            logits[len(prompt) - 1 + index, token].item() for index, token in enumerate(scored)
        )
        count += len(scored)
    found = perplexity_of_answers(model, tiny_tokenizer, prompts, answers)
    assert found == pytest.approx(math.exp(total / count), rel=1e-5)
    with pytest.raises(DataError, match="no answer has a token"):
        perplexity_of_answers(model, tiny_tokenizer, prompts[:1], [Completion("", "", 1, False)])


def test_perplexity_reads_an_answer_behind_its_prompt(tiny_llama: Path) -> None:
    """Encoded alone, " girl" would gain a second blank from a tokenizer of Llama 2's kind."""
    tokenizer = llama2(dummy_prefix=True)
    model = AutoModelForCausalLM.from_pretrained(tiny_llama).eval()
    model.resize_token_embeddings(len(tokenizer))
    prompt = tokenizer("The little")["input_ids"]
    ids = tokenizer("The little girl ran")["input_ids"]
    with torch.no_grad():
        log_probs = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    answered = range(len(prompt), len(ids))
    mean = sum(log_probs[index - 1, ids[index]].item() for index in answered) / len(answered)
    answers = [Completion("", " girl ran", len(answered), False)]
    found = perplexity_of_answers(model, tokenizer, [prompt], answers)
    assert found == pytest.approx(math.exp(-mean), rel=1e-5)


def test_a_judge_that_finds_everything_equal_is_refused() -> None:
    ties, prompts = judge_by_score(lambda prompts, texts: [0.5] * len(texts)), ["p"] * 9
    with pytest.raises(DataError, match="all 9 pairs of answers equal, though 9 of them differ"):
        judge_both_orders(ties, prompts, ["a"] * 9, ["b"] * 9)

    # equal answers are equal
    assert judge_both_orders(ties, prompts, ["a"] * 9, ["a"] * 9).shares == [0.5] * 9
