"""Find the weak link of an RLHF chain, with the evidence.

    hfstack run diagnose --runs runs/sft runs/preferences runs/reward runs/ppo runs/win_rate
    python recipes/diagnose.py --runs runs --kl_budget 5 --output_dir runs/diagnose

reads   run.json of each run, its curves, answers.jsonl and completions.jsonl
writes  run.json in --output_dir, with the findings as a table that the report shows
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hfstack.config import command_line
from hfstack.diagnosis.diagnose import (
    KL_BUDGET_NATS,
    as_paragraph,
    as_table,
    diagnose,
    link_verdicts,
)
from hfstack.diagnosis.findings import ONLINE_RECIPES, ChainRun
from hfstack.disk import is_inside
from hfstack.errors import ConfigError, DataError
from hfstack.reporting.runs import Report, load_runs
from hfstack.runs.run import Run

CHAIN = ("sft", "preferences", "reward", *ONLINE_RECIPES, "win_rate")


@dataclass
class DiagnoseArgs:
    runs: list[str] = field(default_factory=list)
    """Run directories of one chain, or folders that hold them one or two levels down; other recipes
    are not read.
    """
    output_dir: str = "runs/diagnose"
    """Where run.json goes. A diagnosis made here before is replaced: it is a view of its runs."""
    kl_budget: float = KL_BUDGET_NATS
    """Nats an answer that the policy may be away from its start: beyond it a warning, beyond three
    times it bad.
    """
    gold_reward: str | None = None
    """Name of a reward that was logged with weight 0, such as a gold rule, to find
    over-optimisation.
    """

    def __post_init__(self) -> None:
        if self.kl_budget <= 0:
            raise ConfigError(f"--kl_budget must be above 0 nats, got {self.kl_budget}")


def main(args: DiagnoseArgs) -> dict[str, float]:
    """Read the runs, print and record what is found."""
    if not args.runs:
        raise ConfigError(
            "--runs is empty; give the --output_dir of the runs of a chain, or the folder above "
            "them"
        )

    reports = [report for report in load_runs(args.runs) if report.record.recipe in CHAIN]
    if not reports:
        raise ConfigError(
            f"--runs {' '.join(args.runs)}: no run of {', '.join(CHAIN)} there; nothing to diagnose"
        )

    with Run.start(__file__, args.output_dir, args, replace_own=True) as run:
        # data
        run.record_inputs(*(report.directory for report in reports))
        labels = {report.directory.resolve(): report.label for report in reports}
        chain = [chain_run(report, labels) for report in reports]

        # evaluate
        findings = diagnose(chain, kl_budget_nats=args.kl_budget, gold=args.gold_reward)
        verdicts, summary = link_verdicts(findings), as_paragraph(findings)
        grades = [finding.verdict for finding in findings]
        counts = {grade: grades.count(grade) for grade in ("ok", "warn", "bad", "unknown")}

        # finish
        for finding in findings:
            print(f"{finding.link:12} {finding.verdict:8} {finding.check}: {finding.evidence}")
        print(f"\n{summary}")
        run.add_table("links", ["link", "verdict"], [list(pair) for pair in verdicts.items()])
        run.add_table("verdict", ["in words"], [[summary]])
        run.add_table("findings", *as_table(findings))
        return run.finish({"runs": len(reports)} | counts)


def chain_run(report: Report, labels: dict[Path, str]) -> ChainRun:
    """Return what the diagnosis reads of a run, its parents by their labels."""
    record = report.record
    parents = [(report.directory / parent).resolve() for parent in record.parents]
    settings = {name: value for group in record.settings.values() for name, value in group.items()}
    failure = (record.error or "no reason was recorded") if record.status == "failed" else None

    return ChainRun(
        recipe=record.recipe,
        label=report.label,
        metrics=record.metrics,
        history=report.history,
        settings=settings,
        parents=tuple(labels[parent] for parent in parents if parent in labels),
        answers=read_rows(report, "answers"),
        completions=read_rows(report, "completions"),
        error=failure,
    )


def read_rows(report: Report, artifact: str) -> tuple[dict[str, Any], ...]:
    """Return the rows of a file of JSON lines, none where the run has none."""
    path = report.directory / report.record.artifacts.get(artifact, "")
    if not path.is_file() or not is_inside(path, report.directory):
        return ()

    try:
        return tuple(
            json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line
        )
    except ValueError as error:
        raise DataError(
            f"{path} is not JSON Lines: {error}; run {report.record.recipe} again"
        ) from None


if __name__ == "__main__":
    command_line(main)
