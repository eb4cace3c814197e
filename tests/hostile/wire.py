"""HTTP/2 frames, written one by one."""

from typing import Final

DATA, HEADERS, RST_STREAM, SETTINGS, CONTINUATION = 0, 1, 3, 4, 9
# Flags of frames.
END_STREAM: Final = 1
END_HEADERS: Final = 4
PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def frame(kind: int, payload: bytes = b"", *, flags: int = 0, stream: int = 0) -> bytes:
    """One frame."""
    return len(payload).to_bytes(3) + bytes([kind, flags]) + stream.to_bytes(4) + payload


def literal(name: bytes, value: bytes) -> bytes:
    """A header in HPACK's literal form, without indexing and compression."""
    return b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value


def http2_head(path: bytes = b"/tipserve.v1.EncoderService/ListModels") -> bytes:
    """The headers of an RPC."""
    pairs = ((b":method", b"POST"), (b":scheme", b"http"), (b":path", path), (b":authority", b"a"))
    more = ((b"te", b"trailers"), (b"content-type", b"application/grpc"))
    return b"".join(literal(name, value) for name, value in (*pairs, *more))


def opened(stream: int, flags: int = END_HEADERS, block: bytes | None = None) -> bytes:
    """A stream's headers."""
    return frame(HEADERS, http2_head() if block is None else block, flags=flags, stream=stream)
