"""Equal requests at the same time, on several event loops: one computation, an answer for each."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from service.call import Call
from service.errors import InternalError, InvalidRequest, Unavailable
from service.models.registry import ModelRegistry
from service.models.served_model import ServedModel
from service.models.texts import PromptSet, TextEmbeddings
from service.monitoring.metrics import Metrics

if TYPE_CHECKING:
    from tests.service.conftest import FakeRuntime

Entered = Callable[[], Awaitable[bool]]
PROMPTS = {"dog": "texts[0]", "cat": "texts[1]", "a photo of a dog": "texts[2]"}
LIMIT_S = 20.0


@pytest.fixture
def model(
    load_fake: Any, make_settings: Any, metrics: Metrics, runtime: "FakeRuntime"
) -> Iterator[ServedModel]:
    served: ServedModel = load_fake(make_settings(), metrics)
    ModelRegistry(metrics).put(served)
    yield served
    runtime.gate.set()
    served.close(LIMIT_S)


@pytest.fixture
async def second_loop() -> AsyncIterator[asyncio.AbstractEventLoop]:
    """Another loop in a thread of its own, as gRPC's is."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield loop
    loop.call_soon_threadsafe(loop.stop)
    await asyncio.to_thread(thread.join, LIMIT_S)
    loop.close()


def call() -> Call:
    return Call(request_id="test", deadline=time.monotonic() + LIMIT_S)


def encode(
    model: ServedModel, missing: Mapping[str, str], asked: Call, pool: ThreadPoolExecutor
) -> Coroutine[Any, Any, TextEmbeddings]:
    prompts = PromptSet(groups=(), cached={}, missing=missing)
    return model.texts.encode(prompts, asked, pool)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not condition():
            await asyncio.sleep(0.001)


def sample(metrics: Metrics, name: str, **labels: str) -> float:
    return metrics.registry.get_sample_value(f"tipserve_{name}_total", labels) or 0.0


async def test_a_hundred_equal_requests_on_two_loops_compute_each_prompt_once(
    model: ServedModel,
    pool: ThreadPoolExecutor,
    runtime: "FakeRuntime",
    metrics: Metrics,
    second_loop: asyncio.AbstractEventLoop,
) -> None:
    runtime.gate.clear()
    here = [asyncio.ensure_future(encode(model, PROMPTS, call(), pool)) for _ in range(50)]
    there: list[Future[Any]] = [
        asyncio.run_coroutine_threadsafe(encode(model, PROMPTS, call(), pool), second_loop)
        for _ in range(50)
    ]
    await until(lambda: sample(metrics, "text_cache_coalesced") == 99 * len(PROMPTS))
    runtime.gate.set()
    answers = await asyncio.gather(*here)
    answers += [await asyncio.wrap_future(future) for future in there]
    assert runtime.num_texts == len(PROMPTS)
    assert len(answers) == 100
    for embeddings in answers:
        assert set(embeddings) == set(PROMPTS)
        for prompt in PROMPTS:
            np.testing.assert_array_equal(embeddings[prompt], answers[0][prompt])
    assert sample(metrics, "text_cache_misses") == len(PROMPTS)


async def test_the_first_request_may_be_cancelled_and_the_others_are_answered(
    model: ServedModel, pool: ThreadPoolExecutor, runtime: "FakeRuntime", metrics: Metrics
) -> None:
    runtime.gate.clear()
    first = asyncio.ensure_future(encode(model, PROMPTS, call(), pool))
    await until(lambda: sample(metrics, "text_cache_misses") == len(PROMPTS))
    others = [asyncio.ensure_future(encode(model, PROMPTS, call(), pool)) for _ in range(3)]
    await until(lambda: sample(metrics, "text_cache_coalesced") == 3 * len(PROMPTS))
    first.cancel()
    others[1].cancel()
    with suppress(asyncio.CancelledError):
        await first
    runtime.gate.set()
    assert set(await others[0]) == set(await others[2]) == set(PROMPTS)
    assert runtime.num_texts == len(PROMPTS)


async def test_work_that_no_request_waits_for_leaves_the_queue(
    model: ServedModel,
    pool: ThreadPoolExecutor,
    runtime: "FakeRuntime",
    metrics: Metrics,
    entered: Entered,
) -> None:
    runtime.gate.clear()
    busy = asyncio.ensure_future(encode(model, {"busy": "texts[0]"}, call(), pool))
    assert await entered()
    prompts = {"dog": "texts[0]", "cat": "texts[1]"}
    leaving = [asyncio.ensure_future(encode(model, prompts, call(), pool)) for _ in "ab"]
    depth = "tipserve_queue_depth", {"bucket": "text 8"}
    await until(lambda: metrics.registry.get_sample_value(*depth) == 2)
    leaving[0].cancel()
    await asyncio.gather(leaving[0], return_exceptions=True)
    assert metrics.registry.get_sample_value(*depth) == 2
    leaving[1].cancel()
    await asyncio.gather(leaving[1], return_exceptions=True)
    assert sample(metrics, "abandoned", reason="cancelled") == 2
    runtime.gate.set()
    await busy
    assert runtime.num_texts == 1


async def test_a_request_cancelled_before_the_pool_begins_leaves_nothing_behind(
    model: ServedModel, runtime: "FakeRuntime"
) -> None:
    held = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(held.wait, LIMIT_S)
        leaving = asyncio.ensure_future(encode(model, PROMPTS, call(), pool))
        await asyncio.sleep(0)
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        again = asyncio.ensure_future(encode(model, {"dog": "texts[0]"}, call(), pool))
        await asyncio.sleep(0)
        held.set()
        assert set(await again) == {"dog"}
    assert runtime.num_texts == 1


async def test_an_error_reaches_all_and_the_next_request_computes_again(
    model: ServedModel, pool: ThreadPoolExecutor, runtime: "FakeRuntime", metrics: Metrics
) -> None:
    runtime.gate.clear()
    runtime.fault = "raise"
    asks = [asyncio.ensure_future(encode(model, PROMPTS, call(), pool)) for _ in range(4)]
    await until(lambda: sample(metrics, "text_cache_coalesced") == 3 * len(PROMPTS))
    runtime.gate.set()
    errors = await asyncio.gather(*asks, return_exceptions=True)
    assert [type(error) for error in errors] == [InternalError] * 4
    assert len({id(error) for error in errors}) == 4
    runtime.fault = ""
    async with asyncio.timeout(LIMIT_S):
        while True:
            # The error of another prompt in flight also reaches requests that join it.
            with suppress(InternalError):
                embeddings = await encode(model, PROMPTS, call(), pool)
                break
    assert set(embeddings) == set(PROMPTS)


async def test_a_blank_prompt_is_reported_under_the_field_of_each_request(
    model: ServedModel, runtime: "FakeRuntime", metrics: Metrics
) -> None:
    held = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(held.wait, LIMIT_S)
        asks = [
            asyncio.ensure_future(encode(model, missing, call(), pool))
            for missing in (
                {"dog": "classes[0]", "\u200b": "classes[1]"},
                {"\u200b": "texts[4]"},
                {"dog": "texts[0]"},
            )
        ]
        await until(lambda: sample(metrics, "text_cache_coalesced") == 2)
        held.set()
        first, second, third = await asyncio.gather(*asks, return_exceptions=True)
    assert isinstance(first, InvalidRequest)
    assert isinstance(second, InvalidRequest)
    assert (first.code, first.param, second.param) == ("blank_text", "classes[1]", "texts[4]")
    assert not isinstance(third, BaseException)
    assert set(third) == {"dog"}
    assert runtime.num_texts == 1


async def test_a_stopped_pool_and_a_stopped_batcher_fail_the_request(
    model: ServedModel, pool: ThreadPoolExecutor
) -> None:
    ended = ThreadPoolExecutor(1)
    ended.shutdown()
    with pytest.raises(Unavailable):
        await encode(model, PROMPTS, call(), ended)
    model.close(LIMIT_S)
    with pytest.raises(Unavailable):
        await encode(model, PROMPTS, call(), pool)


async def test_a_request_that_joins_late_does_not_count_earlier_waits(
    model: ServedModel, pool: ThreadPoolExecutor, runtime: "FakeRuntime", entered: Entered
) -> None:
    runtime.gate.clear()
    first = asyncio.ensure_future(encode(model, PROMPTS, call(), pool))
    assert await entered()
    now = time.monotonic()
    stopped = Call(request_id="test", deadline=now + LIMIT_S, clock=lambda: now)
    late = asyncio.ensure_future(encode(model, PROMPTS, stopped, pool))
    await asyncio.sleep(0)
    runtime.gate.set()
    await first
    await late
    assert stopped.stages == {"queue": 0.0, "run": 0.0}
