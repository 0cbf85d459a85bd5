"""Leave one annotator out: who labels at random is found."""

from dataclasses import replace

import numpy
import pytest

from hfstack.errors import DataError
from hfstack.feedback.leave_out import LabelledPair, fit_bradley_terry, leave_one_out


def project(seed: int, *, careless: float, pairs: int = 200) -> list[LabelledPair]:
    """Pairs of a linear truth that three careful people and one careless one judge."""
    generator = numpy.random.default_rng(seed)
    features = generator.normal(size=(pairs, 6))
    truth = (features @ generator.normal(size=6) > 0).astype(int)
    noise = {"ann": 0.05, "ben": 0.05, "cid": 0.05, "dan": careless / 2}
    made = []
    for place in range(pairs):
        choices = {
            name: int(truth[place]) ^ int(generator.random() < share)
            for name, share in noise.items()
        }
        best = int(sum(choices.values()) >= 2)
        made.append(LabelledPair(f"prompt {place}", features[place], choices, best))
    return made


def test_who_is_careless_is_found_by_what_the_others_labels_say() -> None:
    """30 % at random, in 9 of 10 projects at least."""
    found = by_loss = 0
    for seed in range(10):
        rows = leave_one_out(project(seed, careless=0.3), seed=seed)
        assert all(one.accuracy > 0.8 for one in rows)
        found += min(rows, key=lambda one: one.label_agreement[0]).annotator == "dan"
        worst = max(rows, key=lambda one: one.label_loss[0])
        by_loss += worst.annotator == "dan"
        assert worst.label_loss[1] < worst.label_loss[0] < worst.label_loss[2]
    assert found >= 9 and by_loss >= 9


def test_who_is_careless_is_found_where_the_model_cannot_learn_the_truth() -> None:
    """The others judged the same pairs, and states are of as many numbers as the pairs are."""
    found = by_loss = 0
    for seed in range(10):
        noise = numpy.random.default_rng(100 + seed)
        pairs = [
            replace(pair, features=noise.normal(size=128)) for pair in project(seed, careless=0.3)
        ]
        rows = leave_one_out(pairs, seed=seed)
        found += min(rows, key=lambda one: one.label_agreement[0]).annotator == "dan"
        by_loss += max(rows, key=lambda one: one.label_loss[0]).annotator == "dan"
    assert found >= 9 and by_loss >= 9


def test_the_model_that_judges_a_persons_labels_has_seen_none_of_them() -> None:
    pairs = project(1, careless=0.3, pairs=60)
    flipped = [
        replace(pair, choices=pair.choices | {"dan": 1 - pair.choices["dan"]}) for pair in pairs
    ]
    before, after = (
        next(one for one in leave_one_out(each, seed=0) if one.annotator == "dan")
        for each in (pairs, flipped)
    )
    assert after.label_agreement[0] == pytest.approx(1 - before.label_agreement[0])


def test_labels_that_are_all_wrong_hurt_and_good_ones_do_not() -> None:
    gains: dict[str, float] = dict.fromkeys(("ann", "ben", "cid", "dan"), 0.0)
    for seed in range(6):
        for one in leave_one_out(project(seed, careless=2.0, pairs=40), seed=seed):
            gains[one.annotator] += one.gain[0] / 6
            agrees = one.label_agreement[0]
            assert agrees < 0.3 if one.annotator == "dan" else agrees > 0.6
    assert gains["dan"] > 0 and gains["dan"] > max(gains[name] for name in ("ann", "ben", "cid"))


def test_the_fit_is_that_of_a_logistic_regression() -> None:
    from sklearn.linear_model import LogisticRegression

    generator = numpy.random.default_rng(1)
    features = generator.normal(size=(300, 4))
    signs = numpy.where(features @ [1.0, -2.0, 0.5, 0.0] + generator.normal(size=300) > 0, 1, -1)
    theirs = LogisticRegression(C=1.0, fit_intercept=False, tol=1e-8).fit(features, signs)
    assert fit_bradley_terry(features, signs) == pytest.approx(theirs.coef_[0], abs=1e-3)


def test_too_few_pairs_end_in_one_line() -> None:
    with pytest.raises(DataError, match="needs two annotators and 10 prompts with a majority"):
        leave_one_out(project(0, careless=0.0, pairs=5), seed=0)
