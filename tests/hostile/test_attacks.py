"""Strangers attack through the proxy: the server lives, and others are served."""

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import httpx
import pytest

from service.grpc.generated.embed_pb2 import EmbedImagesRequest
from service.grpc.generated.encoder_service_pb2_grpc import EncoderServiceStub
from service.grpc.generated.image_pb2 import Image
from tests.hostile.attacks import ATTACKS, Attack, png
from tests.processes.front import BEHIND, Front
from tests.processes.server import Server, peak_mib, start_server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
FLAGS = ("--model=bundled-student", "--image-cache-bytes=0")
LIMIT_S = 60.0
PAUSE_S = 0.2
MAX_PEAK_MIB = {"server": 1024, "proxy": 192}
# An attack lasts 10 s, and a caller is let in within 5 s.
LEAST_CALLS = 2


@pytest.fixture(scope="module")
def service() -> Iterator[Server]:
    """A server behind the proxy."""
    with start_server(*FLAGS, *BEHIND) as service:
        yield service


@pytest.mark.parametrize(
    "attack",
    ATTACKS,
    ids=lambda attack: attack.__name__,
)
def test_an_attack_kills_nothing_and_keeps_nobody_out(
    attack: Attack, service: Server, tmp_path: Path
) -> None:
    image, ended = png(64), Counter[str]()
    is_over = threading.Event()
    ports = (service.ports["http"], service.ports["grpc"])
    with (
        Front(tmp_path, ports) as front,
        grpc.insecure_channel(f"127.0.0.1:{front.grpc_port}") as channel,
        httpx.Client(timeout=LIMIT_S) as client,
    ):
        stub = EncoderServiceStub(channel)
        rest = f"http://127.0.0.1:{front.http_port}/v1/images:embed"
        live = service.ready.replace("ready", "live")
        headers = {"Content-Type": "image/png"}

        def over_rest() -> None:
            client.post(rest, content=image, headers=headers).raise_for_status()

        def over_grpc() -> None:
            stub.EmbedImages(EmbedImagesRequest(images=[Image(encoded=image)]), timeout=LIMIT_S)

        def probe() -> None:
            httpx.get(live, timeout=LIMIT_S).raise_for_status()

        def repeat(ask: Callable[[], None]) -> None:
            while not is_over.wait(PAUSE_S):
                try:
                    ask()
                    ended[ask.__name__] += 1
                except (httpx.HTTPError, grpc.RpcError) as error:
                    ended[f"{ask.__name__}: {error!r}"] += 1

        asks = (over_rest, over_grpc, probe)
        threads = [threading.Thread(target=repeat, args=(ask,)) for ask in asks]
        pid = service.process.pid
        peak_mib(pid, reset=True)
        front.peak_mib(reset=True)
        for thread in threads:
            thread.start()
        attack(front.http_port, front.grpc_port)
        is_over.set()
        for thread in threads:
            thread.join()
        peaks_mib = {"server": peak_mib(pid), "proxy": front.peak_mib()}
    print(attack.__name__, ended, peaks_mib)
    assert set(ended) == {ask.__name__ for ask in asks}, ended
    assert min(ended.values()) >= LEAST_CALLS
    assert all(peaks_mib[name] < most for name, most in MAX_PEAK_MIB.items()), peaks_mib
