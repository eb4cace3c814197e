"""Bare TCP to loopback: writes any bytes, reads one HTTP answer, sees whether the peer is gone."""

import json
import select
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from benchmarks.attacks.attack import Broken

HEAD_END: Final = b"\r\n\r\n"
CONTINUE: Final = b"HTTP/1.1 100 "
CONNECT_LIMIT_S: Final = 10.0
ESTABLISHED: Final = 1
ERROR_KEYS: Final = {"message", "type", "code", "param"}
# What an exception's text or a traceback would show.
LEAKS: Final = (b"Traceback", b"Error:", b"Exception", b".py", b"site-packages", b"object at 0x")


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    """Status, headers by lower-case name, and the whole body."""

    status: str
    headers: dict[str, str]
    body: bytes


@contextmanager
def connected(port: int, *, receive_bytes: int | None = None) -> Iterator[socket.socket]:
    """A connection; `receive_bytes` keeps the kernel from taking more than it must."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as peer:
        if receive_bytes is not None:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        peer.settimeout(CONNECT_LIMIT_S)
        peer.connect(("127.0.0.1", port))
        yield peer


def send_until(peer: socket.socket, data: bytes, deadline: float) -> None:
    """Send all of it.

    Raises:
        TimeoutError: The peer does not take it in time.
        ConnectionError: The peer closed.
    """
    peer.settimeout(max(0.01, deadline - time.monotonic()))
    peer.sendall(data)


def receive(peer: socket.socket, deadline: float) -> bytes:
    """What comes next; nothing at the end.

    Raises:
        TimeoutError: Nothing comes in time.
        ConnectionError: The peer reset the connection.
    """
    peer.settimeout(max(0.01, deadline - time.monotonic()))
    return peer.recv(65_536)


def read_answer(peer: socket.socket, deadline: float) -> HttpAnswer:
    """One answer, whose errors must be in the one body; `100 Continue` is none.

    Raises:
        TimeoutError: It is not complete in time.
        ConnectionError: The connection closed before it was.
        Broken: An error in another form, or one that says too much.
    """
    rest = b""
    head = CONTINUE
    while head.startswith(CONTINUE):
        data = bytearray(rest)
        while HEAD_END not in data:
            data += _more(peer, deadline)
        head, _, rest = bytes(data).partition(HEAD_END)
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (x.partition(":") for x in lines)}
    status = first.split(" ")[1]
    body = bytearray(rest)
    length = int(headers.get("content-length", 0))
    while len(body) < length:
        body += _more(peer, deadline)
    answer = HttpAnswer(status, headers, bytes(body[:length]))
    check_error(answer)
    return answer


def check_error(answer: HttpAnswer) -> None:
    """Every error has the one body, and says nothing of the program.

    Raises:
        Broken: It has not, or it does.
    """
    if answer.status[0] not in "45":
        return
    if any(leak in answer.body for leak in LEAKS):
        raise Broken(f"{answer.status} tells of the program: {answer.body[:200]!r}")
    try:
        is_ours = json.loads(answer.body)["error"].keys() == ERROR_KEYS
    except (ValueError, TypeError, KeyError):
        is_ours = False
    if not is_ours:
        raise Broken(f"{answer.status} in another form: {answer.body[:200]!r}")


def exchange(port: int, data: bytes, limit_s: float) -> str:
    """Send this, and read the status of the first answer.

    Raises:
        TimeoutError: No answer, nor an end, in time.
        ConnectionError: The server closed instead of answering.
        Broken: As `read_answer`.
    """
    deadline = time.monotonic() + limit_s
    with connected(port) as peer:
        try:
            send_until(peer, data, deadline)
        except ConnectionError:
            # It may have answered before it had read everything.
            return read_answer(peer, deadline).status
        return read_answer(peer, deadline).status


def reset(peer: socket.socket) -> None:
    """Close by RST instead of FIN."""
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.close()


def wait_for_end(peer: socket.socket, deadline: float) -> None:
    """Wait, without reading, until the peer has closed.

    Raises:
        TimeoutError: It has not.
    """
    while is_open(peer):
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.05)


def is_open(peer: socket.socket) -> bool:
    """Whether the peer has not closed, as far as the kernel knows."""
    return peer.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == ESTABLISHED


def is_readable(peer: socket.socket) -> bool:
    """Whether something, or the end, can be read without waiting."""
    return bool(select.select([peer], [], [], 0)[0])


def _more(peer: socket.socket, deadline: float) -> bytes:
    data = receive(peer, deadline)
    if not data:
        raise ConnectionResetError("closed before the end of the answer")
    return data
