"""The diagnosis of an RLHF chain: a sound one has no bad link, and each planted fault makes its own
link bad alone.
"""

import dataclasses
import itertools
import random
from collections.abc import Callable
from typing import Any

import pytest

from hfstack.diagnosis.diagnose import as_paragraph, as_table, diagnose, link_verdicts
from hfstack.diagnosis.findings import (
    LINKS,
    ChainRun,
    Finding,
    by_limit,
    quarters,
    repeated_share,
    rise,
    share_by_limit,
)

Chain = dict[str, ChainRun]

STEPS = range(1, 41)
WORDS = (
    "once upon a time there was small fox who found red ball near the river "
    "and gave it back to her owl"
).split()


def curve(start: float, end: float, *, noise: float = 0.02) -> list[tuple[int, float]]:
    """A line from `start` to `end` over the steps, with some noise."""
    generator = random.Random(f"{start} {end}")
    span = len(STEPS) - 1
    return [
        (step, start + (end - start) * (step - 1) / span + generator.uniform(-noise, noise))
        for step in STEPS
    ]


def sentences(count: int, *, seed: int = 0) -> list[str]:
    generator = random.Random(seed)
    return [" ".join(generator.sample(WORDS, 12)) for _ in range(count)]


def sound_chain() -> Chain:
    """Runs whose numbers are those of a chain that works."""
    answers = [
        {"answer": one, "reference": two}
        for one, two in zip(sentences(50), sentences(50, seed=1), strict=True)
    ]
    return {
        "sft": ChainRun(
            "sft",
            "runs/sft",
            {"finished_share": 0.97, "answer_rows": 200, "held_out_loss": 1.21, "train_loss": 1.5},
            history={
                "loss": [(s, 1.2 + 2.0 / s**2) for s in STEPS],
                "eval_loss": [(10, 1.5), (20, 1.3), (40, 1.22)],
            },
            answers=tuple(answers),
        ),
        "preferences": ChainRun(
            "preferences",
            "runs/preferences",
            {
                "train_pairs": 1000,
                "eval_pairs": 120,
                "kept": 1120,
                "contradictions": 20,
                "ties": 200,
                "flipped_pairs": 0,
                "train_chosen_longer_share": 0.55,
            },
        ),
        "reward": ChainRun(
            "reward",
            "runs/reward",
            {
                "eval_accuracy": 0.74,
                "eval_accuracy_low": 0.69,
                "eval_accuracy_high": 0.79,
                "eval_pairs": 300,
                "eval_length_accuracy": 0.55,
                "eval_gain_over_length": 0.19,
                "eval_gain_over_length_low": 0.11,
                "eval_gain_over_length_high": 0.27,
                "eval_accuracy_chosen_longer": 0.76,
                "eval_accuracy_chosen_shorter": 0.71,
                "eval_reward_length_correlation": 0.1,
                "eval_calibration_error": 0.06,
                "eval_reward_std": 1.3,
            },
        ),
        "ppo": ChainRun(
            "ppo",
            "runs/ppo",
            {"reward": 0.9},
            history={
                "reward": curve(0.1, 0.9),
                "rewards/obeys/mean": curve(0.2, 0.6),
                "kl_per_completion": curve(0.0, 4.0),
                "entropy": curve(1.5, 1.1),
                "policy/clip_share_low": curve(0.1, 0.12),
                "policy/clip_share_high": curve(0.1, 0.1),
                "policy/approx_kl": curve(0.01, 0.01, noise=0.001),
                "policy/ratio": curve(1.0, 1.0, noise=0.01),
                "value/explained_variance": curve(0.0, 0.7),
                "loss/value": curve(0.4, 0.1),
                "ended_share": curve(0.97, 0.98, noise=0.01),
                "completions/mean_length": curve(18, 20),
            },
        ),
        "win_rate": ChainRun(
            "win_rate",
            "runs/win_rate",
            {
                "win_rate": 0.66,
                "win_rate_low": 0.60,
                "win_rate_high": 0.71,
                "prompts": 300,
                "win_rate_length_controlled": 0.64,
                "win_rate_length_controlled_low": 0.57,
                "reference_ended_share": 0.96,
                "distinct_2": 0.4,
                "reference_distinct_2": 0.45,
            },
            settings={"reward_model": None},
            parents=("runs/ppo", "runs/sft"),
        ),
    }


def changed(
    chain: Chain, name: str, metrics: dict[str, float] | None = None, **history: Any
) -> Chain:
    """The chain with other numbers in one run; a history name is given with __ for /."""
    run = chain[name]
    logged = {key.replace("__", "/"): value for key, value in history.items()}
    new = dataclasses.replace(
        run, metrics=run.metrics | (metrics or {}), history=dict(run.history) | logged
    )
    return chain | {name: new}


def bad(findings: list[Finding]) -> set[str]:
    return {link for link, verdict in link_verdicts(findings).items() if verdict == "bad"}


def test_a_sound_chain_has_no_fault() -> None:
    findings = diagnose(list(sound_chain().values()), gold="obeys")
    assert link_verdicts(findings) == dict.fromkeys(LINKS, "ok"), [
        f for f in findings if f.verdict != "ok"
    ]
    assert all(finding.verdict == "ok" for finding in findings), [
        f for f in findings if f.verdict != "ok"
    ]
    assert as_paragraph(findings) == "No problem found in sft, preferences, reward model, policy."
    assert len({(finding.link, finding.check) for finding in findings}) > 20


def undertrained(chain: Chain) -> Chain:
    return changed(chain, "sft", {"held_out_loss": 4.1}, loss=curve(7.0, 3.0))


def never_ends(chain: Chain) -> Chain:
    chain = changed(chain, "win_rate", {"reference_ended_share": 0.05})
    chain = changed(chain, "ppo", ended_share=curve(0.05, 0.1, noise=0.02))
    return changed(chain, "sft", {"finished_share": 0.04})


def repeats(chain: Chain) -> Chain:
    looping = tuple(
        {"answer": "the fox saw the fox saw " * 6, "reference": text} for text in sentences(50)
    )
    return chain | {"sft": dataclasses.replace(chain["sft"], answers=looping)}


def wrong_labels(chain: Chain) -> Chain:
    return changed(chain, "preferences", {"flipped_pairs": 450})


def contradicting_labels(chain: Chain) -> Chain:
    return changed(chain, "preferences", {"contradictions": 900})


def undecided_judge(chain: Chain) -> Chain:
    return changed(chain, "preferences", {"ties": 9000})


def length_in_labels(chain: Chain) -> Chain:
    return changed(chain, "preferences", {"train_chosen_longer_share": 0.93})


def random_reward_model(chain: Chain) -> Chain:
    chain = changed(
        chain, "win_rate", {"win_rate": 0.49, "win_rate_low": 0.43, "win_rate_high": 0.55}
    )
    return changed(
        chain,
        "reward",
        {
            "eval_accuracy": 0.51,
            "eval_accuracy_low": 0.45,
            "eval_accuracy_high": 0.57,
            "eval_gain_over_length": -0.04,
            "eval_gain_over_length_low": -0.12,
            "eval_gain_over_length_high": 0.04,
            "eval_accuracy_chosen_longer": 0.52,
            "eval_accuracy_chosen_shorter": 0.5,
        },
    )


def length_biased_reward_model(chain: Chain) -> Chain:
    return changed(
        chain,
        "reward",
        {
            "eval_accuracy": 0.62,
            "eval_accuracy_low": 0.56,
            "eval_accuracy_high": 0.67,
            "eval_gain_over_length": 0.01,
            "eval_gain_over_length_low": -0.02,
            "eval_gain_over_length_high": 0.04,
            "eval_accuracy_chosen_longer": 0.98,
            "eval_accuracy_chosen_shorter": 0.12,
            "eval_reward_length_correlation": 0.93,
        },
    )


def dead_reward_model(chain: Chain) -> Chain:
    return changed(chain, "reward", {"eval_reward_std": 1e-7})


def overconfident_reward_model(chain: Chain) -> Chain:
    return changed(chain, "reward", {"eval_calibration_error": 0.45})


def reward_that_the_judge_does_not_share(chain: Chain) -> Chain:
    return changed(
        chain, "win_rate", {"win_rate": 0.3, "win_rate_low": 0.25, "win_rate_high": 0.36}
    )


def gold_reward_turns(chain: Chain) -> Chain:
    return changed(
        chain, "ppo", rewards__obeys__mean=[*curve(0.3, 0.6)[:20], *curve(0.6, 0.0)[20:]]
    )


def learning_rate_too_high(chain: Chain) -> Chain:
    chain = changed(
        chain, "win_rate", {"win_rate": 0.1, "win_rate_low": 0.07, "win_rate_high": 0.14}
    )
    return changed(
        chain,
        "ppo",
        reward=curve(0.1, -0.8),
        kl_per_completion=curve(0.0, 60.0),
        policy__clip_share_high=curve(0.4, 0.8),
        policy__approx_kl=curve(0.2, 0.9),
        policy__ratio=curve(1.0, 2.5),
        entropy=curve(1.5, 0.05),
        ended_share=curve(0.97, 0.3, noise=0.01),
    )


def kl_out_of_hand(chain: Chain) -> Chain:
    """Over-optimised: the reward rises, the judge turns away, far from the start."""
    chain = changed(
        chain, "win_rate", {"win_rate": 0.2, "win_rate_low": 0.15, "win_rate_high": 0.25}
    )
    return changed(chain, "ppo", kl_per_completion=curve(0.0, 50.0))


def never_moves(chain: Chain) -> Chain:
    chain = changed(
        chain, "win_rate", {"win_rate": 0.5, "win_rate_low": 0.44, "win_rate_high": 0.56}
    )
    return changed(
        chain, "ppo", reward=curve(0.1, 0.1), kl_per_completion=curve(0.0, 0.0, noise=0.01)
    )


def dead_critic(chain: Chain) -> Chain:
    return changed(
        chain, "ppo", value__explained_variance=curve(0.0, 0.0), loss__value=curve(0.4, 0.4)
    )


def negative_kl(chain: Chain) -> Chain:
    return changed(chain, "ppo", kl_per_completion=curve(0.0, -4.0))


def collapses(chain: Chain) -> Chain:
    return changed(chain, "win_rate", {"distinct_2": 0.02})


def stops_ending(chain: Chain) -> Chain:
    return changed(chain, "ppo", ended_share=curve(0.97, 0.4, noise=0.01))


FAULTS: dict[Callable[[Chain], Chain], tuple[str, str]] = {
    undertrained: ("sft", "trained to the end"),
    never_ends: ("sft", "answers end"),
    repeats: ("sft", "repetition"),
    wrong_labels: ("preferences", "label noise"),
    contradicting_labels: ("preferences", "contradictions"),
    undecided_judge: ("preferences", "ties"),
    length_in_labels: ("preferences", "length"),
    random_reward_model: ("reward model", "pair accuracy"),
    length_biased_reward_model: ("reward model", "length bias"),
    dead_reward_model: ("reward model", "spread"),
    overconfident_reward_model: ("reward model", "calibration"),
    reward_that_the_judge_does_not_share: ("reward model", "reward against judge"),
    gold_reward_turns: ("reward model", "over-optimisation"),
    learning_rate_too_high: ("policy", "clip fraction"),
    kl_out_of_hand: ("policy", "KL"),
    never_moves: ("policy", "reward"),
    dead_critic: ("policy", "critic"),
    negative_kl: ("policy", "KL"),
    collapses: ("policy", "variety"),
    stops_ending: ("policy", "answers end"),
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_planted_fault_makes_its_link_bad_and_no_other(fault: Callable[[Chain], Chain]) -> None:
    findings = diagnose(list(fault(sound_chain()).values()), gold="obeys")
    link, check = FAULTS[fault]
    assert bad(findings) == {link}, [finding for finding in findings if finding.verdict == "bad"]
    named = [finding for finding in findings if finding.check == check and finding.verdict == "bad"]
    assert {finding.link for finding in named} == {link}
    assert "runs/" in named[0].evidence and any(
        character.isdigit() for character in named[0].evidence
    )
    assert named[0].advice
    words = as_paragraph(findings)
    assert words.startswith(f"The weak link is the {link}.") and named[0].evidence in words


@pytest.mark.parametrize("run", ["sft", "reward", "ppo"])
def test_a_run_that_failed_is_its_link(run: str) -> None:
    chain = sound_chain()
    chain[run] = dataclasses.replace(chain[run], error="grad_norm is nan at step 7")
    link = {"sft": "sft", "reward": "reward model", "ppo": "policy"}[run]
    findings = diagnose(list(chain.values()))
    assert bad(findings) == {link} and "grad_norm is nan at step 7" in as_paragraph(findings)


def test_the_first_of_several_bad_links_is_the_one_to_mend() -> None:
    chain = dead_critic(random_reward_model(sound_chain()))
    findings = diagnose(list(chain.values()))
    assert bad(findings) == {"reward model", "policy"}
    assert as_paragraph(findings).startswith(
        "The weak link is the reward model. pair accuracy: runs/reward: orders 0.510"
    )


@pytest.mark.parametrize(
    ("absent", "said"),
    [
        ("sft", "no sft run given"),
        ("preferences", "runs/reward: the longer answer is the chosen one"),
        ("reward", "no reward run given"),
        ("ppo", "no ppo, rloo or grpo run given"),
        ("win_rate", "no win_rate run of runs/ppo given"),
    ],
)
def test_what_is_missing_is_said_and_not_guessed(absent: str, said: str) -> None:
    chain = sound_chain()
    del chain[absent]
    findings = diagnose(list(chain.values()))
    assert not bad(findings)
    assert any(said in finding.evidence for finding in findings)


def test_nothing_is_known_of_nothing() -> None:
    findings = diagnose([])
    assert {finding.verdict for finding in findings} == {"unknown"}
    assert as_paragraph(findings) == (
        "No problem found in anything. Nothing is known about: sft, preferences, reward model, "
        "policy."
    )
    assert {finding.link for finding in findings} == set(LINKS)


def test_short_curves_are_unknown_and_not_judged() -> None:
    chain = sound_chain()
    short = {name: points[:3] for name, points in chain["ppo"].history.items()}
    chain["ppo"] = dataclasses.replace(chain["ppo"], history=short)
    verdicts = {f.check: f.verdict for f in diagnose(list(chain.values()), gold="obeys")}
    assert verdicts["reward"] == verdicts["critic"] == verdicts["over-optimisation"] == "unknown"


def test_a_reward_model_is_no_judge_of_its_own_training() -> None:
    chain = sound_chain()
    chain["win_rate"] = dataclasses.replace(
        chain["win_rate"], settings={"reward_model": "runs/reward"}
    )
    judge = next(f for f in diagnose(list(chain.values())) if f.check == "judge")
    assert judge.verdict == "unknown" and "by the reward model runs/reward" in judge.evidence


@pytest.mark.parametrize(("right", "verdict"), [(95, "ok"), (50, "bad")])
def test_the_reward_model_is_checked_on_the_policys_own_answers(right: int, verdict: str) -> None:
    """Two win_rate runs on the same answers, one judged by the rule and one by the reward model."""
    rows = [
        {"prompt": f"p{index}", "answer": "a", "reference_answer": "b", "share": float(index % 2)}
        for index in range(100)
    ]
    judged = [
        row | {"share": row["share"] if index < right else 1 - row["share"]}
        for index, row in enumerate(rows)
    ]
    judged.append({"prompt": "another", "answer": "a", "reference_answer": "b", "share": 1.0})
    chain = sound_chain()
    chain["win_rate"] = dataclasses.replace(chain["win_rate"], answers=tuple(rows))
    chain["proxy"] = dataclasses.replace(
        chain["win_rate"],
        label="runs/proxy",
        settings={"reward_model": "runs/reward"},
        answers=tuple(judged),
    )
    found = next(f for f in diagnose(list(chain.values())) if f.check == "on the policy's answers")
    assert (
        found.verdict == verdict
        and f"{right / 100:.3f}" in found.evidence
        and "100 decided" in found.evidence
    )


@pytest.mark.parametrize(("slope", "verdict"), [(1.0, "warn"), (0.0, "ok")])
def test_length_is_looked_for_in_what_the_policy_wrote_last(slope: float, verdict: str) -> None:
    generator = random.Random(0)
    early = [{"step": 0, "completion": "x" * n, "reward": float(n)} for n in range(1, 100)]
    lengths = [generator.randint(1, 100) for _ in range(100)]
    late = [
        {
            "step": 30,
            "completion": [{"role": "assistant", "content": "x" * n}],
            "reward": slope * n + generator.random(),
        }
        for n in lengths
    ]
    chain = sound_chain()
    chain["ppo"] = dataclasses.replace(chain["ppo"], completions=tuple(early + late))
    found = next(
        f for f in diagnose(list(chain.values())) if f.check == "length on the policy's answers"
    )
    assert (found.link, found.verdict) == (
        "reward model",
        verdict,
    ) and "over 100 late completions" in found.evidence


def test_win_rates_belong_to_the_policy_that_they_read() -> None:
    chain = sound_chain()
    chain["rloo"] = dataclasses.replace(chain["ppo"], recipe="rloo", label="runs/rloo")
    findings = diagnose(list(chain.values()))
    judges = [finding for finding in findings if finding.check == "judge"]
    assert sorted(finding.verdict for finding in judges) == ["ok", "unknown"]
    assert "no win_rate run of runs/rloo" in next(
        f.evidence for f in judges if f.verdict == "unknown"
    )
    assert not any(f.check == "critic" and "rloo" in f.evidence for f in findings), (
        "rloo has no critic"
    )


def test_names_of_rloo_are_read() -> None:
    logged = {
        "reward": curve(0.1, 0.9),
        "kl_per_completion": curve(0, 50),
        "entropy": [(step, 1.5 if step < 9 else 0.02) for step in STEPS],
        "ended_share": curve(0.97, 0.2),
        "completions/mean_length": curve(18, 90),
    }
    run = ChainRun("rloo", "runs/rloo", {"start_ended_share": 0.1}, history=logged)
    verdicts = {(f.link, f.check): f.verdict for f in diagnose([run])}
    assert verdicts["sft", "answers end"] == "bad"
    assert (
        verdicts["policy", "KL"]
        == verdicts["policy", "entropy"]
        == verdicts["policy", "answers end"]
        == "bad"
    )
    assert verdicts["policy", "length"] == "warn" and verdicts["policy", "reward"] == "ok"


@pytest.mark.parametrize(
    ("spread", "equal", "kl", "verdict"),
    [
        (0.2, 0.2, 3.0, None),
        (0.0, 1.0, 3.0, "bad"),  # the KL rises without a signal
        (0.0, 1.0, 0.0, "warn"),
        (0.2, 0.8, 3.0, "warn"),  # most groups say nothing
    ],
)
def test_rewards_that_do_not_differ_are_no_signal(
    spread: float, equal: float, kl: float, verdict: str | None
) -> None:
    logged = {"reward_std": spread, "frac_reward_zero_std": equal, "kl_per_completion": kl}
    curves = {name: curve(value, value, noise=0) for name, value in logged.items()}
    chain = changed(sound_chain(), "ppo", **curves)
    found = {f.verdict for f in diagnose(list(chain.values())) if f.check == "signal"}
    assert found == ({verdict} if verdict else set())


def test_a_critic_that_has_only_begun_to_learn_is_not_dead() -> None:
    slow = changed(sound_chain(), "ppo", value__explained_variance=curve(0.0, 0.04, noise=0.001))
    critic = next(f for f in diagnose(list(slow.values())) if f.check == "critic")
    assert critic.verdict == "warn" and "it still rises" in critic.evidence
    harmful = changed(sound_chain(), "ppo", value__explained_variance=curve(-2.0, -0.5))
    assert next(f.verdict for f in diagnose(list(harmful.values())) if f.check == "critic") == "bad"


def test_the_kl_budget_is_the_users() -> None:
    chain = list(sound_chain().values())
    verdicts = [
        next(f.verdict for f in diagnose(chain, kl_budget_nats=budget) if f.check == "KL")
        for budget in (10, 2, 1)
    ]
    assert verdicts == ["ok", "warn", "bad"]


def test_the_table_names_what_to_do_only_where_something_is_wrong() -> None:
    columns, rows = as_table(diagnose(list(dead_critic(sound_chain()).values())))
    assert columns == ["link", "check", "verdict", "evidence", "what to do"]
    assert all(bool(row[4]) == (row[2] != "ok") for row in rows)
    order = [LINKS.index(row[0]) for row in rows]
    assert order == sorted(order)
    assert next(row[1] for row in rows if row[0] == "policy") == "critic", (
        "the worst of a link comes first"
    )


# the helpers


def test_limits_grade_in_either_direction() -> None:
    assert [by_limit(value, warn=1, bad=2) for value in (0.5, 1, 1.5, 2, 3)] == [
        "ok",
        "ok",
        "warn",
        "warn",
        "bad",
    ]
    assert [by_limit(value, warn=0.9, bad=0.5) for value in (0.95, 0.7, 0.4)] == [
        "ok",
        "warn",
        "bad",
    ]


def test_a_share_of_few_cases_is_not_bad() -> None:
    """2 of 5 is below one half, but so few say nothing; 400 of 1000 do. By hand: Wilson of 2/5 is
    0.118 to 0.769.
    """
    assert share_by_limit(0.4, 5, warn=0.9, bad=0.5) == ("warn", "40 % [12 %, 77 %] of 5")
    assert share_by_limit(0.4, 1000, warn=0.9, bad=0.5)[0] == "bad"
    assert share_by_limit(0.4, None, warn=0.9, bad=0.5) == ("bad", "40 %")
    assert share_by_limit(0.6, 5, warn=0.1, bad=0.3)[0] == "warn"


def test_repeated_share_by_hand() -> None:
    """`a b c d a b c d` has five runs of four words, of which the last is a repeat; the other text
    has none.
    """
    assert repeated_share(["a b c d a b c d"]) == pytest.approx(0.2)
    assert repeated_share(["a b c d a b c d", "a b c d e f g h"]) == pytest.approx(0.1)
    assert repeated_share(["too short", ""]) is None


def test_quarters_cover_everything_once() -> None:
    for count in (4, 5, 8, 11, 40):
        parts = quarters(list(range(count)))
        assert (
            len(parts) == 4 and all(parts) and list(itertools.chain(*parts)) == list(range(count))
        )


def test_rise_by_hand() -> None:
    """Means 1 and 3; the variances of the means are 2/2 and 2/2 of (0, 2) and (2, 4), so the error
    is sqrt(2).
    """
    difference, error = rise([0.0, 2.0], [2.0, 4.0])
    assert difference == 2.0 and error == pytest.approx(2**0.5)
