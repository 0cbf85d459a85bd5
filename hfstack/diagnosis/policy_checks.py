"""Check the policy: did training raise the reward, and does the judge agree?

Each takes runs and returns findings. Limits are here with their reason; those without a source are
ours.
"""

from collections.abc import Sequence
from statistics import fmean

from hfstack.diagnosis.findings import (
    ONLINE_RECIPES,
    ChainRun,
    Finding,
    Link,
    Verdict,
    by_limit,
    percent,
    quarters,
    rise,
    series,
)

_KL = "kl_per_completion"  # nats an answer, not a token
_ENTROPY = "entropy"  # nats a token
_ENDED = "ended_share"
_LENGTH_METRIC = "completions/mean_length"  # tokens

_FEWEST_POINTS = 8  # of a curve, so that a quarter of it has two
_SURE_ERRORS = 2.0  # standard errors
# Gao et al. 2023 (arXiv:2210.10760): proxy reward rises with KL, true reward turns. Where it turns
# depends on the reward model, so the budget is the user's to set; three times the budget is another
# model.
_KL_FACTOR_BAD = 3.0
_KL_STILL = 0.1  # nats an answer: the policy is where it began
_KL_BELOW = -0.5  # nats: a KL is never negative, its estimate over thousands of answers hardly
_CLIPPED_WARN, _CLIPPED_BAD = 0.3, 0.5  # ours: half of the tokens have no gradient
# Target values of early stopping are 0.01 to 0.05 (OpenAI Spinning Up's PPO, 2018); beyond 0.2 the
# data is stale.
_STEP_KL_WARN, _STEP_KL_BAD = 0.05, 0.2
_RATIO_WARN, _RATIO_BAD = 0.1, 0.5  # of a mean that is 1 in expectation
_ENTROPY_WARN, _ENTROPY_BAD = 0.3, 0.1  # of what it was at first: ours
# 1 is a perfect critic, 0 is one that predicts the mean return, below 0 it does harm.
_EXPLAINED_WARN, _EXPLAINED_BAD = 0.2, 0.05
_ENDED_FALL_WARN, _ENDED_FALL_BAD = 0.1, 0.3
_LENGTH_FACTOR_WARN = 2.0
_NO_SPREAD = 1e-3  # of a reward of size 1: all answers are worth the same
_EQUAL_GROUPS_WARN, _EQUAL_GROUPS_BAD = 0.5, 0.9  # ours: most answers say nothing
_DISTINCT_WARN, _DISTINCT_BAD = 0.5, 0.25  # of the reference's different word pairs: ours


def check_policies(
    runs: Sequence[ChainRun], *, kl_budget_nats: float, gold: str | None
) -> list[Finding]:
    """Return all findings about each RL run, with the win rates that belong to it.

    Args:
        kl_budget_nats: how far an answer may be from the starting model before it is a warning.
        gold: name of a logged reward that was not trained on (weight 0), such as a gold rule, if
            there is one.
    """
    found: list[Finding] = []
    policies = [run for run in runs if run.recipe in ONLINE_RECIPES]
    comparisons = [run for run in runs if run.recipe == "win_rate"]

    for run in policies:
        if run.error is not None:
            evidence = f"{run.label} failed: {run.error}"
            found.append(Finding("policy", "run", "bad", evidence, "lower --learning_rate"))

        # what the run logged while it trained
        rose, reward = _reward(run)
        moved, divergence = _check_kl(run, kl_budget_nats)
        found += [reward, divergence, *_step_size(run), *_check_entropy(run), *_critic(run)]
        found += [*_signal(run), *_drift(run), *_gold_curve(run, gold)]

        # what a judge says of its answers, in the comparisons of this run
        over = moved is not None and moved > kl_budget_nats
        judged: list[Finding] = []
        for comparison in comparisons:
            if run.label in comparison.parents or len(policies) == 1:
                judged += _judged(comparison, rose=rose, over_budget=over)

        if not judged:
            evidence = f"no win_rate run of {run.label} given"
            advice = "compare it with the model before: hfstack run win_rate"
            judged.append(Finding("policy", "judge", "unknown", evidence, advice))
        found += judged

    return found or [
        Finding(
            "policy",
            "training",
            "unknown",
            "no ppo, rloo or grpo run given",
            "name its folder in --runs",
        )
    ]


def _reward(run: ChainRun) -> tuple[bool | None, Finding]:
    """Check whether the reward rose beyond its noise, from first quarter to last."""
    values = series(run, "reward")
    if len(values) < _FEWEST_POINTS:
        evidence = f"{run.label} logged {len(values)} rewards; {_FEWEST_POINTS} are needed"
        return None, Finding(
            "policy", "reward", "unknown", evidence, "smaller --logging_steps, or train longer"
        )

    first, *_, last = quarters(values)
    difference, error = rise(first, last)
    evidence = (
        f"{run.label}: reward {fmean(first):.3g} in the first quarter, {fmean(last):.3g} in the "
        f"last ({difference:+.2g}, standard error {error:.2g})"
    )

    if difference > _SURE_ERRORS * error:
        return True, Finding("policy", "reward", "ok", evidence)

    # Why it did not: too large steps, none at all, or too few for what the noise hides.
    fell = difference < -_SURE_ERRORS * error
    kl = series(run, _KL)
    still = bool(kl) and abs(fmean(quarters(kl)[-1])) < _KL_STILL
    if fell:
        return False, Finding(
            "policy",
            "reward",
            "bad",
            f"{evidence}: it fell",
            "lower --learning_rate, clip gradients",
        )

    if still:
        evidence += f"; the KL is {fmean(quarters(kl)[-1]):.2g} nats, so the policy has not moved"
        return False, Finding(
            "policy",
            "reward",
            "bad",
            evidence,
            "higher --learning_rate, or a lower weight of the KL",
        )

    return False, Finding(
        "policy",
        "reward",
        "warn",
        f"{evidence}: no rise beyond noise",
        "train longer, larger batches",
    )


def _check_kl(run: ChainRun, budget: float) -> tuple[float | None, Finding]:
    """Check how far the policy is from the model that it started from."""
    values = series(run, _KL)
    if not values:
        missing = f"{run.label} logged no KL"
        return None, Finding("policy", "KL", "unknown", missing, "train with a KL weight above 0")

    # A peak far above the budget counts even where the policy came back: it has been where the
    # reward model knows nothing.
    last = fmean(quarters(values)[-1]) if len(values) >= 4 else values[-1]
    peak = max(values)
    verdict = by_limit(last, warn=budget, bad=_KL_FACTOR_BAD * budget)
    verdict = "warn" if verdict == "ok" and peak > _KL_FACTOR_BAD * budget else verdict
    evidence = (
        f"{run.label}: {last:.3g} nats an answer at the end, {peak:.3g} at most; the budget is "
        f"{budget:g}"
    )

    if last < _KL_BELOW:
        evidence += ". A KL below 0 means that sampling and scoring disagree"
        return last, Finding(
            "policy",
            "KL",
            "bad",
            evidence,
            "turn dropout off, sample at temperature 1 without top-p",
        )

    return last, Finding(
        "policy", "KL", verdict, evidence, "raise the weight of the KL, or stop earlier"
    )


def _signal(run: ChainRun) -> list[Finding]:
    """Check whether rewards differ at all: without a signal a policy drifts."""
    spreads, rewards = series(run, "reward_std"), series(run, "reward")
    if not spreads or not rewards:
        return []

    # the second half: at first a policy may fail at everything
    late = fmean(spreads[len(spreads) // 2 :])
    size = max(1.0, abs(fmean(rewards)))
    evidence = f"{run.label}: the reward's standard deviation is {late:.2g} in the second half"
    advice = "a reward that tells answers apart, or prompts of other difficulty"
    if late >= _NO_SPREAD * size:
        equal = series(run, "frac_reward_zero_std")
        share = fmean(equal[len(equal) // 2 :]) if equal else 0.0
        if share <= _EQUAL_GROUPS_WARN:
            return []
        evidence += f", and {percent(share)} of the groups or rollouts have none"
        verdict = by_limit(share, warn=_EQUAL_GROUPS_WARN, bad=_EQUAL_GROUPS_BAD)
        return [Finding("policy", "signal", verdict, evidence, advice)]

    kl = series(run, _KL)
    if kl and kl[-1] > _KL_STILL:
        evidence += f", while the KL is {kl[-1]:.3g} nats: what moved the policy is noise"
        return [Finding("policy", "signal", "bad", evidence, advice)]
    return [Finding("policy", "signal", "warn", f"{evidence}: nothing to learn from", advice)]


def _step_size(run: ChainRun) -> list[Finding]:
    """Check clip fraction, KL of an update and mean ratio, in the second half."""
    found = []
    checks = (
        ("clip fraction", _clipped(run), _CLIPPED_WARN, _CLIPPED_BAD, "of the tokens are clipped"),
        (
            "update KL",
            series(run, "policy/approx_kl"),
            _STEP_KL_WARN,
            _STEP_KL_BAD,
            "nats a token between a rollout and its updates",
        ),
    )

    # The first half is left out: while the optimizer's moments fill, steps are larger.
    for check, values, warn, bad, what in checks:
        if values:
            late = fmean(values[len(values) // 2 :])
            evidence = f"{run.label}: {late:.3g} {what}, {max(values):.3g} at most"
            advice = "lower --learning_rate, fewer --num_ppo_epochs, or --target_kl"
            found.append(
                Finding("policy", check, by_limit(late, warn=warn, bad=bad), evidence, advice)
            )

    # The ratio is 1 on average unless the probabilities of sampling and training differ.
    ratios = series(run, "policy/ratio")
    if ratios:
        off = max(ratios, key=lambda value: abs(value - 1))
        evidence = (
            f"{run.label}: the mean ratio of new to old probability is {off:.3g} at its worst"
        )
        verdict = by_limit(abs(off - 1), warn=_RATIO_WARN, bad=_RATIO_BAD)
        found.append(Finding("policy", "ratio", verdict, evidence, "lower --learning_rate"))

    return found


def _clipped(run: ChainRun) -> list[float]:
    """Return the share of tokens (TRL: of completions) that are clipped."""
    low, high = (series(run, f"policy/clip_share_{side}") for side in ("low", "high"))
    return [a + b for a, b in zip(low, high, strict=True)] or series(run, "clip_ratio/region_mean")


def _check_entropy(run: ChainRun) -> list[Finding]:
    """Check how much entropy is left: none where every answer is the same."""
    values = series(run, _ENTROPY)
    if len(values) < _FEWEST_POINTS or values[0] <= 0:
        return []
    left = fmean(quarters(values)[-1]) / values[0]
    evidence = (
        f"{run.label}: entropy {values[0]:.3g} nats a token at first, {percent(left)} of it at the "
        "end"
    )

    verdict = by_limit(left, warn=_ENTROPY_WARN, bad=_ENTROPY_BAD)
    return [
        Finding(
            "policy", "entropy", verdict, evidence, "raise the weight of the KL, or --entropy_coef"
        )
    ]


def _critic(run: ChainRun) -> list[Finding]:
    """Check whether PPO's critic predicts returns better than their mean."""
    if run.recipe != "ppo":
        return []
    values = series(run, "value/explained_variance")
    if len(values) < _FEWEST_POINTS:
        evidence = (
            f"{run.label} logged the explained variance {len(values)} times; {_FEWEST_POINTS} are "
            "needed"
        )
        return [Finding("policy", "critic", "unknown", evidence, "train longer")]

    last = fmean(quarters(values)[-1])
    losses = series(run, "loss/value")
    detail = f"; value loss {losses[0]:.3g} at first, {losses[-1]:.3g} at the end" if losses else ""
    evidence = (
        f"{run.label}: the critic explains {last:.2f} of the variance of the returns at the "
        f"end{detail}"
    )
    verdict = by_limit(last, warn=_EXPLAINED_WARN, bad=_EXPLAINED_BAD)

    first, *_, end = quarters(values)
    difference, error = rise(first, end)
    if verdict == "bad" and last > 0 and difference > _SURE_ERRORS * error:
        # it was started cold, and is on its way
        verdict = "warn"
        evidence += "; it still rises"
    advice = (
        "higher --critic_learning_rate, --critic_warmup_rollouts, or start the critic from the "
        "reward model"
    )

    return [Finding("policy", "critic", verdict, evidence, advice)]


def _drift(run: ChainRun) -> list[Finding]:
    """Check that answers still end, and are as long as they were."""
    found = []
    ended, lengths = series(run, _ENDED), series(run, _LENGTH_METRIC)
    if len(ended) >= _FEWEST_POINTS:
        first, *_, last = (fmean(part) for part in quarters(ended))
        evidence = (
            f"{run.label}: {percent(first)} of the answers ended by themselves at first, "
            f"{percent(last)} at the end"
        )
        verdict = by_limit(first - last, warn=_ENDED_FALL_WARN, bad=_ENDED_FALL_BAD)
        found.append(Finding("policy", "answers end", verdict, evidence, "--missing_eos_penalty 1"))

    if len(lengths) >= _FEWEST_POINTS and min(lengths) > 0:
        first, *_, last = (fmean(part) for part in quarters(lengths))
        evidence = f"{run.label}: {first:.0f} tokens an answer at first, {last:.0f} at the end"
        factor = max(first / last, last / first)
        verdict: Verdict = "warn" if factor > _LENGTH_FACTOR_WARN else "ok"
        advice = "compare at equal length (win_rate), and look at the reward model's length bias"
        found.append(Finding("policy", "length", verdict, evidence, advice))

    return found


def _gold_curve(run: ChainRun, gold: str | None) -> list[Finding]:
    """Compare the trained reward with one that was only logged (Gao et al. 2023)."""
    if gold is None:
        return []

    check = "over-optimisation"
    logged, trained, kl = (series(run, name) for name in (f"rewards/{gold}/mean", "reward", _KL))
    if len(logged) < _FEWEST_POINTS or len(trained) != len(logged):
        evidence = (
            f"{run.label} logged {len(logged)} values of rewards/{gold}/mean; {_FEWEST_POINTS} are "
            "needed"
        )
        advice = "add it to REWARDS with weight 0"
        return [Finding("reward model", check, "unknown", evidence, advice)]

    # where the gold reward was best, and how it fell from there while the trained one rose
    parts, proxy = quarters(logged), [fmean(part) for part in quarters(trained)]
    means = [fmean(part) for part in parts]
    best = means.index(max(means))
    fall, error = rise(parts[best], parts[-1])
    lost = fall < -_SURE_ERRORS * error and proxy[-1] >= proxy[best]

    # worse than at the start is bad, worse than at its best a warning
    verdict: Verdict = "warn" if lost else "ok"
    back, back_error = rise(parts[0], parts[-1])
    if lost and back < -_SURE_ERRORS * back_error:
        verdict = "bad"

    at = f" at {fmean(quarters(kl)[best]):.3g} nats" if len(kl) >= 4 else ""
    evidence = (
        f"{run.label}: {gold} is best in quarter {best + 1} of the run{at} ({means[best]:.3g}) and "
        f"{means[-1]:.3g} in the last, while the reward went from {proxy[best]:.3g} to "
        f"{proxy[-1]:.3g}"
    )
    advice = "stop at that KL, or train the reward model on answers of this policy"
    return [Finding("reward model", check, verdict, evidence, advice)]


def _judged(run: ChainRun, *, rose: bool | None, over_budget: bool) -> list[Finding]:
    """Check the win rate over the model before, unless a reward model was the judge."""
    names = [f"win_rate{end}" for end in ("", "_low", "_high")]
    if any(name not in run.metrics for name in names):
        return []
    rate, low, high = (run.metrics[name] for name in names)
    shown = (
        f"{run.label}: wins {rate:.3f} [{low:.3f}, {high:.3f}] of "
        f"{run.metrics.get('prompts', 0):.0f} prompts"
    )

    if judge := run.settings.get("reward_model"):
        evidence = (
            f"{shown} by the reward model {judge}, which is not a judge of what was trained "
            "against it"
        )
        advice = "judge by the gold rule, by people or by another model"
        return [Finding("policy", "judge", "unknown", evidence, advice)]

    found = []
    if low > 0.5:
        found.append(Finding("policy", "judge", "ok", shown))
        found += _won_by_length(run)
    elif high >= 0.5:
        evidence = f"{shown}: the interval includes one half"
        found.append(Finding("policy", "judge", "warn", evidence, "more prompts, or train longer"))
    elif rose:
        # The policy did what it was asked: within the budget the problem is in what was asked,
        # beyond it in how far.
        link: Link = "policy" if over_budget else "reward model"
        where = "beyond" if over_budget else "within"
        evidence = f"{shown}, while the reward rose, {where} the KL budget"
        advice = "raise the weight of the KL, or stop earlier"
        if not over_budget:
            advice = (
                "the reward is not what the judge wants: look at answers.jsonl, fix the "
                "preferences or the reward"
            )
        found.append(Finding(link, "reward against judge", "bad", evidence, advice))
    else:
        known = "the reward did not rise either"
        if rose is None:
            known = "whether the reward rose is not known"
        evidence = f"{shown}; {known}"
        found.append(Finding("policy", "judge", "bad", evidence, "lower --learning_rate"))

    return found + _less_varied(run)


def _won_by_length(run: ChainRun) -> list[Finding]:
    """Check whether the win remains at equal length."""
    low = run.metrics.get("win_rate_length_controlled_low")
    if low is None:
        return []
    rate = run.metrics["win_rate_length_controlled"]
    ours, theirs = (run.metrics.get(f"{prefix}answer_characters") for prefix in ("", "reference_"))

    evidence = f"{run.label}: at equal length it wins {rate:.3f} (95 % from {low:.3f})"
    if ours is not None and theirs is not None:
        evidence += f"; {ours:.0f} characters an answer against {theirs:.0f}"
    verdict: Verdict = "ok" if low > 0.5 else "warn"
    advice = "length may be what won: balance the preferences by length"
    return [Finding("reward model", "win at equal length", verdict, evidence, advice)]


def _less_varied(run: ChainRun) -> list[Finding]:
    """Compare the variety of word pairs with the model before, to see a collapse."""
    ours, theirs = (run.metrics.get(f"{prefix}distinct_2") for prefix in ("", "reference_"))
    if ours is None or not theirs:
        return []
    evidence = f"{run.label}: {ours:.3f} of the word pairs are different, {theirs:.3f} before"
    verdict = by_limit(ours / theirs, warn=_DISTINCT_WARN, bad=_DISTINCT_BAD)
    return [Finding("policy", "variety", verdict, evidence, "raise the weight of the KL")]
