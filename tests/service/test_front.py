"""A server behind the sidecar of deploy/kubernetes/components/front, with its own configuration."""

import asyncio
import io
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
import trustme
from PIL import Image

from benchmarks.http2_attacks import (
    DATA,
    END_HEADERS,
    END_STREAM,
    FIRST_WINDOW,
    HEADERS,
    SEGMENT,
    WATCH,
    Connection,
    frame,
    header,
    prefixed,
    request_headers,
)
from service.call import Call
from service.grpc.connections import open_connections, parse_peer
from service.grpc.generated import encoder_service_pb2, image_pb2, segment_pb2
from service.grpc.generated.encoder_service_pb2_grpc import EncoderServiceStub
from service.monitoring.telemetry import Telemetry
from service.server import Server
from tests.processes.front import Front
from tests.service.conftest import Serving, until
from tests.tools import find_tool

LIMIT_S = 30.0
LIST = "/tipserve.v1.EncoderService/ListModels"
# Of the flow, and of the server's address.
SETTINGS = {"grpc_host": "127.0.0.1", "trusted_proxies": "127.0.0.1"}


class Raw(Connection):
    """A caller from 127.0.0.2, whose flow-control window is the smallest and stays so."""

    def __init__(self, port: int) -> None:
        self.ended = threading.Event()
        self.num_received = 0
        super().__init__(port)

    def ask(self, method: str, message: bytes = b"", *, stream: int = 1, more: bytes = b"") -> None:
        """Begin an RPC."""
        block = request_headers(method, key="") + more
        self.send_frames(frame(HEADERS, block, flags=END_HEADERS, stream=stream))
        self.send_frames(frame(DATA, prefixed(message), flags=END_STREAM, stream=stream))

    def _end(self, stream: int) -> None:
        self.ended.set()

    def _receive_data(self, num_bytes: int) -> None:
        self.num_received += num_bytes

    def receive_until_full(self) -> None:
        """Read frames until the window is used up."""
        self._socket.settimeout(LIMIT_S)
        while self.num_received < FIRST_WINDOW:
            self.receive()

    def receive_until_ended(self) -> None:
        """Read frames until the RPC or the connection ends."""
        self._socket.settimeout(LIMIT_S)
        while not self.ended.is_set():
            try:
                self.receive()
            except OSError:
                return


@contextmanager
def front_of(server: Server, folder: Path, **variables: str) -> Iterator[Front]:
    with Front(find_tool("haproxy"), folder, server.ports["grpc"], **variables) as front:
        yield front


@contextmanager
def caller(front: Front) -> Iterator[Raw]:
    made = Raw(front.port)
    try:
        yield made
    finally:
        made.close()


def channel_of(front: Front) -> Any:
    options = [("grpc.use_local_subchannel_pool", 1)]
    return grpc.aio.insecure_channel(f"127.0.0.1:{front.port}", options=options)


async def list_models(channel: Any, **metadata: str) -> None:
    request = encoder_service_pb2.ListModelsRequest()
    given = tuple((name.replace("_", "-"), value) for name, value in metadata.items())
    await EncoderServiceStub(channel).ListModels(request, timeout=LIMIT_S, metadata=given)


async def test_callers_behind_the_front_are_flows_of_their_own(
    serving: Serving, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Call] = []
    end = Telemetry.end

    def record(telemetry: Telemetry, call: Call, *args: Any, **named: Any) -> None:
        calls.append(call)
        end(telemetry, call, *args, **named)

    monkeypatch.setattr(Telemetry, "end", record)
    async with serving(**SETTINGS) as server:
        with front_of(server, tmp_path) as front, caller(front) as other:
            async with channel_of(front) as channel:
                await list_models(channel)
                await list_models(channel, x_forwarded_for="203.0.113.7")
            other.ask(LIST, more=header(b"x-forwarded-for", b"203.0.113.7, 203.0.113.8"))
            await asyncio.to_thread(other.receive_until_ended)
            await until(lambda: len(calls) == 3)
    assert [call.host for call in calls] == ["127.0.0.1", "127.0.0.1", "127.0.0.2"]
    assert len({call.flow for call in calls}) == 2


def flat_png(side: int) -> bytes:
    """A large image that fits into one frame."""
    buffer = io.BytesIO()
    Image.new("RGB", (side, side)).save(buffer, "PNG")
    return buffer.getvalue()


def large_answer() -> bytes:
    """A request whose answer has two megabytes."""
    request = segment_pb2.SegmentImagesRequest(
        images=[image_pb2.Image(encoded=flat_png(700))],
        classes=[segment_pb2.SegmentClass(name="dog")],
        include_scores=True,
    )
    return request.SerializeToString()


async def test_an_unread_answer_stops_no_other_caller(serving: Serving, tmp_path: Path) -> None:
    async with serving(**SETTINGS) as server:
        with front_of(server, tmp_path) as front, ExitStack() as stack:
            async with channel_of(front) as channel:
                await list_models(channel)
                for stuck in [stack.enter_context(caller(front)) for _ in range(4)]:
                    stuck.ask(SEGMENT, large_answer())
                    await asyncio.to_thread(stuck.receive_until_full)
                for _ in range(5):
                    await list_models(channel)
                assert server._grpc._calls.rpcs.busy_peers()


async def test_an_unread_answer_ends_and_other_callers_rpcs_do_not(
    serving: Serving, tmp_path: Path
) -> None:
    limits = {"request_timeout_s": 2.0, "client_timeout_s": 0.1}
    async with serving(**SETTINGS, **limits) as server:
        rpcs, port = server._grpc._calls.rpcs, server.ports["grpc"]
        with front_of(server, tmp_path) as front, caller(front) as stuck:
            async with channel_of(front) as channel, asyncio.timeout(LIMIT_S):
                watch: Any = channel.unary_stream(WATCH)(b"", timeout=LIMIT_S)
                await watch.read()
                stuck.ask(SEGMENT, large_answer())
                await until(lambda: bool(rpcs.busy_peers()))
                (peer,) = map(parse_peer, rpcs.busy_peers())
                assert peer in {one.peer for one in open_connections(port)}
                while peer in {one.peer for one in open_connections(port)}:
                    await list_models(channel)
                assert not watch.done()
                watch.cancel()


async def test_the_front_ends_tls(serving: Serving, tmp_path: Path) -> None:
    ca = trustme.CA()
    leaf = ca.issue_cert("localhost")
    files = {"tls_cert": tmp_path / "tls.crt", "tls_key": tmp_path / "tls.key"}
    files["tls_key"].write_bytes(leaf.private_key_pem.bytes())
    files["tls_cert"].write_bytes(b"".join(pem.bytes() for pem in leaf.cert_chain_pems))
    credentials = grpc.ssl_channel_credentials(ca.cert_pem.bytes())
    async with serving(**SETTINGS, **files) as server:
        certificate = {"PROXY_TLS_CERT": str(files["tls_cert"])}
        with front_of(server, tmp_path, **certificate) as front:
            async with grpc.aio.secure_channel(f"localhost:{front.port}", credentials) as channel:
                await list_models(channel)
        async with httpx.AsyncClient(verify=False, timeout=LIMIT_S) as client:
            url = f"https://127.0.0.1:{server.ports['http']}/v2/health/ready"
            assert (await client.get(url)).status_code == 200


async def test_one_address_does_not_take_all_rpcs(serving: Serving, tmp_path: Path) -> None:
    async with serving(**SETTINGS) as server:
        limit = {"PROXY_RPCS_PER_ADDRESS": "5"}
        with front_of(server, tmp_path, **limit) as front, caller(front) as greedy:
            for number in range(8):
                greedy.ask(WATCH, stream=2 * number + 1)
            async with channel_of(front) as channel:
                statuses: Counter[str] = Counter()
                watches = []
                for _ in range(8):
                    watch: Any = channel.unary_stream(WATCH)(b"", timeout=LIMIT_S)
                    watches.append(watch)
                    try:
                        await watch.read()
                        statuses["OK"] += 1
                    except grpc.aio.AioRpcError as error:
                        statuses[error.code().name] += 1
                for watch in watches:
                    watch.cancel()
    assert statuses == {"OK": 5, "RESOURCE_EXHAUSTED": 3}
