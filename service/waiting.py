"""Waiting for several things at once, without leaving any behind."""

import asyncio
from collections.abc import Awaitable, Iterable
from typing import Any, TypeVar

T = TypeVar("T")
U = TypeVar("U")


async def wait_all(awaitables: Iterable[Awaitable[T]]) -> list[T]:
    """Wait for all, in order; where one fails or the caller leaves, cancel the others.

    Raises:
        Exception: The first that any of them raised.
    """
    futures = [asyncio.ensure_future(awaitable) for awaitable in awaitables]
    try:
        return await asyncio.gather(*futures)
    except BaseException:
        _cancel(futures)
        raise
    finally:
        del futures  # or a failed one and the error's frames would hold each other


async def wait_both(first: Awaitable[T], second: Awaitable[U]) -> tuple[T, U]:
    """`wait_all` for two things of different types."""
    futures = asyncio.ensure_future(first), asyncio.ensure_future(second)
    try:
        return await asyncio.gather(*futures)
    except BaseException:
        _cancel(futures)
        raise
    finally:
        del futures  # or a failed one and the error's frames would hold each other


def _cancel(futures: Iterable[asyncio.Future[Any]]) -> None:
    for future in futures:
        future.cancel()
