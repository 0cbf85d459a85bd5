"""Find the weak link of an RLHF chain: SFT, preferences, reward model or policy.

The runs' own numbers decide (metrics of run.json, logged curves, answers.jsonl), by limits that
are beside their reasons in model_checks.py and policy_checks.py. A later link inherits the problems
of an earlier one, so where several are bad, the first in the chain is the one to fix.
"""

from collections.abc import Sequence
from typing import Any

from hfstack.diagnosis.findings import LINKS, ChainRun, Finding, Verdict, worst
from hfstack.diagnosis.model_checks import check_preference_link, check_reward_model, check_sft
from hfstack.diagnosis.policy_checks import check_policies

KL_BUDGET_NATS = 10.0
"""Nats an answer that the policy may be away from where it started, unless the user says otherwise.
"""

_ORDER: tuple[Verdict, ...] = ("bad", "warn", "ok", "unknown")


def diagnose(
    runs: Sequence[ChainRun], *, kl_budget_nats: float = KL_BUDGET_NATS, gold: str | None = None
) -> list[Finding]:
    """Return the findings about every link of the chain, the worst of each link first.

    Args:
        runs: of the recipes sft, preferences, reward, ppo, rloo, grpo and win_rate, in any order;
            others are not read.
        kl_budget_nats: KL an answer beyond which the policy is a warning, and three times which it
            is bad.
        gold: name of a logged reward that was watched and not trained on, to compare with the one
            that was.
    """
    found = [
        *check_sft(runs),
        *check_preference_link(runs),
        *check_reward_model(runs),
        *check_policies(runs, kl_budget_nats=kl_budget_nats, gold=gold),
    ]

    return sorted(
        found, key=lambda finding: (LINKS.index(finding.link), _ORDER.index(finding.verdict))
    )


def link_verdicts(findings: Sequence[Finding]) -> dict[str, Verdict]:
    """Return the worst verdict of each link; unknown where nothing could be checked."""
    return {link: worst(one.verdict for one in findings if one.link == link) for link in LINKS}


def as_paragraph(findings: Sequence[Finding]) -> str:
    """Return a paragraph: the weak link, its evidence, the next step, the unknown."""
    verdicts = link_verdicts(findings)
    blind = [link for link, verdict in verdicts.items() if verdict == "unknown"]
    unseen = f" Nothing is known about: {', '.join(blind)}." if blind else ""

    for grade, beginning in (
        ("bad", "The weak link is the"),
        ("warn", "No link is bad. Look first at the"),
    ):
        for link in LINKS:
            if verdicts[link] == grade:
                causes = [one for one in findings if one.link == link and one.verdict == grade]
                evidence = " ".join(f"{one.check}: {one.evidence}." for one in causes)
                return f"{beginning} {link}. {evidence} Next: {causes[0].advice}.{unseen}"

    return (
        "No problem found in "
        f"{', '.join(link for link in LINKS if link not in blind) or 'anything'}.{unseen}"
    )


def as_table(findings: Sequence[Finding]) -> tuple[list[str], list[list[Any]]]:
    """Return columns and rows for `Run.add_table`; what is in order needs no advice."""
    columns = ["link", "check", "verdict", "evidence", "what to do"]
    rows = [
        [one.link, one.check, one.verdict, one.evidence, one.advice if one.verdict != "ok" else ""]
        for one in findings
    ]
    return columns, rows
