"""Memory is given back once it has risen well over what was left the last time, and only then."""

import asyncio

from service.process_memory import resident_bytes, trim, trimming_memory

TIMEOUT_S = 20.0


async def test_it_trims_what_has_risen_and_counts_from_what_is_left() -> None:
    # At the start; a little more; much more, trimmed to 120; a little more than that; much more.
    seen = iter([100, 110, 200, 120, 140, 300, 150])
    at_trims: list[int] = []
    last = 0
    is_over = asyncio.Event()

    def resident() -> int:
        nonlocal last
        last = next(seen, 0)
        if not last:
            is_over.set()
        return last

    def give_back() -> None:
        at_trims.append(last)

    async with trimming_memory(0.001, resident, give_back):
        await asyncio.wait_for(is_over.wait(), TIMEOUT_S)
    assert at_trims == [200, 300]


async def test_it_ends_with_the_block() -> None:
    looks = 0

    def resident() -> int:
        nonlocal looks
        looks += 1
        return 1

    async with trimming_memory(0.001, resident, trim):
        await asyncio.sleep(0.01)
    seen = looks
    await asyncio.sleep(0.01)
    assert looks == seen


def test_this_process_has_memory() -> None:
    assert resident_bytes() > 1024 * 1024
    trim()
