"""A pod that stops as its hooks say: callers leave the proxy first, then the server drains."""

import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from service.grpc.generated import embed_pb2
from service.grpc.generated.encoder_service_pb2_grpc import EncoderServiceStub
from tests.processes.callers import until
from tests.processes.front import BEHIND, Front, sidecar
from tests.processes.server import start_server

LIMIT_S = 60.0
NUM_STOPS = 1


def over_rest(fronts: list[Front], stack: ExitStack) -> Callable[[], object]:
    """Ask the first of the pods, and the other once it is gone."""
    urls = [f"http://127.0.0.1:{front.http_port}/v1/texts:embed" for front in fronts]
    client = stack.enter_context(httpx.Client(timeout=LIMIT_S))

    def ask() -> None:
        try:
            answer = client.post(urls[0], json={"texts": ["a dog"]})
        # No longer an endpoint of the Service, or a kept connection closes as it is used.
        except (httpx.ConnectError, httpx.RemoteProtocolError):
            urls.reverse()
        else:
            answer.raise_for_status()

    return ask


def over_grpc(fronts: list[Front], stack: ExitStack) -> Callable[[], object]:
    """Ask the pods in turn."""
    target = "ipv4:" + ",".join(f"127.0.0.1:{front.grpc_port}" for front in fronts)
    options = [("grpc.lb_policy_name", "round_robin"), ("grpc.use_local_subchannel_pool", 1)]
    # Of several addresses gRPC makes an authority that HAProxy refuses.
    options += [("grpc.default_authority", "tipserve")]
    stub: Any = EncoderServiceStub(stack.enter_context(grpc.insecure_channel(target, options)))
    texts = embed_pb2.EmbedTextsRequest(texts=["a dog"])
    return lambda: stub.EmbedTexts(texts, timeout=LIMIT_S)


@contextmanager
def callers(fronts: list[Front]) -> Iterator[Counter[str]]:
    """Two callers over each protocol; yields how their requests end."""
    ended, is_over = Counter[str](), threading.Event()

    def call(prepare: Callable[[list[Front], ExitStack], Callable[[], object]]) -> None:
        with ExitStack() as stack:
            ask = prepare(fronts, stack)
            while not is_over.is_set():
                try:
                    ask()
                    ended["OK"] += 1
                except (grpc.RpcError, httpx.HTTPError) as error:
                    ended[repr(error)] += 1

    threads = [threading.Thread(target=call, args=(each,)) for each in (over_rest, over_grpc) * 2]
    for thread in threads:
        thread.start()
    try:
        yield ended
    finally:
        is_over.set()
        for thread in threads:
            thread.join()


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
                service = stack.enter_context(start_server(*flags))
                front = Front(folder, service.ports["http"], service.ports["grpc"])
                pods.append((service, stack.enter_context(front)))
            service, front = pods[0]
            ended = stack.enter_context(callers([front for _, front in pods]))
            until(lambda: ended.total() > 200, "callers are served")  # noqa: B023
            front.process.send_signal(signal.SIGUSR1)
            until(lambda: ended.total() > 300, "callers are served by the other")  # noqa: B023
            service.process.terminate()
            assert service.process.wait(LIMIT_S) == 0
            until(lambda: ended.total() > 350, "the pod is gone")  # noqa: B023
        assert set(ended) == {"OK"}, ended
