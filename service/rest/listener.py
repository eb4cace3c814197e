"""The listening socket of REST, and how it is closed without dropping who is already there.

Closing a listening socket resets the connections that the kernel has made and nobody has taken yet.
So newcomers are turned away first, whoever is there is taken, and then it is closed.
"""

import asyncio
import ctypes
import socket
import struct
from contextlib import suppress
from typing import Final

BACKLOG: Final = 2048
TURN_AWAY_LIMIT_S: Final = 1.0
# For handshakes under way when newcomers were turned away: a round trip.
HANDSHAKE_S: Final = 0.05
POLL_S: Final = 0.005
# Linux's SO_ATTACH_FILTER, which Python's socket module does not name.
SO_ATTACH_FILTER: Final = 26
# A classic BPF program on the TCP header: drop what has SYN set, take all else. As (code, jump if
# true, jump if false, operand): load byte 13; SYN set?; take; drop.
NO_NEWCOMERS: Final = (
    (0x30, 0, 0, 13),
    (0x45, 1, 0, 0x02),
    (0x06, 0, 0, 0xFFFFFFFF),
    (0x06, 0, 0, 0),
)
# In struct tcp_info of a listening socket: connections that wait to be taken.
NUM_WAITING_OFFSET: Final = 24


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 is chosen freely.

    Raises:
        OSError: The address cannot be taken.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio turns Nagle's algorithm off only where the protocol is named, and with it a small
    # answer waits 40 ms for the reader's delayed acknowledgement.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(BACKLOG)
    except OSError as error:
        listening.close()
        raise OSError(
            f"REST cannot listen on {host}, port {port} ({error.strerror}); "
            "choose another by --http-port or --host"
        ) from error
    return listening


def turn_newcomers_away(listening: socket.socket) -> None:
    """Make no new connection: a caller's SYN is not heard, and once the socket is closed refused.

    Where the kernel has no socket filters, newcomers go on coming until the socket is closed.
    """
    program = b"".join(struct.pack("HBBI", *instruction) for instruction in NO_NEWCOMERS)
    buffer = ctypes.create_string_buffer(program)
    head = struct.pack("HL", len(NO_NEWCOMERS), ctypes.addressof(buffer))
    with suppress(OSError):
        listening.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, head)


def num_waiting(listening: socket.socket) -> int:
    """Connections that the kernel has made and nobody has taken yet."""
    info = listening.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, NUM_WAITING_OFFSET + 4)
    return int(struct.unpack_from("I", info, NUM_WAITING_OFFSET)[0])


async def wait_until_all_are_taken(listening: socket.socket) -> None:
    """Turn newcomers away and wait until the server has taken everybody else; at most a second."""
    turn_newcomers_away(listening)
    await asyncio.sleep(HANDSHAKE_S)
    loop = asyncio.get_running_loop()
    until = loop.time() + TURN_AWAY_LIMIT_S
    while num_waiting(listening) and loop.time() < until:
        await asyncio.sleep(POLL_S)
