"""Read a Parquet file as rows, in bounded memory whatever it unpacks to.

A column keeps each of its values once and names them by number: 712 bytes can stand for a hundred
thousand cells of 8 MiB. So how large the cells are is known before they are made.
"""

import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

import pyarrow
import pyarrow.compute
import pyarrow.parquet

from hfstack.data.reading.bad_rows import NumberedRow, too_large
from hfstack.data.reading.files import DataFile
from hfstack.data.reading.opening import open_bytes, refuse_bomb
from hfstack.errors import DataError

_ROWS_PER_READ = 1000
_MOST_BATCH_BYTES = 64 << 20
_LISTS = (pyarrow.ListArray, pyarrow.LargeListArray, pyarrow.FixedSizeListArray)


def read_parquet(file: DataFile) -> Iterator[NumberedRow]:
    """Yield every row of a Parquet file, by its number.

    Raises:
        DataError: it is damaged, or unpacks to more than any text does.
    """
    with open_bytes(file) as stream, tempfile.TemporaryFile() as plain:
        source: Any = file.path

        # Parquet is read from its end: what is compressed, or in an archive, is unpacked first.
        if file.compression or file.member:
            shutil.copyfileobj(stream, plain)
            plain.seek(0)
            source = plain

        number = 0
        try:
            table = pyarrow.parquet.ParquetFile(source)
            for batch in _read_batches(file, source, table):
                for row in rows_of_batch(file, batch, table.schema_arrow):
                    number += 1
                    yield number, row, None
        except (pyarrow.ArrowException, OSError) as error:
            cause = str(error).splitlines()[0]
            raise DataError(
                f"{file}: truncated or damaged parquet file after row {number}: {cause}"
            ) from error


def _read_batches(
    file: DataFile, source: Any, table: pyarrow.parquet.ParquetFile
) -> Iterator[pyarrow.RecordBatch]:
    """Yield the batches of a file, with numbers in place of values that would grow."""
    for number in range(table.metadata.num_row_groups):
        group = table.metadata.row_group(number)
        columns = [group.column(index) for index in range(group.num_columns)]
        packed = sum(column.total_compressed_size for column in columns)
        refuse_bomb(file, group.total_byte_size, packed)
        named = [
            column.path_in_schema
            for column in columns
            if column.has_dictionary_page and column.physical_type == "BYTE_ARRAY"
        ]
        growing = _find_growing(source, number, named, columns) if named else []
        reader = _open(source, growing) if growing else table
        yield from reader.iter_batches(batch_size=_ROWS_PER_READ, row_groups=[number])


def _find_growing(source: Any, number: int, names: list[str], columns: list[Any]) -> list[str]:
    """Return the columns of which a batch could unpack to more than its share."""
    most = {
        # what is nested may have all of its values in one row
        column.path_in_schema: column.num_values
        if "." in column.path_in_schema
        else min(column.num_values, _ROWS_PER_READ)
        for column in columns
    }
    # The first row brings the values of the whole column with it.
    first = next(_open(source, names).iter_batches(batch_size=1, row_groups=[number]), None)
    if first is None:
        return []
    longest = _longest_values(first)
    share = _MOST_BATCH_BYTES // len(columns)
    return [name for name in names if longest.get(name, share) * most[name] > share]


def _open(source: Any, names: list[str]) -> pyarrow.parquet.ParquetFile:
    """Open a file again, with some columns as numbers and what they stand for."""
    if hasattr(source, "seek"):
        source.seek(0)
    return pyarrow.parquet.ParquetFile(source, read_dictionary=names)


def _longest_values(batch: pyarrow.RecordBatch) -> dict[str, int]:
    """Return how long the longest value is that a column names by number, in bytes."""
    found: dict[str, int] = {}

    def visit(array: Any, name: str) -> None:
        kind = array.type
        if pyarrow.types.is_dictionary(kind):
            lengths = pyarrow.compute.call_function("binary_length", [array.dictionary])
            largest = pyarrow.compute.call_function("max", [lengths]).as_py()
            found[name] = largest or 0
        elif pyarrow.types.is_struct(kind):
            for field in kind:
                visit(array.field(field.name), f"{name}.{field.name}")
        elif pyarrow.types.is_map(kind):
            visit(array.keys, f"{name}.key_value.key")
            visit(array.items, f"{name}.key_value.value")
        elif isinstance(array, pyarrow.ListArray | pyarrow.LargeListArray):
            visit(array.values, f"{name}.list.{kind.value_field.name}")

    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        visit(column, name)
    return found


def rows_of_batch(
    file: DataFile, batch: pyarrow.RecordBatch, schema: pyarrow.Schema
) -> Iterator[Any]:
    """Yield the rows of a batch; those that are too large come out as bad ones."""
    size_bytes = sum(map(_unpacked_bytes, batch.columns))
    if size_bytes > min(_MOST_BATCH_BYTES, file.max_row_bytes):
        if batch.num_rows > 1:
            half = batch.num_rows // 2
            yield from rows_of_batch(file, batch.slice(0, half), schema)
            yield from rows_of_batch(file, batch.slice(half), schema)
            return
        if size_bytes > file.max_row_bytes:
            yield too_large(file.max_row_bytes)
            return

    if any(found != wanted for found, wanted in zip(batch.schema.types, schema.types, strict=True)):
        # A cast takes in all that a slice is cut from; what is taken has its own rows alone.
        batch = batch.take(pyarrow.array(range(batch.num_rows))).cast(schema)
    yield from _as_plain(batch).to_pylist()


def _unpacked_bytes(array: Any) -> int:
    """Return how many bytes the values of an array take, each as often as it is there."""
    kind = array.type
    if pyarrow.types.is_dictionary(kind):
        call = pyarrow.compute.call_function
        lengths = call("binary_length", [array.dictionary])
        return call("sum", [call("take", [lengths, array.indices])]).as_py() or 0
    if pyarrow.types.is_struct(kind):
        return sum(map(_unpacked_bytes, array.flatten()))
    if pyarrow.types.is_map(kind):
        begin, end = array.offsets[0].as_py(), array.offsets[-1].as_py()
        return sum(
            _unpacked_bytes(one.slice(begin, end - begin)) for one in (array.keys, array.items)
        )
    if isinstance(array, _LISTS):
        return _unpacked_bytes(array.flatten())
    return array.nbytes


def _as_plain(batch: pyarrow.RecordBatch) -> pyarrow.RecordBatch:
    """Return a batch of what rows of other files hold: text, numbers, nulls.

    Bytes that are UTF-8 are text, since many writers mark none as text, and decimals are numbers.
    The nan of pandas are nulls.
    """
    for index, name in enumerate(batch.schema.names):
        column = batch.column(index)
        if _is_binary(column.type):
            try:
                batch = batch.set_column(index, name, column.cast(pyarrow.string()))
            except pyarrow.ArrowInvalid:  # no text, such as a picture
                continue
        elif pyarrow.types.is_decimal(column.type):
            whole = column.type.scale == 0 and column.type.precision <= 18
            kind = pyarrow.int64() if whole else pyarrow.float64()
            batch = batch.set_column(index, name, column.cast(kind))
        elif pyarrow.types.is_floating(column.type):
            # Of a null it is null whether it is nan, and stays so.
            call = pyarrow.compute.call_function
            is_nan, null = call("is_nan", [column]), pyarrow.scalar(None, column.type)
            plain = call("if_else", [is_nan, null, column])
            batch = batch.set_column(index, name, plain)
    return batch


def _is_binary(kind: Any) -> bool:
    types = pyarrow.types
    return types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind)
