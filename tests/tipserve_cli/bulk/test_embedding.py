"""Images are embedded in order and become rows of an Arrow table."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from service.messages import EmbedImagesRequest
from tipserve_cli.bulk.embedding import Dtype, Row, SkippedImage, embed_images, row_schema, to_table
from tipserve_cli.bulk.inputs import InputImage

REQUEST = EmbedImagesRequest(images=())


def test_outcomes_have_the_order_of_the_images(engine: Any, jpeg: Callable[..., bytes]) -> None:
    items = [
        InputImage(key="0", source="s", data=jpeg(0)),
        InputImage(key="1", source="s", data=b"nonsense"),
        InputImage(key="2", source="s", problem="gone"),
        *(InputImage(key=str(i), source="s", data=jpeg(i, (i, 7))) for i in range(3, 9)),
    ]
    outcomes = list(embed_images(engine, items, REQUEST))
    assert [outcome.key for outcome in outcomes] == [str(i) for i in range(9)]
    bad = [(o.key, o.code, o.error) for o in outcomes if isinstance(o, SkippedImage)]
    assert bad == [("1", "invalid_image", "no image"), ("2", "unreadable", "gone")]
    sizes = [o.size_hw for o in outcomes[3:] if isinstance(o, Row)]
    assert sizes == [(7, i) for i in range(3, 9)]


def test_images_are_read_at_most_a_window_ahead(engine: Any, jpeg: Callable[..., bytes]) -> None:
    num_read = 0

    def items() -> Iterator[InputImage]:
        nonlocal num_read
        for index in range(20):
            num_read += 1
            yield InputImage(key=str(index), source="s", data=jpeg(index))

    outcomes = embed_images(engine, items(), REQUEST)
    next(outcomes)
    assert num_read == engine.window + 1
    outcomes.close()


def test_names_that_are_not_utf_8_are_escaped(engine: Any, jpeg: Callable[..., bytes]) -> None:
    (outcome,) = embed_images(engine, [InputImage(key="\udcff", source="s", data=jpeg(1))], REQUEST)
    assert outcome.key == "\\xff"


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
