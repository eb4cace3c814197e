"""A model in this process: requests wait for a full queue, until their deadline."""

from collections.abc import Callable

import numpy as np
import pytest

from service.call import Call
from service.errors import InvalidRequest, Overloaded
from service.messages import EstimateMapsRequest
from service.models.served_model import ServedModel
from service.settings import Settings
from tests.service.conftest import Encode, FakeRuntime
from tipserve_cli.engines.engine import EngineError, ImageRefused
from tipserve_cli.engines.in_process import DEADLINE_S, InProcessEngine, retry_overload


class Clock:
    """Moves only by pauses."""

    def __init__(self) -> None:
        self.now = 0.0

    async def sleep(self, seconds: float) -> None:
        self.now += seconds

    def __call__(self) -> float:
        return self.now


async def test_a_request_waits_for_a_full_queue_until_its_deadline() -> None:
    clock = Clock()
    calls: list[Call] = []

    async def ask(call: Call) -> str:
        calls.append(call)
        if len(calls) < 3:
            raise Overloaded("full", retry_after_s=20.0)
        return "done"

    assert await retry_overload(ask, clock=clock, sleep=clock.sleep) == "done"
    assert (clock.now, {call.deadline for call in calls}) == (40.0, {DEADLINE_S})

    async def never(call: Call) -> str:
        raise Overloaded("full", retry_after_s=20.0)

    with pytest.raises(EngineError, match="full"):
        await retry_overload(never, clock=clock, sleep=clock.sleep)
    assert DEADLINE_S <= clock.now <= DEADLINE_S + 40


async def test_other_errors_are_final() -> None:
    async def ask(call: Call) -> str:
        raise InvalidRequest("images[0]: no image", code="invalid_image", param="images[0]")

    clock = Clock()
    with pytest.raises(ImageRefused, match=r"^no image$"):
        await retry_overload(ask, clock=clock, sleep=clock.sleep)
    assert clock.now == 0


def test_maps_are_computed_if_the_model_has_their_head(
    load_fake: Callable[..., ServedModel], runtime: FakeRuntime, encode_image: Encode
) -> None:
    runtime.tasks = ("normals",)
    engine = InProcessEngine(Settings(), load_fake)
    request = EstimateMapsRequest(task="normals", images=(encode_image(),))
    normals_HW3 = engine.estimate(request).result()
    assert normals_HW3.shape == (30, 40, 3)
    assert np.allclose(np.linalg.norm(normals_HW3, axis=-1), 1)
    with pytest.raises(EngineError, match="has a head for depth, but the runtime"):
        engine.estimate(EstimateMapsRequest(task="depth", images=request.images)).result()
    engine.close()
