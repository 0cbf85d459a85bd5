"""Find the files that a path means: of a folder or an archive those of one split.

A split is named by a folder (`train/pos/0.txt`) or by the file (`train.jsonl`). Documents in
folders of their own have the folder's name as their label.
"""

import difflib
import glob
import re
import zipfile
from collections import Counter
from dataclasses import replace
from pathlib import Path, PurePosixPath

from hfstack.data.reading.files import (
    COMPRESSIONS,
    DataFile,
    Document,
    data_file,
    has_known_suffix,
    is_archive,
    is_in_braces,
    known_suffixes,
)
from hfstack.data.reading.opening import refuse_bomb
from hfstack.data.reading.parallel import (
    files_in_braces,
    join_parallel,
    language_of,
    parallel_file,
    parallel_groups,
)
from hfstack.errors import DataError
from hfstack.logs import get_logger

logger = get_logger(__name__)

_SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "trn": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "development": "validation",
    "eval": "validation",
    "evaluation": "validation",
    "heldout": "validation",
    "holdout": "validation",
    "test": "test",
    "testing": "test",
    "tst": "test",
}
# the folder of documents without a label beside the classes, as in aclImdb/train
_UNLABELLED = {"unsup", "unsupervised", "unlabeled", "unlabelled"}
# with what people add to a name: testset, train2014, dev_data
_SPLIT_WORD = re.compile(
    rf"(?:^|[-_. ])({'|'.join(_SPLIT_NAMES)})(?:set|data)?\d{{0,4}}(?=[-_. ]|$)", re.IGNORECASE
)

# where a file is below the folder or the archive that was named, and the file
Placed = tuple[PurePosixPath, DataFile]


def expand_files(path: str, split: str = "train", document: Document = "auto") -> list[DataFile]:
    """Return the files that a name, an archive, a glob or a folder means, sorted.

    Of a folder or an archive whose folders or files carry split names (train/, test-00001.parquet)
    the files of `split` only; one that holds a single split gives it whatever its name.

    Args:
        split: to be read.
        document: what is one document of a text file; "auto" is a whole file where a folder holds
            several that have no name of a split, else what the text shows.

    Raises DataError when there are none, or when a folder mixes formats.
    """
    place = Path(path).expanduser()
    if place.is_file():
        return _files_at(place, split, document)
    if is_in_braces(path):
        return [files_in_braces(path)]
    if place.is_dir():
        found = [
            (PurePosixPath(file.relative_to(place).as_posix()), file)
            for file in place.rglob("*")
            if _may_be_data(file.name) and file.is_file()
        ]
        return _files_of_tree(place, _placed(found), split, document)

    if glob.has_magic(path):
        names = glob.glob(str(place), recursive=True)  # noqa: PTH207  Path.glob refuses absolute patterns
        files = sorted(name for name in names if Path(name).is_file())
        if not files:
            raise DataError(f"{path}: no file matches this pattern")
        joined = join_parallel(files)
        return [one for _, file in joined for one in expand_files(file, split, document)]

    siblings = [file.name for file in place.parent.iterdir()] if place.parent.is_dir() else []
    close = difflib.get_close_matches(place.name, siblings, n=1)
    hint = f"; did you mean {place.parent / close[0]}?" if close else ""
    raise DataError(f"{path}: no such file{hint}")


def _files_at(file: Path, split: str, document: Document) -> list[DataFile]:
    """Return a file, or the files in it when it is an archive."""
    if not is_archive(file):
        return [replace(_one_file(file), document=document)]
    try:
        with zipfile.ZipFile(file) as archive:
            entries = [one for one in archive.infolist() if not one.is_dir()]
    except (zipfile.BadZipFile, OSError) as error:
        raise DataError(f"{file}: this is no complete zip archive: {error}") from error

    # All together: members may lie over one another, so that each seems to be packed well.
    refuse_bomb(file, sum(one.file_size for one in entries), file.stat().st_size)
    listed = [one.filename for one in entries]
    members = [(PurePosixPath(name), file) for name in listed if _may_be_data(name)]
    return _files_of_tree(file, _placed(members, in_archive=True), split, document)


def _one_file(file: Path) -> DataFile:
    """Return a file by its name: of a format, or of lines of one language."""
    language = None if has_known_suffix(file.name) else language_of(file.name)
    if language is None:
        return data_file(file)

    others = [one.name for one in file.parent.iterdir() if language_of(one.name)]
    group = parallel_groups([PurePosixPath(name) for name in others])
    beside = next((names for names in group if file.name in map(str, names.values())), {})
    if len(beside) > 1:
        joined = ", ".join(str(name) for name in beside.values() if str(name) != file.name)
        logger.info("%s is read alone; for parallel text name %s as well", file, joined)
    compression = next((each for each in COMPRESSIONS if file.name.endswith(each)), "")
    return parallel_file({language: DataFile(file, "parallel", compression)})


def _may_be_data(name: str) -> bool:
    return has_known_suffix(name) or language_of(name) is not None


def _placed(found: list[tuple[PurePosixPath, Path]], *, in_archive: bool = False) -> list[Placed]:
    """Return the data files among those found, parallel text as one file.

    Args:
        found: where each is below what was named, and its path or that of the archive.
        in_archive: the first is the name of a member.
    """
    paths = {below: path for below, path in found if not _is_hidden(below)}
    known = [below for below in paths if has_known_suffix(below.name)]
    placed = [
        (below, data_file(paths[below], member=str(below) if in_archive else "")) for below in known
    ]

    for group in parallel_groups([below for below in paths if below not in set(known)]):
        if len(group) > 1:  # a file of one language alone is as likely none of the data
            files = {
                language: DataFile(
                    paths[below],
                    "parallel",
                    below.suffix if below.suffix in COMPRESSIONS else "",
                    str(below) if in_archive else "",
                )
                for language, below in group.items()
            }
            placed.append((next(iter(group.values())), parallel_file(files)))
    return placed


def _is_hidden(below: PurePosixPath) -> bool:
    """Return whether a file is none of the data: `.git/x`, macOS's `__MACOSX/x`."""
    return any(part.startswith((".", "__MACOSX")) for part in below.parts)


def _files_of_tree(
    root: Path, placed: list[Placed], split: str, document: Document
) -> list[DataFile]:
    what = "archive" if root.is_file() else "folder"
    if not placed:
        raise DataError(f"{root}: this {what} holds no data file ({known_suffixes()})")

    chosen = _files_of_split(root, sorted(placed, key=lambda one: one[0]), split)
    formats = sorted({file.format for _, file in chosen})
    if len(formats) > 1:
        hint = f"choose by a glob, e.g. '{root}/*.{formats[0]}'"
        if "parallel" in formats:
            hint = "name the files of the parallel text, e.g. train.en train.de"
        if what == "archive":
            hint = "unpack it, and name the files"
        raise DataError(f"{root}: this {what} mixes {' and '.join(formats)} files; {hint}")

    if formats == ["txt"]:
        chosen = _with_documents(root, chosen, document)
    return [file for _, file in chosen]


def _split_of(below: PurePosixPath) -> str | None:
    """Return the split that a file's folders name, nearest first, or its own name."""
    for folder in reversed(below.parts[:-1]):
        if match := _SPLIT_WORD.search(folder):
            return _SPLIT_NAMES[match[1].lower()]

    match = _SPLIT_WORD.search(below.name)
    return _SPLIT_NAMES[match[1].lower()] if match else None


def _files_of_split(root: Path, placed: list[Placed], split: str) -> list[Placed]:
    """Return the files of a split by their names; all where no name carries a split."""
    splits = [_split_of(below) for below, _ in placed]
    if not any(splits):
        splits = ["train"] * len(placed)

    # A folder that holds nothing but its test split is what the user wants to train on.
    if split == "train" and len(set(splits)) == 1:
        return placed

    wanted = _SPLIT_NAMES.get(split, split)
    chosen = [one for one, found in zip(placed, splits, strict=True) if found == wanted]
    if split in _UNLABELLED:
        chosen = [one for one in placed if _is_unlabelled(one[0])]
    if not chosen:
        have = ", ".join(sorted({found for found in splits if found}))
        raise DataError(
            f"{root}: no file for the split {split!r}; the names give {have}; name the files or "
            "a glob"
        )

    left_out = Counter(found or "no split" for found in splits if found != wanted)
    if left_out:
        logger.info(
            "%s: split %s is %d of %d files; left out: %s",
            root,
            split,
            len(chosen),
            len(placed),
            ", ".join(f"{count} of {name}" for name, count in sorted(left_out.items())),
        )

    return chosen


def _with_documents(root: Path, chosen: list[Placed], document: Document) -> list[Placed]:
    """Say of text files whether each is one document, and which class its folder is."""
    # Parts of a corpus that were named by split hold a document a line, or a paragraph.
    parts = len(chosen) == 1 or all(_SPLIT_WORD.search(below.name) for below, _ in chosen)
    if document == "auto" and not parts:
        document = "file"

    chosen = [(below, replace(file, document=document)) for below, file in chosen]
    classes = _classes_of([below for below, _ in chosen])
    if document != "file" or len(set(classes) - {""}) < 2:
        return chosen

    # aclImdb/train has lists of addresses beside its classes, which are no documents.
    in_split = any(map(_split_of, (below for below, _ in chosen))) or _SPLIT_WORD.search(root.name)
    beside = [
        below
        for (below, _), name in zip(chosen, classes, strict=True)
        if not name and in_split and not _is_unlabelled(below)
    ]
    if beside:
        logger.warning(
            "%s: left out %d files beside the folders of classes: %s",
            root,
            len(beside),
            ", ".join(below.name for below in beside[:5]),
        )

    return [
        (below, replace(file, label=name))
        for (below, file), name in zip(chosen, classes, strict=True)
        if below not in beside
    ]


def _classes_of(places: list[PurePosixPath]) -> list[str]:
    """Return the first folder below the split of each file; empty where there is none."""
    folders = [below.parts[:-1] for below in places]
    shared = 0
    while len({each[shared : shared + 1] for each in folders}) == 1 and folders[0][shared:]:
        shared += 1

    own = [
        [name for name in each[shared:] if not _SPLIT_WORD.search(name) and name not in _UNLABELLED]
        for each in folders
    ]
    return [each[0] if each else "" for each in own]


def _is_unlabelled(below: PurePosixPath) -> bool:
    return not _UNLABELLED.isdisjoint(below.parts[:-1])
