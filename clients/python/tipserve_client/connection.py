"""How a client connects: the server's address, credentials, and retries within one deadline."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal
from urllib.parse import urlsplit

from tipserve_client.errors import DeadlineExceeded, TipserveError

DEFAULT_PORTS: Final = {"http": 80, "https": 443, "grpc": 8001, "grpcs": 8001}
DEFAULT_TIMEOUT_S: Final = 60.0
# Requests of one HTTP client that run at the same time.
MAX_HTTP_CONNECTIONS: Final = 16

Priority = Literal[1, 2, 3]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """Files in PEM format, for `https://` and `grpcs://`.

    Attributes:
        ca: Authorities that may sign the server's certificate. None: the system's over HTTP, those
            that gRPC ships over gRPC.
        cert: The client's certificate, if the server asks for one.
        key: The private key of `cert`.
    """

    ca: str | Path | None = None
    cert: str | Path | None = None
    key: str | Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The server of a client.

    Attributes:
        protocol: HTTP or gRPC.
        host: Name or address.
        port: TCP port.
        is_secure: Whether the connection uses TLS.
        path: Prefix of every HTTP path.
        tls: Files for TLS.
        api_key: Sent with every request.
        priority: Of every request; 1 is the highest.
    """

    protocol: Literal["http", "grpc"]
    host: str
    port: int
    is_secure: bool
    path: str = ""
    tls: Tls = Tls()
    api_key: str | None = field(default=None, repr=False)
    priority: Priority | None = None

    @property
    def headers(self) -> dict[str, str]:
        """Headers (gRPC: metadata) of every request."""
        given = {"x-api-key": self.api_key, "x-request-priority": self.priority}
        return {name: str(value) for name, value in given.items() if value is not None}

    @property
    def address(self) -> str:
        """Host and port, as in a URL."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def base_url(self) -> str:
        """Base of every HTTP URL."""
        return f"http{'s' if self.is_secure else ''}://{self.address}{self.path}"


def read_target(
    url: str,
    *,
    api_key: str | None = None,
    tls: Tls | None = None,
    priority: Priority | None = None,
) -> Target:
    """Parse the URL of a server.

    Raises:
        ValueError: The URL is invalid, TLS files are given for a URL without TLS, or the key
            cannot be sent in a header.
    """
    parts = urlsplit(url)
    if parts.scheme not in DEFAULT_PORTS or not parts.hostname:
        raise ValueError(
            f"{url!r}: write http://host:8000, https://host, grpc://host:8001 or grpcs://host:8001"
        )
    is_grpc = parts.scheme.startswith("grpc")
    is_secure = parts.scheme.endswith("s")
    if parts.query or parts.fragment or parts.username or (is_grpc and parts.path.strip("/")):
        raise ValueError(f"{url!r}: give only host and port; pass the key as api_key")
    if tls is not None and not is_secure:
        raise ValueError(f"{url!r} is not encrypted: TLS files need https:// or grpcs://")
    if tls is not None and (tls.cert is None) != (tls.key is None):
        raise ValueError("tls: set both cert and key, or neither")
    if api_key is not None and not (api_key.isascii() and api_key.isprintable()):
        # The message leaves out the key, because errors are logged.
        raise ValueError("api_key: use printable ASCII characters, without a newline at the end")
    return Target(
        protocol="grpc" if is_grpc else "http",
        host=parts.hostname,
        port=parts.port or DEFAULT_PORTS[parts.scheme],
        is_secure=is_secure,
        path=parts.path.rstrip("/"),
        tls=tls or Tls(),
        api_key=api_key,
        priority=priority,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """How often a request is retried, and how long the pauses are.

    Requests change nothing on the server, so each can be sent again. The client retries when the
    server is overloaded, is unavailable, or cannot be reached.

    Attributes:
        max_attempts: Attempts in total; 1 disables retries.
        first_pause_s: Longest pause before the second attempt; it doubles for each further one.
        max_pause_s: Upper limit of the pause.
        retry_deadline_exceeded: Also retry when the server's own time limit has passed, but not
            `timeout_s`.
        on_retry: Called before each pause with the error and the pause in seconds.
    """

    max_attempts: int = 6
    first_pause_s: float = 0.1
    max_pause_s: float = 10.0
    retry_deadline_exceeded: bool = False
    on_retry: Callable[[TipserveError, float], None] | None = None


class Attempts:
    """Counts the attempts of one request within its deadline.

    Args:
        retry: The limits.
        timeout_s: For all attempts.
        clock: Returns monotonic seconds.
        draw: Returns random numbers from 0 to 1.
    """

    def __init__(
        self,
        retry: Retry,
        timeout_s: float,
        clock: Callable[[], float] = time.monotonic,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._retry = retry
        self._clock, self._draw = clock, draw
        self._timeout_s = timeout_s
        self._deadline = clock() + timeout_s
        self._num_failed = 0

    def remaining_s(self) -> float:
        """Seconds until the deadline.

        Raises:
            DeadlineExceeded: It has passed.
        """
        left_s = self._deadline - self._clock()
        if left_s <= 0:
            raise DeadlineExceeded("The deadline passed.", code="deadline_exceeded")
        return left_s

    def pause_s(self, error: TipserveError) -> float:
        """Seconds to wait before the next attempt.

        Half of the pause is random, so that many clients do not retry at the same moment. The time
        that the server asks for is added.

        Raises:
            TipserveError: `error` itself, if it is final: the attempts are used up, or the next
                one would start after the deadline.
        """
        self._num_failed += 1
        is_retryable = error.is_retryable or (
            self._retry.retry_deadline_exceeded and isinstance(error, DeadlineExceeded)
        )
        if not is_retryable or self._num_failed >= self._retry.max_attempts:
            raise error
        longest_s = self._retry.first_pause_s * 2.0 ** (self._num_failed - 1)
        pause_s: float = min(longest_s, self._retry.max_pause_s) * (0.5 + 0.5 * self._draw())
        pause_s += error.retry_after_s or 0.0
        if pause_s >= self._deadline - self._clock():
            raise error
        if self._retry.on_retry is not None:
            self._retry.on_retry(error, pause_s)
        return pause_s

    def wait_for_answer(self) -> None:
        """Restart the deadline of a stream, unless an attempt has failed since the last answer.

        Only the time counts that the client waits for the server. The caller may take any time
        between two answers.
        """
        if self._num_failed == 0:
            self._deadline = self._clock() + self._timeout_s

    def reset(self) -> None:
        """Forget failed attempts, because a stream has received an answer."""
        self._num_failed = 0
