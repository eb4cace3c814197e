"""Packs images beside the event loop, which goes on meanwhile."""

import asyncio
from collections.abc import Callable, Sequence
from os import PathLike
from typing import TypeVar

from tipserve_client.images import ImageInput

T = TypeVar("T")


async def pack_beside(pack: Callable[[], T], images: Sequence[ImageInput]) -> T:
    """What `pack` makes of these images, in a thread: a large array takes seconds as PNG.

    Bytes and files are sent as they are, so of them alone it is made at once: to hand a small file
    to a thread takes longer than to read it.
    """
    if all(isinstance(image, bytes | str | PathLike) for image in images):
        return pack()
    return await asyncio.to_thread(pack)
