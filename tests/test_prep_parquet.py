"""Tables as they were written, by one thread."""

import io

import pyarrow as pa
import pyarrow.parquet as pq

from imagen.prep.parquet import read_parquet


def test_a_table_comes_back_with_the_columns_that_it_has():
    file = io.BytesIO()
    pq.write_table(pa.table({"key": ["a", "b"], "width": [1, 2]}), file)
    assert read_parquet(file).to_pylist() == [{"key": "a", "width": 1}, {"key": "b", "width": 2}]
    assert read_parquet(file, ["width", "phash"]).to_pydict() == {"width": [1, 2]}
