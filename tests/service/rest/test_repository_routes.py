"""The management routes over a whole server: Triton's shapes, health of each model, and who may."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from service.server import Server

Serving = Callable[..., AbstractAsyncContextManager[Server]]
LOAD, UNLOAD = "/v2/repository/models/second/load", "/v2/repository/models/second/unload"
INDEX, READY = "/v2/repository/index", "/v2/health/ready"
LIMIT_S = 20.0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("second", "third"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tipserve.json").touch()
    return tmp_path


def client_of(server: Server) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.ports['http']}", timeout=LIMIT_S)


async def health_of(server: Server, name: str) -> int:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.ports['grpc']}") as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        answer = await stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=LIMIT_S)
        return int(answer.status)


async def test_they_are_off_unless_enabled(serving: Serving) -> None:
    async with serving() as server, client_of(server) as client:
        for path in (INDEX, LOAD, UNLOAD):
            assert (await client.post(path)).status_code == 404
        assert "/v2/repository/index" not in (await client.get("/openapi.json")).json()["paths"]


async def test_that_anybody_may_is_said_aloud(
    serving: Serving, caplog: pytest.LogCaptureFixture
) -> None:
    def warnings() -> list[str]:
        return [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]

    async with serving(enable_management=True, api_keys="the-key-of-this-test"), serving():
        assert warnings() == []
    async with serving(enable_management=True):
        assert warnings() == ["anybody may load and unload models: no API keys are set"]


async def test_they_need_a_key_where_keys_are_set(serving: Serving, folder: Path) -> None:
    settings = {
        "enable_management": True,
        "model_repository": folder,
        "api_keys": "the-key-of-this-test",
    }
    async with serving(**settings) as server, client_of(server) as client:
        for path in (INDEX, LOAD, UNLOAD):
            assert (await client.post(path)).status_code == 401
        answer = await client.post(LOAD, headers={"X-Api-Key": "the-key-of-this-test"})
        assert answer.status_code == 200


async def test_load_and_unload_as_tritons_clients_do(serving: Serving, folder: Path) -> None:
    async with (
        serving(enable_management=True, model_repository=folder) as server,
        client_of(server) as client,
    ):
        answer = await client.post(INDEX, content=b"")
        assert answer.json() == [
            {"name": "fake", "version": "1", "state": "READY", "reason": ""},
            {"name": "second", "version": "1", "state": "UNAVAILABLE", "reason": ""},
            {"name": "third", "version": "1", "state": "UNAVAILABLE", "reason": ""},
        ]
        loaded = await client.post(LOAD, content=b"{}")
        assert (loaded.status_code, loaded.content) == (200, b"")
        assert await health_of(server, "second") == 1
        listed = (await client.get("/v1/models")).json()["data"]
        assert [model["id"] for model in listed] == ["fake", "second"]
        texts = {"texts": ["dog"], "model": "second"}
        assert (await client.post("/v1/texts:embed", json=texts)).json()["model"] == "second"
        ready = await client.post(INDEX, json={"ready": True})
        assert [entry["name"] for entry in ready.json()] == ["fake", "second"]
        unloaded = await client.post(UNLOAD, json={"parameters": {"unload_dependents": False}})
        assert unloaded.status_code == 200
        assert await health_of(server, "second") == 2
        gone = await client.post("/v1/texts:embed", json=texts)
        assert (gone.status_code, gone.json()["error"]["code"]) == (404, "model_not_found")


async def test_with_the_last_model_readiness_goes_and_it_comes_back(serving: Serving) -> None:
    async with serving(enable_management=True) as server, client_of(server) as client:
        path = "/v2/repository/models/fake"
        assert (await client.post(f"{path}/unload")).status_code == 200
        assert (await client.get(READY)).json()["error"] == "No model is served."
        assert [await health_of(server, name) for name in ("", "fake")] == [2, 2]
        assert (await client.get("/v2/health/live")).status_code == 200
        assert (await client.get("/v1/models")).json()["data"] == []
        assert (await client.post("/v1/texts:embed", json={"texts": ["a"]})).status_code == 404
        assert (await client.post(f"{path}/load")).status_code == 200
        assert (await client.get(READY)).status_code == 200
        assert [await health_of(server, name) for name in ("", "fake")] == [1, 1]


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        (INDEX, {"ready": 1}, 422, "ready"),
        (INDEX, [], 422, None),
        (LOAD, {"parameters": {"package": "../second"}}, 422, "parameters.package"),
        (LOAD, {"parameters": {"config": "{}"}}, 422, "parameters.config"),
        (LOAD, {"parameters": {"package": "missing"}}, 404, "parameters.package"),
        ("/v2/repository/models/missing/load", {}, 404, "parameters.package"),
        ("/v2/repository/models/-x/load", {}, 422, "name"),
        (UNLOAD, {}, 404, "model"),
        (UNLOAD, {"now": True}, 422, "now"),
    ],
)
async def test_what_cannot_be_says_what_is_wrong(
    serving: Serving, folder: Path, path: str, body: Any, status: int, param: str | None
) -> None:
    async with (
        serving(enable_management=True, model_repository=folder) as server,
        client_of(server) as client,
    ):
        answer = await client.post(path, json=body)
        error = answer.json()
        assert error["error"]
        assert (answer.status_code, error["param"]) == (status, param), error
        assert str(folder) not in answer.text
        assert (await client.get(READY)).status_code == 200
