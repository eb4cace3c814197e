"""Rolling restarts under load behind a proxy, and the outcomes of all requests."""

import io
import signal
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image

from tests.processes.constant_callers import ConstantCallers, KeptConnection
from tests.processes.proxy import Proxy
from tests.processes.replicas import Deletion, Replicas

FLAGS: Final = ("--model=bundled-student", "--host=127.0.0.1", "--lanes=1", "--warm-up-limit-s=0")
STREAM_PATH: Final = "/tipserve.v1.EncoderService/Stream"
FAULTS: Final[Mapping[str, Deletion]] = {
    "none": Deletion(),
    # A pod that dies: no drain, and the proxy is updated afterwards.
    "kill": Deletion(pre_stop_s=0.0, notice_s=1.0, number=signal.SIGKILL),
    # The proxy is updated in time, but requests in flight are not awaited.
    "no-drain": Deletion(number=signal.SIGKILL),
    # Without preStop the replica stops accepting before the proxy is updated.
    "no-pre-stop": Deletion(pre_stop_s=0.0, notice_s=2.0),
}
LIMIT_S: Final = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Results of all rounds.

    Attributes:
        answered: Correct answers, by protocol.
        failed: Failures, by description.
        exit_statuses: Exit statuses of the replaced replicas.
        num_streams: Streams opened for the endless stream, each on one replica.
        num_repeated: Requests that the proxy retried.
    """

    answered: Mapping[str, int]
    failed: Mapping[str, int]
    exit_statuses: Mapping[int, int]
    num_streams: int
    num_repeated: int


def images(count: int = 16) -> list[bytes]:
    """Return PNGs that the model can distinguish."""
    found = []
    for seed in range(count):
        noise = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        stream = io.BytesIO()
        Image.fromarray(noise).resize((96, 96), Image.Resampling.BICUBIC).save(stream, "PNG")
        found.append(stream.getvalue())
    return found


def roll(
    program: str,
    deletion: Deletion,
    *,
    num_replaced: int,
    flags: Sequence[str] = (),
    check_interval: str = "2s",
) -> Outcome:
    """Replace replicas under load behind this `haproxy`, the oldest each time."""
    encoded = images()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with (
            Proxy(program, folder, check_interval=check_interval) as proxy,
            Replicas(proxy, folder, [*FLAGS, *flags], num_replaced=num_replaced) as replicas,
        ):
            ask = KeptConnection(proxy.ports["http"])
            expected = [ask(image) for image in encoded]
            ask.close()
            with ConstantCallers(proxy.ports, encoded, expected) as callers:
                wait_for_more(callers)
                for index in range(num_replaced):
                    replicas.replace_oldest(deletion)
                    wait_for_more(callers)
                    told = f"answered {dict(callers.answered)} failed {dict(callers.failed)}"
                    print(f"replaced {index + 1}: {told}", flush=True)
            num_repeated = proxy.total("wretr") + proxy.total("wredis")
            num_streams = proxy.num_logged(STREAM_PATH)
        return Outcome(
            answered=callers.answered,
            failed=callers.failed,
            exit_statuses=replicas.exit_statuses,
            num_streams=num_streams,
            num_repeated=num_repeated,
        )


def wait_for_more(callers: ConstantCallers, count: int = 20) -> None:
    """Wait for a number of further requests.

    Raises:
        TimeoutError: The requests did not finish in time.
    """
    enough, until = callers.num_asked + count, time.monotonic() + LIMIT_S
    while callers.num_asked < enough:
        if time.monotonic() > until:
            raise TimeoutError(f"{count} requests took too long; failed {dict(callers.failed)}")
        time.sleep(0.01)
