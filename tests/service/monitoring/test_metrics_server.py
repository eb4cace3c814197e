"""The port for metrics and health checks: never with TLS or keys."""

import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import trustme

from service.errors import Unavailable
from service.monitoring.metrics import Metrics
from service.monitoring.metrics_server import LIVE, READY, MetricsServer
from tests.service.conftest import Serving

LIMIT_S = 20.0


def fail() -> None:
    raise Unavailable("broken")


@pytest.fixture(params=["127.0.0.1", "::1"])
def url(request: pytest.FixtureRequest, metrics: Metrics) -> Iterator[str]:
    checks = {LIVE: lambda: None, READY: fail}
    made = MetricsServer(metrics.registry, checks, host=request.param, port=0)
    host = f"[{request.param}]" if ":" in request.param else request.param
    with socket.create_connection((request.param, made.port)):  # never sends its request
        yield f"http://{host}:{made.port}"
        made.close()


def test_health_and_metrics_are_served_side_by_side(url: str) -> None:
    live, ready = (httpx.get(url + path, timeout=LIMIT_S) for path in (LIVE, READY))
    assert (live.status_code, live.json()) == (200, {"ok": True})
    assert (ready.status_code, ready.json()) == (503, {"ok": False})
    assert httpx.head(url + LIVE, timeout=LIMIT_S).status_code == 200
    accept = {"Accept": "application/openmetrics-text"}
    scrape = httpx.get(f"{url}/metrics", headers=accept, timeout=LIMIT_S)
    assert scrape.headers["content-encoding"] == "gzip"
    assert scrape.headers["content-type"].startswith("application/openmetrics-text")
    assert {"tipserve_inflight 0.0", "# EOF"} <= set(scrape.text.splitlines())


async def test_probes_need_neither_certificate_nor_key(serving: Serving, tmp_path: Path) -> None:
    ca = trustme.CA()
    leaf = ca.issue_cert("127.0.0.1")
    leaf.private_key_pem.write_to_path(tmp_path / "tls.key")
    leaf.cert_chain_pems[0].write_to_path(tmp_path / "tls.crt")
    ca.cert_pem.write_to_path(tmp_path / "ca.crt")
    paths = {"tls_cert": "tls.crt", "tls_key": "tls.key", "tls_client_ca": "ca.crt"}
    settings = {name: tmp_path / file for name, file in paths.items()}
    async with serving(api_keys="k" * 20, **settings) as server:
        url = f"http://127.0.0.1:{server.ports['metrics']}"
        async with httpx.AsyncClient(timeout=LIMIT_S) as client:
            ready = [(await client.get(url + path)).status_code for path in (LIVE, READY)]
            server.admission.drain()
            draining = [(await client.get(url + path)).status_code for path in (LIVE, READY)]
    assert (ready, draining) == ([200, 200], [200, 503])


def test_a_port_that_is_taken_is_named(metrics: Metrics) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=rf"in use.*{port}.*--metrics-port"):
            MetricsServer(metrics.registry, {}, host="127.0.0.1", port=port)
