"""Read a file of Arrow's own, which pandas calls Feather.

The format has two forms, a file and a stream; `save_to_disk`, pandas and polars write it.
"""

import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

import pyarrow
import pyarrow.ipc

from hfstack.data.reading.bad_rows import NumberedRow
from hfstack.data.reading.files import DataFile
from hfstack.data.reading.opening import open_bytes, refuse_bomb
from hfstack.data.reading.parquet import rows_of_batch
from hfstack.errors import DataError

_FILE_FORM, _FIRST_FEATHER = b"ARROW1", b"FEA1"


def read_arrow(file: DataFile) -> Iterator[NumberedRow]:
    """Yield every row of an Arrow file, by its number.

    Raises:
        DataError: it is damaged, or of Feather's first version.
    """
    with open_bytes(file) as stream, tempfile.TemporaryFile() as plain:
        head = stream.peek(8)[:8]
        if head.startswith(_FIRST_FEATHER):
            raise DataError(
                f"{file} is of Feather's first version, which no longer says what its texts are: "
                "read it by pandas.read_feather and write it again with to_parquet"
            )

        # The form of a file is read from its end: what is packed is unpacked first.
        source: Any = stream if file.compression or file.member else str(file.path)
        if source is stream:
            shutil.copyfileobj(stream, plain)
            plain.seek(0)
            source = plain

        is_file, number = head.startswith(_FILE_FORM), 0
        try:
            if not is_file and source is not plain and _is_of_datasets(source):
                rows = _read_dataset(source)
            else:
                batches = _read_batches(source, is_file=is_file)
                rows = (row for batch in batches for row in _rows_of(file, batch))
            for row in rows:
                number += 1
                yield number, row, None
        except (pyarrow.ArrowException, OSError) as error:
            cause = str(error).splitlines()[0]
            raise DataError(
                f"{file}: truncated or damaged Arrow file after row {number}: {cause}"
            ) from error


def _rows_of(file: DataFile, batch: pyarrow.RecordBatch) -> Iterator[Any]:
    """Yield the rows of a batch that is no larger than text of its file's size."""
    refuse_bomb(file, batch.nbytes, file.path.stat().st_size)
    yield from rows_of_batch(file, batch, batch.schema)


def _is_of_datasets(path: str) -> bool:
    """Return whether the datasets library wrote a stream, with what its columns mean."""
    with pyarrow.memory_map(path) as source, pyarrow.ipc.open_stream(source) as stream:
        return b"huggingface" in (stream.schema.metadata or {})


def _read_dataset(path: str) -> Iterator[Any]:
    # Late, because it imports pandas, and most files are of other formats.
    from datasets import Dataset

    yield from Dataset.from_file(path)


def _read_batches(source: Any, *, is_file: bool) -> Iterator[pyarrow.RecordBatch]:
    """Yield the batches of a file in either form."""
    if not is_file:
        with pyarrow.ipc.open_stream(_opened(source)) as stream:
            yield from stream
        return
    with pyarrow.ipc.open_file(_opened(source)) as table:
        for number in range(table.num_record_batches):
            yield table.get_batch(number)


def _opened(source: Any) -> Any:
    return pyarrow.memory_map(source) if isinstance(source, str) else source
