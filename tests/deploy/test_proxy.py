"""The proxy's example fits the service's settings."""

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


def test_timeouts_sizes_and_ports_fit_the_service(configuration: Path) -> None:
    text, settings = configuration.read_text(encoding="utf-8"), Settings()
    timeouts = re.findall(r"^  timeout ([\w-]+) +(\d+)(s|ms)$", text, re.MULTILINE)
    timeouts_s = {name: int(value) / {"s": 1, "ms": 1000}[unit] for name, value, unit in timeouts}
    assert timeouts_s["client"] > settings.request_timeout_s
    assert timeouts_s["server"] > settings.request_timeout_s
    assert timeouts_s["http-request"] > settings.client_timeout_s
    assert timeouts_s["http-keep-alive"] < settings.keep_alive_s
    assert max(map(int, re.findall(r"maxconn (\d+)", text))) <= settings.max_connections
    assert f"option httpchk GET {READY}\n" in text
    # The service may already have computed a request that failed later.
    assert re.findall(r"^ *retry-on (.*)$", text, re.MULTILINE) == ["conn-failure"]
    ports = {int(port) for port in re.findall(r"server \w+ 127.0.0.1:(\d+)", text)}
    assert ports == {settings.http_port, settings.grpc_port}


def test_haproxy_accepts_it(configuration: Path, tmp_path: Path) -> None:
    # The check opens no socket, but resolves its path.
    environment = {**os.environ, "PROXY_ADMIN_SOCKET": str(tmp_path / "admin.sock")}
    command = [find_tool("haproxy"), "-c", "-q", "-f", str(configuration)]
    checked = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert (checked.returncode, "WARNING" in checked.stderr) == (0, False), checked.stderr
