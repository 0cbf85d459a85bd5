"""Make one self-contained HTML page of runs: curves, samples, tables, settings.

    hfstack run report --runs runs/story --output_dir runs/story/report
    python recipes/report.py --runs runs/story --output_dir runs/story/report     # the same

reads   run.json of each run, and the artifacts that it lists: trainer_state.json, samples.jsonl,
        pictures
writes  report.html and run.json in --output_dir
"""

from dataclasses import dataclass, field
from datetime import UTC, datetime

from hfstack.config import command_line
from hfstack.disk import describe_file
from hfstack.errors import ConfigError
from hfstack.feedback.rounds import metrics_by_round, round_table, verdict_of_rounds
from hfstack.reporting.page import default_title, render_page
from hfstack.reporting.results import Overview
from hfstack.reporting.runs import Report, load_runs
from hfstack.runs.record import RUN_FILE
from hfstack.runs.run import Run


@dataclass
class ReportArgs:
    runs: list[str] = field(default_factory=list)
    """Run directories, or folders that hold run directories one or two levels down."""
    output_dir: str = "runs/report"
    """Where report.html goes. A report made here before is replaced."""
    title: str | None = None
    """The page's heading (default: the name of the folder that the runs share)."""


def main(args: ReportArgs) -> dict[str, float]:
    """Read the runs, make the page and return counts."""
    if not args.runs:
        raise ConfigError(
            "--runs is empty; give the --output_dir of one or more runs, or the folder above them"
        )

    # data
    reports = load_runs(args.runs)

    with Run.start(__file__, args.output_dir, args, replace_own=True) as run:
        run.record_inputs(runs=[describe(report) for report in reports])

        # page
        title = args.title or default_title(reports)
        made = datetime.now(UTC)
        page = render_page(reports, title=title, made=made, overviews=find_rounds(reports))
        target = run.output_dir / "report.html"
        target.write_text(page, encoding="utf-8")
        run.add_artifact("report", target.name)

        # finish
        return run.finish(
            {
                "runs": len(reports),
                "curves": sum(len(report.history) for report in reports),
                "samples": sum(len(report.samples) for report in reports),
                "page_bytes": len(page.encode()),
            }
        )


def find_rounds(reports: list[Report]) -> list[Overview]:
    """Return the table of rounds of feedback, where the runs hold some."""
    rounds = metrics_by_round({report.directory.name: report.record for report in reports})
    if not rounds:
        return []
    return [Overview("Rounds", "by round", round_table(rounds), verdict_of_rounds(rounds))]


def describe(report: Report) -> dict[str, object]:
    """Return the run record that the page was made from, with its digest."""
    path = report.directory / RUN_FILE
    return {"path": str(report.directory), "files": [describe_file(path)], "rows": None}


if __name__ == "__main__":
    command_line(main)
