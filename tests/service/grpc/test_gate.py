"""The gate holds who comes and who goes, until nobody has come for a while."""

import asyncio

from service.grpc.limits import Gate

LIMIT_S = 20.0


async def test_held_until_it_is_released() -> None:
    gate = Gate()
    await gate.come_in()
    await gate.pass_by()
    await gate.hold(quiet_s=0.0, limit_s=LIMIT_S)
    coming = asyncio.ensure_future(gate.come_in())
    going = asyncio.ensure_future(gate.pass_by())
    await asyncio.sleep(0.02)
    assert not coming.done()
    assert not going.done()
    gate.release()
    await asyncio.wait_for(asyncio.gather(coming, going), LIMIT_S)


class FakeClock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


async def turns() -> None:
    """Let the gate look at its clock."""
    for _ in range(3):
        await asyncio.sleep(0.02)


async def test_whoever_comes_makes_it_wait_longer() -> None:
    clock = FakeClock()
    gate = Gate(clock)
    holding = asyncio.ensure_future(gate.hold(quiet_s=1.0, limit_s=100.0))
    await turns()
    held = []
    for _ in range(3):
        clock.now += 0.9
        held.append(asyncio.ensure_future(gate.come_in()))
        await turns()
        assert not holding.done()
    clock.now += 1.1
    await asyncio.wait_for(holding, LIMIT_S)
    gate.release()
    await asyncio.gather(*held)


async def test_callers_who_never_stop_coming_do_not_hold_it_for_good() -> None:
    clock = FakeClock()
    gate = Gate(clock)
    holding = asyncio.ensure_future(gate.hold(quiet_s=1.0, limit_s=1.5))
    await turns()
    clock.now += 0.9
    coming = asyncio.ensure_future(gate.come_in())
    await turns()
    clock.now += 0.9
    await asyncio.wait_for(holding, LIMIT_S)
    gate.release()
    await coming
