"""Packs pictures beside the event loop, which goes on meanwhile."""

import asyncio
from collections.abc import Callable, Sequence
from os import PathLike
from typing import TypeVar

from tipserve_client.pictures import Picture

T = TypeVar("T")


async def pack_beside(pack: Callable[[], T], pictures: Sequence[Picture]) -> T:
    """What `pack` makes of these pictures, in a thread: a large array takes seconds as PNG.

    Bytes and files are sent as they are, so of them alone it is made at once: to hand a small file
    to a thread takes longer than to read it.
    """
    if all(isinstance(picture, bytes | str | PathLike) for picture in pictures):
        return pack()
    return await asyncio.to_thread(pack)
