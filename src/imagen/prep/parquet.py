"""Reading parquet without Arrow's threads: one that comes for Python's lock while Python ends, aborts the process."""

from typing import Any


def read_parquet(file: Any, columns: list[str] | None = None) -> Any:
    """A pyarrow table of the columns, or all of them, that are in the file. Raises: pyarrow.ArrowException."""
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(file, pre_buffer=False) as parquet:
        names = parquet.schema_arrow.names
        there = names if columns is None else [name for name in columns if name in names]
        return parquet.read(there, use_threads=False)
