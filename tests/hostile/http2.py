"""HTTP/2 frames, written one by one."""

from typing import Final

DATA, HEADERS, RST_STREAM, SETTINGS, PING, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 8, 9
# Flags of frames.
END_STREAM: Final = 1
END_HEADERS: Final = 4


def frame(kind: int, payload: bytes = b"", *, flags: int = 0, stream: int = 0) -> bytes:
    """One frame."""
    return len(payload).to_bytes(3) + bytes([kind, flags]) + stream.to_bytes(4) + payload


# What a client begins with.
OPENING: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(SETTINGS)


def header(name: bytes, value: bytes) -> bytes:
    """A header without compression, for names and values below 127 bytes."""
    return b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value


def request_headers(method: str) -> bytes:
    """The header block of an RPC."""
    block = b"\x83\x86" + header(b":path", method.encode()) + header(b":authority", b"x")
    return block + header(b"te", b"trailers") + header(b"content-type", b"application/grpc")
