"""A pod that stops as its hooks say: callers leave the proxy first, then the server drains."""

import signal
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import grpc
import httpx
import pytest

from tests.processes.callers import Question, begin_rpc, grpc_outcome, until
from tests.processes.front import BEHIND, Front, sidecar
from tests.processes.server import LIMIT_S, start_server
from tipserve_client.generated.encoder_service_pb2_grpc import EncoderServiceStub

BALANCED = (
    ("grpc.lb_policy_name", "round_robin"),
    ("grpc.use_local_subchannel_pool", 1),
    # Of several addresses gRPC makes an authority that HAProxy refuses.
    ("grpc.default_authority", "tipserve"),
)


@contextmanager
def callers(fronts: Sequence[Front]) -> Iterator[Counter[str]]:
    """Two callers over each protocol; yields how their requests end."""
    ended, is_over = Counter[str](), threading.Event()
    address = "ipv4:" + ",".join(f"127.0.0.1:{front.grpc_port}" for front in fronts)

    def over_rest() -> None:
        """Ask the first of the pods, and the other once it is gone."""
        urls = [f"http://127.0.0.1:{front.http_port}/v1/texts:embed" for front in fronts]
        with httpx.Client(timeout=LIMIT_S) as client:
            while not is_over.is_set():
                try:
                    status = client.post(urls[0], json={"texts": ["a dog"]}).status_code
                # No longer an endpoint of the Service, or a kept connection closes in use.
                except (httpx.ConnectError, httpx.RemoteProtocolError):
                    urls.reverse()
                else:
                    ended[str(status)] += 1

    def over_grpc() -> None:
        """Ask the pods in turn."""
        with grpc.insecure_channel(address, BALANCED) as channel:
            stub = EncoderServiceStub(channel)
            while not is_over.is_set():
                asked = begin_rpc(stub, Question(texts=["a dog"]))
                ended[grpc_outcome(asked).status] += 1

    with ThreadPoolExecutor() as pool:
        asking = [pool.submit(ask) for ask in (over_rest, over_grpc) * 2]
        try:
            yield ended
        finally:
            is_over.set()
    for one in asking:
        one.result()


@pytest.mark.timeout(300)
def test_a_pod_that_stops_as_its_hooks_say_fails_no_request(tmp_path: Path) -> None:
    hook = sidecar()["lifecycle"]["preStop"]["exec"]["command"][-1]
    assert hook.endswith("kill -USR1 1")
    with ExitStack() as stack:
        pods = []
        for name in ("stops", "stays"):
            (tmp_path / name).mkdir()
            flags = ("--model=bundled-student", *BEHIND)
            server = stack.enter_context(start_server(*flags))
            front = Front(tmp_path / name, server.ports["http"], server.ports["grpc"])
            pods.append((server, stack.enter_context(front)))
        server, front = pods[0]
        ended = stack.enter_context(callers([front for _, front in pods]))
        until(lambda: ended.total() > 200, "callers are served")
        front.process.send_signal(signal.SIGUSR1)
        until(lambda: ended.total() > 300, "callers are served by the other")
        server.process.terminate()
        assert server.process.wait(LIMIT_S) == 0
        until(lambda: ended.total() > 350, "the pod is gone")
    assert set(ended) == {"200", "OK"}, ended
