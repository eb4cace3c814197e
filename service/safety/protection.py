"""Protection of both protocols: keys, TLS, memory for bodies, limits on connections."""

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
    """

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        """Read keys and certificates.

        Raises:
            ValueError: A file or a host name is invalid.
            OSError: A file cannot be read.
        """
        self.settings, self.metrics = settings, metrics
        api_keys = settings.api_keys
        self.keys = ApiKeys(
            metrics,
            fixed=None if api_keys is None else api_keys.get_secret_value(),
            file=settings.api_keys_file,
            num_workers=settings.workers,
        )
        self.browsers = BrowserRules.from_settings(settings)
        self.proxies = TrustedProxies(settings.trusted_proxies)
        self.tls: Tls | None = None
        if settings.tls_cert is not None and settings.tls_key is not None:
            self.tls = Tls(settings.tls_cert, settings.tls_key, settings.tls_client_ca)
        self.url_fetcher: UrlFetcher | None = None
        if settings.url_hosts is not None:
            self.url_fetcher = UrlFetcher(settings.url_hosts, settings.max_image_bytes)
