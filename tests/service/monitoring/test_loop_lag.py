"""A loop that was held says for how long; a watch ends with its block."""

import asyncio
import time

import pytest

from service.monitoring.loop_lag import watching_lag

INTERVAL_S = 0.01
HELD_S = 0.05


@pytest.fixture(autouse=True)
def _short_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.monitoring.loop_lag.INTERVAL_S", INTERVAL_S)


async def test_what_holds_the_loop_is_seen() -> None:
    lags: list[float] = []
    async with watching_lag(lags.append):
        await asyncio.sleep(0)
        time.sleep(HELD_S)  # what is watched for
        async with asyncio.timeout(20):
            while not lags:
                await asyncio.sleep(INTERVAL_S)
    # It was due one interval after the start, and the loop was held for all of `HELD_S`.
    assert lags[0] >= HELD_S - INTERVAL_S - 0.001


async def test_the_watch_ends_with_its_block() -> None:
    before = asyncio.all_tasks()
    async with watching_lag(lambda _: None):
        assert asyncio.all_tasks() > before
    assert asyncio.all_tasks() == before
