"""Protection of both protocols: keys, TLS, web pages of other origins, callers behind proxies."""

from service.monitoring.metrics import Metrics
from service.safety.api_keys import ApiKeys
from service.safety.browsers import BrowserRules
from service.safety.proxies import TrustedProxies
from service.safety.tls import Tls
from service.safety.url_fetch import UrlFetcher
from service.settings import Settings


class Protection:
    """Protection of the whole server.

    Attributes:
        settings: Limits of requests.
        metrics: Counts refused requests.
        keys: API keys.
        browsers: Refuses web pages of other origins.
        proxies: Whose word on the callers' addresses is taken.
        tls: None serves without TLS.
        url_fetcher: None refuses URLs.

    Raises:
        ValueError: A file or a host name is invalid.
        OSError: A file cannot be read.
    """

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self.settings, self.metrics = settings, metrics
        fixed = settings.api_keys
        self.keys = ApiKeys(
            metrics,
            fixed=None if fixed is None else fixed.get_secret_value(),
            file=settings.api_keys_file,
            num_workers=settings.workers,
        )
        self.browsers = BrowserRules.from_settings(settings)
        self.proxies = TrustedProxies(settings.trusted_proxies)
        self.tls: Tls | None = None
        if settings.tls_cert is not None and settings.tls_key is not None:
            self.tls = Tls(settings.tls_cert, settings.tls_key, settings.tls_client_ca)
        hosts, max_bytes = settings.url_hosts, settings.max_image_bytes
        self.url_fetcher = None if hosts is None else UrlFetcher(hosts, max_bytes)
