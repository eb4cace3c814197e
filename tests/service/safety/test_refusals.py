"""Refusals of a host are sent at a bounded rate."""

import asyncio

import pytest

from service.safety.refusals import (
    MAX_REFUSAL_WAIT_S,
    MIN_FLOWS,
    REFUSALS_AT_ONCE,
    REFUSALS_PER_S,
    RefusalPace,
)

LIMIT_S = 20.0


def test_refusals_of_a_host_beyond_its_rate_wait_in_turn() -> None:
    pace = RefusalPace()
    waits_s = [pace.wait_s("http 1", 50.0) for _ in range(REFUSALS_AT_ONCE + 3)]
    assert max(waits_s[:REFUSALS_AT_ONCE]) <= 1e-9
    expected_s = [n / REFUSALS_PER_S for n in (1, 2, 3)]
    assert waits_s[REFUSALS_AT_ONCE:] == pytest.approx(expected_s)
    assert pace.wait_s("http 2", 50.0) < 0, "another host's refusals are sent at once"
    num_more = round(MAX_REFUSAL_WAIT_S * REFUSALS_PER_S)
    again_s = [pace.wait_s("http 1", 50.0) for _ in range(num_more)]
    assert again_s[-1] == pytest.approx(MAX_REFUSAL_WAIT_S)
    assert pace.wait_s("http 1", 50.0 + MAX_REFUSAL_WAIT_S + 2.0) < 0


def test_hosts_that_were_refused_long_ago_are_forgotten() -> None:
    pace = RefusalPace()
    for number in range(10_000):
        pace.wait_s(f"http {number}", 50.0 + number)
    assert pace.num_flows <= MIN_FLOWS


async def test_a_refusal_is_sent_in_its_turn_or_when_it_is_needed() -> None:
    pace, needed = RefusalPace(), asyncio.Event()
    async with asyncio.timeout(LIMIT_S):
        for _ in range(REFUSALS_AT_ONCE + 3):
            await pace.wait("http 1", needed)
    for _ in range(2 * REFUSALS_PER_S):
        pace.wait_s("http 1", asyncio.get_running_loop().time())
    waiting = asyncio.ensure_future(pace.wait("http 1", needed))
    await asyncio.sleep(0)
    assert not waiting.done()
    needed.set()
    await asyncio.wait_for(waiting, LIMIT_S)
