"""Record what was scored: rows, tables, groups, comparisons, judgements."""

import numpy
from datasets import Dataset

from hfstack.data.reading.jsonl import write_jsonl
from hfstack.diagnosis.win_rate import judge_both_orders, win_rate
from hfstack.drawing.numbers import metric
from hfstack.errors import DataError
from hfstack.evidence.score_compare import compare
from hfstack.evidence.score_judge import JudgeArgs, compare_with_people, load_endpoint_judge
from hfstack.evidence.scored import Scored, group_rows, measure_groups
from hfstack.intervals import bootstrap_intervals
from hfstack.runs.run import Run


def record_rows(
    run: Run, scored: Scored, rows: Dataset, *, group_column: str | None = None
) -> dict[str, float]:
    """Write what the model said of each row, and add the tables; return the metrics."""
    for name, table in scored.tables.items():
        run.add_table(name, *table)

    groups = rows[group_column][:] if group_column in rows.column_names else None
    with write_jsonl(run.output_dir / "rows.jsonl") as add:
        for index, (place, answer) in enumerate(zip(scored.places, scored.answers, strict=True)):
            row = {"row": place + 1} | ({} if groups is None else {"group": groups[place]})
            right = {} if scored.right is None else {"right": scored.right[index]}
            add(row | answer | right)

    run.add_artifact("rows", "rows.jsonl")
    return scored.metrics


def record_groups(
    run: Run, scored: Scored, rows: Dataset, column: str
) -> tuple[dict[str, float], str]:
    """Measure each group of rows; return the worst one's metric, and a line about it.

    Raises:
        ConfigError: there is no such column.
        DataError: a row is of no group, or all are of one.
    """
    groups = group_rows(rows, column, scored.places)
    names, table, worst = measure_groups(scored, groups)
    run.add_table("by group", names, table)

    row = next(row for row in table if row[0] == worst)
    value = row[names.index(scored.main)]
    shown = metric(scored.main, value)
    count = len(groups[worst])
    line = f"worst of {len(groups)} groups: {worst}, {scored.main} {shown.text} ({count} rows)"
    found = {"groups": len(groups), f"worst_group_{scored.main}": value, "worst_group_rows": count}
    return found, line


def record_comparison(
    run: Run, ours: Scored, theirs: Scored, *, seed: int
) -> tuple[dict[str, float], str]:
    """Compare with the reference, write the rows where they part.

    Return the metrics, and the verdict in a line.

    Raises:
        DataError: the rows are too few for an interval.
    """
    found = compare(ours, theirs, seed=seed)
    run.add_table("beside the reference", *found.table())
    with write_jsonl(run.output_dir / "parted.jsonl") as add:
        for row in found.parted:
            add(row)
    run.add_artifact("parted", "parted.jsonl")
    return found.metrics(), found.verdict


def record_judgements(
    run: Run, args: JudgeArgs, ours: Scored, theirs: Scored | None
) -> tuple[dict[str, float], str]:
    """Let an endpoint judge the answers: beside the reference's, or by a grade each.

    Return the metrics, with those of what the judge cost and how far it agrees with people, and a
    line about them.

    Raises:
        DataError: there are no answers to judge, or the endpoint fails.
    """
    answered = {
        place: row
        for place, row in zip(ours.places, ours.answers, strict=True)
        if "answer" in row and "prompt" in row
    }
    if not answered:
        raise DataError("--judge_url: no answers to judge; it judges a language model's answers")
    judge = load_endpoint_judge(run, args)
    assert judge is not None, "asked for by --judge_url"
    if theirs is None:
        rows = list(answered.values())
        grades = judge.grade([row["prompt"] for row in rows], [row["answer"] for row in rows])
        known = numpy.array([grade for grade in grades if grade is not None])
        drawn = bootstrap_intervals(lambda i: {"grade": float(known[i].mean())}, len(known))
        metrics = {"judge_grade": float(known.mean()), "judge_grade_rows": len(known)}
        metrics["judge_grade_low"], metrics["judge_grade_high"] = drawn["grade"]
        line = f"judge: {metrics['judge_grade']:.2f} of 10 over {len(known)} answers"
    else:
        # both orders of each pair that both have answered
        others = dict(zip(theirs.places, theirs.answers, strict=True))
        common = [place for place in answered if "answer" in others.get(place, {})]
        prompts, mine = ([answered[p][key] for p in common] for key in ("prompt", "answer"))
        judged = judge_both_orders(
            judge.compare, prompts, mine, [others[place]["answer"] for place in common]
        )
        rate = win_rate(judged.shares)
        metrics = rate.named("judge_win_rate")
        metrics |= {f"judge_{name}": value for name, value in judged.counts().items()}
        line = f"judge: wins {rate} of {len(common)} prompts"

    metrics |= compare_with_people(judge, args)
    if "judge_human_kappa" in metrics:
        line += f", kappa with people {metrics['judge_human_kappa']:.2f}"
    return metrics | judge.metrics(), line


def describe_score(scored: Scored, rows: int) -> str:
    """Return the main metric with its interval and its baseline, in a line."""
    name = scored.main
    measured = scored.metrics | {k.removeprefix("eval_"): v for k, v in scored.metrics.items()}
    text = f"{name} {metric(name, measured[name]).text}"
    if f"{name}_low" in measured:
        low, high = (metric(name, measured[f"{name}_{end}"]).text for end in ("low", "high"))
        text += f" [{low}, {high}]"
    for beside, said in (("baseline", "baseline"), ("bm25", "BM25")):
        if f"{beside}_{name}" in measured:
            text += f", {said} {metric(name, measured[f'{beside}_{name}']).text}"
    return f"{text} over {len(scored.places)} of {rows} rows"
