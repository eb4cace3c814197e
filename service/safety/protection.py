"""Protection of both protocols: keys, TLS, memory for bodies, limits on connections."""

import logging
import threading
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from service.errors import Overloaded
from service.machine import num_descriptors, raise_descriptor_limit
from service.monitoring import metrics_server
from service.monitoring.metrics import Metrics
from service.safety.api_keys import ApiKeys
from service.safety.browsers import BrowserRules
from service.safety.proxies import TrustedProxies
from service.safety.tls import Tls, TlsFiles
from service.safety.url_fetch import MAX_AT_ONCE, FetchLimits, UrlFetcher, UrlPolicy
from service.settings import MIN_CONNECTIONS, Settings

RETRY_S: Final = 1.0
# Descriptors for model files, runtimes, threads' event files, and refused connections until they
# are closed.
RESERVED_DESCRIPTORS: Final = 128
# REST connections beyond `max_connections`, each for one health check.
SPARE_CONNECTIONS: Final = 64
# gRPC accepts more than `max_connections`, and closes idle ones afterwards: see
# `service.grpc.connections`. With twice as many, 1,100 clients that reconnect at once whenever they
# are disconnected do not keep others out.
GRPC_CONNECTIONS_FACTOR: Final = 2

logger = logging.getLogger(__name__)


class BodyShare:
    """Body memory of one request, until its `with` block ends."""

    def __init__(self, memory: "BodyMemory") -> None:
        self._memory = memory
        self.num_bytes = 0

    def hold(self, num_bytes: int) -> None:
        """Hold at least so many bytes in total.

        Raises:
            Overloaded: The memory of all bodies is full.
        """
        if num_bytes > self.num_bytes:
            self._memory._take(num_bytes - self.num_bytes)
            self.num_bytes = num_bytes

    def give_back(self) -> None:
        """Release all bytes."""
        self._memory._give_back(self.num_bytes)
        self.num_bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.give_back()


class BodyMemory:
    """Limits the bytes of all request bodies, of both protocols. Thread-safe.

    A request without room is refused at once. If it waited with half of its body read, it would
    hold the memory that others wait for. Only streams of messages wait, before each message.
    """

    def __init__(self, max_bytes: int, metrics: Metrics) -> None:
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._lock = threading.Lock()
        self._metrics = metrics

    @property
    def num_bytes(self) -> int:
        """Bytes of all requests."""
        return self._num_bytes

    def share(self) -> BodyShare:
        """An empty share for a new request."""
        return BodyShare(self)

    def has_room(self, num_bytes: int) -> bool:
        """Whether so many more bytes fit now."""
        return self._num_bytes + num_bytes <= self._max_bytes

    def check(self, num_bytes: int) -> None:
        """Check that so many more bytes fit now, without taking them.

        Raises:
            Overloaded: They do not fit.
        """
        if not self.has_room(num_bytes):
            raise self._full()

    def _take(self, num_bytes: int) -> None:
        with self._lock:
            if self._num_bytes + num_bytes > self._max_bytes:
                raise self._full()
            self._num_bytes += num_bytes

    def _give_back(self, num_bytes: int) -> None:
        with self._lock:
            self._num_bytes -= num_bytes

    def _full(self) -> Overloaded:
        self._metrics.rejected.labels("body_memory").inc()
        return Overloaded(
            "The memory for request bodies is full; try again.",
            code="body_memory_full",
            retry_after_s=RETRY_S,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Protection:
    """Protection of the whole server.

    Attributes:
        keys: API keys.
        browsers: Refuses web pages of other origins.
        proxies: Whose word on the callers' addresses is taken.
        tls: None serves without TLS.
        body_memory: Limits the bodies of all requests.
        url_fetcher: None refuses URLs.
        metrics: Counts refused requests.
        request_timeout_s: Default and longest deadline of a request.
        max_body_bytes: Largest body or message.
        max_connections: Most open connections, per protocol; at most what the limit of open
            descriptors allows.
        max_rpcs: Most RPCs at once.
        num_receive_places: Most messages of unary RPCs that gRPC receives at once.
        max_stream_requests: Most requests of one gRPC stream at once.
        stream_window_bytes: Bytes that a gRPC client may send before they are read.
        max_message_values: Most values in one gRPC message; valid ones have far fewer.
        client_timeout_s: How long a client may be slower than `client_bytes_per_s`.
        client_bytes_per_s: Lowest average speed of sending and reading.
        keep_alive_s: Longest idle time of a connection.
        max_connection_age_s: Longest life of a gRPC connection.
    """

    keys: ApiKeys
    browsers: BrowserRules
    proxies: TrustedProxies
    tls: Tls | None
    body_memory: BodyMemory
    url_fetcher: UrlFetcher | None
    metrics: Metrics
    request_timeout_s: float
    max_body_bytes: int
    max_connections: int
    max_rpcs: int
    num_receive_places: int
    max_stream_requests: int
    stream_window_bytes: int
    max_message_values: int
    client_timeout_s: float
    client_bytes_per_s: int
    keep_alive_s: float
    max_connection_age_s: float

    @property
    def max_grpc_connections(self) -> int:
        """Most connections that gRPC's core accepts before idle ones are closed."""
        return GRPC_CONNECTIONS_FACTOR * self.max_connections

    @classmethod
    def from_settings(cls, settings: Settings, metrics: Metrics) -> Self:
        """Read keys and certificates.

        Raises:
            ValueError: A file or a host name is invalid.
            OSError: A file cannot be read.
        """
        api_keys = settings.api_keys
        url_fetcher = None
        if settings.url_hosts is not None:
            limits = FetchLimits(max_bytes=settings.max_image_bytes)
            url_fetcher = UrlFetcher(UrlPolicy.from_text(settings.url_hosts), limits)
        max_items = (
            settings.max_images_per_request
            + settings.max_texts_per_request
            + settings.max_classes_per_request
        )
        return cls(
            keys=ApiKeys(
                metrics,
                fixed=None if api_keys is None else api_keys.get_secret_value(),
                file=settings.api_keys_file,
                num_workers=settings.num_workers,
            ),
            browsers=BrowserRules.from_settings(settings),
            proxies=TrustedProxies(settings.trusted_proxies),
            tls=_tls(settings),
            body_memory=BodyMemory(settings.max_body_memory_bytes, metrics),
            url_fetcher=url_fetcher,
            metrics=metrics,
            request_timeout_s=settings.request_timeout_s,
            max_body_bytes=settings.max_request_bytes,
            max_connections=fitting_connections(
                settings.max_connections,
                num_descriptors=raise_descriptor_limit(),
                num_others=num_descriptors()
                + RESERVED_DESCRIPTORS
                + SPARE_CONNECTIONS
                + metrics_server.MAX_CONNECTIONS
                + (MAX_AT_ONCE if url_fetcher is not None else 0),
            ),
            max_rpcs=settings.max_concurrent_rpcs,
            num_receive_places=settings.num_receive_places,
            max_stream_requests=settings.max_stream_requests,
            stream_window_bytes=settings.stream_window_bytes,
            # An item is two or three values; requests slightly over are left to later checks.
            max_message_values=10 * max_items + 1000,
            client_timeout_s=settings.client_timeout_s,
            client_bytes_per_s=settings.min_client_bytes_per_s,
            keep_alive_s=settings.keep_alive_s,
            max_connection_age_s=settings.max_connection_age_s,
        )


def _tls(settings: Settings) -> Tls | None:
    if settings.tls_cert is None or settings.tls_key is None:
        return None
    files = TlsFiles(
        certificate=settings.tls_cert, key=settings.tls_key, client_ca=settings.tls_client_ca
    )
    return Tls(files)


def fitting_connections(max_connections: int, *, num_descriptors: int, num_others: int) -> int:
    """Connections for each of REST and gRPC that the limit of open descriptors allows.

    At that limit no port accepts a connection, also not the one for health probes: with a limit of
    1,024, a thousand idle gRPC connections silenced all three.

    Args:
        max_connections: As set.
        num_descriptors: The limit of open descriptors.
        num_others: Descriptors for everything else.

    Raises:
        ValueError: Fewer than `MIN_CONNECTIONS` fit.
    """
    num_each = 1 + GRPC_CONNECTIONS_FACTOR
    fitting = min(max_connections, (num_descriptors - num_others) // num_each)
    if fitting == max_connections:
        return max_connections
    numbers = (
        f"max_connections is {max_connections} for each of REST and gRPC, which needs {num_each} "
        f"times as many descriptors and {num_others} others, but the process may open "
        f"{num_descriptors}"
    )
    advice = f"raise the limit (ulimit -n) to {num_each * max_connections + num_others}"
    if fitting < MIN_CONNECTIONS:
        raise ValueError(f"{numbers}; {advice}")
    logger.warning("%s: %d connections are allowed for each; %s", numbers, fitting, advice)
    return fitting
