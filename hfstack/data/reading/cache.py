"""Cache the checked rows of local files as a memory-mapped Arrow table.

The cache is in `hfstack/` under datasets' own cache folder (HF_DATASETS_CACHE). Its key is the
content of the files and the settings of the reader, so a changed file is read again. The reader's
report is kept with the rows and logged again when they are taken from the cache.
"""

import dataclasses
import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import datasets.config
import pyarrow
from datasets import Dataset
from filelock import FileLock

from hfstack.data.reading.files import DataFile, fingerprint
from hfstack.data.reading.layouts import Purpose
from hfstack.data.reading.rows import OnBadRow, ReadReport, read_rows
from hfstack.disk import describe_os_error, hash_text, is_missing, retry_reading
from hfstack.errors import DataError
from hfstack.logs import get_logger

logger = get_logger(__name__)

_READER_VERSION = 4  # raise it when the same file would be read differently
_FIRST_BATCH_ROWS = 16
_BATCH_BYTES = 16 << 20
_BATCH_ROWS = 2000


def load_rows(
    files: list[DataFile],
    *,
    on_bad_row: OnBadRow = "fail",
    max_rows: int | None = None,
    purpose: Purpose = "rows",
    quarantine_file: Path | None = None,
    bad_rows: dict[str, int] | None = None,
) -> Dataset:
    """Return the checked rows of the local files of one source, memory-mapped.

    Bad rows that are quarantined go to `quarantine_file`, or to a file in the cache whose place is
    logged.

    Args:
        bad_rows: gets the number of rows that are left out, by reason.

    Raises:
        DataError: as `read_rows` does, or the cache cannot be written, or what is in it could not
            be read; it stays as it is then.
    """
    contents = [
        [fingerprint(file.path), file.member, file.document, file.label, file.max_row_bytes]
        for file in files
    ]
    settings = json.dumps(
        [_READER_VERSION, pyarrow.__version__, contents, on_bad_row, max_rows, purpose]
    )
    root = Path(datasets.config.HF_DATASETS_CACHE) / "hfstack"
    folder = root / hash_text(settings)

    try:
        root.mkdir(parents=True, exist_ok=True)
        # the processes of one run: the first reads, the others find the rows
        with FileLock(f"{folder}.lock"):
            report = _cached_report(folder)
            if report is not None:
                report.log(f"{files[0]} (from the cache)")
            else:
                read = partial(
                    read_rows, files, on_bad_row=on_bad_row, max_rows=max_rows, purpose=purpose
                )
                report = _fill_cache(folder, read, str(files[0]))
    except OSError as error:
        raise DataError(
            f"cannot write the cache {root}: {describe_os_error(error)}; HF_DATASETS_CACHE may "
            "name another folder"
        ) from error

    if bad_rows is not None:
        bad_rows |= report.bad_rows

    quarantined = folder / "quarantine.jsonl"
    if quarantined.exists():
        if quarantine_file is not None:
            quarantine_file.parent.mkdir(parents=True, exist_ok=True)
            with quarantine_file.open("ab") as out:  # the sources of one run share the file
                out.write(quarantined.read_bytes())
        logger.warning("quarantined rows: %s", quarantine_file or quarantined)

    table = folder / "rows.arrow"
    return retry_reading(lambda: Dataset.from_file(str(table)), table, raises=DataError)


def _cached_report(folder: Path) -> ReadReport | None:
    """Return the report of the reader that filled a cache.

    None when there is no cache, or its rows are damaged.

    Raises:
        DataError: it could not be read, so that nobody knows.
    """
    report = folder / "report.json"
    remark = f"; the cache {folder} was not changed"
    try:
        content = retry_reading(report.read_bytes, report, raises=DataError, remark=remark)
        rows = fingerprint(folder / "rows.arrow")
    except OSError as error:
        if is_missing(error):
            return None
        raise

    try:
        kept = json.loads(content)
        return ReadReport(**kept) if kept.pop("blake2b") == rows["blake2b"] else None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _fill_cache(folder: Path, read: Callable[..., Iterator[Any]], name: str) -> ReadReport:
    """Read rows into a new cache folder, which gets its name when it is complete.

    A damaged one of that name is deleted after that, and not before. Returns the reader's report.
    """
    damaged = folder.is_dir()
    if damaged:
        logger.warning("the cache %s is damaged: reading the files again", folder)

    report = ReadReport()
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        unfinished = Path(scratch) / "cache"
        unfinished.mkdir()
        rows = read(quarantine_file=unfinished / "quarantine.jsonl", report=report)
        _write_arrow(rows, unfinished, name)

        digest = {"blake2b": fingerprint(unfinished / "rows.arrow")["blake2b"]}
        (unfinished / "report.json").write_text(json.dumps(dataclasses.asdict(report) | digest))
        if damaged:
            folder.rename(Path(scratch) / "damaged")
        unfinished.rename(folder)
    return report


def _write_arrow(rows: Iterator[dict[str, Any]], folder: Path, name: str) -> None:
    """Write rows to `folder/rows.arrow` in the stream format, in bounded memory.

    The type of a column may widen on the way (nulls, then text; integers, then a float): each type
    that was in use gets a file of its own, and at the end all are rewritten once with the widest.
    """
    schema: pyarrow.Schema | None = None
    parts: list[Path] = []
    batch_rows = _FIRST_BATCH_ROWS

    with ExitStack() as stack:
        writer = None
        while batch := list(islice(rows, batch_rows)):
            block = _record_batch(batch, None, name)
            merged = block.schema if schema is None else _merged(schema, block.schema, name)
            if writer is None or merged != schema:
                schema = merged
                parts.append(folder / f"part-{len(parts)}.arrow")
                sink = stack.enter_context(pyarrow.OSFile(str(parts[-1]), "wb"))
                writer = stack.enter_context(pyarrow.ipc.new_stream(sink, schema))

            if block.schema != schema:
                block = _record_batch(batch, schema, name)
            writer.write_batch(block)

            # Batches grow until one holds about _BATCH_BYTES.
            fitting = int(len(batch) * _BATCH_BYTES / (block.nbytes + 1))
            batch_rows = max(1, min(_BATCH_ROWS, batch_rows * 4, fitting))

    if len(parts) == 1:
        parts[0].rename(folder / "rows.arrow")
    else:
        assert schema is not None
        _join_parts(parts, folder / "rows.arrow", schema, name)


def _join_parts(parts: list[Path], whole: Path, schema: pyarrow.Schema, name: str) -> None:
    """Rewrite the parts of a table as one file of one schema, and remove them."""
    with (
        pyarrow.OSFile(str(whole), "wb") as sink,
        pyarrow.ipc.new_stream(sink, schema) as writer,
    ):
        for part in parts:
            with (
                pyarrow.memory_map(str(part)) as source,
                pyarrow.ipc.open_stream(source) as stream,
            ):
                for block in stream:
                    if block.schema != schema:
                        block = _record_batch(block.to_pylist(), schema, name)
                    writer.write_batch(block)

            part.unlink()


def _record_batch(
    rows: list[dict[str, Any]], schema: pyarrow.Schema | None, name: str
) -> pyarrow.RecordBatch:
    try:
        return pyarrow.RecordBatch.from_pylist(rows, schema=schema)
    except (pyarrow.ArrowException, OverflowError, ValueError, TypeError) as error:
        row = next((row for row in rows if not _fits(row, schema)), rows[0])
        text = json.dumps(row, ensure_ascii=False, default=str)[:80]
        raise DataError(
            f"{name}: a value does not fit a column of a table: {error}; the row begins {text}"
        ) from error


def _fits(row: dict[str, Any], schema: pyarrow.Schema | None) -> bool:
    try:
        pyarrow.RecordBatch.from_pylist([row], schema=schema)
    except (pyarrow.ArrowException, OverflowError, ValueError, TypeError):
        return False
    return True


def _merged(one: pyarrow.Schema, other: pyarrow.Schema, name: str) -> pyarrow.Schema:
    if one == other:
        return one
    try:
        return pyarrow.unify_schemas([one, other], promote_options="permissive")
    except pyarrow.ArrowException as error:
        raise DataError(f"{name}: a column changes its type: {error}") from error
