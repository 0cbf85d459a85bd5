"""Check what a policy is trained from: SFT model, preferences and reward model.

Each takes runs and returns findings. Limits are here with their reason; those without a source are
ours.
"""

import math
from collections.abc import Sequence
from statistics import fmean

from hfstack.diagnosis.findings import (
    ONLINE_RECIPES,
    ChainRun,
    Finding,
    Link,
    Verdict,
    by_limit,
    first_metric,
    percent,
    quarters,
    repeated_share,
    series,
    share_by_limit,
)
from hfstack.intervals import share_interval
from hfstack.tasks.preferences.metrics import rank_correlation
from hfstack.tasks.preferences.rows import answer_text

# An answer that does not end is truncated, and its reward is that of half a text: one in ten is
# noticed, half of them is the rule. Huang et al. 2024 (arXiv:2403.17031) give such answers -1
# because nothing else makes them end.
_ENDED_WARN, _ENDED_BAD = 0.9, 0.5
# Welleck et al. 2020: people's texts have a seq-rep-4 of 0.006, greedy decoding of a language model
# 0.44.
_REPEATS_WARN, _REPEATS_BAD = 0.1, 0.3
# Ours: with a rate that decays to 0 the loss of the last quarter differs little from that of the
# third.
_FALL_WARN, _FALL_BAD = 0.05, 0.15
_FEWEST_LOSSES = 8
# Ours. Ouyang et al. 2022 (arXiv:2203.02155, 3.4) trained on after overfitting and liked it better:
# never bad.
_OVERFIT_WARN = 0.05
# Labellers of Ouyang et al. 2022 agree with one another on 73 to 77 % of pairs, so up to 0.3 of
# wrong labels is people.
_NOISE_WARN, _NOISE_BAD = 0.1, 0.3
_TIES_WARN, _TIES_BAD = 0.5, 0.8  # ours: most comparisons say nothing
# Singhal et al. 2023 (arXiv:2310.03716): length alone explains much of what reward models learn;
# ours: the limits.
_LONGER_WARN, _LONGER_BAD = 0.65, 0.8
# Below 0.6 most labels of a batch that disagree are lost; the reward models of Ouyang et al. 2022
# reach 0.70 to 0.72.
_ACCURACY_WARN, _ACCURACY_NEEDED = 0.6, 0.5
# Guo et al. 2017 (arXiv:1706.04599), table 1: most uncalibrated classifiers have 0.04 to 0.17.
_CALIBRATION_WARN, _CALIBRATION_BAD = 0.1, 0.25
_BINS = 10
_LENGTH_CORRELATION_WARN, _LENGTH_GAP_WARN = 0.5, 0.3  # ours
_FEWEST_COMPLETIONS = 30


def check_sft(runs: Sequence[ChainRun]) -> list[Finding]:
    """Check whether the SFT model ends answers, repeats itself, and converged."""
    found: list[Finding] = []
    tuned = [run for run in runs if run.recipe == "sft"]
    ends = [finding for run in runs for finding in _ended(run)]
    found += ends or [
        Finding(
            "sft",
            "answers end",
            "unknown",
            "no run says how many answers of the start end",
            "give the sft run with --answer_rows, or a win_rate run against it",
        )
    ]

    if not tuned:
        found.append(
            Finding("sft", "training", "unknown", "no sft run given", "name its folder in --runs")
        )

    for run in tuned:
        found += [*_failed(run, "sft"), *_repeats(run), *_still_falling(run), *_overfit(run)]
    return found


def check_preference_link(runs: Sequence[ChainRun]) -> list[Finding]:
    """Check whether preferences are informative, consistent, and not just length."""
    found: list[Finding] = []
    for run in (run for run in runs if run.recipe == "preferences"):
        found += _failed(run, "preferences")
        metrics = run.metrics
        pairs = metrics.get("train_pairs")
        flipped = metrics.get("flipped_pairs")
        if pairs and flipped is not None:
            verdict, shown = share_by_limit(
                flipped / pairs, pairs, warn=_NOISE_WARN, bad=_NOISE_BAD
            )
            evidence = f"{run.label}: labels swapped in {shown} train pairs"
            found.append(
                Finding("preferences", "label noise", verdict, evidence, "lower --label_noise")
            )

        # A judge that contradicts itself, or cannot decide, says little about what is better.
        kept = metrics.get("kept")
        clashes = metrics.get("contradictions")
        if kept and clashes is not None:
            count = kept + clashes
            verdict, shown = share_by_limit(
                clashes / count, count, warn=_NOISE_WARN, bad=_NOISE_BAD
            )
            evidence = f"{run.label}: {shown} different pairs are also there the other way round"
            advice = "ask several judges for each pair and keep the majority"
            found.append(Finding("preferences", "contradictions", verdict, evidence, advice))

            ties = metrics.get("ties", 0.0)
            verdict, shown = share_by_limit(
                ties / (kept + ties), kept + ties, warn=_TIES_WARN, bad=_TIES_BAD
            )
            evidence = f"{run.label}: ties in {shown} comparisons"
            advice = "sample more different answers (--temperature), or use a finer judge"
            found.append(Finding("preferences", "ties", verdict, evidence, advice))

    return found + _length_of_pairs(runs) or [
        Finding(
            "preferences",
            "labels",
            "unknown",
            "no preferences run given",
            "name its folder in --runs",
        )
    ]


def check_reward_model(runs: Sequence[ChainRun]) -> list[Finding]:
    """Check whether the reward model orders unseen pairs, beats length, is calibrated."""
    found: list[Finding] = []
    trained = [run for run in runs if run.recipe == "reward"]
    for run in trained:
        found += _failed(run, "reward model")
        if "eval_accuracy" not in run.metrics or "eval_pairs" not in run.metrics:
            evidence = f"{run.label} has no held-out pairs"
            found.append(
                Finding("reward model", "pair accuracy", "unknown", evidence, "--eval_fraction 0.1")
            )
            continue

        # accuracy alone can come from preferring the longer answer: the others look behind it
        found += [
            _accuracy(run),
            *_against_length(run),
            *_length_habit(run),
            *_calibration(run),
            *_spread(run),
        ]

    found += [*_agreement(runs), *_length_on_policy(runs)]
    if not trained:
        found.append(
            Finding(
                "reward model",
                "pair accuracy",
                "unknown",
                "no reward run given",
                "name its folder in --runs",
            )
        )

    return found


def _failed(run: ChainRun, link: Link) -> list[Finding]:
    """Report a run that failed by its own error."""
    if run.error is None:
        return []
    return [
        Finding(link, "run", "bad", f"{run.label} failed: {run.error}", "fix it and run it again")
    ]


def _ended(run: ChainRun) -> list[Finding]:
    """Check the share of the SFT model's answers that end, wherever it was measured."""
    if run.recipe == "sft":
        name, whose = "finished_share", "its answers"
        count = run.metrics.get("answer_rows")
    elif run.recipe == "win_rate":
        name, whose = "reference_ended_share", "the reference's answers"
        count = run.metrics.get("prompts")
    elif run.recipe in ONLINE_RECIPES:
        name, whose = "start_ended_share", "the starting model's answers"
        count = None
    else:
        return []

    if name not in run.metrics:
        return []
    verdict, shown = share_by_limit(run.metrics[name], count, warn=_ENDED_WARN, bad=_ENDED_BAD)
    evidence = f"{run.label}: of {whose} {shown} end by themselves"
    advice = "train sft longer, on answers that reach their eos; or allow longer answers"

    return [Finding("sft", "answers end", verdict, evidence, advice)]


def _repeats(run: ChainRun) -> list[Finding]:
    """Check how much of an answer is repeated, beyond what the references repeat."""
    texts = [str(row["answer"]) for row in run.answers if "answer" in row]
    share = repeated_share(texts)
    if share is None:
        missing = f"{run.label} kept no answers of more than four words"
        return [Finding("sft", "repetition", "unknown", missing, "--answer_rows 100")]

    # Names and set phrases come twice in good answers too.
    references = [str(row["reference"]) for row in run.answers if row.get("reference")]
    natural = repeated_share(references) or 0.0
    evidence = (
        f"{run.label}: {percent(share)} of the four-word runs of {len(texts)} answers are repeats, "
        f"{percent(natural)} of the references'"
    )

    verdict = by_limit(share - natural, warn=_REPEATS_WARN, bad=_REPEATS_BAD)
    return [
        Finding(
            "sft", "repetition", verdict, evidence, "train sft longer or on more different answers"
        )
    ]


def _still_falling(run: ChainRun) -> list[Finding]:
    """Check whether training stopped while the loss still fell."""
    losses = series(run, "loss")
    if len(losses) < _FEWEST_LOSSES:
        evidence = f"{run.label} logged {len(losses)} losses; {_FEWEST_LOSSES} are needed"
        return [
            Finding("sft", "trained to the end", "unknown", evidence, "smaller --logging_steps")
        ]

    # Single losses are noise, so quarters are compared, the last with the one before it.
    _, _, third, last = (fmean(part) for part in quarters(losses))
    fall = (third - last) / abs(third)
    held_out = first_metric(run, "held_out_loss", "eval_loss")
    also = f"; held-out loss {held_out:.3f}" if held_out is not None else ""
    evidence = (
        f"{run.label}: the loss fell by {percent(fall)} from the third quarter ({third:.3f}) to "
        f"the last ({last:.3f}){also}"
    )

    verdict = by_limit(fall, warn=_FALL_WARN, bad=_FALL_BAD)
    return [
        Finding(
            "sft",
            "trained to the end",
            verdict,
            evidence,
            "train longer: --num_train_epochs, --max_steps",
        )
    ]


def _overfit(run: ChainRun) -> list[Finding]:
    """Check whether the held-out loss rose again."""
    losses = series(run, "eval_loss")
    if len(losses) < 2:
        return []
    back = losses[-1] / min(losses) - 1
    evidence = (
        f"{run.label}: held-out loss {losses[-1]:.3f} at the end, {min(losses):.3f} at its lowest"
    )

    verdict = "warn" if back > _OVERFIT_WARN else "ok"
    return [Finding("sft", "held-out loss", verdict, evidence, "fewer epochs, or more rows")]


def _length_of_pairs(runs: Sequence[ChainRun]) -> list[Finding]:
    """Check how often the chosen answer is the longer one of train or eval pairs."""
    sources = [
        (run, "train_chosen_longer_share", "train_pairs")
        for run in runs
        if run.recipe == "preferences"
    ]
    # pairs that somebody else made have no run of their own, but a reward run measures its own
    sources = sources or [
        (run, "eval_length_accuracy", "eval_pairs") for run in runs if run.recipe == "reward"
    ]

    found = []
    for run, name, count in sources:
        if name not in run.metrics:
            continue
        share = run.metrics[name]
        side, leaning = ("longer", share) if share >= 0.5 else ("shorter", 1 - share)
        verdict, shown = share_by_limit(
            leaning, run.metrics.get(count), warn=_LONGER_WARN, bad=_LONGER_BAD
        )
        evidence = f"{run.label}: the {side} answer is the chosen one in {shown} pairs"
        advice = "balance the pairs by length, or compare answers of like length"
        found.append(Finding("preferences", "length", verdict, evidence, advice))

    return found


def _accuracy(run: ChainRun) -> Finding:
    """Check the accuracy of unseen pairs against chance."""
    metrics, share = run.metrics, run.metrics["eval_accuracy"]
    low, high = (metrics.get(f"eval_accuracy_{side}") for side in ("low", "high"))
    if low is None or high is None:
        low, high = share_interval([share] * round(metrics["eval_pairs"]))
    chance = low <= _ACCURACY_NEEDED
    weak = share < _ACCURACY_WARN
    verdict: Verdict = "ok"
    if chance or weak:
        verdict = "bad" if chance and weak else "warn"

    evidence = (
        f"{run.label}: orders {share:.3f} [{low:.3f}, {high:.3f}] of {metrics['eval_pairs']:.0f} "
        "unseen pairs rightly"
    )
    if chance:
        within = "chance, 0.5, is within the interval"
        evidence += f"; {within if high > 0.5 else 'worse than chance'}"

    advice = "more pairs, a larger model to start from, or more steps"
    if verdict == "warn":
        advice += "; more held-out pairs to be sure"
    return Finding("reward model", "pair accuracy", verdict, evidence, advice)


def _against_length(run: ChainRun) -> list[Finding]:
    """Check the accuracy beyond that of preferring by length alone."""
    names = [f"eval_gain_over_length{end}" for end in ("", "_low", "_high")]
    if any(name not in run.metrics for name in names):
        return []
    gain, low, high = (run.metrics[name] for name in names)
    verdict: Verdict = "ok" if low > 0 else "warn"
    if high < 0:
        verdict = "bad"
    evidence = f"{run.label}: {gain:+.3f} [{low:+.3f}, {high:+.3f}] over counting characters"
    advice = "balance the pairs by length; until then a rule of length does as well"
    return [Finding("reward model", "length baseline", verdict, evidence, advice)]


def _length_habit(run: ChainRun) -> list[Finding]:
    """Check whether the reward follows length where length is wrong."""
    metrics = run.metrics
    names = ("eval_accuracy_chosen_longer", "eval_accuracy_chosen_shorter")
    if any(name not in metrics for name in names) or "eval_length_accuracy" not in metrics:
        return []

    # A model that only counts words is right on one kind of pairs and wrong on the other. Which is
    # the smaller kind is known from the share of pairs that length alone gets right.
    longer, shorter = (metrics[name] for name in names)
    share = metrics["eval_length_accuracy"]
    counts = [max(1, round(metrics["eval_pairs"] * part)) for part in (share, 1 - share)]
    worse, count = min(zip((longer, shorter), counts, strict=True))
    high = share_interval([worse] * count)[1]
    correlation = metrics.get("eval_reward_length_correlation", 0.0)
    habit = high < 0.5 and max(longer, shorter) > 0.5
    hint = abs(correlation) > _LENGTH_CORRELATION_WARN or abs(longer - shorter) > _LENGTH_GAP_WARN
    evidence = (
        f"{run.label}: right for {percent(longer)} of the pairs whose chosen answer is the longer, "
        f"{percent(shorter)} where it is the shorter; rank correlation of reward and length "
        f"{correlation:+.2f}"
    )

    advice = (
        "balance the pairs by length, then train again; a policy would only learn to answer "
        "longer or shorter"
    )
    verdict: Verdict = "warn" if hint else "ok"
    if habit:
        verdict = "bad"
    return [Finding("reward model", "length bias", verdict, evidence, advice)]


def _calibration(run: ChainRun) -> list[Finding]:
    """Check the calibration error, less what so few pairs give to a perfect model."""
    error = run.metrics.get("eval_calibration_error")
    if error is None:
        return []
    # |observed - expected| of n / bins coins is about 0.8 sqrt(p (1 - p) bins / n); 0.4 is its
    # largest, at p = 0.5.
    noise = 0.4 * math.sqrt(_BINS / run.metrics["eval_pairs"])
    verdict = by_limit(error - noise, warn=_CALIBRATION_WARN, bad=_CALIBRATION_BAD)

    evidence = (
        f"{run.label}: confidence and accuracy are {error:.2f} apart on average, up to {noise:.2f} "
        "of it because the pairs are few"
    )

    advice = (
        "fewer steps or a lower --learning_rate; normalise rewards before reinforcement learning"
    )
    return [Finding("reward model", "calibration", verdict, evidence, advice)]


def _spread(run: ChainRun) -> list[Finding]:
    """Check that rewards vary: nothing is learned from equal ones."""
    if (spread := run.metrics.get("eval_reward_std")) is None:
        return []
    verdict = "bad" if spread < 1e-3 else "ok"
    evidence = f"{run.label}: rewards of unseen answers have a standard deviation of {spread:.3g}"

    return [
        Finding(
            "reward model",
            "spread",
            verdict,
            evidence,
            "train longer, or with a higher --learning_rate",
        )
    ]


def _agreement(runs: Sequence[ChainRun]) -> list[Finding]:
    """Compare the reward model's choices with the judge's, of two equal win_rate runs."""
    found = []
    judged = [run for run in runs if run.recipe == "win_rate" and run.answers]
    for judge in (run for run in judged if not run.settings.get("reward_model")):
        known = {_pair(row): row["share"] for row in judge.answers}
        for proxy in (run for run in judged if run.settings.get("reward_model")):
            # only pairs that both decided: a tie is no side to be on
            shares = [
                (row["share"], known[_pair(row)]) for row in proxy.answers if _pair(row) in known
            ]
            right = [
                float((ours > 0.5) == (gold > 0.5))
                for ours, gold in shares
                if 0.5 not in (ours, gold)
            ]
            if not right:
                continue

            low, high = share_interval(right)
            share = fmean(right)
            verdict: Verdict = "ok"
            if low <= 0.5:
                verdict = "bad" if share < _ACCURACY_WARN else "warn"

            evidence = (
                f"{proxy.label} and {judge.label}: on the policy's own answers the reward model "
                f"sides with the judge in {share:.3f} [{low:.3f}, {high:.3f}] of {len(right)} "
                "decided pairs"
            )

            advice = "label answers of this policy and train the reward model on them too"
            found.append(
                Finding("reward model", "on the policy's answers", verdict, evidence, advice)
            )

    return found


def _length_on_policy(runs: Sequence[ChainRun]) -> list[Finding]:
    """Check whether rewards follow length, in the second half of a policy's training."""
    found = []
    for run in runs:
        # early answers are the starting model's, whose lengths say nothing about this reward
        last = max((row["step"] for row in run.completions), default=0)
        late = [
            row
            for row in run.completions
            if row["step"] >= last / 2 and row.get("reward") is not None
        ]
        if len(late) < _FEWEST_COMPLETIONS:
            continue

        lengths = [len(answer_text(row["completion"])) for row in late]
        correlation = rank_correlation([row["reward"] for row in late], lengths)
        verdict = "warn" if abs(correlation) > _LENGTH_CORRELATION_WARN else "ok"
        evidence = (
            f"{run.label}: rank correlation of reward and length {correlation:+.2f} over "
            f"{len(late)} late completions"
        )
        advice = "compare at equal length (win_rate); balance the preferences by length"
        found.append(
            Finding("reward model", "length on the policy's answers", verdict, evidence, advice)
        )

    return found


def _pair(row: dict[str, object]) -> tuple[str, str, str]:
    return str(row.get("prompt")), str(row.get("answer")), str(row.get("reference_answer"))
