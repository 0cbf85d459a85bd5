"""Clean raw documents: fix and filter text, mask personal data, drop duplicates.

    hfstack run clean --datasets raw.jsonl --output_dir runs/clean
    python recipes/clean.py --config recipes/clean.yaml --datasets raw.jsonl  # the same

reads   rows with a text column: Hub ids, local files, globs or folders
writes  train.jsonl (eval.jsonl, dropped.jsonl) with all columns, and run.json, in --output_dir
"""

import time
from collections.abc import Iterable
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from hfstack.config import command_line
from hfstack.data.cleaning import filters
from hfstack.data.cleaning.dedup import Contamination, choose_files, duplicate_checks
from hfstack.data.cleaning.pipeline import (
    Checked,
    CleaningReport,
    TextArgs,
    clean_documents,
    clean_text,
)
from hfstack.data.cleaning.workers import cpu_seconds
from hfstack.data.reading.jsonl import write_jsonl
from hfstack.data.reading.rows import OnBadRow
from hfstack.data.sources import Source, SourceLog, describe_sources, iterate_rows
from hfstack.errors import ConfigError, DataError
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


def main(args: CleanArgs, text_args: TextArgs) -> dict[str, float]:
    """Clean, filter and save; return the metrics."""
    with Run.start(__file__, args.output_dir, args, text_args) as run:
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

        # clean
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
        )
        with closing(documents):
            counts = write_documents(documents, report, args)
        seconds = time.perf_counter() - started
        cpu_s = cpu_seconds() - started_cpu

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


def write_documents(
    documents: Iterable[Checked], report: CleaningReport, args: CleanArgs
) -> dict[str, float]:
    """Write each document as it comes; the files get their names when all are whole."""
    names = ["train", *["eval"] * bool(args.eval_fraction), *["dropped"] * args.save_dropped]
    counts = dict.fromkeys(names, 0)

    with ExitStack() as files:
        write = {
            name: files.enter_context(write_jsonl(Path(args.output_dir, f"{name}.jsonl")))
            for name in names
        }

        for name, row in choose_files(documents, args.text_column, args.eval_fraction):
            if name in write:
                write[name](row)
                counts[name] += 1

        report.refuse_nothing_left()
        if empty := [name for name in ("train", "eval") if counts.get(name) == 0]:
            raise DataError(
                f"eval_fraction {args.eval_fraction} leaves no document for {empty[0]}.jsonl; "
                "change it"
            )

    return {f"documents_{name}": count for name, count in counts.items() if name != "dropped"}


if __name__ == "__main__":
    command_line(main)
