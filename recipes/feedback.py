"""Export people's judgements as preferences, and measure how far they agree.

    accelerate launch recipes/feedback.py --config recipes/feedback.yaml --stores runs/annotate
    hfstack run feedback --stores runs/annotate                          # the same, shorter

reads   the stores of annotate runs, of all rounds; or a JSON file of Label Studio or Argilla
writes  pairs.jsonl (or rankings, ratings, thumbs, corrections), for Label Studio or Argilla where
        asked, and run.json with tables of agreement and annotators, in --output_dir
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from trl import ModelConfig

from hfstack.config import command_line
from hfstack.data.reading.jsonl import write_jsonl
from hfstack.disk import atomic_write, describe_file
from hfstack.errors import ConfigError, DataError
from hfstack.feedback.agreement import (
    alpha,
    alpha_interval,
    collect_units,
    raw_agreement,
)
from hfstack.feedback.annotators import ANNOTATOR_COLUMNS, annotator_rows
from hfstack.feedback.exchange import read_exchange, to_argilla, to_label_studio
from hfstack.feedback.export import (
    FILES,
    JudgedItem,
    export_rows,
    name_people,
    read_stores,
    store_paths,
)
from hfstack.feedback.leave_out import labelled_pairs, leave_one_out, pair_features
from hfstack.runs.run import Run, RunArgs

FORMATS = {"label_studio": to_label_studio, "argilla": to_argilla}


@dataclass
class FeedbackArgs:
    """What is exported, and how judgements of one item become one."""

    stores: list[str] = field(default_factory=list)
    """Folders of annotate runs, or their feedback.sqlite: all rounds that belong together."""
    import_file: str | None = None
    """A JSON file of Label Studio or Argilla to read instead."""
    min_judgements: int = 1
    """Leave out items with fewer judgements."""
    conflicts: str = "majority"
    """Where people took opposite sides: majority, or drop the item; an even split is always left
    out.
    """
    leave_out_flagged: bool = False
    """Leave out items that somebody flagged."""
    with_names: bool = False
    """Write the annotators' names; A1, A2 and so on otherwise."""
    formats: list[str] = field(default_factory=list)
    """Also write all judgements as label_studio.json or argilla.json."""
    leave_one_out: bool = False
    """Measure how accurate a reward model is without each annotator: a linear head on the states
    of --model_name_or_path.
    """

    def __post_init__(self) -> None:
        if bool(self.stores) == (self.import_file is not None):
            raise ConfigError("name --stores, such as runs/annotate, or else an --import_file")
        if self.conflicts not in ("majority", "drop"):
            raise ConfigError(f"--conflicts must be majority or drop, got {self.conflicts!r}")
        if unknown := [name for name in self.formats if name not in FORMATS]:
            raise ConfigError(f"--formats are {', '.join(FORMATS)}, got {unknown[0]!r}")


def main(model_args: ModelConfig, args: FeedbackArgs, run_args: RunArgs) -> dict[str, float]:
    """Read the judgements, write the rows, and return counts and agreement."""
    if args.leave_one_out and not model_args.model_name_or_path:
        raise ConfigError("--leave_one_out reads the states of a model: give --model_name_or_path")

    with Run.start(__file__, run_args.output_dir, model_args, args, run_args) as run:
        # data
        files = [Path(args.import_file)] if args.import_file else store_paths(args.stores)
        kind, judged = read_exchange(files[0]) if args.import_file else read_stores(args.stores)
        run.record_inputs(
            model_args.model_name_or_path if args.leave_one_out else None,
            judgements=[{"path": str(file), "files": [describe_file(file)]} for file in files],
        )

        if args.leave_one_out and kind != "pairs":
            raise DataError(f"--leave_one_out reads judgements of pairs, and these are of {kind}")

        # rows
        rows, counts = export_rows(
            kind,
            judged,
            min_judgements=args.min_judgements,
            conflicts="drop" if args.conflicts == "drop" else "majority",
            leave_out_flagged=args.leave_out_flagged,
            with_names=args.with_names,
        )
        name = FILES[kind]
        run.add_table("what became of the items", ["what", "count"], _as_rows(asdict(counts)))
        if not rows:
            raise DataError(f"no row is left of {counts.items} items: {asdict(counts)}")
        with write_jsonl(run.output_dir / f"{name}.jsonl") as write_row:
            for row in rows:
                write_row(row)
        run.add_artifact(name, f"{name}.jsonl")

        # people
        names = name_people(judged, args.stores, with_names=args.with_names)
        run.add_table("annotators", ANNOTATOR_COLUMNS, annotator_rows(kind, judged, names))
        for form in args.formats:
            with atomic_write(run.output_dir / f"{form}.json") as file:
                json.dump(FORMATS[form](kind, judged, names), file, ensure_ascii=False, indent=1)
            run.add_artifact(form, f"{form}.json")

        metrics = asdict(counts) | {"annotators": len(names)}
        metrics |= measure_agreement(kind, judged, seed=run_args.seed)
        if args.leave_one_out:
            leave_each_out(run, model_args, judged, names, seed=run_args.seed)
        return run.finish(metrics)


def measure_agreement(kind: str, judged: list[JudgedItem], *, seed: int) -> dict[str, float]:
    """Return raw agreement and alpha, with intervals, where they are defined."""
    verdicts = {
        number: [vote.verdict for vote in one.in_turn()]
        for number, one in enumerate(judged)
        if one.item.gold is None
    }
    metrics: dict[str, Any] = {
        "agreement": raw_agreement(collect_units(kind, verdicts, "nominal")),
        "agreement_items": sum(len(given) > 1 for given in verdicts.values()),
    }
    for level in ("nominal", "ordinal"):
        units = collect_units(kind, verdicts, level)
        metrics[f"alpha_{level}"] = alpha(units, level)
        if interval := alpha_interval(units, level, seed=seed):
            metrics[f"alpha_{level}_low"], metrics[f"alpha_{level}_high"] = interval
    return {name: value for name, value in metrics.items() if value is not None}


def leave_each_out(
    run: Run, model_args: ModelConfig, judged: list[JudgedItem], names: dict[str, str], *, seed: int
) -> None:
    """Add the table of whose labels help a reward model, and whose hurt it."""
    pairs = [one for one in judged if one.item.gold is None and len(one.item.answers) == 2]
    found = leave_one_out(labelled_pairs(pairs, list(pair_features(model_args, pairs))), seed=seed)
    columns = ["without", "accuracy", "gain", "gain low", "gain high"]
    columns += ["own labels agree", "low", "high", "loss of own labels", "loss low", "loss high"]
    rows = [
        [names[one.annotator], *(round(v, 3) for v in (one.accuracy, *one.gain))]
        + [round(value, 3) for value in (*one.label_agreement, *one.label_loss)]
        for one in found
    ]
    run.add_table("leave one annotator out", columns, rows)


def _as_rows(counts: dict[str, int]) -> list[list[Any]]:
    return [[name.replace("_", " "), count] for name, count in counts.items()]


if __name__ == "__main__":
    command_line(main)
