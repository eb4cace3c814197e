"""Items go through an engine in order, a window at a time, and bad ones harm no others."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from service.bulk.embedding import Row, SkippedImage, embed_images
from service.bulk.inputs import InputImage
from service.messages import EmbedImagesRequest

REQUEST = EmbedImagesRequest(images=())


def test_rows_and_complaints_come_in_order(engine: Any, jpeg: Callable[..., bytes]) -> None:
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


def test_no_more_is_read_than_is_under_way(engine: Any, jpeg: Callable[..., bytes]) -> None:
    num_read = 0

    def items() -> Iterator[InputImage]:
        nonlocal num_read
        for index in range(20):
            num_read += 1
            yield InputImage(key=str(index), source="s", data=jpeg(index))

    outcomes = embed_images(engine, items(), REQUEST)
    next(outcomes)
    assert num_read == engine.window + 1
    outcomes.close()  # type: ignore[attr-defined]  # it is a generator


def test_what_breaks_the_engine_is_no_bad_item(engine: Any, jpeg: Callable[..., bytes]) -> None:
    engine.break_at = 2
    items = [InputImage(key=str(i), source="s", data=jpeg(i)) for i in range(4)]
    with pytest.raises(RuntimeError, match="broken"):
        list(embed_images(engine, items, REQUEST))


def test_names_that_are_no_text_are_written_readably(
    engine: Any, jpeg: Callable[..., bytes]
) -> None:
    (outcome,) = embed_images(engine, [InputImage(key="\udcff", source="s", data=jpeg(1))], REQUEST)
    assert outcome.key == "\\xff"
