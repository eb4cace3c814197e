"""A pod that stops as its hooks say: callers leave the proxy first, then the server drains."""

import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from service.grpc.generated import embed_pb2
from service.grpc.generated.encoder_service_pb2_grpc import EncoderServiceStub
from tests.processes.front import BEHIND, Front, sidecar
from tests.processes.service_process import running_service

LIMIT_S = 60.0
NUM_STOPS = 2


class Callers:
    """Callers of two servers over both protocols; they count how their requests end."""

    def __init__(self, fronts: list[Front]) -> None:
        self.ended: Counter[str] = Counter()
        self._is_over = threading.Event()
        self._fronts = fronts
        self._threads = [
            threading.Thread(target=call) for call in (self._over_rest, self._over_grpc) * 2
        ]

    def __enter__(self) -> "Callers":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join()

    def wait_for(self, num_more: int) -> None:
        """Return when so many more requests have ended."""
        wanted, until = self.ended.total() + num_more, time.monotonic() + LIMIT_S
        while self.ended.total() < wanted and time.monotonic() < until:
            time.sleep(0.01)

    def _repeat(self, ask: Callable[[], object]) -> None:
        while not self._is_over.is_set():
            try:
                ask()
                self.ended["OK"] += 1
            except (grpc.RpcError, httpx.HTTPError) as error:
                self.ended[repr(error)] += 1

    def _over_rest(self) -> None:
        urls = [f"http://127.0.0.1:{front.http_port}/v1/texts:embed" for front in self._fronts]
        with httpx.Client(timeout=LIMIT_S) as client:

            def ask() -> None:
                try:
                    answer = client.post(urls[0], json={"texts": ["a dog"]})
                # No longer an endpoint of the Service, or a kept connection closes as it is used.
                except (httpx.ConnectError, httpx.RemoteProtocolError):
                    urls.reverse()
                else:
                    answer.raise_for_status()

            self._repeat(ask)

    def _over_grpc(self) -> None:
        target = "ipv4:" + ",".join(f"127.0.0.1:{front.grpc_port}" for front in self._fronts)
        options = [("grpc.lb_policy_name", "round_robin"), ("grpc.use_local_subchannel_pool", 1)]
        # Of several addresses gRPC makes an authority that HAProxy refuses.
        options += [("grpc.default_authority", "tipserve")]
        texts = embed_pb2.EmbedTextsRequest(texts=["a dog"])
        with grpc.insecure_channel(target, options) as channel:
            stub: Any = EncoderServiceStub(channel)
            self._repeat(lambda: stub.EmbedTexts(texts, timeout=LIMIT_S))


@pytest.mark.timeout(300)
def test_a_pod_that_stops_as_its_hooks_say_fails_no_request(tmp_path: Path) -> None:
    hook = sidecar()["lifecycle"]["preStop"]["exec"]["command"][-1]
    assert hook.endswith("kill -USR1 1")
    for number in range(NUM_STOPS):
        with ExitStack() as stack:
            pods = []
            for name in ("stops", "stays"):
                folder = tmp_path / f"{name}{number}"
                folder.mkdir()
                flags = ("--model=bundled-student", *BEHIND)
                service = stack.enter_context(running_service(*flags))
                front = Front(folder, service.http_port, service.grpc_port)
                pods.append((service, stack.enter_context(front)))
            service, front = pods[0]
            callers = stack.enter_context(Callers([front for _, front in pods]))
            callers.wait_for(200)
            front.process.send_signal(signal.SIGUSR1)
            callers.wait_for(100)
            service.process.terminate()
            assert service.process.wait(LIMIT_S) == 0
            callers.wait_for(50)
        assert set(callers.ended) == {"OK"}, callers.ended
