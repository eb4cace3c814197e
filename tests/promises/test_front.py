"""Through the proxy: many large messages at once, a caller that leaves, and stops as hooks say."""

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

from tests.processes.callers import (
    PROTOCOLS,
    SMALL,
    Protocol,
    Question,
    ask,
    begin_rpc,
    grpc_outcome,
    rest_connection,
    rest_outcome,
    rest_request,
    until,
)
from tests.processes.front import BEHIND, Front
from tests.processes.server import LIMIT_S, Server, photo, start_server
from tipserve_client.generated.encoder_service_pb2_grpc import EncoderServiceStub

BALANCED = (("grpc.lb_policy_name", "round_robin"), ("grpc.use_local_subchannel_pool", 1))
UNLIMITED = (("grpc.max_receive_message_length", -1), ("grpc.use_local_subchannel_pool", 1))
# A message that stalls ends after 20 s, by the server.
STALL_S = 15.0
FLAGS = ("--model=bundled-student", "--image-cache-bytes=0", *BEHIND)


@pytest.fixture(scope="module")
def service() -> Iterator[Server]:
    """A server behind the proxy."""
    with start_server(*FLAGS) as service:
        yield service


@pytest.fixture
def front(service: Server, tmp_path: Path) -> Iterator[Front]:
    """The proxy."""
    with Front(tmp_path, (service.ports["http"], service.ports["grpc"])) as front:
        yield front


def image_of(num_bytes: int) -> bytes:
    """A small image in a file of so many bytes; decoders ignore what follows its end."""
    return SMALL + bytes(num_bytes - len(SMALL))


@pytest.mark.parametrize("num_bytes", [10_000, 137_000, 1_000_000, 8_000_000])
@pytest.mark.parametrize("num_threads", [3, 8, 64])
def test_many_messages_of_one_channel_do_not_wait_for_each_other(
    front: Front, num_threads: int, num_bytes: int
) -> None:
    question = Question(images=[image_of(num_bytes)], timeout_ms=int(1000 * STALL_S))
    num_each = 1 if num_bytes * num_threads > 64_000_000 else 3

    with grpc.insecure_channel(front.place.grpc, UNLIMITED) as channel:
        stub = EncoderServiceStub(channel)

        def repeat(_: int) -> Counter[str]:
            return Counter(grpc_outcome(begin_rpc(stub, question)).status for _ in range(num_each))

        with ThreadPoolExecutor(num_threads) as pool:
            ended = sum(pool.map(repeat, range(num_threads)), Counter[str]())
    # Refused at once, for want of memory, is no stall.
    assert set(ended) <= {"OK", "RESOURCE_EXHAUSTED"}, ended
    assert ended["OK"] >= (num_threads * num_each if num_bytes < 1_000_000 else 1), ended


def test_many_bodies_at_once_do_not_wait_for_each_other(front: Front) -> None:
    question = Question(images=[image_of(137_000)])

    def repeat(_: int) -> Counter[str]:
        connection = rest_connection(front.place)
        found = Counter[str]()
        for _ in range(3):
            connection.request(*rest_request(question))
            found[rest_outcome(connection).status] += 1
        connection.close()
        return found

    with ThreadPoolExecutor(64) as pool:
        ended = sum(pool.map(repeat, range(64)), Counter[str]())
    assert ended == {"200": 192}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_work_ends_with_its_caller(service: Server, front: Front, protocol: Protocol) -> None:
    """Who leaves behind the proxy is gone for the server: no further image of his is computed."""
    num_images = 8
    images = [photo(seed, size=(448, 448)) for seed in range(num_images)]

    def num_computed() -> float:
        return service.metric("tipserve_model_batch_items_total")

    before, abandoned = num_computed(), service.metric("tipserve_abandoned_total")
    asked = ask(front.place, protocol, Question(images=images, resolution=448))
    until(lambda: num_computed() > before, "it is being computed")
    asked.hang_up()
    until(lambda: service.metric("tipserve_inflight") == 0, "the server knows")
    assert service.metric("tipserve_abandoned_total") > abandoned
    assert num_computed() - before < num_images


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_stop_of_the_server_behind_it_loses_no_request_in_flight(
    tmp_path: Path, protocol: Protocol
) -> None:
    with (
        start_server(*FLAGS, "--lanes=1", is_ended=True) as server,
        Front(tmp_path, (server.ports["http"], server.ports["grpc"])) as front,
    ):
        question = Question(images=[image_of(137_000)] * 4, resolution=448)
        asked = [ask(front.place, protocol, question) for _ in range(9)]
        until(lambda: server.metric("tipserve_inflight") == 9, "all are in flight")
        server.process.send_signal(signal.SIGTERM)
        assert Counter(one.outcome().kind for one in asked) == {"served": 9}
        assert server.process.wait(LIMIT_S) == 0
        late = ask(front.place, protocol, Question()).outcome()
        assert late.kind == "unavailable"


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
                except (httpx.ConnectError, httpx.RemoteProtocolError, httpx.ReadError):
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
    with ExitStack() as stack:
        pods = []
        for name in ("stops", "stays"):
            (tmp_path / name).mkdir()
            flags = ("--model=bundled-student", *BEHIND)
            server = stack.enter_context(start_server(*flags))
            front = Front(tmp_path / name, (server.ports["http"], server.ports["grpc"]))
            pods.append((server, stack.enter_context(front)))
        server, front = pods[0]
        ended = stack.enter_context(callers([front for _, front in pods]))
        until(lambda: ended.total() > 200, "callers are served")
        front.leave()
        until(lambda: ended.total() > 300, "callers are served by the other")
        server.process.terminate()
        assert server.process.wait(LIMIT_S) == 0
        until(lambda: ended.total() > 350, "the pod is gone")
    assert set(ended) == {"200", "OK"}, ended


def test_replicas_are_changed_by_a_reload_and_a_crashed_one_is_passed_over(tmp_path: Path) -> None:
    with ExitStack() as stack:
        first, second = (stack.enter_context(start_server(*FLAGS, is_ended=True)) for _ in range(2))
        places = [(one.ports["http"], one.ports["grpc"]) for one in (first, second)]
        front = stack.enter_context(Front(tmp_path, *places))
        first.process.kill()
        first.process.wait(LIMIT_S)
        outcomes = [
            ask(front.place, protocol, Question()).outcome().kind
            for protocol in PROTOCOLS
            for _ in range(10)
        ]
        assert set(outcomes) == {"served"}
        third = stack.enter_context(start_server(*FLAGS))
        old = front.reload((third.ports["http"], third.ports["grpc"]))
        until(lambda: not old & set(front.pids), "nothing is left of before")
        second.process.kill()
        second.process.wait(LIMIT_S)
        for protocol in PROTOCOLS:
            assert ask(front.place, protocol, Question()).outcome().kind == "served"
