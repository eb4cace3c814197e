"""Connects to names, but only by public addresses, and to the very address that was checked.

The check sits where the connection is made, so that no second look-up can put another address in
between. The name itself stays what TLS verifies and what the Host header says.
"""

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final

import httpcore2
from httpcore2 import AsyncNetworkBackend, AsyncNetworkStream

from service.safety.url_fetch.addresses import is_public

MAX_ADDRESSES: Final = 16

Resolve = Callable[[str, int], Awaitable[list[str]]]


class AddressRefused(httpcore2.ConnectError):
    """The name has an address that is not public, or none."""


async def resolve(host: str, port: int) -> list[str]:
    """The numeric addresses of a name, as the system orders them."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


class PinnedBackend(AsyncNetworkBackend):
    """Resolves once, checks every address, and dials the first that takes the call."""

    def __init__(
        self, resolve: Resolve = resolve, is_allowed: Callable[[str], bool] = is_public
    ) -> None:
        self._resolve = resolve
        self._is_allowed = is_allowed
        self._network = httpcore2.AnyIOBackend()

    async def connect_tcp(  # noqa: PLR0917 - as the library calls it
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> AsyncNetworkStream:
        """Connect.

        Raises:
            AddressRefused: One of the name's addresses is not public.
            ConnectError: Nobody takes the call.
        """
        try:
            addresses = await self._resolve(host, port)
        except OSError as error:
            raise httpcore2.ConnectError(str(error)) from error
        if not addresses or not all(map(self._is_allowed, addresses)):
            raise AddressRefused(f"{host} has addresses that are not public: {addresses}")
        failure: Exception | None = None
        for address in addresses[:MAX_ADDRESSES]:
            try:
                return await self._network.connect_tcp(
                    address, port, timeout, local_address, socket_options
                )
            except httpcore2.ConnectError as error:
                failure = error
        raise failure or AssertionError

    async def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[Any] | None = None
    ) -> AsyncNetworkStream:
        """Refuse: no URL means one."""
        raise AddressRefused("sockets of this machine are not connected to")
