"""The port for metrics and health checks: never with TLS or keys."""

import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import trustme

from service.errors import Unavailable
from service.monitoring import metrics_server
from service.monitoring.metrics import Metrics
from service.monitoring.metrics_server import LIVE, READY, MetricsServer
from tests.service.conftest import Serving

if TYPE_CHECKING:
    from collections.abc import Iterator

LIMIT_S = 20.0


class Health:
    """A check that a test makes fail."""

    is_healthy = True

    def __call__(self) -> None:
        if not self.is_healthy:
            raise Unavailable("broken")


@pytest.fixture(params=["127.0.0.1", "::1"])
def server(request: pytest.FixtureRequest, metrics: Metrics) -> "Iterator[tuple[str, Health]]":
    health = Health()
    checks: dict[str, Any] = {LIVE: lambda: None, READY: health}
    made = MetricsServer(metrics.registry, checks, host=request.param, port=0)
    host = f"[{request.param}]" if ":" in request.param else request.param
    yield f"http://{host}:{made.port}", health
    made.close()


def test_health_and_metrics_are_served_side_by_side(server: tuple[str, Health]) -> None:
    url, health = server
    assert httpx.get(url + READY, timeout=LIMIT_S).json() == {"ok": True}
    health.is_healthy = False
    refused = httpx.get(url + READY, timeout=LIMIT_S)
    assert (refused.status_code, refused.json()) == (503, {"ok": False})
    assert httpx.get(url + LIVE, timeout=LIMIT_S).status_code == 200
    assert "tipserve_inflight" in httpx.get(url + "/metrics", timeout=LIMIT_S).text


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
        with pytest.raises(OSError, match=rf"port {port} \(.* in use\); .* --metrics-port"):
            MetricsServer(metrics.registry, {}, host="127.0.0.1", port=port)


@pytest.mark.parametrize("server", ["127.0.0.1"], indirect=True)
@pytest.mark.parametrize("is_read", [False, True])
def test_a_trickled_or_endless_request_ends(
    server: tuple[str, Health], monkeypatch: pytest.MonkeyPatch, *, is_read: bool
) -> None:
    monkeypatch.setattr(metrics_server, "REQUEST_LIMIT_S", 0.3 if is_read else LIMIT_S)
    data = b"x" if is_read else b"x" * metrics_server.MAX_HEAD_BYTES
    with socket.create_connection(("127.0.0.1", int(server[0].rpartition(":")[2]))) as connection:
        for _ in range(1000):
            try:
                connection.sendall(data)
            except ConnectionError:
                break
            time.sleep(0.01)
        else:
            pytest.fail("still open after ten seconds")


def test_scrapes_choose_format_and_names_and_are_compressed(server: tuple[str, Health]) -> None:
    url = server[0] + "/metrics?name[]=tipserve_inflight"
    answer = httpx.get(url, headers={"Accept": "application/openmetrics-text"}, timeout=LIMIT_S)
    assert answer.headers["content-encoding"] == "gzip"
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    assert answer.text.splitlines()[-2:] == ["tipserve_inflight 0.0", "# EOF"]
    assert httpx.head(server[0] + LIVE, timeout=LIMIT_S).status_code == 200
