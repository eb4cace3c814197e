"""The text cache is bounded and computes nothing twice; the encoder shares computations."""

import asyncio
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from service.call import Call
from service.errors import InternalError, InvalidRequest
from service.lanes.work import Completed
from service.models.registry import ModelRegistry
from service.models.served_model import ServedModel
from service.models.texts import (
    ENTRY_OVERHEAD_BYTES,
    Computation,
    PromptSet,
    TextCache,
    TextEmbedding,
    TextEmbeddings,
)
from service.monitoring.metrics import Metrics
from tests.service.conftest import WAIT_S, Entered, FakeRuntime, sample, until

PROMPTS = ("a", "b", "c", "d")
ENTRY_BYTES = sys.getsizeof("a") + 4 + ENTRY_OVERHEAD_BYTES


@pytest.fixture
def cache(metrics: Metrics) -> TextCache:
    """Holds two prompts of one letter."""
    return TextCache(2 * ENTRY_BYTES, metrics)


def vector(value: float) -> TextEmbedding:
    return np.array([value], np.float32)


def completed(value: float) -> Completed:
    return Completed(outputs={"text": vector(value)}, queue_s=0.0, run_s=0.0)


def add(cache: TextCache, prompt: str) -> None:
    """Join and compute, as a request does."""
    joined, begun = cache.join([prompt])
    for computation in begun:
        computation.future.settle(completed(1))
    cache.leave(joined)


@pytest.mark.parametrize("use", ["find", "join"])
def test_the_least_recently_used_entry_goes_first(cache: TextCache, use: str) -> None:
    add(cache, "a")
    add(cache, "b")
    if use == "find":
        assert set(cache.find(["a"])) == {"a"}
    else:
        add(cache, "a")
    add(cache, "c")
    add(cache, "y" * 10 * ENTRY_BYTES)  # an entry above the bound is not kept
    found = cache.find(["a", "b", "c"])
    assert set(found) == {"a", "c"}
    assert not found["a"].flags.writeable
    assert cache.num_bytes == 2 * ENTRY_BYTES


class TextCacheMachine(RuleBasedStateMachine):
    """Requests that come and go at any moment; lanes that answer, fail or are late."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = TextCache(2 * ENTRY_BYTES, Metrics())
        self.requests: list[list[Computation]] = []
        self.queued: list[Computation] = []
        self.running: list[Computation] = []

    @rule(prompts=st.lists(st.sampled_from(PROMPTS), min_size=1))
    def arrive(self, prompts: list[str]) -> None:
        joined, begun = self.cache.join(prompts)
        assert {c.prompt for c in joined} == set(prompts)
        self.requests.append(joined)
        self.queued += begun

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        self.cache.leave(self.requests.pop(draw_index(data, self.requests)))

    @precondition(lambda self: self.queued)
    @rule(data=st.data())
    def run(self, data: st.DataObject) -> None:
        computation = self.queued.pop(draw_index(data, self.queued))
        is_wanted = any(computation in joined for joined in self.requests)
        assert computation.future.start() == is_wanted, "computed if and only if it is wanted"
        if is_wanted:
            self.running.append(computation)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), fails=st.booleans())
    def answer(self, data: st.DataObject, fails: bool) -> None:
        computation = self.running.pop(draw_index(data, self.running))
        if fails:
            computation.future.settle(error=InternalError("no"))
            assert computation.prompt not in self.cache.find([computation.prompt])
        else:
            computation.future.settle(completed(PROMPTS.index(computation.prompt)))

    @invariant()
    def no_prompt_is_computed_twice_at_a_time(self) -> None:
        live = [c.prompt for c in self.queued + self.running if not c.future.done()]
        assert len(live) == len(set(live))

    @invariant()
    def every_request_gets_its_own_embeddings(self) -> None:
        for computation in [c for joined in self.requests for c in joined]:
            future = computation.future
            if future.done() and future.error is None:
                value = future.result().outputs["text"][0]
                assert value == PROMPTS.index(computation.prompt)

    @invariant()
    def the_bound_holds(self) -> None:
        assert self.cache.num_bytes == len(self.cache) * ENTRY_BYTES <= 2 * ENTRY_BYTES

    def teardown(self) -> None:
        """After all work is answered no request waits and no computation is left."""
        for computation in [*self.running, *(c for c in self.queued if c.future.start())]:
            computation.future.settle(completed(PROMPTS.index(computation.prompt)))
        assert all(c.future.done() for joined in self.requests for c in joined)
        assert not self.cache._in_flight


def draw_index(data: st.DataObject, items: list[Any]) -> int:
    return data.draw(st.integers(0, len(items) - 1))


TestTextCacheMachine = TextCacheMachine.TestCase
TestTextCacheMachine.settings = settings(max_examples=25, stateful_step_count=30, deadline=None)


@pytest.fixture
def model(
    load_fake: Any, make_settings: Any, metrics: Metrics, runtime: FakeRuntime
) -> Iterator[ServedModel]:
    served: ServedModel = load_fake(make_settings(), metrics)
    ModelRegistry(metrics).put(served)
    yield served
    runtime.gate.set()
    served.close(WAIT_S)


Encode = Callable[..., "asyncio.Task[TextEmbeddings]"]


@pytest.fixture
def encode(model: ServedModel, pool: ThreadPoolExecutor) -> Encode:
    """Start a request for these prompts, given with the fields that name them."""

    def start(
        missing: dict[str, str], executor: ThreadPoolExecutor = pool, call: Call | None = None
    ) -> "asyncio.Task[TextEmbeddings]":
        prompts = PromptSet(groups=(), cached={}, missing=missing)
        call = call or Call(request_id="test", deadline=time.monotonic() + WAIT_S)
        return asyncio.ensure_future(model.texts.encode(prompts, call, executor))

    return start


async def test_prompts_without_a_waiter_leave_the_queue(
    encode: Encode, runtime: FakeRuntime, metrics: Metrics, entered: Entered
) -> None:
    runtime.gate.clear()
    busy = encode({"busy": "texts[0]"})
    assert await entered()
    leaving = [encode({"dog": "texts[0]", "cat": "texts[1]"}) for _ in "ab"]

    def depth() -> float:
        return sample(metrics, "queue_depth", bucket="text 8")

    await until(lambda: depth() == 2)
    for request, left in zip(leaving, (2, 0), strict=True):
        request.cancel()
        await asyncio.gather(request, return_exceptions=True)
        assert depth() == left
    assert sample(metrics, "abandoned_total", reason="cancelled") == 2
    runtime.gate.set()
    await busy
    assert runtime.num_texts == 1


async def test_a_blank_prompt_is_reported_under_the_field_of_each_request(
    encode: Encode, runtime: FakeRuntime, metrics: Metrics
) -> None:
    held = threading.Event()
    with ThreadPoolExecutor(1) as busy:
        busy.submit(held.wait, WAIT_S)
        requests = [
            encode({"dog": "classes[0]", "\u200b": "classes[1]"}, busy),
            encode({"\u200b": "texts[4]"}, busy),
            encode({"dog": "texts[0]"}, busy),
        ]
        await until(lambda: sample(metrics, "text_cache_coalesced_total") == 2)
        held.set()
        first, second, third = await asyncio.gather(*requests, return_exceptions=True)
    assert isinstance(first, InvalidRequest)
    assert isinstance(second, InvalidRequest)
    assert (first.code, first.param, second.param) == ("blank_text", "classes[1]", "texts[4]")
    assert not isinstance(third, BaseException)
    assert set(third) == {"dog"}
    assert runtime.num_texts == 1


async def test_every_request_gets_its_own_error_which_is_not_cached(
    encode: Encode, runtime: FakeRuntime, metrics: Metrics, entered: Entered
) -> None:
    runtime.gate.clear()
    first = encode({"dog": "texts[0]"})
    assert await entered()
    second = encode({"dog": "texts[0]"})
    await until(lambda: sample(metrics, "text_cache_coalesced_total") == 1)
    runtime.fault = "raise"
    runtime.gate.set()
    one, two = await asyncio.gather(first, second, return_exceptions=True)
    assert isinstance(one, InternalError)
    assert isinstance(two, InternalError)
    assert one is not two
    assert one.__cause__ is two.__cause__ is not None
    runtime.fault = ""
    assert set(await encode({"dog": "texts[0]"})) == {"dog"}
