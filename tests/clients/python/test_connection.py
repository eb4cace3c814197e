"""Connections: addresses, retries within a deadline, and replicas behind one name."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from functools import partial
from typing import Any

import httpx2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from service.server import Server
from tests.clients.python.conftest import LIMIT_S, connected
from tests.service.conftest import Serving
from tipserve_client import (
    Client,
    DeadlineExceeded,
    InternalError,
    InvalidRequest,
    Overloaded,
    Retry,
    TipserveError,
)
from tipserve_client.connection import Attempts, Target, Tls, read_target

EMBEDDED = save({"cls1": np.ones((1, 1), np.float32)})


def refused(status: int, retry_after: str | None = None) -> httpx2.Response:
    headers = {"X-Request-Id": "id-1"} | ({"Retry-After": retry_after} if retry_after else {})
    error = {"message": "No.", "type": "x", "code": f"code_{status}", "param": None}
    return httpx2.Response(status, json={"error": error}, headers=headers)


def ok() -> httpx2.Response:
    return httpx2.Response(200, content=EMBEDDED)


Answer = httpx2.Response | Exception


class Script:
    """A server with scripted responses, and a clock that only pauses and responses advance."""

    def __init__(self, answers: Iterable[Answer], answer_s: float = 0.0) -> None:
        self.answers = iter(answers)
        self._answer_s = answer_s
        self.now = 0.0
        self.pauses: list[float] = []
        self.allowed_ms: list[int] = []

    def answer(self, request: httpx2.Request) -> httpx2.Response:
        self.allowed_ms.append(int(request.headers["x-request-timeout-ms"]))
        self.now += self._answer_s
        answer = next(self.answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds

    async def sleep_later(self, seconds: float) -> None:
        self.sleep(seconds)


Embed = Callable[..., Any]


@pytest.fixture(params=[False, True], ids=["sync", "aio"])
def ask(request: pytest.FixtureRequest) -> Embed:
    """Request one embedding from the script, with either client."""

    async def run(script: Script, *, is_partial: Any = False, **options: Any) -> Any:
        async with connected("http://stand-in", request.param, **options) as client:
            inner = getattr(client, "wrapped", client)
            inner._transport._client._transport = httpx2.MockTransport(script.answer)
            inner._transport._clock = inner._clock = lambda: script.now
            inner._sleep = script.sleep_later if request.param else script.sleep
            return await client.embed_images(b"image", partial=is_partial)

    return run


async def test_overload_and_lost_connections_are_retried_after_the_named_time(ask: Embed) -> None:
    lost = (httpx2.ConnectError("refused"), httpx2.RemoteProtocolError("closed"))
    script = Script([refused(429, "3"), refused(503, "2"), *lost, ok()])
    (embedding,) = await ask(script)
    assert embedding.cls1 == [1.0]
    first, second, *others = script.pauses
    assert 3 + 0.05 <= first <= 3 + 0.1
    assert 2 + 0.1 <= second <= 2 + 0.2
    assert len(others) == 2


@pytest.mark.parametrize(
    ("status", "retry_after", "kind"),
    [
        (422, "1", InvalidRequest),
        (500, "1", InternalError),
        (504, "1", DeadlineExceeded),
        (429, "30", Overloaded),  # the next attempt would start after the deadline
    ],
)
async def test_final_errors_are_not_retried(
    ask: Embed, status: int, retry_after: str, kind: type[TipserveError]
) -> None:
    script = Script([refused(status, retry_after), ok()])
    with pytest.raises(kind):
        await ask(script, timeout_s=5)
    assert not script.pauses


async def test_all_attempts_share_one_deadline_which_the_server_receives(ask: Embed) -> None:
    script = Script([refused(429, "2"), refused(429, "2"), ok()], answer_s=1.0)
    assert await ask(script, timeout_s=20)
    passed_ms = [20_000 - ms for ms in script.allowed_ms]
    assert passed_ms[0] == 0
    assert 3_000 < passed_ms[1] < 3_200
    assert 6_000 < passed_ms[2] < 6_500


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (partial(httpx2.Response, 402, text="<html>no</html>"), "http_402"),
        (partial(httpx2.Response, 200, content=b"<html>hello</html>"), "invalid_answer"),
        (partial(httpx2.Response, 200, content=b"[]"), "invalid_answer"),
        (partial(httpx2.Response, 200, content=b'{"data": [{}, 1]}'), "invalid_answer"),
        (partial(httpx2.DecodingError, "incorrect header check"), "invalid_answer"),
    ],
)
async def test_an_answer_of_another_kind_of_server_is_an_error(
    ask: Embed, answer: Callable[[], Answer], code: str
) -> None:
    for is_partial in (False, True):
        with pytest.raises(InternalError) as caught:
            await ask(Script([answer()]), is_partial=is_partial)
        assert caught.value.code == code


class Trickle(httpx2.SyncByteStream, httpx2.AsyncByteStream):
    """A body with one byte per second of the script's clock."""

    def __init__(self, script: Script, body: bytes) -> None:
        self._script, self._body = script, body
        self.num_sent = 0

    def __iter__(self) -> Iterator[bytes]:
        for byte in self._body:
            self._script.now += 1
            self.num_sent += 1
            yield bytes([byte])

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for part in self:
            yield part


async def test_the_deadline_bounds_a_slow_response(ask: Embed) -> None:
    script = Script([])
    body = Trickle(script, ok().content)
    script.answers = iter([httpx2.Response(200, stream=body)])
    with pytest.raises(DeadlineExceeded):
        await ask(script, timeout_s=10)
    assert body.num_sent == 12
    assert not script.pauses
    script.answers = iter([httpx2.Response(200, stream=Trickle(script, ok().content))])
    assert await ask(script, timeout_s=1000)


def test_options_of_other_methods_and_unknown_ones_are_errors() -> None:
    with Client("http://stand-in") as client:
        calls: list[tuple[str, Callable[..., Any]]] = [
            ("colour", client.embed_images),
            ("partial", client.stream_images),
            ("dtype", partial(client.segment, classes=["dog"])),
        ]
        for option, call in calls:
            with pytest.raises(TypeError, match=f"no option '{option}'"):
                call([b"x"], **{option: True})


@pytest.mark.parametrize("url", ["http://stand-in", "grpc://stand-in"])
async def test_a_window_has_room_for_an_image(url: str) -> None:
    with Client(url) as client, pytest.raises(ValueError, match="window"):
        client.stream_images([b"x"], window=0)


@settings(max_examples=50)
@given(
    asked=st.lists(st.none() | st.floats(0, 5), max_size=10),
    retry=st.builds(
        Retry,
        max_attempts=st.integers(1, 8),
        first_pause_s=st.floats(0.01, 1),
        max_pause_s=st.floats(0.01, 4),
    ),
    timeout_s=st.floats(0.1, 20),
    draw=st.floats(0, 1),
)
def test_pauses_are_bounded_and_never_reach_the_deadline(
    asked: list[float | None], retry: Retry, timeout_s: float, draw: float
) -> None:
    now = 0.0
    attempts = Attempts(retry, timeout_s, lambda: now, lambda: draw)
    num_pauses = 0
    for retry_after_s in asked:
        try:
            pause_s = attempts.pause_s(Overloaded("full", retry_after_s=retry_after_s))
        except Overloaded:
            break
        num_pauses += 1
        assert (retry_after_s or 0) <= pause_s <= (retry_after_s or 0) + retry.max_pause_s
        now += pause_s
        assert now < timeout_s
    assert num_pauses < retry.max_attempts


def num_answered(server: Server) -> float:
    """Requests that this replica has answered."""
    families = server.metrics.registry.collect()
    return sum(
        sample.value
        for family in families
        for sample in family.samples
        if sample.name == "tipserve_requests_total"
    )


@pytest.mark.parametrize("is_async", [False, True])
async def test_all_addresses_of_a_name_get_requests(
    serving: Serving, monkeypatch: pytest.MonkeyPatch, is_async: bool
) -> None:
    async with (
        serving(host="127.0.0.1") as one,
        serving(host="127.0.0.2", grpc_port=one.ports["grpc"]) as other,
    ):
        port = one.ports["grpc"]
        # What a headless Service's name resolves to.
        monkeypatch.setattr(Target, "address", f"ipv4:127.0.0.1:{port},127.0.0.2:{port}")
        async with connected("grpc://name", is_async) as client:
            # Both connections have to be open first.
            async with asyncio.timeout(LIMIT_S):
                while not (num_answered(one) and num_answered(other)):
                    await client.embed_texts(["a dog"])
            before = [num_answered(one), num_answered(other)]
            for _ in range(40):
                await client.embed_texts(["a dog"])
        shares = [num_answered(one) - before[0], num_answered(other) - before[1]]
    assert sum(shares) == 40
    assert min(shares) >= 10


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://host:8000", ("http", "host:8000", False)),
        ("https://host/tips/", ("http", "host:443", True)),
        ("grpc://host", ("grpc", "host:8001", False)),
        ("grpcs://[::1]:9", ("grpc", "[::1]:9", True)),
    ],
)
def test_a_url_names_host_and_protocol(url: str, expected: tuple[str, str, bool]) -> None:
    target = read_target(url)
    assert (target.protocol, target.address, target.is_secure) == expected


@pytest.mark.parametrize(
    ("url", "tls", "complaint"),
    [
        ("host:8000", None, "write http://"),
        ("ftp://host", None, "write http://"),
        ("http://", None, "write http://"),
        ("grpc://host/path", None, "give only host"),
        ("http://key@host", None, "give only host"),
        ("http://host", Tls(), "is not encrypted"),
        ("https://host", Tls(cert="a.pem"), "both cert and key"),
    ],
)
def test_an_invalid_target_is_refused(url: str, tls: Tls | None, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        read_target(url, tls=tls)


@pytest.mark.parametrize("key", ["a-key-of-a-file\n", "schlüssel", "two\tparts"])
def test_a_key_that_cannot_be_sent_is_refused_and_not_shown(key: str) -> None:
    with pytest.raises(ValueError, match="api_key") as caught:
        read_target("http://host", api_key=key)
    assert key.strip() not in str(caught.value)
    assert "a-good-key" not in repr(read_target("http://host", api_key="a-good-key"))
