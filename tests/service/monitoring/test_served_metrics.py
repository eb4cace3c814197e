"""Metrics of a whole server: its models, and no series that callers make up."""

import asyncio
import base64
from collections.abc import Callable

import pytest

from service.models.served_model import ServedModel
from service.server import Server
from tests.service.callers import (
    BOTH,
    ENCODER,
    INFERENCE,
    Ask,
    call_rpc,
    http_client,
    message,
)
from tests.service.conftest import Encode, Entered, FakeRuntime, Serving, sample, until

ServeFake = Callable[..., ServedModel]
PNG = {"Content-Type": "image/png"}


def samples(server: Server, name: str) -> list[tuple[dict[str, str], float]]:
    families = server.metrics.registry.collect()
    return [(s.labels, s.value) for family in families for s in family.samples if s.name == name]


async def test_requests_batches_refusals_and_prompts_are_counted_by_model(
    serving: Serving, encode_image: Encode, serve_fake: ServeFake, runtime: FakeRuntime
) -> None:
    images = 17 * [base64.b64encode(encode_image()).decode()]
    async with serving(max_queue_patches=64, max_batch_patches=64) as server:
        server.models.put(serve_fake(server.settings, server.metrics, runtime, "b"))
        async with http_client(server) as client:
            for query in ("", "?model=b", "?model=b", "?resolution=13", "?model=unknown"):
                await client.post(f"/v1/images:embed{query}", content=encode_image(), headers=PNG)
            large = await client.post("/v1/images:embed", json={"images": images, "model": "b"})
            for _ in range(2):
                await client.post("/v1/texts:embed", json={"texts": ["a", "e"], "model": "b"})
        request = message("embed", encode_image())
        request.model = "b"
        await call_rpc(server, f"{ENCODER}/EmbedImages", request.SerializeToString())
        counted = {
            (name, *labels.values()): value
            for name in ("requests", "batches", "batch_items", "rejected", "prompts")
            for labels, value in samples(server, f"tipserve_model_{name}_total")
            if value
        }
        assert large.status_code == 413
        assert counted == {
            ("requests", "fake", "http", "200"): 1,
            ("requests", "fake", "http", "422"): 1,
            ("requests", "b", "http", "200"): 4,
            ("requests", "b", "http", "413"): 1,
            ("requests", "b", "grpc", "OK"): 1,
            ("batches", "fake"): 1,
            ("batches", "b"): 4,
            ("batch_items", "fake"): 1,
            ("batch_items", "b"): 5,
            ("rejected", "b", "too_large"): 1,
            ("prompts", "b", "miss"): 2,
            ("prompts", "b", "hit"): 2,
        }
        assert sample(server.metrics, "rejected_total", reason="too_large") == 1
        (digest, *_) = (m["package_digest"] for m, _ in samples(server, "tipserve_model_info"))
        assert digest == server.models.find(None).manifest.digest[:12]


def counted_requests(server: Server) -> list[dict[str, str]]:
    return [labels for labels, n in samples(server, "tipserve_requests_total") if n]


@BOTH
@pytest.mark.parametrize(
    ("timeout_s", "unloaded_s", "is_callers"),
    [(0.001, 0.0, True), (0.3, 0.55, True), (0.3, 0.055, False)],
)
async def test_a_deadline_below_the_unloaded_time_is_the_callers_own_fault(
    serving: Serving,
    encode_image: Encode,
    runtime: FakeRuntime,
    ask: Ask,
    timeout_s: float,
    unloaded_s: float,
    is_callers: bool,
) -> None:
    async with serving() as server:
        served = server.models.find(None)
        served.patch_s = unloaded_s / 4  # of an image of the native size
        runtime.gate.clear()  # the lane is busy with other work
        answer = await ask(server, encode_image(), timeout_s=timeout_s)
        runtime.gate.set()
        # A gRPC caller gives up by its own clock.
        await until(lambda: bool(counted_requests(server)))
        counted = counted_requests(server)
        refused = [labels for labels, n in samples(server, "tipserve_rejected_total") if n]
    assert answer.status in ("504", "DEADLINE_EXCEEDED")
    assert [labels["code"] for labels in counted] == [f"{answer.status}{is_callers * '_CALLER'}"]
    assert {"reason": "deadline"} not in refused


async def test_series_of_rules_and_autoscalers_exist_before_the_first_request(
    serving: Serving,
) -> None:
    async with serving(cpus=3) as server:
        assert samples(server, "tipserve_cpus") == [({}, 3)]
        faults = {
            (labels["protocol"], labels["method"], labels["code"])
            for labels, count in samples(server, "tipserve_requests_total")
            if not count
        }
        waits = samples(server, "tipserve_stage_duration_seconds_count")
    assert ({"stage": "queue"}, 0) in waits
    for code in ("500", "503", "504"):
        assert ("http", "POST /v1/images:embed", code) in faults
        assert ("http", "POST /v2/models/{model}/infer", code) in faults
    for code in ("INTERNAL", "UNAVAILABLE", "DEADLINE_EXCEEDED"):
        assert ("grpc", f"{ENCODER}/EmbedImages".lstrip("/"), code) in faults
        assert ("grpc", f"{INFERENCE}/ModelInfer".lstrip("/"), code) in faults
    assert not [method for _, method, _ in faults if "/v2/health/" in method]


async def test_shapes_that_callers_choose_share_one_bucket(
    serving: Serving, encode_image: Encode, runtime: FakeRuntime, entered: Entered
) -> None:
    images = [encode_image(size=(28 + 14 * n, 28)) for n in range(6)]

    def depths() -> dict[str, float]:
        return {labels["bucket"]: n for labels, n in samples(server, "tipserve_queue_depth")}

    async with serving() as server, http_client(server) as client:
        runtime.gate.clear()
        url = "/v1/images:embed?fit=aspect"
        asked = [
            asyncio.ensure_future(client.post(url, content=image, headers=PNG)) for image in images
        ]
        assert await entered()
        await until(lambda: sum(depths().values()) == len(images) - 1)
        seen = set(depths())
        runtime.gate.set()
        await asyncio.gather(*asked)
    kinds = ("image", "depth", "normals", "segmentation")
    served = {f"{kind} {size}" for kind in kinds for size in ("28x28", "28x42")}
    assert seen <= {*served, "image other"}
    assert "image other" in seen
