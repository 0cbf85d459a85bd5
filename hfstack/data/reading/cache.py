"""Cache the checked rows of local files as a memory-mapped Arrow table.

The cache is in `hfstack/` under datasets' own cache folder (HF_DATASETS_CACHE). Its key is the
content of the files and the settings of the reader, so a changed file is read again. The reader's
report is kept with the rows and logged again when they are taken from the cache.
"""

import dataclasses
import json
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow
from filelock import FileLock

from hfstack.data.reading.files import DataFile, fingerprint
from hfstack.data.reading.layouts import Purpose
from hfstack.data.reading.read_report import ReadReport
from hfstack.data.reading.rows import OnBadRow, read_rows
from hfstack.disk import atomic_folder, describe_os_error, hash_text, is_missing, retry_reading
from hfstack.errors import DataError
from hfstack.logs import get_logger

if TYPE_CHECKING:
    from datasets import Dataset

logger = get_logger(__name__)

_READER_VERSION = 5  # raise it when the same file would be read differently
_FIRST_BATCH_ROWS = 16
_BATCH_BYTES = 16 << 20
_BATCH_ROWS = 2000
_MOST_KEYS = 1000  # of the objects in a column that nothing reads


def load_rows(
    files: list[DataFile],
    *,
    on_bad_row: OnBadRow = "fail",
    max_rows: int | None = None,
    purpose: Purpose = "rows",
    columns: Collection[str] | None = None,
    numbers: Collection[str] | None = None,
    quarantine_file: Path | None = None,
    report: ReadReport | None = None,
) -> "Dataset":
    """Return the checked rows of the local files of one source, memory-mapped.

    `columns` are those that are read, and `numbers` those that may hold numbers, as in `read_rows`;
    others stay where a table can hold them.

    Bad rows that are quarantined go to `quarantine_file`, or to a file in the cache whose place is
    logged.

    Args:
        report: gets the rows that are left out, by reason, and the columns.

    Raises:
        DataError: as `read_rows` does, or the cache cannot be written, or what is in it could not
            be read; it stays as it is then.
    """
    # Late, because it imports pandas, which reading row by row does not need.
    from datasets import Dataset, config

    contents = [
        [
            *map(fingerprint, file.paths),
            *(file.member, file.document, file.label, file.max_row_bytes, *file.columns),
        ]
        for file in files
    ]
    named = [None if names is None else sorted(names) for names in (columns, numbers)]
    reader = [_READER_VERSION, pyarrow.__version__, on_bad_row, max_rows, purpose, named]
    settings = json.dumps([reader, contents])
    root = Path(config.HF_DATASETS_CACHE) / "hfstack"
    folder = root / hash_text(settings)

    try:
        root.mkdir(parents=True, exist_ok=True)
        # the processes of one run: the first reads, the others find the rows
        with FileLock(f"{folder}.lock"):
            found = _cached_report(folder)
            if found is not None:
                found.log(f"{files[0]} (from the cache)")
            else:
                read = partial(
                    read_rows,
                    files,
                    on_bad_row=on_bad_row,
                    max_rows=max_rows,
                    purpose=purpose,
                    numbers=numbers,
                )
                found = _fill_cache(folder, read, columns, str(files[0]))
    except OSError as error:
        raise DataError(
            f"cannot write the cache {root}: {describe_os_error(error)}; HF_DATASETS_CACHE may "
            "name another folder"
        ) from error

    if report is not None:
        report.bad_rows |= found.bad_rows
        report.left_out |= found.left_out

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


def _fill_cache(
    folder: Path, read: Callable[..., Iterator[Any]], columns: Collection[str] | None, name: str
) -> ReadReport:
    """Read rows into a new cache folder, which gets its name when it is complete.

    A damaged one of that name is deleted after that, and not before. Returns the reader's report.
    """
    if folder.is_dir():
        logger.warning("the cache %s is damaged: reading the files again", folder)

    report = ReadReport()
    with atomic_folder(folder) as unfinished:
        quarantine = unfinished / "quarantine.jsonl"
        rows = read(quarantine_file=quarantine, columns=columns, report=report)
        _write_arrow(rows, unfinished, _ColumnWriter(name, columns, report))

        digest = {"blake2b": fingerprint(unfinished / "rows.arrow")["blake2b"]}
        (unfinished / "report.json").write_text(json.dumps(dataclasses.asdict(report) | digest))
    return report


def _write_arrow(rows: Iterator[dict[str, Any]], folder: Path, columns: "_ColumnWriter") -> None:
    """Write rows to `folder/rows.arrow` in the stream format, in bounded memory.

    The type of a column may widen on the way (nulls, then text; integers, then a float): each
    schema that was in use gets a file of its own, and at the end all are rewritten once with the
    widest, without the columns that were left out meanwhile.
    """
    schema: pyarrow.Schema | None = None
    parts: list[Path] = []
    batch_rows = _FIRST_BATCH_ROWS

    with ExitStack() as stack:
        writer = None
        while batch := list(islice(rows, batch_rows)):
            block = columns.block(batch)
            if block.schema != schema:
                merged = columns.merge(schema, block.schema)
                block = block if block.schema == merged else columns.block(batch, merged)

            if writer is None or block.schema != schema:
                schema = block.schema
                parts.append(folder / f"part-{len(parts)}.arrow")
                sink = stack.enter_context(pyarrow.OSFile(str(parts[-1]), "wb"))
                writer = stack.enter_context(pyarrow.ipc.new_stream(sink, schema))
            writer.write_batch(block)

            # Batches grow until one holds about _BATCH_BYTES.
            fitting = int(len(batch) * _BATCH_BYTES / (block.nbytes + 1))
            batch_rows = max(1, min(_BATCH_ROWS, batch_rows * 4, fitting))

    assert schema is not None
    if not schema.names:
        raise DataError(f"{columns.name}: no column is in all rows: {columns.left_out()}")
    while len(parts) > 1 and not _join_parts(parts, folder / "rows.arrow", schema, columns):
        schema = columns.kept(schema)
    if len(parts) == 1:
        parts[0].rename(folder / "rows.arrow")
    for part in parts:
        part.unlink(missing_ok=True)


def _join_parts(
    parts: list[Path], whole: Path, schema: pyarrow.Schema, columns: "_ColumnWriter"
) -> bool:
    """Rewrite the parts of a table as one file of one schema.

    Return whether that could be done: a column that no row reads may have to be left out first.
    """
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
                        block = columns.block(block.to_pylist(), schema)
                    if block.schema != schema:
                        return False
                    writer.write_batch(block)
    return True


class _ColumnWriter:
    """The columns of a table while it is written.

    One that nothing reads is left out where no column of Arrow can hold it; one that is read is an
    error then.
    """

    def __init__(self, name: str, read: Collection[str] | None, report: ReadReport) -> None:
        self.name, self._read, self._report = name, read, report

    def left_out(self) -> str:
        """Name the first columns that are left out."""
        return ", ".join(list(self._report.left_out)[:5])

    def block(
        self, rows: list[dict[str, Any]], schema: pyarrow.Schema | None = None
    ) -> pyarrow.RecordBatch:
        """Return rows as a batch, of a schema where one is given."""
        arrays: dict[str, pyarrow.Array] = {}
        for column in schema.names if schema else rows[0]:
            if column in self._report.left_out:
                continue
            values = [row.get(column) for row in rows]
            if self._read is not None and column not in self._read and _has_too_many_keys(values):
                self._report.leave_out(column, f"its objects have over {_MOST_KEYS} keys")
                continue

            try:
                kind = schema.field(column).type if schema else None
                arrays[column] = pyarrow.array(values, type=kind)
            except (pyarrow.ArrowException, OverflowError, ValueError, TypeError) as error:
                self._refuse(column, f"a value does not fit a column of a table: {error}", rows)
        return pyarrow.RecordBatch.from_pydict(arrays)

    def merge(self, one: pyarrow.Schema | None, other: pyarrow.Schema) -> pyarrow.Schema:
        """Return the schema that holds both, without the columns that cannot."""
        fields = {field.name: field for field in one or other}
        for field in other:
            if field == fields.get(field.name):
                continue
            try:
                pair = [pyarrow.schema([fields.get(field.name, field)]), pyarrow.schema([field])]
                merged = pyarrow.unify_schemas(pair, promote_options="permissive")
                fields[field.name] = merged.field(0)
            except pyarrow.ArrowException as error:
                self._refuse(field.name, f"a column changes its type: {error}")
        return self.kept(pyarrow.schema(list(fields.values())))

    def kept(self, schema: pyarrow.Schema) -> pyarrow.Schema:
        """Return a schema without the columns that are left out by now."""
        return pyarrow.schema(
            [field for field in schema if field.name not in self._report.left_out]
        )

    def _refuse(self, column: str, why: str, rows: Sequence[dict[str, Any]] = ()) -> None:
        """Leave a column out, or raise DataError where it is read."""
        if self._read is not None and column not in self._read:
            self._report.leave_out(column, why)
            return

        row = next((row for row in rows if not _fits(row.get(column))), next(iter(rows), None))
        begin = json.dumps(row, ensure_ascii=False, default=str)[:80]
        where = f"; the row begins {begin}" if rows else ""
        raise DataError(f"{self.name}: column {column!r}: {why}{where}")


def _has_too_many_keys(values: list[Any]) -> bool:
    """Return whether objects have keys of their own, each of which would be a column."""
    if not any(isinstance(value, dict) for value in values):
        return False
    return len({key for value in values if isinstance(value, dict) for key in value}) > _MOST_KEYS


def _fits(value: Any) -> bool:
    try:
        pyarrow.array([value])
    except (pyarrow.ArrowException, OverflowError, ValueError, TypeError):
        return False
    return True
