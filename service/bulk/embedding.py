"""A part's items through an engine, in order, with as many under way as keep it busy."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, replace

from service.bulk.reading import Item
from service.bulk.rows import Row
from service.engines.engine import Embedding, Engine, ImageRefused
from service.errors import InvalidRequest
from service.images.image_codec import upright_size
from service.messages import EmbedImagesRequest

REPLACED = "backslashreplace"


@dataclass(frozen=True, slots=True, kw_only=True)
class BadItem:
    """An image without a row, and why it has none."""

    key: str
    source: str
    code: str
    error: str


def embed_items(
    engine: Engine,
    items: Iterable[Item],
    request: EmbedImagesRequest,
    check: Callable[[], None] = lambda: None,
) -> Iterator[Row | BadItem]:
    """One row or complaint for each item, in the order of the items.

    Args:
        engine: Who computes.
        items: Read one by one, no more than are under way.
        request: Without images: what is wanted of each.
        check: Called before each item; what it raises ends the work.

    Raises:
        EngineError: Nothing can be computed.
    """
    under_way: deque[tuple[Item, Future[Embedding] | None]] = deque()
    try:
        for item in items:
            check()
            if len(under_way) >= engine.window:
                yield _outcome(*under_way.popleft())
            future = None
            if item.data is not None:
                future = engine.embed(replace(request, images=(item.data,)))
            under_way.append((item, future))
        while under_way:
            check()
            yield _outcome(*under_way.popleft())
    finally:
        for _, future in under_way:
            if future is not None:
                future.cancel()


def _outcome(item: Item, future: "Future[Embedding] | None") -> Row | BadItem:
    key, source = _text(item.key), _text(item.source)
    if future is None:
        return BadItem(key=key, source=source, code=item.code, error=item.problem)
    try:
        embedding = future.result()
        size_hw = item.size_hw or _size_hw(item)
    except ImageRefused as error:
        return BadItem(key=key, source=source, code=error.code, error=str(error))
    except InvalidRequest as error:
        return BadItem(key=key, source=source, code=error.code, error=error.message)
    return Row(key=key, source=source, size_hw=size_hw, embedding=embedding)


def _size_hw(item: Item) -> tuple[int, int]:
    assert isinstance(item.data, bytes)
    return upright_size(item.data, param="images")


def _text(path: str) -> str:
    """Names of files may hold bytes that are no text."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", REPLACED)
