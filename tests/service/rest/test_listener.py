"""A listening socket that is closed around those who are there."""

import asyncio
import errno
import select
import socket

import pytest

from service.rest.server import listen, num_waiting, turn_newcomers_away, wait_until_all_are_taken

LIMIT_S = 20.0


@pytest.fixture(params=["127.0.0.1", "::1"])
def listening(request: pytest.FixtureRequest) -> socket.socket:
    try:
        return listen(request.param, 0)
    except OSError as error:
        pytest.skip(f"no {request.param} here: {error}")


def connect(listening: socket.socket) -> socket.socket:
    return socket.create_connection(listening.getsockname()[:2], LIMIT_S)


def test_newcomers_are_not_heard_and_refused_once_it_is_closed(listening: socket.socket) -> None:
    turn_newcomers_away(listening)
    with socket.socket(listening.family) as newcomer:
        newcomer.setblocking(False)
        assert newcomer.connect_ex(listening.getsockname()) == errno.EINPROGRESS
        assert select.select([], [newcomer], [], 0.2)[1] == []
        assert num_waiting(listening) == 0
        listening.close()
        # Linux says its SYN again after a second.
        assert select.select([], [newcomer], [], LIMIT_S)[1] == [newcomer]
        error = newcomer.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        assert error == errno.ECONNREFUSED


async def test_who_is_there_is_taken_and_heard(listening: socket.socket) -> None:
    callers = [connect(listening) for _ in range(3)]
    async with asyncio.timeout(LIMIT_S):
        # A caller knows of the connection a moment before the kernel has it for us.
        while num_waiting(listening) < len(callers):
            await asyncio.sleep(0)
    assert num_waiting(listening) == 3
    listening.setblocking(False)
    waiting = asyncio.ensure_future(wait_until_all_are_taken(listening))
    loop = asyncio.get_running_loop()
    taken = [(await loop.sock_accept(listening))[0] for _ in callers]
    await asyncio.wait_for(waiting, LIMIT_S)
    assert num_waiting(listening) == 0
    listening.close()
    for caller, server_side in zip(callers, taken, strict=True):
        with caller, server_side:
            caller.sendall(b"hello")
            server_side.setblocking(False)
            assert await loop.sock_recv(server_side, 5) == b"hello"
