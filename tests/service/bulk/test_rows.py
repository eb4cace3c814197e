"""Rows become fixed-size lists that NumPy reads back."""

import numpy as np
import pyarrow as pa
import pytest

from service.bulk.embedding import Dtype, Row, row_schema, to_table


def row(key: str, **embedding: np.ndarray) -> Row:
    arrays = {name: array.astype(np.float32) for name, array in embedding.items()}
    return Row(key=key, source="s", size_hw=(3, 5), embedding=arrays)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_vectors_are_fixed_size_lists(dtype: Dtype) -> None:
    schema = row_schema(("cls1",), 4, dtype, {})
    vectors_BD = np.arange(8).reshape(2, 4) / 8
    table = to_table([row(str(i), cls1=v) for i, v in enumerate(vectors_BD)], schema)
    column = table["cls1"].combine_chunks()
    assert pa.types.is_fixed_size_list(column.type)
    assert column.type.list_size == 4
    read_BD = column.flatten().to_numpy().reshape(2, 4)
    assert read_BD.dtype == dtype
    np.testing.assert_array_equal(read_BD, vectors_BD)
    assert table["height"].to_pylist() == [3, 3]
    assert table["width"].to_pylist() == [5, 5]


def test_grids_of_different_sizes_share_a_column() -> None:
    schema = row_schema(("patches",), 2, "float32", {})
    grids = [np.arange(12).reshape(2, 3, 2), np.arange(4).reshape(1, 2, 2)]
    table = to_table([row(str(i), patches=g) for i, g in enumerate(grids)], schema)
    assert table["grid_height"].to_pylist() == [2, 1]
    assert table["grid_width"].to_pylist() == [3, 2]
    for value, grid in zip(table["patches"].to_pylist(), grids, strict=True):
        np.testing.assert_array_equal(np.reshape(value, grid.shape), grid)


def test_no_rows_are_a_table_too() -> None:
    schema = row_schema(("cls1", "patches"), 4, "float16", {"a": "b"})
    table = to_table([], schema)
    assert table.num_rows == 0
    assert table.schema.equals(schema, check_metadata=True)
