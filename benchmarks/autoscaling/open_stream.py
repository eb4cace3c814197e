"""Sends requests as an open Poisson stream, and notes what each answer says of its stages."""

import asyncio
import random
import re
import statistics
import time
from dataclasses import dataclass, field
from typing import Final

from benchmarks.load import RestConnection

ALONE: Final = 40
STAGE: Final = re.compile(rb"\b(queue|run);dur=([\d.]+)")


@dataclass(slots=True)
class Observed:
    """What one load's answers told, in the order of the answers."""

    sent: list[float] = field(default_factory=list)
    queue_s: list[float] = field(default_factory=list)
    run_s: list[float] = field(default_factory=list)

    def note(self, sent: float, head: bytes) -> None:
        """Read one answer's stage times."""
        told = {name: float(value) / 1000 for name, value in STAGE.findall(head)}
        self.sent.append(sent)
        self.queue_s.append(told[b"queue"])
        self.run_s.append(told[b"run"])

    @property
    def rate(self) -> float:
        """Requests a second that came."""
        return len(self.sent) / (max(self.sent) - min(self.sent))

    @property
    def variation(self) -> float:
        """Coefficient of variation of the run times."""
        return statistics.pstdev(self.run_s) / statistics.mean(self.run_s)


async def alone(port: int, request: bytes) -> Observed:
    """Some requests, one after the other."""
    connection, observed = await RestConnection.open(port), Observed()
    for _ in range(ALONE):
        sent = time.perf_counter()
        await connection.ask(request)
        observed.note(sent, connection.head)
    connection.close()
    return observed


async def poisson(port: int, request: bytes, rate: float, length_s: float) -> Observed:
    """Whatever comes back, the next is sent when its time has come.

    Raises:
        RuntimeError: The server refused one; it has to be started with room for all.
    """
    observed, idle = Observed(), list[RestConnection]()
    rng, due = random.Random(1), time.perf_counter()
    ends = due + length_s

    async def one() -> None:
        while idle and idle[-1].is_closed:
            idle.pop()
        connection = idle.pop() if idle else await RestConnection.open(port)
        sent = time.perf_counter()
        status = await connection.ask(request)
        if status != "200":
            raise RuntimeError(f"the server answered {status}")
        observed.note(sent, connection.head)
        idle.append(connection)

    async with asyncio.TaskGroup() as group:
        while (due := due + rng.expovariate(rate)) < ends:
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            group.create_task(one())
    for connection in idle:
        connection.close()
    return observed
