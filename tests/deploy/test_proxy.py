"""The proxy's example fits the service's settings; what it does is shown by rolling restarts."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from service.monitoring.metrics_server import READY
from service.settings import Settings
from tests.tools import find_tool


@pytest.fixture
def configuration(project_root: Path) -> Path:
    return project_root / "deploy" / "proxy" / "haproxy.cfg"


def seconds(text: str, name: str) -> float:
    """A time-out; a name that is not there, or a unit that is not known, fails."""
    found = re.search(rf"^  timeout {name} +(\d+)(s|ms)$", text, re.MULTILINE)
    assert found, name
    return int(found[1]) / {"s": 1, "ms": 1000}[found[2]]


def misfits(text: str) -> set[str]:
    """Time-outs and sizes that would fail requests which the service would have answered."""
    settings = Settings()
    checks = {
        "client": seconds(text, "client") > settings.request_timeout_s,
        "server": seconds(text, "server") > settings.request_timeout_s,
        "http-request": seconds(text, "http-request") > settings.client_timeout_s,
        "http-keep-alive": seconds(text, "http-keep-alive") < settings.keep_alive_s,
        "maxconn": all(
            int(n) <= settings.max_connections for n in re.findall(r"maxconn (\d+)", text)
        ),
        "readiness": f"option httpchk GET {READY}\n" in text,
        "retries": re.findall(r"^ *retry-on (.*)$", text, re.MULTILINE) == ["conn-failure"],
        "ports": {int(n) for n in re.findall(r"server \w+ 127.0.0.1:(\d+)", text)}
        == {settings.http_port, settings.grpc_port},
    }
    return {name for name, fits in checks.items() if not fits}


def test_time_outs_sizes_and_ports_fit_the_service(configuration: Path) -> None:
    assert misfits(configuration.read_text(encoding="utf-8")) == set()


@pytest.mark.parametrize(
    ("right", "wrong", "name"),
    [
        ("timeout server 90s", "timeout server 30s", "server"),
        ("timeout client 90s", "timeout client 60s", "client"),
        ("timeout http-request 25s", "timeout http-request 900ms", "http-request"),
        ("timeout http-keep-alive 60s", "timeout http-keep-alive 80s", "http-keep-alive"),
        ("maxconn 512", "maxconn 5120", "maxconn"),
        ("/v2/health/ready", "/v2/health/live", "readiness"),
        ("retry-on conn-failure", "retry-on all-retryable-errors", "retries"),
        ("127.0.0.1:8001", "127.0.0.1:8002", "ports"),
    ],
)
def test_what_does_not_fit_is_found(configuration: Path, right: str, wrong: str, name: str) -> None:
    text = configuration.read_text(encoding="utf-8")
    assert right in text
    assert misfits(text.replace(right, wrong)) == {name}


@pytest.mark.parametrize("planted", [("", ""), ("proto h2", "proto h7")])
def test_haproxy_reads_it(configuration: Path, tmp_path: Path, planted: tuple[str, str]) -> None:
    copy = tmp_path / "haproxy.cfg"
    copy.write_text(configuration.read_text(encoding="utf-8").replace(*planted), encoding="utf-8")
    # A socket of its own, for a check of the configuration opens none, but says where it would.
    environment = {**os.environ, "PROXY_ADMIN_SOCKET": str(tmp_path / "admin.sock")}
    command = [find_tool("haproxy"), "-c", "-q", "-f", str(copy)]
    checked = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert (checked.returncode == 0) == (planted == ("", "")), checked.stderr
    assert "WARNING" not in checked.stderr
