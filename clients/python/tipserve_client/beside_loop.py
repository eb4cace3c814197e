"""Reads and packs pictures beside the event loop, which goes on meanwhile."""

import asyncio
from collections.abc import Callable, Sequence
from typing import TypeVar

from tipserve_client.pictures import Picture

T = TypeVar("T")


async def pack_beside(pack: Callable[[], T], pictures: Sequence[Picture]) -> T:
    """What `pack` makes of these pictures, in a thread: a large array takes seconds as PNG.

    Bytes are sent as they are, so of them alone it is made at once.
    """
    if all(isinstance(picture, bytes) for picture in pictures):
        return pack()
    return await asyncio.to_thread(pack)
