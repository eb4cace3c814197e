"""Protection of both protocols: keys, TLS, memory for bodies, limits on connections."""

from dataclasses import dataclass
from typing import Self

from service.messages import MAX_CLASSES, MAX_TEXTS
from service.monitoring.metrics import Metrics
from service.safety.api_keys import ApiKeys
from service.safety.browsers import BrowserRules
from service.safety.proxies import TrustedProxies
from service.safety.tls import Tls
from service.safety.url_fetch import UrlFetcher
from service.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Protection:
    """Protection of the whole server.

    Attributes:
        keys: API keys.
        browsers: Refuses web pages of other origins.
        proxies: Whose word on the callers' addresses is taken.
        tls: None serves without TLS.
        url_fetcher: None refuses URLs.
        metrics: Counts refused requests.
        request_timeout_s: Default and longest deadline of a request.
        max_body_bytes: Largest body or message.
        num_receive_places: Most messages of unary RPCs that gRPC receives at once.
        max_message_values: Most values in one gRPC message; valid ones have far fewer.
    """

    keys: ApiKeys
    browsers: BrowserRules
    proxies: TrustedProxies
    tls: Tls | None
    url_fetcher: UrlFetcher | None
    metrics: Metrics
    request_timeout_s: float
    max_body_bytes: int
    num_receive_places: int
    max_message_values: int

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
            url_fetcher = UrlFetcher(settings.url_hosts, settings.max_image_bytes)
        max_items = settings.max_images_per_request + MAX_TEXTS + MAX_CLASSES
        return cls(
            keys=ApiKeys(
                metrics,
                fixed=None if api_keys is None else api_keys.get_secret_value(),
                file=settings.api_keys_file,
                num_workers=settings.workers,
            ),
            browsers=BrowserRules.from_settings(settings),
            proxies=TrustedProxies(settings.trusted_proxies),
            tls=_tls(settings),
            url_fetcher=url_fetcher,
            metrics=metrics,
            request_timeout_s=settings.request_timeout_s,
            max_body_bytes=settings.max_request_bytes,
            num_receive_places=settings.num_receive_places,
            # An item is two or three values; requests slightly over are left to later checks.
            max_message_values=10 * max_items + 1000,
        )


def _tls(settings: Settings) -> Tls | None:
    if settings.tls_cert is None or settings.tls_key is None:
        return None
    return Tls(settings.tls_cert, settings.tls_key, settings.tls_client_ca)
