"""The text cache is bounded, forgets what was not used for longest, and computes nothing twice."""

import sys
from concurrent.futures import Future

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from service.errors import InternalError
from service.lanes.work import Completed
from service.models.texts import ENTRY_OVERHEAD_BYTES, InFlight, TextCache, TextEmbedding, Waiter
from service.monitoring.metrics import Metrics

PROMPTS = ("a", "b", "c", "d")
ENTRY_BYTES = sys.getsizeof("a") + 4 + ENTRY_OVERHEAD_BYTES


def vector(value: float) -> TextEmbedding:
    return np.array([value], np.float32)


def completed(value: float) -> Completed:
    return Completed(outputs={"text": vector(value)}, queue_s=0.0, run_s=0.0)


def add(cache: TextCache, prompt: str, value: float) -> None:
    """As a request would: begin its computation, and answer it."""
    waiter, begun = cache.join([prompt])
    for computation in begun:
        work: Future[Completed] = Future()
        cache.launch(computation, work)
        work.set_result(completed(value))
    cache.leave(waiter)


def test_the_least_recently_used_goes_first(metrics: Metrics) -> None:
    cache = TextCache(2 * ENTRY_BYTES, metrics)
    add(cache, "a", 1)
    add(cache, "b", 2)
    assert set(cache.find(["a"])) == {"a"}
    add(cache, "c", 3)
    assert set(cache.find(["a", "b", "c"])) == {"a", "c"}
    assert cache.num_bytes == 2 * ENTRY_BYTES


def test_what_is_waited_for_and_there_counts_as_used(metrics: Metrics) -> None:
    cache = TextCache(2 * ENTRY_BYTES, metrics)
    add(cache, "a", 1)
    add(cache, "b", 2)
    waiter, _ = cache.join(["a"])
    cache.leave(waiter)
    add(cache, "c", 3)
    assert set(cache.find(["a", "b", "c"])) == {"a", "c"}


def test_a_long_text_counts_by_its_length(metrics: Metrics) -> None:
    cache = TextCache(10 * ENTRY_BYTES, metrics)
    for prompt in "abcdefgh":
        add(cache, prompt, 1)
    add(cache, "x" * (4 * ENTRY_BYTES + 1), 2)
    assert len(cache) == 5 + 1, "it takes the place of five letters"
    assert cache.num_bytes == 10 * ENTRY_BYTES
    add(cache, "y" * 10 * ENTRY_BYTES, 3)
    assert len(cache) == 5 + 1, "what is larger than the bound throws nothing out"


def test_each_prompt_is_counted_once_as_hit_miss_or_coalesced(metrics: Metrics) -> None:
    cache = TextCache(9 * ENTRY_BYTES, metrics)
    add(cache, "a", 1)
    assert set(cache.find(["a", "a", "b"])) == {"a"}
    first, _ = cache.join(["b", "c"])
    second, begun = cache.join(["a", "b"])
    assert begun == []
    sample = metrics.registry.get_sample_value
    counts = [sample(f"tipserve_text_cache_{n}_total") for n in ("hits", "misses", "coalesced")]
    assert counts == [2, 3, 1]
    cache.leave(first)
    cache.leave(second)


def test_callers_get_an_error_each_and_its_cause(metrics: Metrics) -> None:
    cache = TextCache(9 * ENTRY_BYTES, metrics)
    waits = [cache.join(["a"]) for _ in range(2)]
    error = InternalError("broken", param="texts[0]")
    error.__cause__ = ValueError("why")
    cache.fail(waits[0][1][0], error)
    errors = [waiter.done.exception(0) for waiter, _ in waits]
    assert errors[0] is not errors[1]
    for got in errors:
        assert isinstance(got, InternalError)
        assert (got.message, got.param, got.__cause__) == ("broken", "texts[0]", error.__cause__)
    assert cache.join(["a"])[1], "an error is not kept"


def test_what_else_a_caller_wanted_is_taken_back_as_soon_as_one_prompt_fails(
    metrics: Metrics,
) -> None:
    cache = TextCache(9 * ENTRY_BYTES, metrics)
    waiter, (failing, other) = cache.join(["a", "b"])
    work: Future[Completed] = Future()
    cache.launch(other, work)
    cache.fail(failing, InternalError("no"))
    assert work.cancelled(), "before the caller has woken"
    assert not waiter.in_flight


def test_what_runs_already_is_joined_by_those_who_come_after_everybody_left(
    metrics: Metrics,
) -> None:
    cache = TextCache(9 * ENTRY_BYTES, metrics)
    waiter, (computation,) = cache.join(["a"])
    work: Future[Completed] = Future()
    cache.launch(computation, work)
    assert work.set_running_or_notify_cancel()
    cache.leave(waiter)
    late, begun = cache.join(["a"])
    assert begun == []
    work.set_result(completed(5))
    assert late.done.done()
    np.testing.assert_array_equal(late.embeddings["a"], vector(5))


def test_nobody_may_change_what_is_kept(metrics: Metrics) -> None:
    cache = TextCache(9 * ENTRY_BYTES, metrics)
    add(cache, "a", 1)
    with pytest.raises(ValueError, match="read-only"):
        cache.find(["a"])["a"][0] = 2


class TextCacheMachine(RuleBasedStateMachine):
    """Callers who come and go at any moment, lanes that answer, fail or are late."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = TextCache(2 * ENTRY_BYTES, Metrics())
        self.waiters: list[tuple[Waiter, list[str]]] = []
        self.begun: list[InFlight] = []
        self.queued: list[tuple[InFlight, Future[Completed]]] = []
        self.running: list[tuple[InFlight, Future[Completed]]] = []
        self.num_failed = 0

    @rule(prompts=st.lists(st.sampled_from(PROMPTS), min_size=1))
    def come(self, prompts: list[str]) -> None:
        waiter, begun = self.cache.join(prompts)
        self.waiters.append((waiter, prompts))
        self.begun += begun

    @precondition(lambda self: self.waiters)
    @rule(data=st.data(), hangs_up=st.booleans())
    def go(self, data: st.DataObject, hangs_up: bool) -> None:
        waiter, _ = self.waiters.pop(data.draw(st.integers(0, len(self.waiters) - 1)))
        if hangs_up:
            waiter.done.cancel()
        self.cache.leave(waiter)

    @precondition(lambda self: self.begun)
    @rule(data=st.data(), fails=st.booleans())
    def launch(self, data: st.DataObject, fails: bool) -> None:
        computation = self.begun.pop(data.draw(st.integers(0, len(self.begun) - 1)))
        if fails:
            self.num_failed += 1
            self.cache.fail(computation, InternalError("no"))
            return
        work: Future[Completed] = Future()
        self.cache.launch(computation, work)
        self.queued.append((computation, work))

    @precondition(lambda self: self.queued)
    @rule(data=st.data())
    def take(self, data: st.DataObject) -> None:
        computation, work = self.queued.pop(data.draw(st.integers(0, len(self.queued) - 1)))
        was_wanted = bool(computation.waiters)
        assert work.set_running_or_notify_cancel() == was_wanted, (
            "computed without a waiter, or not computed for one"
        )
        if was_wanted:
            self.running.append((computation, work))

    @precondition(lambda self: self.running)
    @rule(data=st.data(), fails=st.booleans())
    def answer(self, data: st.DataObject, fails: bool) -> None:
        computation, work = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        if fails:
            self.num_failed += 1
            work.set_exception(InternalError("no"))
        else:
            work.set_result(completed(PROMPTS.index(computation.prompt)))

    @invariant()
    def no_prompt_is_computed_twice_at_a_time(self) -> None:
        live = [f.prompt for f in self.begun if f.waiters]
        live += [f.prompt for f, work in self.queued + self.running if not work.done()]
        assert len(live) == len(set(live))

    @invariant()
    def every_wait_is_answered_as_soon_as_it_can_be_and_rightly(self) -> None:
        for waiter, prompts in self.waiters:
            if not waiter.done.done():
                assert waiter.in_flight, "nothing is left to wait for, and no answer came"
                missing = {computation.prompt for computation in waiter.in_flight}
                assert missing | set(waiter.embeddings) == set(prompts)
            elif waiter.done.exception() is None:
                values = {p: float(e[0]) for p, e in waiter.embeddings.items()}
                assert values == {p: PROMPTS.index(p) for p in prompts}

    @invariant()
    def the_bound_holds(self) -> None:
        assert self.cache.num_bytes == len(self.cache) * ENTRY_BYTES <= 2 * ENTRY_BYTES

    def teardown(self) -> None:
        """After all work is answered no waiter and no entry is left, in any order of events."""
        for computation in self.begun:
            self.cache.fail(computation, InternalError("no"))
        for computation, work in self.queued:
            if work.set_running_or_notify_cancel():
                self.running.append((computation, work))
        for computation, work in self.running:
            work.set_result(completed(PROMPTS.index(computation.prompt)))
        assert all(waiter.done.done() for waiter, _ in self.waiters)
        assert all(not waiter.in_flight for waiter, _ in self.waiters)
        assert not self.cache._in_flight


TestTextCacheMachine = TextCacheMachine.TestCase
TestTextCacheMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
