"""Load datasets that the datasets library keeps: of the Hub, or saved in a folder."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import constants

from hfstack.data.reading.bad_rows import BadRow
from hfstack.data.reading.layouts import Purpose, layout_of, standard_rows
from hfstack.errors import DataError
from hfstack.logs import get_logger

# Where it is used it is imported late: it brings pandas, which local files do not need.
if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

logger = get_logger(__name__)

_SPLIT_ALIASES = {"validation": ("validation", "valid", "val", "dev", "eval")}


def is_saved(path: str) -> bool:
    """Return whether a path is a folder that `save_to_disk` wrote."""
    folder = Path(path).expanduser()
    return any((folder / name).is_file() for name in ("state.json", "dataset_dict.json"))


def saved_files(path: str, split: str) -> list[Path]:
    """Return the files with the rows of a split of a saved dataset."""
    folder = Path(path).expanduser()
    if (folder / "dataset_dict.json").is_file():
        folder /= _saved_split(path, [one.name for one in folder.iterdir() if one.is_dir()], split)
    return sorted(folder.glob("*.arrow"))


def load_saved(path: str, split: str) -> "Dataset":
    """Load a split of what `save_to_disk` wrote, with the names of its classes.

    Raises DataError when it is damaged or has no such split.
    """
    from datasets import DatasetDict, load_from_disk

    try:
        found = load_from_disk(str(Path(path).expanduser()))
    except Exception as error:  # pyarrow, json and datasets each raise their own classes
        cause = " ".join(str(error).split())[:200]
        raise DataError(
            f"{path}: written by save_to_disk, and cannot be read: {cause}; save it again"
        ) from error
    if isinstance(found, DatasetDict):
        return found[_saved_split(path, [str(name) for name in found], split)]
    return found


def _saved_split(path: str, found: list[str], split: str) -> str:
    """Return the name that a split has in a saved dataset, its only one for train."""
    for name in (split, *_SPLIT_ALIASES.get(split, ())):
        if name in found:
            return name
    if split == "train" and len(found) == 1:
        return found[0]
    raise DataError(
        f"{path}: no split {split!r}, found {', '.join(sorted(found))}; choose one in YAML: "
        f"{{path: {path}, split: {sorted(found)[0] if found else 'train'}}}"
    )


def in_standard_columns(rows: "Dataset", name: str, purpose: Purpose) -> "Dataset":
    """Return the rows of a published dataset in standard columns, others unchanged.

    Raises DataError at a row that is not like the first one.
    """
    if not len(rows) or layout_of(rows[0], purpose) is None:
        return rows

    def converted() -> Iterator[dict[str, Any]]:
        numbered: Any = ((number, row, None) for number, row in enumerate(rows, 1))
        for number, row, _ in standard_rows(numbered, purpose, note):
            if isinstance(row, BadRow):
                raise DataError(f"{name} row {number}: {row.detail}")
            yield row

    def note(text: str) -> None:
        logger.info("%s: %s", name, text)

    from datasets import Dataset

    return Dataset.from_list(list(converted()))


def load_from_hub(
    path: str, name: str | None, split: str, *, streaming: bool
) -> "Dataset | IterableDataset":
    """Load one split of a Hub dataset; no code of the repository is ever run."""
    from datasets import Dataset, IterableDataset, load_dataset

    try:
        rows = load_dataset(path, name, split=split, streaming=streaming)
    except Exception as error:  # httpx, hub, fsspec and datasets each raise their own classes
        cause = " ".join(str(error).split())[:200] or type(error).__name__
        if isinstance(error, ValueError | RuntimeError) and not isinstance(error, OSError):
            raise DataError(
                f"{path} on {constants.ENDPOINT}: {cause} (in YAML: path, name, split)"
            ) from error

        reason = f"private, missing, no token or no network ({type(error).__name__}: {cause})"
        raise DataError(
            f"{path}: not found here, and not loaded from {constants.ENDPOINT}: {reason}"
        ) from error

    # load_dataset returns dictionaries only without a split
    assert isinstance(rows, Dataset | IterableDataset)
    return rows


def revision_of(rows: "Dataset") -> str | None:
    """Return the commit that a Hub dataset was loaded from, by its cache's path."""
    places = " ".join(file["filename"] for file in rows.cache_files)
    found = re.search(r"[/\\]([0-9a-f]{40})[/\\]", places)
    return found[1] if found else None
