"""`deploy/compose.yaml`, run by podman-compose: callers reach the server through the proxy only."""

import secrets
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.containers.engine import Engine
from tests.containers.image_build import stand_in_base
from tests.containers.running import LIMIT_S, UNPRIVILEGED, Container, is_served
from tests.deploy.kustomizations import DEPLOY
from tests.tools import TOOLS, find_tool, miss
from tipserve_client import Client

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def proxy_image(engine: Engine) -> Iterator[str]:
    """HAProxy of Debian on the stand-in base, in place of the published image."""
    if not (TOOLS.parent / "haproxy").is_dir():
        miss("this machine's own HAProxy cannot be copied into an image")
    name = f"localhost/tipserve-test-haproxy:{secrets.token_hex(4)}"
    made = engine.buildah("from", "--pull=never", stand_in_base(engine), limit_s=LIMIT_S)
    container = made.stdout.strip()
    for source, place in ((TOOLS.parent / "haproxy", "haproxy"), (TOOLS / "haproxy", "bin")):
        engine.buildah("copy", "-q", container, str(source), f"/opt/{place}/", limit_s=LIMIT_S)
    options = ("--env=PATH=/opt/bin:/usr/bin:/bin", "--user=99:99")
    engine.buildah("config", *options, container, limit_s=LIMIT_S)
    engine.buildah("commit", "-q", "--rm", container, name, limit_s=LIMIT_S)
    yield name
    engine.podman("rmi", "--force", name)


@pytest.fixture(scope="module")
def services(
    engine: Engine, image: str, proxy_image: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Container]]:
    """Both containers, with local images and no ports of this machine."""
    text = (DEPLOY / "compose.yaml").read_text(encoding="utf-8").replace('"./', f'"{DEPLOY}/')
    composed = yaml.safe_load(text)
    del composed["services"]["tipserve"]["build"], composed["services"]["proxy"]["ports"]
    composed["services"]["tipserve"]["image"] = image
    composed["services"]["proxy"]["image"] = proxy_image
    name = composed["name"] = f"tipserve-test-{secrets.token_hex(4)}"
    file: Path = tmp_path_factory.mktemp("compose") / "compose.yaml"
    file.write_text(yaml.safe_dump(composed), encoding="utf-8")
    compose = [find_tool("podman-compose"), "--in-pod=false", "-f", str(file)]
    try:
        engine.run([*compose, "up", "-d"])
        yield {one: Container(engine, f"{name}_{one}_1") for one in ("proxy", "tipserve")}
    finally:
        engine.run([*compose, "down", "--volumes", "--timeout=5"], check=False)


def test_callers_reach_the_server_through_the_proxy_only(services: dict[str, Container]) -> None:
    address = services["proxy"].address
    url = f"http://{address}:8000"
    services["tipserve"].wait_for(lambda: is_served(f"{url}/v2/health/ready"), "readiness")
    for one in (url, f"grpc://{address}:8001"):
        with Client(one, timeout_s=LIMIT_S) as client:
            assert client.embed_texts(["a dog"]).shape == (1, 768)
    # Prometheus reaches the metrics past it.
    assert is_served(f"http://{address}:8002/metrics")
    for port in (8010, 8011):
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((address, port), LIMIT_S)


def test_both_run_without_privileges(services: dict[str, Container]) -> None:
    for name, user in (("proxy", "99"), ("tipserve", "10001")):
        wanted = {**UNPRIVILEGED, "Uid": "\t".join([user] * 4)}
        assert wanted.items() <= services[name].process_status().items()
