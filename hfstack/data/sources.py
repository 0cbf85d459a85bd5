"""Load rows from the Hub, local files, or a weighted mixture, and split them."""

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

from hfstack.data.contamination import check_splits
from hfstack.data.hub import (
    in_standard_columns,
    is_saved,
    load_from_hub,
    load_saved,
    revision_of,
    saved_files,
)
from hfstack.data.reading.cache import load_rows
from hfstack.data.reading.files import (
    MOST_ROW_MIB,
    DataFile,
    Document,
    fingerprint,
    is_archive,
    looks_local,
)
from hfstack.data.reading.folders import expand_files
from hfstack.data.reading.layouts import Purpose
from hfstack.data.reading.parallel import join_parallel
from hfstack.data.reading.read_report import ReadReport
from hfstack.data.reading.rows import OnBadRow, empty_quarantine, read_rows
from hfstack.data.splitting import Splits, drop_overlap, hold_out, interleave, mix, usual_share
from hfstack.errors import ConfigError, DataError
from hfstack.logs import get_logger
from hfstack.places import expand_place
from hfstack.ranges import refuse_out_of_range
from hfstack.row_counts import RowCounts
from hfstack.runs.inputs import HUB_ID

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

logger = get_logger(__name__)

_SHUFFLED_ROWS = 1000


@dataclass
class Source:
    """One dataset: a Hub id, or a local file, glob or folder.

    In YAML a string, or `{path: user/dataset, name: en, split: train, weight: 2}`. `name` is a
    configuration of a Hub dataset. `split` of a folder chooses the files whose names, or whose
    folders' names, carry it. `document` says what one document of a text file is.
    `weight` is the share of this dataset in a mixture, relative to the others; with all weights 1
    every row is used.
    """

    path: str
    name: str | None = None
    split: str = "train"
    weight: float = 1.0
    document: Document = "auto"
    max_row_mib: float = MOST_ROW_MIB

    def __post_init__(self) -> None:
        if not isinstance(self.path, str) or not self.path.strip():
            raise ConfigError(
                f"dataset: path must be a Hub id, a file, a glob or a folder, got {self.path!r}"
            )
        self.path = expand_place(self.path)

        if not isinstance(self.weight, int | float) or not 0 < self.weight < math.inf:
            raise ConfigError(
                f"dataset {self.path}: weight must be a number above 0, got {self.weight!r}"
            )

        refuse_out_of_range({"max_row_mib": self.max_row_mib}, {"max_row_mib": f"{self.path}: "})
        if self.document not in get_args(Document):
            raise ConfigError(
                f"dataset {self.path}: document must be one of {', '.join(get_args(Document))}, "
                f"got {self.document!r}"
            )

        # What means nothing for local files is refused, since it would be passed over in silence.
        if self.is_local:
            if self.name is not None:
                raise ConfigError(
                    f"dataset {self.path}: name {self.name!r} is for Hub datasets; local files "
                    "have none"
                )

            is_tree = Path(self.path).expanduser().is_dir() or is_archive(Path(self.path))
            if self.split != "train" and not is_tree:
                raise ConfigError(
                    f"dataset {self.path}: split {self.split!r} needs a Hub id or a folder; name "
                    "the file"
                )
        elif not HUB_ID.fullmatch(self.path):
            raise ConfigError(
                f"dataset {self.path}: no such file, and not a Hub id such as user/dataset"
            )

    @property
    def key(self) -> tuple[str, str | None, str]:
        """Return what distinguishes this source from others that are read in one run."""
        return self.path, self.name, self.split

    @property
    def is_local(self) -> bool:
        """Return whether the path means files of this machine, not a Hub repository."""
        return looks_local(self.path)

    @property
    def is_saved(self) -> bool:
        """Return whether the path is a folder that `save_to_disk` wrote."""
        return is_saved(self.path)

    def find_files(self) -> list[DataFile]:
        """Return the local files that the path means; none for a Hub dataset."""
        if self.is_saved:
            return [DataFile(path, "arrow", "") for path in saved_files(self.path, self.split)]
        files = expand_files(self.path, self.split, self.document) if self.is_local else []
        return [replace(file, max_row_bytes=int(self.max_row_mib * 2**20)) for file in files]

    def load(self, *, streaming: bool) -> "Dataset | IterableDataset":
        """Load what the datasets library keeps: a saved folder, or a dataset of the Hub."""
        if self.is_saved:
            return load_saved(self.path, self.split)
        return load_from_hub(self.path, self.name, self.split, streaming=streaming)


@dataclass
class ReadSource:
    """What a reader found out about a source: files, rows, a Hub dataset's revision."""

    files: list[DataFile] = field(default_factory=list)
    rows: int | None = None
    bad_rows: dict[str, int] = field(default_factory=dict)  # left out, by reason
    left_out: list[str] = field(default_factory=list)  # columns
    revision: str | None = None


SourceLog = dict[tuple[str, str | None, str], ReadSource]  # by Source.key, filled while reading


@dataclass
class DataArgs:
    """Which rows to train on and which to hold out."""

    datasets: list[Source] = field(default_factory=list)
    """Datasets to train on: Hub ids, local files, globs, folders; in YAML also mappings {path,
    name, split, weight}.
    """
    eval_datasets: list[Source] = field(default_factory=list)
    """Datasets to evaluate on; when given, no train row is held out, and train rows that they
    contain are left out.
    """
    eval_fraction: float | None = None
    """Share of the rows held out for evaluation when no eval_datasets are given, in [0, 1); 0
    disables evaluation. By default 0.05, and of small data enough for 20 rows, at most a fifth.
    """
    split_seed: int = 0
    """Seed of the mixture and of the train/eval split; independent of --seed, so the split survives
    reruns.
    """
    text_column: str = "text"
    """Column that holds the text, where the recipe reads plain text."""

    # what is done with files as they are
    on_bad_row: OnBadRow = "fail"
    """What to do with a malformed row of a local file: fail, skip it, or quarantine it into a file.
    """
    max_rows: int | None = None
    """Use at most this many rows of each dataset, from its beginning; all when unset."""
    document: Document = "auto"
    """One document of a .txt file: the file, a paragraph or a line; auto is a file in a folder of
    several, else what the file shows.
    """
    max_row_mib: float = MOST_ROW_MIB
    """Largest row of a local file in MiB; what is larger is a bad row."""
    streaming: bool = False
    """Read rows while training instead of loading them; needs eval_datasets, or eval_fraction 0."""
    check_contamination: bool | None = None
    """Look for eval rows in the train rows, by runs of 13 words; by default in a sample that costs
    next to nothing.
    """

    def __post_init__(self) -> None:
        self.datasets = as_sources(self.datasets, self.document, self.max_row_mib)
        self.eval_datasets = as_sources(self.eval_datasets, self.document, self.max_row_mib)

        if self.eval_fraction is not None and not 0 <= self.eval_fraction < 1:
            raise ConfigError(f"eval_fraction must be in [0, 1), got {self.eval_fraction}")
        if self.max_rows is not None and self.max_rows < 1:
            raise ConfigError(f"max_rows must be at least 1, got {self.max_rows}")

        if self.on_bad_row not in ("fail", "skip", "quarantine"):
            raise ConfigError(
                f"on_bad_row must be fail, skip or quarantine, got {self.on_bad_row!r}"
            )

        if self.streaming and self.eval_fraction != 0 and not self.eval_datasets:
            raise ConfigError(
                "streaming cannot hold out rows: name eval_datasets, or set --eval_fraction 0"
            )

    def held_out_share(self, rows: int | None = None) -> float:
        """Return the share of so many rows to hold out; None where that is not known."""
        if self.eval_fraction is not None:
            return self.eval_fraction
        return usual_share(rows)


def as_sources(
    given: Sequence[Source | str], document: Document = "auto", max_row_mib: float = MOST_ROW_MIB
) -> list[Source]:
    """Return sources, the files of one parallel text as one source.

    `document` and `max_row_mib` are of those that say nothing of it themselves.
    """
    sources = [Source(each) if isinstance(each, str) else each for each in given]
    for place, one in enumerate(sources):
        unit = document if one.document == "auto" else one.document
        most = max_row_mib if one.max_row_mib == MOST_ROW_MIB else one.max_row_mib
        sources[place] = replace(one, document=unit, max_row_mib=most)

    joined = join_parallel([one.path for one in sources])
    return [replace(sources[first], path=path) for first, path in joined]


def load_splits(
    args: DataArgs,
    columns: Collection[str] | None = None,
    *,
    numbers: Collection[str] | None = None,
    purpose: Purpose = "rows",
    quarantine_file: Path | None = None,
    row_counts: RowCounts | None = None,
    may_stream: bool = False,
) -> Splits:
    """Return `{"train": rows, "eval": rows}`, with the sources they were read from.

    Without eval_datasets and with `eval_fraction` 0, only "train". The same text is never in both,
    except with `streaming`, where it is not checked and rows are an IterableDataset.

    Args:
        columns: those that are read, by default the text column. What other columns hold stops
            nothing: one that changes its type, or is not in every row, is left out with a warning.
        numbers, purpose: as in `read_rows`.
        quarantine_file: where `on_bad_row="quarantine"` writes bad rows; a logged file in the cache
            when unset.
        row_counts: gets the rows of each split, and what was left out.
        may_stream: whether the caller goes through the rows only from the first to the last.

    Raises ConfigError when no dataset is named, or rows are to be streamed that the caller needs as
    a whole; DataError when a dataset is missing, empty or malformed.
    """
    if not args.datasets:
        raise ConfigError("datasets: name at least one dataset, e.g. --datasets stories.jsonl")
    if args.streaming and not may_stream:
        raise ConfigError("all rows are read before the first step: drop --streaming")

    columns = {args.text_column} if columns is None else set(columns)
    quarantine_file = empty_quarantine(quarantine_file)
    splits: dict[str, Any] = {}
    row_counts = RowCounts() if row_counts is None else row_counts
    log: SourceLog = {}

    for name, sources in {"train": args.datasets, "eval": args.eval_datasets}.items():
        if sources and args.streaming:
            splits[name] = _stream(sources, args, columns, quarantine_file)
        elif sources:
            splits[name] = load_mixture(
                sources,
                seed=args.split_seed,
                on_bad_row=args.on_bad_row,
                max_rows=args.max_rows,
                purpose=purpose,
                columns=columns,
                numbers=numbers,
                quarantine_file=quarantine_file,
                log=log,
            )

            good = row_counts.read_sources(name, [log[source.key] for source in sources])
            row_counts.leave_out(name, "beyond the weights", good - len(splits[name]))

    # A text on both sides would be learned by heart and then scored: eval is kept apart from train.
    if args.streaming:
        logger.info(
            "streaming: rows are shuffled within %d rows; overlap with eval is not checked",
            _SHUFFLED_ROWS,
        )
        splits["train"] = splits["train"].shuffle(seed=args.split_seed, buffer_size=_SHUFFLED_ROWS)
    elif args.eval_datasets:
        whole, held = splits["train"], splits["eval"]
        splits["train"] = drop_overlap(whole, held, text_column=args.text_column)
        row_counts.leave_out("train", "also in eval_datasets", len(whole) - len(splits["train"]))
    elif share := args.held_out_share(len(splits["train"])):
        splits["train"], splits["eval"] = hold_out(
            splits["train"], fraction=share, seed=args.split_seed, text_column=args.text_column
        )
        row_counts.hold_out(len(splits["eval"]))

    if not args.streaming:
        logger.info("rows: %s", ", ".join(f"{len(rows)} {name}" for name, rows in splits.items()))
        check_splits(splits, columns, asked=args.check_contamination, row_counts=row_counts)
    return Splits(splits, describe_roles(args, log))


def describe_roles(args: DataArgs, log: SourceLog) -> dict[str, list[dict[str, Any]]]:
    """Return what run.json says of the sources of both roles."""
    roles = {"train": args.datasets, "eval": args.eval_datasets}
    return {role: describe_sources(sources, log) for role, sources in roles.items()}


def load_mixture(
    sources: Sequence[Source],
    *,
    seed: int = 0,
    on_bad_row: OnBadRow = "fail",
    max_rows: int | None = None,
    purpose: Purpose = "rows",
    columns: Collection[str] | None = None,
    numbers: Collection[str] | None = None,
    quarantine_file: Path | None = None,
    log: SourceLog | None = None,
) -> "Dataset":
    """Return the rows of all sources as one Dataset, each with its weight's share.

    Args:
        purpose, columns, numbers: as in `read_rows`.
        log: gets the files and the number of rows of each source, for `describe_sources`.
    """
    log = {} if log is None else log
    # Missing files are found before the first row is read.
    files_by_source = [source.find_files() for source in sources]
    parts = []

    for source, files in zip(sources, files_by_source, strict=True):
        if files and not source.is_saved:
            report = ReadReport()
            rows = load_rows(
                files,
                on_bad_row=on_bad_row,
                max_rows=max_rows,
                purpose=purpose,
                columns=columns,
                numbers=numbers,
                quarantine_file=quarantine_file,
                report=report,
            )
            log[source.key] = ReadSource(files, None, report.bad_rows, [*report.left_out])
        else:
            rows = cast("Dataset", source.load(streaming=False))
            log[source.key] = ReadSource(files=files, revision=revision_of(rows))
            rows = in_standard_columns(rows, source.path, purpose)
            rows = rows.select(range(min(len(rows), max_rows or len(rows))))

        if not len(rows):
            raise DataError(f"{source.path}: the split {source.split!r} has no rows")
        log[source.key].rows = len(rows)
        parts.append(rows)

    weights, names = [source.weight for source in sources], [source.path for source in sources]
    mixed = mix(parts, weights=weights, names=names, seed=seed, read=columns or ())
    for source, part in zip(sources, parts, strict=True):
        log[source.key].left_out += sorted({*part.column_names} - {*mixed.column_names})
    return mixed


def iterate_rows(
    sources: Sequence[Source],
    *,
    columns: Collection[str] | None = None,
    numbers: Collection[str] | None = None,
    on_bad_row: OnBadRow = "fail",
    quarantine_file: Path | None = None,
    max_rows: int | None = None,
    seed: int = 0,
    keep_places: bool = False,
    log: SourceLog | None = None,
) -> Iterator[dict[str, Any]]:
    """Iterate over the checked rows of the sources in constant memory, uncached.

    Sources come one after another. When a weight is not 1, rows are sampled by weight and `seed`
    until one source is used up. `max_rows` counts per source. Missing files are found before the
    first row is read. `log` gets the files and the number of rows of each source when its end is
    reached. `columns`, `numbers` and `keep_places` are those of `read_rows`.
    """
    if on_bad_row == "quarantine" and quarantine_file is None:
        raise ConfigError(
            "on_bad_row is quarantine but no quarantine_file is given to write bad rows to"
        )

    # All of them now: a name that is wrong should not come up hours after the first row.
    files_by_source = [source.find_files() for source in sources]
    quarantine_file = empty_quarantine(quarantine_file)
    log = {} if log is None else log
    streams = []

    for source, files in zip(sources, files_by_source, strict=True):
        if files and not source.is_saved:
            read = partial(
                read_rows,
                files,
                columns=columns,
                numbers=numbers,
                on_bad_row=on_bad_row,
                quarantine_file=quarantine_file,
                max_rows=max_rows,
                keep_places=keep_places,
            )
            streams.append(_count_local(source, files, read, log))
        else:
            streams.append(_count_from_hub(source, max_rows, log))

    weights = [source.weight for source in sources]
    names = [source.path for source in sources]
    return interleave(streams, weights=weights, names=names, seed=seed)


def describe_sources(
    sources: Sequence[Source], log: SourceLog | None = None
) -> list[dict[str, Any]]:
    """Return path, files and row count of each source for run.json.

    A Hub dataset has its "revision" as well, where known.

    "files" holds path, bytes and blake2b (16 bytes in hex) of each local file. "rows" counts the
    rows that were read, before they were split; null without a log of the reading, or when the
    source was not read to its end.
    """
    records: list[dict[str, Any]] = []
    for source in sources:
        read = (log or {}).get(source.key, ReadSource())
        files = read.files or source.find_files()
        # an archive once, whatever number of files is in it
        paths = dict.fromkeys(path for file in files for path in file.paths)
        described = [fingerprint(path) for path in paths]
        record = {"path": source.path, "files": described, "rows": read.rows}
        if not source.is_local:
            record |= {"name": source.name, "split": source.split, "revision": read.revision}
        records.append(record)

    return records


def _stream(
    sources: Sequence[Source],
    args: DataArgs,
    columns: Collection[str],
    quarantine_file: Path | None,
) -> "IterableDataset":
    from datasets import IterableDataset

    if len(sources) == 1 and not sources[0].is_local:
        # keeps the shards of the Hub, so that workers share them
        rows = cast(IterableDataset, sources[0].load(streaming=True))
        return rows.take(args.max_rows) if args.max_rows else rows

    settings = {
        "sources": tuple(sources),  # a list would be dealt out to the workers
        "columns": frozenset(columns),
        "on_bad_row": args.on_bad_row,
        "quarantine_file": quarantine_file,
        "max_rows": args.max_rows,
        "seed": args.split_seed,
    }

    # A missing file is reported now, not at the first step.
    for source in sources:
        source.find_files()
    return cast(IterableDataset, IterableDataset.from_generator(iterate_rows, gen_kwargs=settings))


def _count_local(
    source: Source, files: list[DataFile], read: Callable[..., Iterator[Any]], log: SourceLog
) -> Iterator[dict[str, Any]]:
    """Yield the rows of local files, and log their number when the end is reached."""
    report = ReadReport()
    yield from read(report=report)
    log[source.key] = ReadSource(files=files, rows=report.rows)


def _count_from_hub(
    source: Source, max_rows: int | None, log: SourceLog
) -> Iterator[dict[str, Any]]:
    """Yield the rows of a Hub dataset, and log their number when the end is reached."""
    count = 0
    stream: Iterable[Any] = source.load(streaming=True)
    for row in islice(stream, max_rows):
        count += 1
        yield row
    if not count:
        raise DataError(f"{source.path}: the split {source.split!r} has no rows")
    log[source.key] = ReadSource(rows=count)
