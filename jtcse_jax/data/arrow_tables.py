"""Tables in Apache's binary formats, Parquet and Arrow, read with its own library."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from jtcse_jax.data.table import Cells, Table
from jtcse_jax.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

_BLOCK = 2**16  # bytes read at once
_ROWS = 1024  # rows decoded at once
_PART_ROWS = 2**18  # tokenised in seconds: a killed run loses no more than that


class Parquet(Table):
    """A Parquet file."""

    def __init__(self, path: Path):
        super().__init__(path)
        import pyarrow.parquet

        with _arrow_errors(path):
            # Without a buffer of this size a whole row group is read at once.
            self._file = pyarrow.parquet.ParquetFile(path, buffer_size=_BLOCK, pre_buffer=False)
            self.names = self._file.schema_arrow.names

    def parts(self) -> list[range]:
        """Ranges of row groups."""
        metadata = self._file.metadata
        starts, rows = [0], 0
        for number in range(metadata.num_row_groups):
            if rows >= _PART_ROWS:
                starts, rows = [*starts, number], 0
            rows += metadata.row_group(number).num_rows
        return [range(*pair) for pair in pairwise([*starts, metadata.num_row_groups])]

    def rows(self, part: range, names: Sequence[str]) -> Iterator[tuple[int, Cells]]:
        with _arrow_errors(self.path):
            batches = self._file.iter_batches(_ROWS, list(part), list(names), use_threads=False)
            yield from _rows(batches, names)

    def place(self, part: range, number: int) -> str:
        metadata = self._file.metadata
        before = sum(metadata.row_group(group).num_rows for group in range(part.start))
        return super().place(part, before + number)


class Arrow(Table):
    """An Arrow file or stream, such as `datasets` saves."""

    def __init__(self, path: Path):
        super().__init__(path)
        with _arrow_errors(path):
            self.names = self._open().schema.names

    def rows(self, part: range, names: Sequence[str]) -> Iterator[tuple[int, Cells]]:
        with _arrow_errors(self.path):
            reader = self._open()
            if hasattr(reader, "get_batch"):
                batches = map(reader.get_batch, range(reader.num_record_batches))
            else:
                batches = reader
            yield from _rows(batches, names)

    def _open(self) -> "pa.RecordBatchFileReader | pa.RecordBatchStreamReader":
        import pyarrow as pa

        file = pa.OSFile(str(self.path))
        is_file = file.read(6) == b"ARROW1"
        file.seek(0)
        return pa.ipc.open_file(file) if is_file else pa.ipc.open_stream(file)


def _rows(batches: "Iterable[pa.RecordBatch]", names: Sequence[str]) -> Iterator[tuple[int, Cells]]:
    number = 0
    for batch in batches:
        for start in range(0, len(batch), _ROWS):
            columns = [batch.column(name).slice(start, _ROWS).to_pylist() for name in names]
            for cells in zip(*columns, strict=True):
                number += 1
                yield number, cells


@contextmanager
def _arrow_errors(path: Path) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError) as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise UserError(f"{path}: cannot be read: {reason}") from error
