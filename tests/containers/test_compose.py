"""`deploy/compose.yaml`, run by podman-compose: callers reach the server through the proxy."""

import secrets
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
    """Debian's nginx on the stand-in base, in place of the published image."""
    folder = TOOLS.parent / "nginx"
    if not folder.is_dir():
        miss("this machine's own nginx cannot be copied into an image")
    name = f"localhost/tipserve-test-nginx:{secrets.token_hex(4)}"
    made = engine.buildah("from", "--pull=never", stand_in_base(engine), limit_s=LIMIT_S)
    container = made.stdout.strip()
    engine.buildah("copy", "-q", container, str(folder), "/opt/nginx/", limit_s=LIMIT_S)
    for program in ("nginx", "envsubst"):
        source = str(TOOLS / program)
        engine.buildah("copy", "-q", container, source, "/opt/bin/", limit_s=LIMIT_S)
    engine.buildah("config", "--env=PATH=/opt/bin:/usr/bin:/bin", container, limit_s=LIMIT_S)
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


def test_callers_reach_the_server_through_the_proxy_and_each_restarts_alone(
    services: dict[str, Container],
) -> None:
    address = services["proxy"].address
    url = f"http://{address}:8000"
    for restarted in ("", "proxy", "tipserve"):
        if restarted:
            services[restarted].restart()
        services["proxy"].wait_for(lambda: is_served(f"{url}/v2/health/ready"), "readiness")
        for one in (url, f"grpc://{address}:8001"):
            with Client(one, timeout_s=LIMIT_S) as client:
                assert client.embed_texts(["a dog"]).shape == (1, 768)
    # For Prometheus.
    assert is_served(f"http://{services['tipserve'].address}:8002/metrics")
    assert is_served(f"http://{address}:8003/metrics")


def test_both_run_without_privileges(services: dict[str, Container]) -> None:
    for name in ("proxy", "tipserve"):
        wanted = {**UNPRIVILEGED, "Uid": "\t".join(["10001"] * 4)}
        assert wanted.items() <= services[name].process_status().items()
