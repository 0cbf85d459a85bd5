"""Clean raw documents: fix and filter text, mask personal data, drop duplicates.

    hfstack run clean --datasets raw.jsonl --output_dir runs/clean
    python recipes/clean.py --config recipes/clean.yaml --datasets raw.jsonl  # the same

reads   rows with a text column: Hub ids, local files, globs or folders
writes  train.jsonl (eval.jsonl, dropped.jsonl) with all columns, and run.json, in --output_dir
"""

import time
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from hfstack.config import command_line
from hfstack.data.cleaning import filters
from hfstack.data.cleaning.cluster import ClusterArgs, cluster_cleaning
from hfstack.data.cleaning.dedup import Contamination, duplicate_checks
from hfstack.data.cleaning.pipeline import (
    CleaningReport,
    TextArgs,
    clean_documents,
    clean_text,
)
from hfstack.data.cleaning.splits import write_documents
from hfstack.data.cleaning.workers import cpu_seconds
from hfstack.data.reading.rows import OnBadRow
from hfstack.data.sources import Source, SourceLog, describe_sources, iterate_rows
from hfstack.errors import ConfigError
from hfstack.runs.run import Run

# text -> None to keep it, or "reason: detail"; the first filter that objects decides. Take one out,
# add your own, or change a limit: partial(filters.too_short, characters=200).
FILTERS: list[filters.Filter] = [
    filters.too_short,
    filters.too_long,
    filters.broken_encoding,
    filters.placeholder_text,
    filters.too_many_symbols,
    filters.too_few_words,
    filters.odd_word_length,
    filters.repeated_lines,
    filters.repeated_ngrams,
]


@dataclass
class CleanArgs:
    datasets: list[Source] = field(default_factory=list)
    """Documents to clean: Hub ids, files, globs, folders, or {path, name, split, weight}."""
    output_dir: str = "runs/clean"
    """Where train.jsonl, eval.jsonl, dropped.jsonl and run.json go."""
    text_column: str = "text"
    """Column that holds the text of a document; the other columns are carried along as they are."""
    on_bad_row: OnBadRow = "fail"
    """A malformed row, or one without text: fail, skip it, or quarantine it (rows without text are
    dropped rows).
    """
    max_rows: int | None = None
    """Read at most this many rows of each dataset, from its beginning; all when unset."""
    eval_fraction: float = 0.0
    """Share of the clean documents for eval.jsonl, in [0, 1), chosen by a hash of each text."""
    decontaminate: list[Source] = field(default_factory=list)
    """Evaluation sets, named as in datasets: documents with 13 words (20 characters) of their texts
    are dropped.
    """
    save_dropped: bool = False
    """Also write dropped.jsonl: dropped rows, masked like the others, with a dropped_reason."""

    def __post_init__(self) -> None:
        if not self.datasets:
            raise ConfigError("datasets: name at least one, e.g. --datasets raw.jsonl")
        if self.max_rows is not None and self.max_rows < 1:
            raise ConfigError(f"max_rows must be at least 1, got {self.max_rows}")


def main(args: CleanArgs, text_args: TextArgs, cluster_args: ClusterArgs) -> dict[str, float]:
    """Clean, filter and save; return the metrics."""
    with Run.start(__file__, args.output_dir, args, text_args, cluster_args) as run:
        # data
        quarantine = run.output_dir / "quarantine.jsonl"
        read: SourceLog = {}
        rows = iterate_rows(
            args.datasets,
            columns={args.text_column},
            on_bad_row=args.on_bad_row,
            quarantine_file=quarantine if args.on_bad_row == "quarantine" else None,
            max_rows=args.max_rows,
            log=read,
        )

        # what is done to each text, and what may refuse it: the cheap filters first
        clean = partial(
            clean_text,
            strip_markup=text_args.strip_markup,
            strip_boilerplate=text_args.strip_boilerplate,
            mask=text_args.mask_pii,
        )
        checks = list(FILTERS)
        if args.decontaminate:
            checks.append(Contamination.from_sources(args.decontaminate, clean, read))
        duplicates = duplicate_checks(
            text_args.drop_duplicates,
            text_args.near_duplicate_threshold,
            text_args.minhash_permutations,
        )

        # clean, here or on a cluster
        cluster = cluster_cleaning(
            args.datasets,
            cluster_args,
            output_dir=run.output_dir,
            text_column=args.text_column,
            on_bad_row=args.on_bad_row,
            max_rows=args.max_rows,
            workers=text_args.workers,
            log=read,
            # the filters are in this file
            identity=[
                Path(__file__).read_text(encoding="utf-8"),
                *(repr(args), repr(text_args)),
                describe_sources(args.decontaminate, read),
            ],
        )

        report = CleaningReport()
        started, started_cpu = time.perf_counter(), cpu_seconds()
        documents = clean_documents(
            rows,
            [*checks, *duplicates],
            report,
            clean=clean,
            text_column=args.text_column,
            skip_no_text=args.on_bad_row != "fail",
            workers=text_args.workers,
            elsewhere=cluster,
        )

        with closing(documents):
            counts = write_documents(
                documents,
                report,
                run.output_dir,
                text_column=args.text_column,
                eval_fraction=args.eval_fraction,
                save_dropped=args.save_dropped,
            )

        seconds = time.perf_counter() - started
        cpu_s = cpu_seconds() - started_cpu
        if cluster is not None:
            cpu_s += cluster.cpu_s
            cluster.remove_parts()

        # finish
        run.record_inputs(
            train=describe_sources(args.datasets, read),
            decontaminate=describe_sources(args.decontaminate, read),
        )
        tables = {"dropped_documents": report.dropped_table(), "changes": report.changed_table()}
        for name, table in tables.items():
            run.add_table(name, *table)

        metrics = report.metrics() | counts
        metrics["documents_per_s"] = report.documents_in / seconds
        metrics["bytes_per_cpu_s"] = report.bytes_in / cpu_s
        metrics["duplicate_index_bytes"] = sum(check.index_bytes for check in duplicates)
        return run.finish(metrics)


if __name__ == "__main__":
    command_line(main)
