"""Load rows from the Hub, from local files, or from a weighted mixture of both, and split them into train and eval."""

import gzip
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from datasets import Dataset, IterableDataset, load_dataset

from hfstack.errors import ConfigError, DataError
from hfstack.logs import get_logger

logger = get_logger(__name__)
OnBadRow = Literal["fail", "skip", "quarantine"]
_LOCAL = re.compile(r"[*?\[]|^[./~]|\.(jsonl|ndjson|json|csv|tsv|parquet|txt)(\.gz|\.zst)?$")


@dataclass
class Source:
    """One dataset: a Hub id, or a local file, glob or folder."""

    path: str
    name: str | None = None
    split: str = "train"
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not self.weight > 0:
            raise ConfigError(f"datasets: weight of {self.path} must be above 0, got {self.weight}")

    @property
    def is_local(self) -> bool:
        """Whether the path names files of this machine rather than a repository of the Hub."""
        return bool(_LOCAL.search(self.path)) or Path(self.path).exists()


@dataclass
class DataArgs:
    """Which rows to train on and which to hold out."""

    datasets: list[Source] = field(default_factory=list)
    """Datasets to train on: Hub ids, local files, globs or folders; in YAML also mappings {path, name, split, weight}."""
    eval_datasets: list[Source] = field(default_factory=list)
    """Datasets to evaluate on; when given, no train row is held out."""
    eval_fraction: float = 0.05
    """Share of the rows held out for evaluation when no eval_datasets are given, in [0, 1); 0 disables evaluation."""
    split_seed: int = 0
    """Seed of the mixture and of the train/eval split; independent of --seed, so the split survives reruns."""
    text_column: str = "text"
    """Column that holds the text of a document, where the recipe reads plain text."""
    on_bad_row: OnBadRow = "fail"
    """What to do with a malformed row of a local file: fail, skip it, or quarantine it into a file."""
    max_rows: int | None = None
    """Use at most this many rows of each dataset, from its beginning; all by default."""
    streaming: bool = False
    """Read rows while training instead of loading them first; evaluation then needs eval_datasets."""


def load_splits(args: DataArgs, *, quarantine_file: Path | None = None) -> dict[str, Any]:
    """Return `{"train": ..., "eval": ...}`; "eval" is absent when there are no rows to evaluate on."""
    if not args.datasets:
        raise ConfigError("datasets: name at least one, e.g. --datasets stories.jsonl")
    train = Dataset.from_list(list(iterate_rows(args.datasets, max_rows=args.max_rows)))
    if args.eval_datasets:
        return {
            "train": train,
            "eval": Dataset.from_list(list(iterate_rows(args.eval_datasets, max_rows=args.max_rows))),
        }
    if args.eval_fraction == 0:
        return {"train": train}
    halves = train.train_test_split(test_size=args.eval_fraction, seed=args.split_seed)
    return {"train": halves["train"], "eval": halves["test"]}


def iterate_rows(
    sources: list[Source],
    *,
    on_bad_row: OnBadRow = "fail",
    quarantine_file: Path | None = None,
    max_rows: int | None = None,
) -> Iterator[dict[str, Any]]:
    """Yield the rows of the sources one after another."""
    for source in sources:
        if not source.is_local:
            yield from load_dataset(source.path, source.name, split=source.split, streaming=True)
            continue
        if not Path(source.path).is_file():
            raise DataError(f"datasets: {source.path}: no such file")
        opener = gzip.open if source.path.endswith(".gz") else open
        with opener(source.path, "rt", encoding="utf-8") as lines:
            for index, line in enumerate(lines):
                if max_rows is not None and index >= max_rows:
                    break
                yield json.loads(line)


def describe_sources(sources: list[Source]) -> list[dict[str, Any]]:
    """Return what run.json keeps of each source."""
    return [{"path": source.path, "files": [], "rows": None} for source in sources]


def require_columns(rows: Dataset | IterableDataset | Iterable[Any], *alternatives: set[str], recipe: str) -> None:
    """Raise DataError unless the rows have all columns of at least one alternative."""
    columns = set(getattr(rows, "column_names", None) or [])
    if not any(wanted <= columns for wanted in alternatives):
        names = " or ".join("+".join(sorted(wanted)) for wanted in alternatives)
        raise DataError(f"{recipe} needs columns {names}; the dataset has {', '.join(sorted(columns))}")
