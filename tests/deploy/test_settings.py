"""What the manifests say against what the service reads."""

from unittest.mock import create_autospec

import pytest
from fastapi.routing import APIRoute

from service.data_plane import DataPlane
from service.rest.routes import build_router
from service.settings import PREFIX, Settings
from tests.deploy.workloads import Manifest, of_kind


@pytest.fixture
def environment(manifests: list[Manifest]) -> dict[str, str]:
    """The server's variables."""
    (settings,) = of_kind(manifests, "ConfigMap")
    data: dict[str, str] = settings["data"]
    return data


def test_variables_are_settings(environment: dict[str, str]) -> None:
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    assert environment.keys() <= known


def test_the_service_accepts_the_variables(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert Settings().model == (environment["TIPSERVE_MODEL"],)


@pytest.mark.parametrize("name", ["http", "grpc", "metrics"])
def test_ports_are_the_defaults(container: Manifest, name: str) -> None:
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports[name] == Settings.model_fields[f"{name}_port"].default


@pytest.mark.parametrize("probe", ["startupProbe", "readinessProbe", "livenessProbe"])
def test_probe_paths_are_routes(container: Manifest, probe: str) -> None:
    router = build_router(create_autospec(DataPlane))
    routes = [route for route in router.routes if isinstance(route, APIRoute)]
    paths = {route.path for route in routes if "GET" in (route.methods or ())}
    assert container[probe]["httpGet"]["path"] in paths


def test_the_service_answers_from_outside_its_container() -> None:
    assert Settings.model_fields["host"].default == "0.0.0.0"


def test_there_is_time_to_drain(pod: Manifest, container: Manifest) -> None:
    before_stop_s = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    drain_s = Settings.model_fields["drain_timeout_s"].default
    assert pod["terminationGracePeriodSeconds"] > before_stop_s + drain_s
